"""Proximal and original network slimming: every step is that of the formulas."""

import numpy as np
import pytest
import torch
from chains import chain
from torch import nn

from netslim import Budget, Graph
from netslim.methods.penalties import soft_threshold
from utils.methods.base import Method
from utils.methods.lp_admm import LpAdmm
from utils.methods.slimming import ProximalSlimming, Subgradient, shrinkage
from utils.paper.settings import XI_INIT


def make_graph(channels: int = 5, dtype: torch.dtype = torch.float32) -> Graph:
    graph = chain(channels, 4, dtype=dtype)
    for bn in graph.norms.values():
        nn.init.uniform_(bn.weight, -1, 1)
    return graph


def reference_step(gamma, xi, alpha, beta, lambda_):
    """Steps (8b) and (9) in numpy."""
    gamma = (alpha * gamma + beta * xi) / (alpha + beta)
    mean = (alpha * xi + beta * gamma) / (alpha + beta)
    return gamma, np.sign(mean) * np.maximum(0, np.abs(mean) - lambda_ / (alpha + beta))


@pytest.mark.parametrize("frozen", [[], [1], [1, 4]], ids=str)
@pytest.mark.parametrize("kind", [Subgradient, LpAdmm])
def test_a_frozen_gamma_gets_no_gradient(kind, frozen):
    graph = make_graph()
    weights = {i: graph.model[i].weight for i in (1, 4)}
    for i in frozen:
        weights[i].requires_grad_(False)
    method = kind(graph, 0.1)
    if kind is LpAdmm:
        method.z += 1
    graph.model(torch.randn(2, 3, 4, 4)).sum().backward()
    before = {i: None if w.grad is None else w.grad.clone() for i, w in weights.items()}
    method.before_step()
    for i, weight in weights.items():
        assert (weight.grad is None) == (i in frozen)
        assert i in frozen or (weight.grad != before[i]).all()


def test_steps_in_float64_equal_the_formulas():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    method = ProximalSlimming(make_graph(dtype=torch.float64), 0.15, 3.0, xi_init=(-0.5, 0.5))
    gamma, xi = method.gamma.numpy().copy(), method.xi.numpy().copy()
    for step in range(300):
        alpha = (10.0, 100.0, 1000.0)[step // 120]  # the learning rate drops
        moved = random.normal(0, 1 / alpha, gamma.shape)
        method.write(method.gamma + torch.from_numpy(moved))  # an SGD step
        method.step(1 / alpha)
        gamma, xi = reference_step(gamma + moved, xi, alpha, 3.0, 0.15)
        np.testing.assert_allclose(method.gamma.numpy(), gamma, rtol=0, atol=1e-12)
        np.testing.assert_allclose(method.xi.numpy(), xi, rtol=0, atol=1e-12)
    assert 0 < method.zero_counts()["xi"] < len(xi)


@pytest.mark.parametrize(("alpha", "beta"), [(10.0, 100.0), (100.0, 1.0), (1000.0, 0.25)])
def test_a_step_in_float32_is_within_2_ulp_and_leaves_no_subnormal_gamma(alpha, beta):
    torch.manual_seed(1)
    method = ProximalSlimming(make_graph(1000), 0.002, beta)
    gamma, xi = method.gamma.double().numpy(), method.xi.double().numpy()
    method.step(1 / alpha)
    expected_gamma, expected_xi = reference_step(gamma, xi, alpha, beta, 0.002)
    # ulps of the values that are added: their sum may cancel
    ulp = np.spacing(np.maximum(np.abs(gamma), np.abs(xi)).astype(np.float32))
    assert (np.abs(method.gamma.numpy() - expected_gamma) <= 2 * ulp).all()
    assert (np.abs(method.xi.numpy() - expected_xi) <= 2 * ulp).all()

    # The γ of a dead channel shrinks by α/(α + β), and must not stick at a subnormal number.
    assert torch.tensor(1e-40).item() > 0, "subnormals must not be flushed in this test"
    method = ProximalSlimming(make_graph(), 100.0, beta)  # so large a λ keeps ξ at 0
    method.write(torch.full_like(method.gamma, 1.3e-38))
    method.xi.zero_()
    for _ in range(int(np.log(1.3 / 1.1) / np.log1p(beta / alpha)) + 2):
        method.step(1 / alpha)
    assert method.read().tolist() == [0.0] * 9
    assert method.zero_counts()["gamma"] == 9


@pytest.mark.parametrize(("alpha", "falls"), [(3.0, True), (0.25, False)])
def test_iterates_satisfy_lemmas_3_and_4_of_theorem_1(alpha, falls):
    """F decreases enough (10), and its subgradient is small enough (19); for L < α ≤ 2L F falls.

    The loss is Σ½a(γ − c)², whose gradient has the Lipschitz constant L = 2.
    """
    torch.manual_seed(0)
    lipschitz, lambda_, beta = 2.0, 0.3, 1.0
    a, c = torch.linspace(0.5, lipschitz, 50).double(), 0.6 * torch.rand(50).double()
    method = ProximalSlimming(chain(50, dtype=torch.float64), lambda_, beta, xi_init=XI_INIT)
    method.write(torch.full_like(c, 0.5))
    decreases, before = [], None
    for _ in range(100):
        gamma, xi = method.read().clone(), method.xi.clone()
        gradient, pull = a * (gamma - c), beta * (gamma - xi)
        loss = (a * (gamma - c).square()).sum() / 2
        objective = loss + lambda_ * xi.abs().sum() + beta / 2 * (gamma - xi).square().sum()
        # Where ξ = 0, ∂|ξ| is [−1, 1], and the element nearest to the pull is chosen (20c).
        sparsity = torch.where(xi == 0, pull.clamp(-lambda_, lambda_), lambda_ * xi.sign())
        if before is not None:
            distance = torch.cat([gamma - before[0], xi - before[1]]).norm()
            decreases.append(before[2] - objective)
            assert decreases[-1] >= (alpha - lipschitz) / 2 * distance**2 - 1e-13
            subgradient = torch.cat([gradient + pull, sparsity - pull])
            assert subgradient.norm() <= (3 * alpha + 2 * lipschitz + beta) * distance + 1e-13
        before = gamma, xi, objective
        method.write(gamma - gradient / alpha)
        method.step(1 / alpha)
    assert (min(decreases) > -1e-13) == falls
    assert 0 < int((xi == 0).sum()) < 50 or not falls


def test_prox_every_epoch_updates_xi_after_the_epoch_only():
    torch.manual_seed(0)
    method = ProximalSlimming(make_graph(), 0.5, 2.0, prox_every="epoch", xi_init=(0.47, 0.5))
    gamma, xi = method.gamma.clone(), method.xi.clone()
    for _ in range(3):
        method.step(0.1)
        gamma = (10 * gamma + 2 * xi) / 12
    assert torch.equal(method.xi, xi)
    torch.testing.assert_close(method.gamma, gamma)
    method.end_epoch(0.1)
    torch.testing.assert_close(method.xi, soft_threshold((10 * xi + 2 * gamma) / 12, 0.5 / 12))
    by_step = ProximalSlimming(make_graph(), 0.5, 2.0)
    xi = by_step.xi.clone()
    by_step.end_epoch(0.1)
    assert torch.equal(by_step.xi, xi)


def test_the_initial_xi_is_uniform_and_depends_on_the_seed():
    def start(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return ProximalSlimming(make_graph(500), 0.1, 1.0, xi_init=XI_INIT).xi

    xi = start(3)
    assert 0.47 <= xi.min() < 0.472 and 0.498 < xi.max() <= 0.50
    assert torch.equal(xi, start(3)) and not torch.equal(xi, start(4))


def test_logged_objectives_are_equations_2_and_5():
    method = ProximalSlimming(make_graph(), 0.1, 4.0, xi_init=XI_INIT)
    gamma, xi = method.gamma.double(), method.xi.double()
    figures = method.log_metrics(2.0)
    ns_objective = 2.0 + 0.1 * gamma.abs().sum().item()
    assert figures["ns_objective"] == pytest.approx(ns_objective, rel=1e-6)
    expected = 0.1 * xi.abs().sum() + 4 / 2 * ((gamma - xi) ** 2).sum()
    assert figures["objective"] == pytest.approx(2.0 + expected.item(), rel=1e-6)
    original = Subgradient(graph := make_graph(), 0.1)
    expected_ns = 2.0 + 0.1 * sum(bn.weight.abs().sum().item() for bn in graph.norms.values())
    assert original.log_metrics(2.0) == {"ns_objective": pytest.approx(expected_ns, rel=1e-6)}
    assert Method(graph).log_metrics(2.0) == {}


def test_shrinkage_is_the_way_of_a_pair_by_the_penalty_alone():
    method = ProximalSlimming(make_graph(dtype=torch.float64), 0.01, 5.0)
    method.write(torch.full_like(method.gamma, 100))
    method.xi.fill_(100)
    for count, alpha in ((300, 10.0), (300, 100.0)):
        for _ in range(count):
            method.step(1 / alpha)
    expected = shrinkage(0.01, 5.0, [(300, 0.1), (300, 0.01)])
    assert 100 - method.xi.mean().item() == pytest.approx(expected, rel=0.02)


def test_a_budget_keeps_the_largest_channel_of_each_layer_and_all_of_frozen_ones():
    graph = chain(5, 4)
    method = ProximalSlimming(graph, target=Budget("channels", 0.7, 10, 0.1))
    xi = torch.tensor([0.1, 0.1, 0.3, 0.2, 0.1, 1, 4, 2, 3])
    chosen, share = method.planner.choose(xi, method.gamma, [True, True])
    assert chosen.tolist() == [True, True, False, True, True, True, False, True, True]
    assert share == pytest.approx(7 / 9)
    with pytest.raises(ValueError, match=r"the channels that can go make 33.3 %"):
        method.planner.choose(xi, method.gamma, [False, True])


@pytest.mark.parametrize(("lambda_", "beta", "every"), [(-1, 1, "step"), (float("nan"), 1, "step"),
                                                        (1, 0, "step"), (1, 1, "day")])  # fmt: skip
def test_parameters_out_of_range_are_refused(lambda_, beta, every):
    with pytest.raises(ValueError, match="λ"):
        ProximalSlimming(make_graph(), lambda_, beta, every)
    with pytest.raises(ValueError, match="no batch norm"):
        ProximalSlimming(graph := chain(), 0.1, 1.0)
    assert not Method(graph).gamma.numel()  # the baseline and SAS-ADMM need none
