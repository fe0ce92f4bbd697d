"""Penalties: what a closed form gives is nowhere beaten, and 0 stays 0.

``PYTHONPATH=. python tests/methods/test_penalties.py 10000`` tries as many cases of each.
"""

import math
import sys

import numpy as np
import pytest
import torch
from chains import chain
from torch import Tensor, nn

from netslim import Graph
from netslim.methods.penalties import L1L2, MCP, PENALTIES, SCAD, Lp, Penalty, TransformedL1
from utils.methods.slimming import ProximalSlimming, Subgradient
from utils.paper.settings import XI_INIT

# Penalty and range of its shape, drawn log-uniformly.
SEPARABLE = {
    "l1": None, "tl1": (0.01, 10), "mcp": (0.01, 3), "scad": (0.01, 3), "lp": (0.05, 1)
}  # fmt: skip


def phi(name: str, shape: float | None, x: np.ndarray) -> np.ndarray:
    """φ as the literature writes it, in numpy."""
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
    """The minimum of ½(x − v)² + tφ(x) by looking: a grid, more points near 0, golden section."""

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
    """Where its step begins to give other than 0, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        zero = not penalty.prox(torch.tensor([middle], dtype=torch.float64), t).any()
        low, high = (middle, high) if zero else (low, middle)
    return high


def cases(
    name: str, count: int, random: np.random.Generator
) -> list[tuple[Penalty, float, Tensor]]:
    """Penalties, t, and some v each, of which a fifth lies next to the threshold."""
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
    """By how much what the step gives is worse than the best that was found."""
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


class Early(SCAD):
    """The jump where it is for small t only: the second case is easy to miss."""

    def shrink(self, s: Tensor, t: float) -> Tensor:
        theta, kappa = self.shape, self.shape / self.RATIO
        above = (kappa + theta + t) / 2
        return torch.where(s > above, s, (s - t).clamp(min=0))


class Soft(MCP):
    """As if it were the ℓ1 norm."""

    def shrink(self, s: Tensor, t: float) -> Tensor:
        return (s - t).clamp(min=0)


@pytest.mark.parametrize("wrong", [Early, Soft])
def test_a_wrong_closed_form_is_seen(wrong, monkeypatch):
    monkeypatch.setitem(PENALTIES, wrong.name, wrong)
    assert max(gaps(wrong.name, 200)) > 1e-3


def two_thirds(s: Tensor, t: float) -> Tensor:
    """The closed form for p = ⅔ (Cao, Sun and Xu, 2013)."""
    angle = (27 / 16 * s**2 * (2 * t) ** -1.5).clamp(min=1).arccosh() / 3
    a = 2 / math.sqrt(3) * (2 * t) ** 0.25 * angle.cosh().sqrt()
    x = ((a + (2 * s / a - a**2).clamp(min=0).sqrt()) / 2) ** 3
    return x.masked_fill(s <= 2 * (2 / 3 * t) ** 0.75, 0)


@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.3])
def test_newtons_steps_arrive_at_the_closed_forms(t):
    for p, closed in ((2 / 3, two_thirds), (0.5, Lp(0.5).shrink)):
        general = Lp(np.nextafter(p, 1) if p == 0.5 else p)  # p = ½ has its closed form
        edge = threshold(general, t)
        s = edge * torch.linspace(0, 3, 2000, dtype=torch.float64) ** 2
        s = s[(s / edge - 1).abs() > 1e-9]
        torch.testing.assert_close(general.shrink(s, t), closed(s, t), rtol=0, atol=1e-14)


def objective(penalty: L1L2, x: Tensor, v: Tensor, t: float) -> Tensor:
    return (x - v).square().sum(-1) / 2 + t * (x.abs().sum(-1) - penalty.shape * x.norm(dim=-1))


def test_l1_l2_is_beaten_by_no_stationary_point_nor_near_it():
    """Stationary points with the signs of v, by support; their perturbations; and 0."""
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
            # x(1 − at/‖x‖) = z: along z or against it.
            others += [z * (1 + a * t / z.norm()), z * (1 - a * t / z.norm())]
        points = torch.stack([*others, *(x + 1e-3 * torch.randn(40, n).double())])
        assert objective(penalty, x, v, t) <= objective(penalty, points, v, t).min() + 1e-12


def test_a_whole_shrink_of_l1_l2_leaves_the_first_of_the_largest():
    v = torch.tensor([0.1, -0.3, 0.3, 0.0], dtype=torch.float64)
    assert L1L2(1.0).prox(v, 0.4).tolist() == [0, -0.3, 0, 0]
    assert L1L2(0.5).prox(v, 0.4).tolist() == [0, pytest.approx(-0.1), 0, 0]
    assert L1L2(0.1).prox(v, 0.4).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("t", [4e-6, 4e-5, 1e-2])
def test_at_their_largest_shapes_they_are_the_l1_norm(t):
    """And no rounding shows, in parts of a step's shrink."""
    s = torch.linspace(0, 1.5, 1001, dtype=torch.float64)
    soft = PENALTIES["l1"]().prox(s, t)
    for penalty in (
        TransformedL1(TransformedL1.max_shape),
        Lp(Lp.max_shape),
        MCP(1e30),
        SCAD(1e30),
    ):
        torch.testing.assert_close(penalty.prox(s, t), soft, rtol=0, atol=1e-4 * t)


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


# What the step jumps to at its threshold, 0 where it is continuous.
JUMPS = [
    (TransformedL1(1.0), 0.2, 0.0),  # t ≤ a²/(2(a + 1))
    (TransformedL1(1.0), 0.5, math.sqrt(2 * 0.5 * 2) - 1),
    (MCP(1.0), 0.5, 0.0),
    (MCP(0.2), 0.5, math.sqrt(0.1)),
    (SCAD(1.0), 0.5, 0.0),
    (SCAD(0.1), 0.9, math.sqrt(0.9 * (0.1 + 0.1 / 3.7))),
    (Lp(0.5), 0.01, 0.01 ** (2 / 3)),
    (Lp(2 / 3), 0.01, (2 / 3 * 0.01) ** 0.75),
    (Lp(0.3), 0.01, (2 * 0.01 * 0.7) ** (1 / 1.7)),
]


@pytest.mark.parametrize(("penalty", "t", "jump"), JUMPS)
def test_the_step_is_continuous_or_jumps_as_it_should(penalty, t, jump):
    edge = threshold(penalty, t) * (1 + 1e-12)
    x = penalty.prox(torch.tensor([edge], dtype=torch.float64), t).item()
    assert x == pytest.approx(jump, abs=1e-5 if jump == 0 else 1e-9)


@pytest.mark.parametrize("name", PENALTIES)
def test_slopes_are_those_of_the_values(name):
    penalty = PENALTIES[name]()
    s = torch.tensor([0.05, 0.2, 0.47, 0.8, 1.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty.value(s), s)
    torch.testing.assert_close(gradient, penalty.slope(s.detach()))


# From ξ = 0.47 to 0, in ℓ1's time.
WAYS = {"l1": 1, "tl1": 0.77, "mcp": 1.35, "scad": 1.07, "lp": 0.91}


@pytest.mark.parametrize(("name", "relative"), WAYS.items())
def test_the_way_to_zero(name, relative):
    way = PENALTIES[name]().path_length(torch.tensor([0.47], dtype=torch.float64)).item()
    assert way / 0.47 == pytest.approx(relative, abs=0.01)


def bn(channels: int = 40, dtype: torch.dtype = torch.float64) -> Graph:
    graph = chain(channels, dtype=dtype)
    nn.init.uniform_(graph.norms["1"].weight, 0, 0.6)
    return graph


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("alpha", [10.0, 1000.0])
def test_the_objective_never_rises_under_the_xi_step(name, alpha):
    """L apart, which ξ is not in: λφ(ξ) + (β/2)‖γ − ξ‖² falls until it stands still."""
    torch.manual_seed(0)
    method = ProximalSlimming(bn(), 0.5, 3.0, xi_init=XI_INIT, penalty=name)
    before = start = method.penalty()
    for _ in range(300):
        method._update_xi(alpha)
        after = method.penalty()
        assert after <= before + 1e-12
        before = after
    assert after < start - 0.1


@pytest.mark.parametrize("name", PENALTIES)
def test_what_is_dead_stays_dead(name):
    """prox(0) = 0: a channel with γ = ξ = 0 is cut while training whatever the penalty."""
    torch.manual_seed(0)
    graph = bn(dtype=torch.float32)
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
def test_the_others_are_what_they_are_without_the_dead(name):
    """Also where the penalty is not a sum over the factors: the norm of ℓ1 − ℓ2 has 0 of these."""
    torch.manual_seed(0)
    options = {"xi_init": XI_INIT, "penalty": name}
    full, cut = (ProximalSlimming(bn(n), 0.035, 3.0, **options) for n in (40, 33))
    full.write(full.gamma.index_fill(0, torch.arange(7), 0))
    full.xi[:7] = 0
    cut.write(full.gamma[7:])
    cut.xi.copy_(full.xi[7:])
    for _ in range(300):
        for method in (full, cut):
            method.step(0.1)
        torch.testing.assert_close(full.xi[7:], cut.xi, rtol=0, atol=1e-14)
        torch.testing.assert_close(full.gamma[7:], cut.gamma, rtol=0, atol=1e-14)
    assert (cut.xi == 0).any()


@pytest.mark.parametrize(
    "name", [name for name, each in PENALTIES.items() if not each.infinite_slope_at_zero]
)
def test_the_subgradient_method_adds_the_slope(name):
    graph = bn()
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


def test_a_flat_start_and_too_short_a_way_are_warned_of():
    def said(penalty: str, shape: float | None, lambda_: float) -> str:
        options = {"penalty": penalty, "shape": shape, "xi_init": XI_INIT}
        method = ProximalSlimming(graph := bn(), lambda_, 100.0, **options)
        sgd = torch.optim.SGD(graph.norms["1"].parameters(), 0.1, momentum=0.9)
        return " ".join(method.warnings([(782, 0.1)] * 10, "vgg", 19, sgd))

    # 7,820 steps of λ/(2α + β) are 0.5 for λ = 0.0077.
    assert not said("l1", None, 0.0077)
    assert "from" not in said("mcp", 1.0, 0.02)
    assert "starts at" in said("mcp", 1.0, 0.0077)
    assert "40 of 40 ξ start beyond" in said("mcp", 0.4, 10)
    assert "flat" not in said("mcp", 1.0, 1e-4)


if __name__ == "__main__":
    for name in SEPARABLE:
        print(f"{name:<5} {max(gaps(name, int(sys.argv[1]))):.1e}", flush=True)
