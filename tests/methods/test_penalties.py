"""Penalties: no point is better than the closed forms of their steps, and 0 stays 0.

``PYTHONPATH=. python tests/methods/test_penalties.py 10000`` tries 10,000 cases of each.
"""

import sys

import numpy as np
import pytest
import torch
from chains import chain
from torch import Tensor, nn

from netslim import Graph
from netslim.methods.penalties import L1L2, PENALTIES, Penalty
from utils.methods.base import TrainingSetup
from utils.methods.slimming import ProximalSlimming, Subgradient
from utils.paper.settings import XI_INIT, recipe

# Penalty and range of its shape, drawn log-uniformly.
SEPARABLE = {
    "l1": None, "tl1": (0.01, 10), "mcp": (0.01, 3), "scad": (0.01, 3), "lp": (0.05, 1)
}  # fmt: skip


def phi(name: str, shape: float | None, x: np.ndarray) -> np.ndarray:
    """φ as in the literature, in numpy."""
    s = np.abs(x)
    if name == "l1":
        return s
    if name == "tl1":
        return (shape + 1) * s / (shape + s)
    if name == "mcp":
        return np.where(s <= shape, s - s * s / (2 * shape), shape / 2)
    if name == "lp":
        return s**shape
    kappa = shape / 3.7
    bending = (2 * shape * s - s * s - kappa * kappa) / (2 * (shape - kappa))
    return np.where(s <= kappa, s, np.where(s <= shape, bending, (shape + kappa) / 2))


def least(name: str, shape: float | None, v: float, t: float) -> float:
    """Returns the minimum of ½(x − v)² + tφ(x), by a grid and golden-section search."""

    def f(x: np.ndarray) -> np.ndarray:
        return (x - v) ** 2 / 2 + t * phi(name, shape, x)

    grid = np.concatenate([np.linspace(0, v, 401), v * np.logspace(-12, 0, 200)])
    grid.sort()
    values = f(grid)
    best = values.min()
    for i in np.argsort(values)[:3]:
        a, b = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
        for _ in range(60):
            c, d = b - (b - a) * 0.6180339887498949, a + (b - a) * 0.6180339887498949
            a, b = (a, d) if f(c) < f(d) else (c, b)
        best = min(best, f((a + b) / 2))
    return best


def threshold(penalty: Penalty, t: float) -> float:
    """Returns the largest v of which the step is 0, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        zero = not penalty.prox(torch.tensor([middle], dtype=torch.float64), t).any()
        low, high = (middle, high) if zero else (low, middle)
    return high


def cases(
    name: str, count: int, random: np.random.Generator
) -> list[tuple[Penalty, float, Tensor]]:
    """Returns penalties, t, and 20 v each, of which four lie next to the threshold."""
    found = []
    for _ in range(count // 20):
        span = SEPARABLE[name]
        shape = None if span is None else float(np.exp(random.uniform(*np.log(span))))
        if name == "lp" and random.random() < 0.5:
            shape = 0.5
        penalty, t = PENALTIES[name](shape), float(10 ** random.uniform(-6, 0))
        v = 10 ** random.uniform(-6, 0.5, 16)
        near = threshold(penalty, t) + random.choice([-1, 1], 4) * 10 ** random.uniform(-9, -3, 4)
        found.append((penalty, t, torch.from_numpy(np.concatenate([v, np.abs(near)]))))
    return found


def gaps(name: str, count: int) -> list[float]:
    """Returns by how much the steps are worse than the best points found."""
    random = np.random.default_rng(0)
    found = []
    for penalty, t, v in cases(name, count, random):
        x = penalty.prox(v, t).numpy()
        shape = penalty.shape
        got = (x - v.numpy()) ** 2 / 2 + t * phi(name, shape, x)
        found += [g - least(name, shape, float(w), t) for g, w in zip(got, v, strict=True)]
    return found


@pytest.mark.parametrize("name", SEPARABLE)
def test_no_point_is_better_than_the_closed_form(name):
    assert max(gaps(name, 1000)) <= 1e-8


def objective(penalty: L1L2, x: Tensor, v: Tensor, t: float) -> Tensor:
    return (x - v).square().sum(-1) / 2 + t * (x.abs().sum(-1) - penalty.shape * x.norm(dim=-1))


def test_no_stationary_point_is_better_than_the_step_of_l1_l2():
    """Stationary points with the signs of v by support, perturbations of the step, and 0."""
    torch.manual_seed(0)
    for case in range(300):
        n = case % 5 + 1
        v = torch.randn(n, dtype=torch.float64) * 10 ** (2 * torch.rand(1).double() - 1)
        t = float(10 ** (2 * torch.rand(1) - 1))
        a = [1.0, 0.5, 0.9][case % 3]
        penalty = L1L2(a)
        x = penalty.prox(v, t)
        others = [torch.zeros(n, dtype=torch.float64)]
        for bits in range(1, 2**n):
            support = torch.tensor([bits >> i & 1 for i in range(n)], dtype=torch.float64)
            z = v.sign() * (v.abs() - t) * support
            # x(1 − at/‖x‖) = z: along z or opposite.
            others += [z * (1 + a * t / z.norm()), z * (1 - a * t / z.norm())]
        points = torch.stack([*others, *(x + 1e-3 * torch.randn(40, n).double())])
        assert objective(penalty, x, v, t) <= objective(penalty, points, v, t).min() + 1e-12


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("t", [1e-6, 4e-5, 1e-2, 0.4])
def test_steps_are_odd_and_monotone_and_keep_zero(name, t):
    v = torch.linspace(0, 2, 4001, dtype=torch.float64)
    penalty = PENALTIES[name]()
    x = penalty.prox(v, t)
    assert x[0] == 0
    assert (x.diff() >= -1e-15).all()
    assert (x <= v).all() or name == "l1-l2"
    assert torch.equal(penalty.prox(-v, t), -x)
    assert penalty.prox(torch.zeros(5, dtype=torch.float64), t).tolist() == [0] * 5
    assert torch.equal(penalty.prox(v, 0.0), v)


@pytest.mark.parametrize("name", PENALTIES)
def test_slopes_are_the_derivatives_of_values(name):
    penalty = PENALTIES[name]()
    s = torch.tensor([0.05, 0.2, 0.47, 0.8, 1.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty.value(s), s)
    torch.testing.assert_close(gradient, penalty.slope(s.detach()))


# Steps from ξ = 0.47 to 0, relative to ℓ1.
WAYS = {"l1": 1, "tl1": 0.77, "mcp": 1.35, "scad": 1.07, "lp": 0.91}


@pytest.mark.parametrize(("name", "relative"), WAYS.items())
def test_the_path_length_to_zero(name, relative):
    way = PENALTIES[name]().path_length(torch.tensor([0.47], dtype=torch.float64)).item()
    assert way / 0.47 == pytest.approx(relative, abs=0.01)


def make_graph(channels: int = 40, dtype: torch.dtype = torch.float64) -> Graph:
    graph = chain(channels, dtype=dtype)
    nn.init.uniform_(graph.norms["1"].weight, 0, 0.6)
    return graph


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("alpha", [10.0, 1000.0])
def test_updates_of_xi_never_raise_the_objective(name, alpha):
    """λφ(ξ) + (β/2)‖γ − ξ‖², as L does not depend on ξ."""
    torch.manual_seed(0)
    method = ProximalSlimming(make_graph(), 0.5, 3.0, xi_init=XI_INIT, penalty=name)
    before = start = method.penalty()
    for _ in range(300):
        method._update_xi(alpha)
        after = method.penalty()
        assert after <= before + 1e-12
        before = after
    assert after < start - 0.1


@pytest.mark.parametrize("name", PENALTIES)
def test_dead_channels_stay_dead(name):
    """prox(0) = 0, so they can be removed during training."""
    torch.manual_seed(0)
    graph = make_graph(dtype=torch.float32)
    with torch.no_grad():
        graph.norms["1"].weight[:7] = 0
    method = ProximalSlimming(graph, 0.02, 3.0, xi_init=XI_INIT, penalty=name)
    method.xi[:7] = 0
    for _ in range(100):
        method.step(0.1)
    assert not method.gamma[:7].any() and not method.xi[:7].any()
    assert method.gamma[7:].any()
    optimizer = torch.optim.SGD(graph.norms["1"].parameters(), 0.1, 0.9)
    assert method.dead(optimizer, 0.1)[:7].all()


@pytest.mark.parametrize("name", PENALTIES)
def test_removing_dead_channels_changes_no_other(name):
    """Also for ℓ1 − ℓ2, which is not a sum over channels."""
    torch.manual_seed(0)
    options = {"xi_init": XI_INIT, "penalty": name}
    full, pruned = (ProximalSlimming(make_graph(n), 0.035, 3.0, **options) for n in (40, 33))
    full.write(full.gamma.index_fill(0, torch.arange(7), 0))
    full.xi[:7] = 0
    pruned.write(full.gamma[7:])
    pruned.xi.copy_(full.xi[7:])
    for _ in range(300):
        for method in (full, pruned):
            method.step(0.1)
        torch.testing.assert_close(full.xi[7:], pruned.xi, rtol=0, atol=1e-14)
        torch.testing.assert_close(full.gamma[7:], pruned.gamma, rtol=0, atol=1e-14)
    assert (pruned.xi == 0).any()


@pytest.mark.parametrize(
    "name", [name for name, each in PENALTIES.items() if not each.infinite_slope_at_zero]
)
def test_the_subgradient_method_adds_the_slope(name):
    graph = make_graph()
    weight = graph.norms["1"].weight
    with torch.no_grad():
        weight[0] = 0
        weight[1] *= -1
    method = Subgradient(graph, 0.25, penalty=name)
    weight.grad = torch.zeros(40, dtype=torch.float64)
    method.before_step()
    point = method.gamma.abs().clone().requires_grad_()
    (slope,) = torch.autograd.grad(PENALTIES[name]().value(point), point)
    torch.testing.assert_close(weight.grad, 0.25 * slope * method.gamma.sign())


@pytest.mark.parametrize(
    ("penalty", "shape", "lambda_", "message"),
    [  # 7,820 steps of λ/(2α + β) are 0.5 for λ = 0.0077
        ("l1", None, 0.0077, ""),
        ("mcp", 1.0, 0.02, ""),
        ("mcp", 1.0, 0.0077, "ξ starts at"),
        ("mcp", 0.4, 10, "mcp is flat from 0.4 on, where 40 of 40 ξ start"),
    ],
)
def test_a_warning_tells_if_xi_cannot_reach_zero(penalty, shape, lambda_, message):
    graph = make_graph()
    options = {"penalty": penalty, "shape": shape, "xi_init": XI_INIT}
    method = ProximalSlimming(graph, lambda_, 100.0, **options)
    setup = TrainingSetup([(782, 0.1)] * 10, 0.9, recipe("vgg", 19))
    text = " ".join(method.warnings(setup))
    assert message in text and bool(message) == bool(text)


if __name__ == "__main__":
    for name in SEPARABLE:
        print(f"{name:<5} {max(gaps(name, int(sys.argv[1]))):.1e}", flush=True)
