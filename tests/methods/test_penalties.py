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
from utils.methods.slimming import ProximalSlimming, Subgradient
from utils.paper.settings import XI_INIT

# Range of the shape, drawn log-uniformly.
SEPARABLE = {"l1": None, "tl1": (0.01, 10), "mcp": (0.01, 3), "scad": (0.01, 3), "lp": (0.05, 1)}


def objective(penalty: Penalty, x: Tensor, v: Tensor, t: float) -> Tensor:
    """Returns ½(x − v)² + tφ(x), elementwise."""
    each = torch.vmap(penalty.value)(x.abs().reshape(-1, 1)).view_as(x)
    return (x - v).square() / 2 + t * each


def least(penalty: Penalty, v: Tensor, t: float) -> Tensor:
    """Returns the minimum of the objective for each v, by a grid and golden-section search."""
    parts = torch.cat([torch.linspace(0, 1, 401), torch.logspace(-12, 0, 200)]).double()
    grid = parts.sort().values[:, None] * v
    values = objective(penalty, grid, v.expand_as(grid), t)
    best = values.min(0).values
    for i in values.argsort(0)[:3]:
        a, b = (grid.gather(0, (i + step).clamp(0, len(grid) - 1)[None])[0] for step in (-1, 1))
        for _ in range(40):
            c, d = b - (b - a) * 0.6180339887498949, a + (b - a) * 0.6180339887498949
            left = objective(penalty, c, v, t) < objective(penalty, d, v, t)
            a, b = torch.where(left, a, c), torch.where(left, d, b)
        best = torch.minimum(best, objective(penalty, (a + b) / 2, v, t))
    return best


def threshold(penalty: Penalty, t: float) -> float:
    """Returns the largest v of which the step is 0, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        zero = not penalty.prox(torch.tensor([middle], dtype=torch.float64), t).any()
        low, high = (middle, high) if zero else (low, middle)
    return high


def gaps(name: str, count: int) -> list[float]:
    """Returns by how much the steps are worse than the best points found.

    In ``count`` cases: a t for 20 v each, of which four lie next to the threshold.
    """
    random, found = np.random.default_rng(0), []
    for _ in range(count // 20):
        span = SEPARABLE[name]
        shape = None if span is None else float(np.exp(random.uniform(*np.log(span))))
        if name == "lp" and random.random() < 0.5:
            shape = 0.5
        penalty, t = PENALTIES[name](shape), float(10 ** random.uniform(-6, 0))
        near = threshold(penalty, t) + random.choice([-1, 1], 4) * 10 ** random.uniform(-9, -3, 4)
        v = torch.from_numpy(np.concatenate([10 ** random.uniform(-6, 0.5, 16), np.abs(near)]))
        found += (objective(penalty, penalty.prox(v, t), v, t) - least(penalty, v, t)).tolist()
    return found


@pytest.mark.parametrize("name", SEPARABLE)
def test_no_point_is_better_than_the_closed_form(name):
    assert max(gaps(name, 400)) <= 1e-8


def test_no_stationary_point_is_better_than_the_step_of_l1_l2():
    """Stationary points with the signs of v by support, perturbations of the step, and 0."""
    torch.manual_seed(0)
    for case in range(150):
        n = case % 5 + 1
        v = torch.randn(n, dtype=torch.float64) * 10 ** (2 * torch.rand(1).double() - 1)
        t = float(10 ** (2 * torch.rand(1) - 1))
        a = [1.0, 0.5, 0.9][case % 3]
        x = L1L2(a).prox(v, t)
        others = [torch.zeros(n, dtype=torch.float64)]
        for bits in range(1, 2**n):
            support = torch.tensor([bits >> i & 1 for i in range(n)], dtype=torch.float64)
            z = v.sign() * (v.abs() - t) * support
            # x(1 − at/‖x‖) = z: along z or opposite.
            others += [z * (1 + a * t / z.norm()), z * (1 - a * t / z.norm())]
        points = torch.stack([x, *others, *(x + 1e-3 * torch.randn(40, n).double())])
        values = (points - v).square().sum(-1) / 2
        values += t * (points.abs().sum(-1) - a * points.norm(dim=-1))
        assert values[0] <= values[1:].min() + 1e-12


@pytest.mark.parametrize("name", PENALTIES)
def test_steps_are_odd_and_keep_zero_and_slopes_are_derivatives(name):
    penalty, v = PENALTIES[name](), torch.linspace(0, 2, 401, dtype=torch.float64)
    for t in (4e-5, 0.4):
        assert torch.equal(penalty.prox(-v, t), -penalty.prox(v, t))
        assert not penalty.prox(0 * v, t).any()
    assert torch.equal(penalty.prox(v, 0.0), v)
    s = torch.tensor([0.05, 0.2, 0.47, 0.8, 1.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty.value(s), s)
    torch.testing.assert_close(gradient, penalty.slope(s.detach()))


@pytest.mark.parametrize(
    ("name", "relative"), [("l1", 1), ("tl1", 0.77), ("mcp", 1.35), ("scad", 1.07), ("lp", 0.91)]
)
def test_the_path_length_to_zero(name, relative):
    """Steps from ξ = 0.47 to 0, relative to ℓ1."""
    way = PENALTIES[name]().path_length(torch.tensor([0.47], dtype=torch.float64)).item()
    assert way / 0.47 == pytest.approx(relative, abs=0.01)


def make_graph(channels: int = 40, dtype: torch.dtype = torch.float64) -> Graph:
    graph = chain(channels, dtype=dtype)
    nn.init.uniform_(graph.norms["1"].weight, 0, 0.6)
    return graph


@pytest.mark.parametrize("name", PENALTIES)
def test_dead_channels_stay_dead_and_removing_them_changes_no_other(name):
    """prox(0) = 0; also for ℓ1 − ℓ2, which is not a sum over channels."""
    torch.manual_seed(0)
    options = {"xi_init": XI_INIT, "penalty": name}
    graphs = [make_graph(n) for n in (40, 33)]
    full, pruned = (ProximalSlimming(graph, 0.07, 3.0, **options) for graph in graphs)
    full.write(full.gamma.index_fill(0, torch.arange(7), 0))
    full.xi[:7] = 0
    pruned.write(full.gamma[7:])
    pruned.xi.copy_(full.xi[7:])
    for _ in range(150):
        for method in (full, pruned):
            method.step(0.1)
    torch.testing.assert_close(full.xi[7:], pruned.xi, rtol=0, atol=1e-14)
    torch.testing.assert_close(full.gamma[7:], pruned.gamma, rtol=0, atol=1e-14)
    assert (pruned.xi == 0).any() and pruned.gamma.any()
    assert not full.gamma[:7].any() and not full.xi[:7].any()
    optimizer = torch.optim.SGD(graphs[0].norms["1"].parameters(), 0.1, 0.9)
    assert full.dead(optimizer, 0.1)[:7].all()


@pytest.mark.parametrize(
    "name", [name for name, each in PENALTIES.items() if not each.infinite_slope_at_zero]
)
def test_the_subgradient_method_adds_the_slope(name):
    """0 where γ = 0; with the sign of γ."""
    graph = make_graph()
    weight = graph.norms["1"].weight
    with torch.no_grad():
        weight[0] = 0
        weight[1] *= -1
    method = Subgradient(graph, 0.25, penalty=name)
    weight.grad = torch.ones(40, dtype=torch.float64)
    method.before_step()
    added = 0.25 * PENALTIES[name]().slope(weight.detach().abs()) * weight.detach().sign()
    torch.testing.assert_close(weight.grad, 1 + added)
    assert weight.grad[0] == 1 > weight.grad[1]


if __name__ == "__main__":
    for name in SEPARABLE:
        print(f"{name:<5} {max(gaps(name, int(sys.argv[1]))):.1e}", flush=True)
