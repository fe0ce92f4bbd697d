"""Theorem 1 needs F to decrease enough (eq. 10) and its subgradient to be small enough (eq. 19).

Both are checked at every iteration on a network that satisfies Assumption 1: batch norm, and
Remark 1's smooth softplus and softmax pooling. All pictures are one batch, and there is neither
momentum nor weight decay.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from utils.slimming import ProximalSlimming

SEED = 0
STEPS = 240
LAMBDA, BETA = 0.06, 0.3
SHARPNESS = 4.0  # Remark 1's c
# Power iteration approaches the largest curvature from below, and only sampled points are looked
# at, so what it finds is raised by this factor.
MARGIN = 1.05
# F is of order 1 and its differences are exact to some 1e-16.
ROUNDING = 1e-13


class SoftmaxPool(nn.Module):
    """Remark 1's smooth 2 × 2 max pooling: Σ x·exp(cx) / Σ exp(cx)."""

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(4)
        return (windows * (SHARPNESS * windows).softmax(4)).sum(4)


class Problem:
    """32 noisy 4 × 4 pictures of four textures, and a network that is to tell the textures."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.labels = torch.arange(32) % 4
        stripes = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(4, 4)
        textures = torch.stack([stripes, stripes.T, stripes * stripes.T, torch.zeros(4, 4)])
        self.pictures = (textures[self.labels] + 0.3 * torch.randn(32, 4, 4)).unsqueeze(1).double()
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
        # Every output starts too high by about as much: an error that is removed along the
        # stiffest direction, so that a step that is too long for it is seen at once.
        nn.init.constant_(self.model[-1].bias, 1.0)

    def loss(self, weights: dict[str, Tensor]) -> Tensor:
        """Half the mean squared error, whose curvature does not fade as the pictures are learnt."""
        outputs = functional_call(self.model, weights, (self.pictures,))
        targets = nn.functional.one_hot(self.labels, 4)
        return (outputs - targets).square().sum(1).mean() / 2

    def gradient(self, flat: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """The loss at (W, γ) = ``flat``, and its gradient there."""
        named = dict(self.model.named_parameters())
        parts = flat.split([p.numel() for p in named.values()])
        shaped = [part.view_as(p) for part, p in zip(parts, named.values(), strict=True)]
        loss = self.loss(dict(zip(named, shaped, strict=True)))
        return loss, torch.autograd.grad(loss, flat, create_graph=create_graph)[0]


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
    """F and ∂F's element of least norm, from the weights that the model has and from ξ alone."""
    named = dict(problem.model.named_parameters())
    flat = torch.cat([p.detach().flatten() for p in named.values()]).requires_grad_()
    is_gamma = torch.cat(
        [torch.full((p.numel(),), name == "1.weight") for name, p in named.items()]
    )
    loss, smooth = problem.gradient(flat)
    gap = flat.detach()[is_gamma] - xi
    objective = loss.item() + (LAMBDA * xi.abs().sum() + BETA / 2 * gap.square().sum()).item()
    smooth[is_gamma] += BETA * gap  # (20a) and (20b)
    # (20c): where ξ = 0 its first term may be anything from −λ to λ.
    pull = BETA * gap
    toward = torch.where(xi == 0, pull.clamp(-LAMBDA, LAMBDA), LAMBDA * xi.sign())
    return Iterate(flat.detach(), xi.clone(), objective, torch.cat([smooth, toward - pull]))


def iterates(problem: Problem, method: type[ProximalSlimming], alpha: float) -> Iterator[Iterate]:
    """Z¹, Z², ...: what ``method`` and plain SGD make of ``problem``, as the program runs them."""
    slimming = method(problem.model, LAMBDA, BETA)
    optimizer = torch.optim.SGD(
        problem.model.parameters(), lr=1 / alpha, momentum=0, weight_decay=0
    )
    yield observe(problem, slimming.xi)
    for _ in range(STEPS):
        optimizer.zero_grad()
        problem.loss(dict(problem.model.named_parameters())).backward()
        slimming.on_gradient()
        optimizer.step()
        slimming.on_step(alpha)
        yield observe(problem, slimming.xi)


def curvature(problem: Problem, points: list[Tensor]) -> float:
    """The largest |eigenvalue| of the loss's Hessian in (W, γ) over ``points``."""
    largest = 0.0
    direction = torch.ones_like(points[0])
    for number, point in enumerate(points):
        flat = point.clone().requires_grad_()
        gradient = problem.gradient(flat, create_graph=True)[1]
        # A point's direction is almost its neighbour's, so only the first needs many rounds.
        for _ in range(4 if number else 100):
            direction = direction / direction.norm()
            direction = torch.autograd.grad(gradient, flat, direction, retain_graph=True)[0]
        largest = max(largest, direction.norm().item())
    return largest


@pytest.fixture(scope="module")
def steps() -> tuple[float, float]:
    """α, and the L of the run that α makes, over its iterates and halfway between them."""
    problem = Problem()
    start = observe(problem, torch.zeros(16)).weights
    alpha = 1.5 * MARGIN * curvature(problem, [start])
    run = [iterate.weights for iterate in iterates(problem, ProximalSlimming, alpha)]
    points = [point for a, b in pairwise(run) for point in (a, (a + b) / 2)]
    return alpha, MARGIN * curvature(problem, [*points, run[-1]])


def check(method: type[ProximalSlimming], alpha: float, lipschitz: float) -> None:
    """Lemmas 3 and 4 at every iteration, and what they are for: F falls and ξ reaches zero."""
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
    def on_step(self, alpha: float) -> None:
        self.gamma.sub_(self.xi, alpha=2 * self.beta / alpha)
        super().on_step(alpha)


def test_a_wrong_sign_in_step_2_fails(steps: tuple[float, float]) -> None:
    with pytest.raises(AssertionError, match=r"\(10\)"):
        check(WrongSign, *steps)


@pytest.mark.parametrize("fraction", [0.4, 0.25])
def test_too_small_an_alpha_fails(steps: tuple[float, float], fraction: float) -> None:
    # Not (10): for α < L its right-hand side is positive, and Lemma 2 gives it for any α. With
    # α < L/2 the step overshoots by more than it corrects, and F itself goes up.
    lipschitz = steps[1]
    with pytest.raises(AssertionError, match="F does not decrease"):
        check(ProximalSlimming, fraction * lipschitz, lipschitz)
