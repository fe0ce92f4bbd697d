"""Theorem 1 needs F to decrease enough (eq. 10) and its subgradient to be small enough (eq. 19).

Both are checked at every iteration on a model that satisfies Assumption 1: batch norm, and
Remark 1's smooth softplus and softmax pooling. All images are one batch, without momentum or
weight decay.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import netslim
from utils.methods.slimming import ProximalSlimming
from utils.paper.settings import XI_INIT

SEED = 0
STEPS = 240
LAMBDA, BETA = 0.08, 1.0
SHARPNESS = 4.0  # Remark 1's c
# Power iteration approaches the largest curvature from below, and at sampled points only.
MARGIN = 1.05
# F is of order 1 and its differences are exact to some 1e-16.
ROUNDING = 1e-13


class SoftmaxPool(nn.Module):
    """Remark 1's smooth 2 × 2 max pooling: Σ x·exp(cx) / Σ exp(cx)."""

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(4)
        return (windows * (SHARPNESS * windows).softmax(4)).sum(4)


class Problem:
    """32 noisy 4 × 4 images of four textures, and a model that classifies them."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.labels = torch.arange(32) % 4
        stripes = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(4, 4)
        textures = torch.stack([stripes, stripes.T, stripes * stripes.T, torch.zeros(4, 4)])
        self.images = (textures[self.labels] + 0.3 * torch.randn(32, 4, 4)).unsqueeze(1).double()
        channels = 16
        self.model = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Softplus(SHARPNESS),
            SoftmaxPool(),
            SoftmaxPool(),
            nn.Flatten(),
            nn.Linear(channels, 4),
        ).double()
        nn.init.constant_(self.model[1].weight, 0.5)
        self.named = dict(self.model.named_parameters())

    def weights(self) -> Tensor:
        """Returns (W, γ) as one vector."""
        return torch.cat([p.detach().flatten() for p in self.named.values()])

    def is_gamma(self) -> Tensor:
        """Returns which of :meth:`weights` are γ."""
        gamma = self.model[1].weight
        return torch.cat([torch.full((p.numel(),), p is gamma) for p in self.named.values()])

    def loss(self, outputs: Tensor) -> Tensor:
        """Half the mean squared error, whose curvature does not fade as cross-entropy's does."""
        targets = nn.functional.one_hot(self.labels, 4)
        return (outputs - targets).square().sum(1).mean() / 2

    def loss_at(self, weights: Tensor) -> Tensor:
        """Returns the loss at any (W, γ)."""
        parts = weights.split([p.numel() for p in self.named.values()])
        shaped = {
            name: part.view_as(p) for (name, p), part in zip(self.named.items(), parts, strict=True)
        }
        return self.loss(functional_call(self.model, shaped, (self.images,)))


class Iterate(NamedTuple):
    """Z = (W, γ, ξ), with F and an element of ∂F there."""

    weights: Tensor  # (W, γ)
    xi: Tensor
    objective: float
    subgradient: Tensor

    def distance(self, other: "Iterate") -> float:
        weights, xi = self.weights - other.weights, self.xi - other.xi
        return torch.cat([weights, xi]).norm().item()


def observe(problem: Problem, xi: Tensor) -> Iterate:
    """Returns the iterate with F and the element of ∂F of least norm."""
    weights = problem.weights().requires_grad_()
    loss = problem.loss_at(weights)
    (subgradient,) = torch.autograd.grad(loss, weights)  # (20a)
    is_gamma = problem.is_gamma()
    pull = BETA * (weights.detach()[is_gamma] - xi)
    subgradient[is_gamma] += pull  # (20b)
    # (20c): where ξ = 0, ∂|ξ| is [−1, 1], and the element nearest to the pull is chosen.
    sparsity = torch.where(xi == 0, pull.clamp(-LAMBDA, LAMBDA), LAMBDA * xi.sign())
    penalty = LAMBDA * xi.abs().sum() + pull.square().sum() / (2 * BETA)
    return Iterate(
        weights.detach(),
        xi.clone(),
        (loss + penalty).item(),
        torch.cat([subgradient, sparsity - pull]),
    )


def iterates(problem: Problem, method: type[ProximalSlimming], alpha: float) -> Iterator[Iterate]:
    """Yields Z¹, Z², ... of ``method`` with plain SGD."""
    slimming = method(netslim.analyze(problem.model, problem.images), LAMBDA, BETA, xi_init=XI_INIT)
    optimizer = torch.optim.SGD(
        problem.model.parameters(), lr=1 / alpha, momentum=0, weight_decay=0
    )
    yield observe(problem, slimming.xi)
    for _ in range(STEPS):
        optimizer.zero_grad()
        problem.loss(problem.model(problem.images)).backward()
        slimming.before_step()
        optimizer.step()
        slimming.step(1 / alpha)
        yield observe(problem, slimming.xi)


def curvature(problem: Problem, points: list[Tensor]) -> float:
    """Returns the gradient's Lipschitz constant over ``points`` (Assumption 1b).

    It is the largest |eigenvalue| of the loss's Hessian in (W, γ), by power iteration.
    """
    largest = 0.0
    direction = torch.ones_like(points[0])
    for number, point in enumerate(points):
        weights = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.loss_at(weights), weights, create_graph=True)
        # The direction is almost that of the point before.
        for _ in range(4 if number else 100):
            direction = direction / direction.norm()
            (direction,) = torch.autograd.grad(gradient, weights, direction, retain_graph=True)
        largest = max(largest, direction.norm().item())
    return largest


@pytest.fixture(scope="module")
def steps() -> tuple[float, float]:
    """Returns α, and L over the iterates of that run and halfway between them."""
    problem = Problem()
    # The curvature is largest at the start, or almost.
    alpha = 1.5 * MARGIN * curvature(problem, [problem.weights()])
    run = [iterate.weights for iterate in iterates(problem, ProximalSlimming, alpha)]
    points = [point for a, b in pairwise(run) for point in (a, (a + b) / 2)]
    return alpha, MARGIN * curvature(problem, [*points, run[-1]])


def check(method: type[ProximalSlimming], alpha: float, lipschitz: float) -> None:
    """Asserts lemmas 3 and 4 at every iteration, that F falls, and that ξ gets zeros."""
    for before, after in pairwise(iterates(Problem(), method, alpha)):
        change = after.objective - before.objective
        distance = after.distance(before)
        decrease = (lipschitz - alpha) / 2 * distance**2
        assert change <= decrease + ROUNDING, "(10): F decreases too little"
        relative_error = (3 * alpha + 2 * lipschitz + BETA) * distance
        assert after.subgradient.norm() <= relative_error + ROUNDING, "(19): ∂F is too large"
        assert change < 0, "F does not decrease"
    zeros = int((after.xi == 0).sum())
    assert 0 < zeros < after.xi.numel(), "ξ has no zeros, or nothing else"


def test_iterates_satisfy_lemmas_3_and_4(steps: tuple[float, float]) -> None:
    alpha, lipschitz = steps
    assert lipschitz < alpha <= 2 * lipschitz
    check(ProximalSlimming, alpha, lipschitz)


class WrongSign(ProximalSlimming):
    """γ ← (αγ − βξ)/(α + β) in step 2."""

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.write(self.read() - 2 * self.beta * lr * self.xi)
        super().step(lr)


def test_a_wrong_sign_in_step_2_fails(steps: tuple[float, float]) -> None:
    # γ is driven away from ξ, so the quadratic penalty grows.
    with pytest.raises(AssertionError, match=r"\(10\)"):
        check(WrongSign, *steps)


def test_too_small_an_alpha_fails(steps: tuple[float, float]) -> None:
    # A step overshoots along the stiffest direction. (10) and (19) still hold, but for α < L the
    # right-hand side of (10) is positive.
    lipschitz = steps[1]
    with pytest.raises(AssertionError, match="F does not decrease"):
        check(ProximalSlimming, lipschitz / 4, lipschitz)
