"""SAS-ADMM on least squares and closed forms, and beside a reference implementation."""

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim.methods.penalties import soft_threshold
from utils.methods.sas_admm import SasAdmm
from utils.paper.settings import SAS

Gradient = Callable[[Tensor], Tensor]
DEFAULTS = {name: value for name, value in vars(SAS).items() if name != "batch_size"}


class Solver:
    """SAS-ADMM on a function of known gradient."""

    def __init__(self, gradient: Gradient, start: Tensor, **options) -> None:
        model = nn.Conv1d(1, len(start), 1, bias=False).double()  # a vector of weights
        model.weight.data = start.double()[:, None, None].clone()
        graph = netslim.analyze(nn.Sequential(model), torch.zeros(1, 1, 1, dtype=torch.float64))
        self.gradient, self.method = gradient, SasAdmm(graph, **{**DEFAULTS, **options})
        self.weight = model.weight

    def step(self) -> None:
        self.method.before_forward()
        self.weight.grad = self.gradient(self.weight.detach().flatten()).view_as(self.weight)
        self.method.step(0.1)

    def run(self, outer: int) -> SasAdmm:
        for epoch in range(outer):
            self.method.begin_epoch(epoch)
            for _ in range(self.method.steps(epoch)):
                self.step()
            self.method.end_epoch(0.1)
        return self.method


def least_squares(d: int = 20) -> tuple[Gradient, float]:
    """Returns the gradient of ½‖Aw − b‖²/n, and its Lipschitz constant."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(60, k, generator=random, dtype=torch.float64) for k in (d, 1))
    hessian, right = a.T @ a / 60, (a.T @ b / 60).flatten()
    return lambda w: hessian @ w - right, torch.linalg.eigvalsh(hessian)[-1].item()


def test_least_squares_with_the_l1_norm_are_solved():
    gradient, smooth = least_squares()
    options = {"v": smooth, "lambda_": 0.1, "beta": 0.2, "inner": 20, "k0": 20, "average_from": 80}
    method = Solver(gradient, torch.zeros(20), **options).run(90)
    w = torch.zeros(20, dtype=torch.float64)
    for _ in range(3000):  # ISTA
        w = soft_threshold(w - gradient(w) / smooth, 0.1 / smooth)
    assert (method.z - w).abs().max() < 1e-4 and (method.average - w).abs().max() < 1e-4
    assert torch.equal(method.z == 0, w == 0)
    assert 0 < int((w == 0).sum()) < 20
    # The multiplier U is the gradient.
    assert (method.u - gradient(method.w)).abs().max() < 1e-4


def reference(gradient: Gradient, w: Tensor, outer: int) -> list[Tensor]:
    """Its program line by line; returns W after every step, then Z, U and Wᵃ."""
    lam, beta, m, k0, q, v, last, tau, sigma = 0.1, 0.04, 7, 3, 1.1, 3.0, 4, 0.9, 1.09
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


def test_every_step_equals_the_reference():
    gradient, _ = least_squares()
    options = {"lambda_": 0.1, "inner": 7, "k0": 3, "v": 3.0, "average_from": 4}
    solver = Solver(gradient, torch.ones(20), **options)
    seen, step = [], solver.step
    solver.step = lambda: (step(), seen.append(solver.method.w.clone()))
    method = solver.run(8)
    expected = reference(gradient, torch.ones(20, dtype=torch.float64), 8)
    for one, other in zip([*seen, method.z, method.u, method.average], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_inner_loop_grows_as_published():
    method = Solver(lambda w: w, torch.zeros(2)).method
    steps = [method.steps(epoch) for epoch in range(190)]
    assert steps[:50] == [50] * 50
    assert (steps[-1], sum(steps)) == (218, 21_107)
    sizes = []
    for epoch, m in enumerate(steps):
        method.begin_epoch(epoch)
        sizes.append(method.eta.item() * m * (m + 1))
    assert sizes == pytest.approx([50 * 51 / 25] * 190)
    # Rounding adds no step: 50 · 55/50 is a little more than 55 in floating point.
    method = Solver(lambda w: w, torch.zeros(2), q=1.0).method
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
