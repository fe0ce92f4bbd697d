"""SAS-ADMM on least squares and closed forms, and beside a reference implementation."""

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim import Graph
from netslim.methods.penalties import soft_threshold
from netslim.methods.sas_admm import SIGMA, TAU
from utils.methods.masks import masking
from utils.methods.sas_admm import SasAdmm
from utils.paper.settings import SAS

Gradient = Callable[[Tensor], Tensor]


class Weights(nn.Module):
    """A model that is a vector of weights."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, len(start), 1, bias=False)
        self.conv.weight.data = start.double()[:, None, None].clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def graph(start: Tensor) -> Graph:
    return netslim.analyze(Weights(start), torch.zeros(1, 1, 1, dtype=torch.float64))


DEFAULTS = {name: value for name, value in vars(SAS).items() if name != "batch_size"}


class Solver:
    """SAS-ADMM on a function of known gradient."""

    def __init__(self, gradient: Gradient, start: Tensor, kind=SasAdmm, **options) -> None:
        self.gradient, self.method = gradient, kind(graph(start), **{**DEFAULTS, **options})
        self.model = self.method.model

    def step(self) -> None:
        weight = self.model.conv.weight
        self.method.before_forward()
        weight.grad = self.gradient(weight.detach().flatten()).view_as(weight)
        self.method.before_step()
        self.method.step(0.1)

    def run(self, outer: int) -> "Solver":
        for epoch in range(outer):
            self.method.begin_epoch(epoch)
            for _ in range(self.method.steps(epoch)):
                self.step()
            self.method.end_epoch(0.1)
        return self


def least_squares(d: int = 20) -> tuple[Gradient, Tensor, float]:
    """Returns the gradient of ½‖Aw − b‖²/n, the minimiser, and the Lipschitz constant."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(60, k, generator=random, dtype=torch.float64) for k in (d, 1))
    hessian, right = a.T @ a / 60, (a.T @ b / 60).flatten()
    smooth = torch.linalg.eigvalsh(hessian)[-1].item()
    return lambda w: hessian @ w - right, torch.linalg.solve(hessian, right), smooth


def separable(d: int = 200) -> tuple[Gradient, Tensor, Tensor]:
    """Returns the gradient of Σ ½a(w − c)², a and c."""
    random = torch.Generator().manual_seed(1)
    a = torch.rand(d, generator=random, dtype=torch.float64) * 1.5 + 0.5
    c = torch.randn(d, generator=random, dtype=torch.float64)
    return lambda w: a * (w - c), a, c


def test_least_squares_are_solved():
    gradient, best, smooth = least_squares()
    method = Solver(gradient, torch.zeros(20), v=smooth, lambda_=0).run(190).method
    assert (method.w - best).abs().max() < 5e-6
    assert (method.average - best).abs().max() < 5e-6


def test_least_squares_with_the_l1_norm_are_solved():
    gradient, _, smooth = least_squares()
    method = Solver(gradient, torch.zeros(20), v=smooth, lambda_=0.1).run(190).method
    w = torch.zeros(20, dtype=torch.float64)
    for _ in range(20_000):  # ISTA
        w = soft_threshold(w - gradient(w) / smooth, 0.1 / smooth)
    assert (method.z - w).abs().max() < 5e-6
    assert torch.equal(method.z == 0, w == 0)
    assert 0 < int((w == 0).sum()) < 20
    # The multiplier U is the gradient.
    assert (method.u - gradient(method.w)).abs().max() < 1e-6


def distance(tau: float, sigma: float, outer: int = 400) -> tuple[float, bool]:
    """Returns the distance of Z from the minimiser, and whether their zeros agree."""
    gradient, a, c = separable()
    options = {"lambda_": 0.3, "v": 2.0, "inner": 10, "tau": tau, "sigma": sigma}
    method = Solver(gradient, torch.zeros(200), **options).run(outer).method
    best = c.sign() * (c.abs() - 0.3 / a).clamp(min=0)
    return (method.z - best).abs().max().item(), torch.equal(method.z == 0, best == 0)


def test_it_converges_within_the_region_of_dual_steps_and_not_outside():
    gap, zeros = distance(TAU, SIGMA)
    assert gap < 1e-8
    assert zeros
    assert distance(0.9, 1.5, 100)[0] > 1


def reference(gradient: Gradient, w: Tensor, outer: int, tau: float, sigma: float) -> list[Tensor]:
    """Its program line by line; returns W after every step, then Z, U and Wᵃ."""
    lam, beta, m, k0, q, v, last = 0.1, 0.04, 7, 3, 1.1, 3.0, 4
    breve, z, u, average, seen = w, w, torch.zeros_like(w), w, []
    for i in range(1, outer + 1):
        old = w
        m_i = m if i < k0 else math.ceil(m / k0**q * i**q - 1e-9)
        eta = 1 / v if i < k0 else m * (m + 1) / (v * m_i * (m_i + 1))
        r = beta * old + u - beta * (old - z)
        for t in range(1, m_i + 1):
            b, g = 2 / (t + 1), 2 / (eta * t)
            d = gradient(b * breve + (1 - b) * w)
            breve = (g * breve + r - d) / (g + beta)
            w = b * breve + (1 - b) * w
            seen.append(w)
        half = u - tau * beta * (w - z)
        x = w - half / beta
        z = x.sign() * (x.abs() - lam / beta).clamp(min=0)
        u = half - sigma * beta * (w - z)
        average = w if i <= last else average + (w - average) / (i - last + 1)
    return [*seen, z, u, average]


def solved(tau: float = TAU, sigma: float = SIGMA) -> list[Tensor]:
    """Returns the same by the method."""
    gradient, *_ = least_squares()
    options = {"lambda_": 0.1, "inner": 7, "k0": 3, "v": 3.0, "average_from": 4}
    solver = Solver(gradient, torch.ones(20), tau=tau, sigma=sigma, **options)
    seen, step = [], solver.step
    solver.step = lambda: (step(), seen.append(solver.method.w.clone()))
    method = solver.run(8).method
    return [*seen, method.z, method.u, method.average]


def test_every_step_equals_the_reference():
    gradient, *_ = least_squares()
    expected = reference(gradient, torch.ones(20, dtype=torch.float64), 8, TAU, SIGMA)
    for one, other in zip(solved(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_inner_loop_grows_as_published():
    method = SasAdmm(graph(torch.zeros(2)), **DEFAULTS)
    steps = [method.steps(epoch) for epoch in range(190)]
    assert steps[:50] == [50] * 50
    assert steps[50] > 50
    assert steps[-1] == 218
    assert sum(steps) == 21_107
    sizes = []
    for epoch, m in enumerate(steps):
        method.begin_epoch(epoch)
        sizes.append(method.eta.item() * m * (m + 1))
    assert sizes == pytest.approx([50 * 51 / 25] * 190)


def test_rounding_adds_no_inner_step():
    """50 · 55/50 is a little more than 55 in floating point."""
    method = SasAdmm(graph(torch.zeros(2)), **{**DEFAULTS, "q": 1.0})
    assert [method.steps(i - 1) for i in range(50, 191)] == [*range(50, 191)]


class WithUnused(nn.Module):
    """A linear layer that the forward pass does not use, and one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.used = nn.Linear(3, 4), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_the_gradient_of_an_unused_layer_counts_as_0():
    torch.manual_seed(0)
    model, inputs = WithUnused(), torch.randn(5, 3)
    alone = copy.deepcopy(model)
    del alone.unused
    unused, used = (layer.weight.detach().clone() for layer in (model.unused, model.used))
    options = {**DEFAULTS, "lambda_": 0}
    methods = [SasAdmm(netslim.analyze(each, inputs), **options) for each in (model, alone)]
    for method in methods:
        method.begin_epoch(0)
        for _ in range(3):
            method.before_forward()
            method.model.zero_grad()
            method.model(inputs).square().sum().backward()
            method.step(0.1)
    both, one = (method.w for method in methods)
    torch.testing.assert_close(both[:12].view(4, 3), unused)
    assert torch.equal(both[12:], one) and not torch.equal(one.view(2, 3), used)


def normed_formerly(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # deprecated, but common
        return nn.utils.weight_norm(layer)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, normed_formerly])
def test_a_weight_that_is_no_parameter_is_refused_with_its_name(norm):
    model = WithUnused()
    norm(model.used)
    known = netslim.analyze(model, torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"the weight of used is not a parameter.*weight_norm"):
        SasAdmm(known, **DEFAULTS)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_zeros_stay_zero_and_the_other_weights_are_solved():
    gradient, _, c = separable()
    start = torch.randn(200, generator=torch.Generator().manual_seed(3))
    options = {"kind": masking(SasAdmm, 0.5), "lambda_": 0, "v": 2.0, "inner": 10}
    method = Solver(gradient, start, **options).run(190).method
    kept = method.mask
    assert int(kept.sum()) == 100
    for x in (method.w, method.z, method.breve, method.u, method.average):
        assert not x[~kept].any()
    assert (method.average - c)[kept].abs().max() < 1e-4
