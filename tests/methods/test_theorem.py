"""Theorem 1 needs F to decrease enough (eq. 10) and its subgradient to be small enough (eq. 19).

Both are checked at every iteration on a loss of known curvature, without momentum.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from chains import chain
from torch import Tensor

from utils.methods.slimming import ProximalSlimming
from utils.paper.settings import XI_INIT

CHANNELS, LAMBDA, BETA = 50, 0.3, 1.0
LIPSCHITZ = 2.0  # of the gradient of Σ½a(γ − c)², the largest a
ALPHA = 1.5 * LIPSCHITZ  # between L and 2L
ROUNDING = 1e-13  # F is of order 10, and its differences are exact to some 1e-15


class Iterate(NamedTuple):
    """Z = (γ, ξ), with F and the element of ∂F of least norm there."""

    z: Tensor
    objective: float
    subgradient: Tensor


def iterates(kind: type[ProximalSlimming], alpha: float) -> Iterator[Iterate]:
    """Yields Z¹, Z², ... of ``kind`` with plain SGD."""
    torch.manual_seed(0)
    a = torch.linspace(0.5, LIPSCHITZ, CHANNELS, dtype=torch.float64)
    c = 0.6 * torch.rand(CHANNELS, dtype=torch.float64)
    graph = chain(CHANNELS, dtype=torch.float64)
    graph.norms["1"].weight.data.fill_(0.5)
    method = kind(graph, LAMBDA, BETA, xi_init=XI_INIT)
    for _ in range(100):
        gamma, xi = method.read().clone(), method.xi.clone()
        pull = BETA * (gamma - xi)
        # (20c): where ξ = 0, ∂|ξ| is [−1, 1], and the element nearest to the pull is chosen.
        sparsity = torch.where(xi == 0, pull.clamp(-LAMBDA, LAMBDA), LAMBDA * xi.sign())
        loss = (a * (gamma - c).square()).sum() / 2
        penalty = LAMBDA * xi.abs().sum() + pull.square().sum() / (2 * BETA)
        subgradient = torch.cat([a * (gamma - c) + pull, sparsity - pull])
        yield Iterate(torch.cat([gamma, xi]), (loss + penalty).item(), subgradient)
        method.write(gamma - a * (gamma - c) / alpha)
        method.step(1 / alpha)


def check(kind: type[ProximalSlimming], alpha: float) -> None:
    """Asserts lemmas 3 and 4 at every iteration, that F falls, and that ξ gets zeros."""
    for before, after in pairwise(iterates(kind, alpha)):
        change = after.objective - before.objective
        distance = (after.z - before.z).norm().item()
        decrease = (LIPSCHITZ - alpha) / 2 * distance**2
        assert change <= decrease + ROUNDING, "(10): F decreases too little"
        relative_error = (3 * alpha + 2 * LIPSCHITZ + BETA) * distance
        assert after.subgradient.norm() <= relative_error + ROUNDING, "(19): ∂F is too large"
        assert change < ROUNDING, "F does not decrease"
    assert 0 < int((after.z[CHANNELS:] == 0).sum()) < CHANNELS


def test_iterates_satisfy_lemmas_3_and_4() -> None:
    check(ProximalSlimming, ALPHA)


class WrongSign(ProximalSlimming):
    """γ ← (αγ − βξ)/(α + β) in step 2."""

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.write(self.read() - 2 * self.beta * lr * self.xi)
        super().step(lr)


def test_a_wrong_sign_in_step_2_and_too_small_an_alpha_fail() -> None:
    # γ is driven away from ξ, so the quadratic penalty grows.
    with pytest.raises(AssertionError, match=r"\(10\)"):
        check(WrongSign, ALPHA)
    # A step overshoots along the stiffest direction; for α < L (10) allows F to grow.
    with pytest.raises(AssertionError, match="F does not decrease"):
        check(ProximalSlimming, LIPSCHITZ / 8)
