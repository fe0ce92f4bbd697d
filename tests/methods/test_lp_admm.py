"""Lp-ADMM converges exactly where it should, and nowhere else."""

import pytest
import torch
from chains import chain
from torch import Tensor, nn

from main import train_step
from steps import make_step
from utils.methods.base import TrainingSetup
from utils.methods.lp_admm import LpAdmm, every, exponent
from utils.paper.settings import recipe

N = 100


class Separable:
    """Σ½a(γ − c)² over 100 γ, a from ½ to 2, in float64."""

    def __init__(self, **options: object) -> None:
        torch.manual_seed(0)
        self.a = 0.5 + 1.5 * torch.rand(N, dtype=torch.float64)
        self.c = 2 * torch.randn(N, dtype=torch.float64)
        graph = chain(N, dtype=torch.float64)
        self.method = LpAdmm(graph, **options)
        self.method.write(self.c)
        self.method.reset_state()

    def gradient(self) -> Tensor:
        return self.a * (self.method.read() - self.c)

    def solve(self, iterations: int) -> None:
        """γ ← argmin L + ρ/2‖γ − z + u‖², then z and u."""
        m = self.method
        for _ in range(iterations):
            m.before_step()
            m.write((self.a * self.c + m.rho * (m.z - m.u)) / (self.a + m.rho))
            m.step(0.1)

    def check(self, within: float) -> None:
        """Stationary where z ≠ 0, |∇L| ≤ λM where z = 0, and some of both."""
        m, gradient, zero = self.method, self.gradient(), self.method.z == 0
        residual = gradient + m.lambda_ * m.slope(m.z.abs()) * m.z.sign()
        assert residual[~zero].abs().max() <= within
        assert gradient[zero].abs().max() <= m.lambda_ * m.bound + within
        assert 5 < int(zero.sum()) < 95


@pytest.mark.parametrize(("p", "rho"), [(0.2, 1.0), (0.5, 3.0), (1.0, 1.0)])
def test_it_converges(p, rho):
    problem = Separable(lambda_=0.3, p=p, rho=rho, z_every=1)
    problem.solve(500)
    problem.check(1e-13)


def test_z_moves_when_it_is_due_and_the_dual_is_bounded():
    """|ρu| ≤ λM at every step of a real model, in float32."""
    step = make_step(method=lambda graph: LpAdmm(graph, 0.02, rho=0.1, bound=1.5, z_every=3))
    m, order = step.method, step.batches.epoch_indices(0)
    for number, batch_index in enumerate([*order, *order], 1):
        z, gamma = m.z.clone(), m.read().clone()
        train_step(step, batch_index)
        assert not torch.equal(m.read(), gamma)
        assert torch.equal(m.z, z) == (number % 3 != 0)
        assert (m.rho * m.u.abs()).max() <= m.lambda_ * m.bound * (1 + 1e-6)
    assert m.u.any() and m.count == 2
    for found_inf, moves in ((1, False), (0, True), (0, False)):
        z = m.z.clone()
        m.found_inf.fill_(found_inf)
        m.end_epoch(0.1)  # z moves if there was a step since it last did, and that was finite
        assert torch.equal(m.z, z) != moves
    assert m.count == 0
    by_epoch = LpAdmm(step.method.graph, 0.02)
    for _ in range(4):
        by_epoch.before_step()
        by_epoch.step(0.1)
    assert not by_epoch.u.any()  # by default, once an epoch
    by_epoch.end_epoch(0.1)
    assert by_epoch.u.any()


def test_the_logged_penalty_has_the_slope_of_the_steps():
    m = Separable(lambda_=0.3, bound=2.0).method
    z, step = m.z.copy_(torch.linspace(0.001, 2, N, dtype=torch.float64)), 1e-6
    value = m.penalty()
    m.z.add_(step)
    expected = 0.3 * m.slope(z - step / 2).sum().item()
    assert (m.penalty() - value) / step == pytest.approx(expected, rel=1e-4)
    flat = Separable(lambda_=0.3, p=1.0, bound=2.0).method
    assert flat.penalty() == pytest.approx(0.3 * flat.z.abs().sum().item())
    assert flat.log_metrics(1.0)["primal_gap"] == 0


@pytest.mark.parametrize(
    ("epochs", "options", "message"),
    [
        (1, {}, "moves γ by 0.023,"),  # the released settings
        (21, {}, "there may be no zeros"),
        (22, {}, ""),
        (22, {"lambda_": 0.03, "rho": 0.05}, "λM/ρ = 0.6"),
    ],
)
def test_warnings(epochs, options, message):
    (bn,) = (graph := chain(9)).norms.values()
    nn.init.constant_(bn.weight, 0.5)
    method = LpAdmm(graph, **{"lambda_": 1e-4, **options})
    setup = TrainingSetup([(782, 0.1)] * epochs, 0.9, recipe("vgg", 16))
    text = " ".join(method.warnings(setup))
    assert message in text and ("warning" in text) == bool(message)
    assert (exponent("0.2"), exponent("1"), exponent("5")) == (0.2, 1.0, 0.2)
    assert (every("epoch"), every("step"), every("10")) == ("epoch", 1, 10)
