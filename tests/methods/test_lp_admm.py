"""Lp-ADMM: where it converges it arrives exactly, and where it must not it does not."""

import pytest
import torch
from chains import chain
from torch import Tensor, nn

from steps import make_step
from utils.methods.lp_admm import LpAdmm, every, exponent

N = 400


class Separable:
    """Σ½a(γ − c)² for 400 γ, a from ½ to 2, in float64, and a method that works on it."""

    def __init__(self, method: type[LpAdmm] = LpAdmm, **options: object) -> None:
        torch.manual_seed(0)
        self.a = 0.5 + 1.5 * torch.rand(N, dtype=torch.float64)
        self.c = 2 * torch.randn(N, dtype=torch.float64)
        graph = chain(N, dtype=torch.float64)
        (self.bn,) = graph.norms.values()
        self.method = method(graph, **options)
        self.method.write(self.c)
        self.method.reset_state()

    def gradient(self) -> Tensor:
        return self.a * (self.method.read() - self.c)

    def solve(self) -> None:
        """Exactly: γ ← argmin L + ρ/2‖γ − z + u‖², then z and u."""
        m = self.method
        m.write((self.a * self.c + m.rho * (m.z - m.u)) / (self.a + m.rho))
        m.step(0.1)

    def moved(self, iterations: int, last: int = 1) -> float:
        """How far any z moved in the ``last`` of so many iterations."""
        for _ in range(iterations - last):
            self.solve()
        before, most = self.method.z.clone(), 0.0
        for _ in range(last):
            self.solve()
            most = max(most, (self.method.z - before).abs().max().item())
            before = self.method.z.clone()
        return most

    def check(self, within: float) -> int:
        """Stationary where z ≠ 0, and |∇L| ≤ λM where z = 0; how many zeros there are."""
        m, gradient, zero = self.method, self.gradient(), self.method.z == 0
        residual = gradient + m.lambda_ * m.slope(m.z.abs()) * m.z.sign()
        assert residual[~zero].abs().max() <= within
        assert gradient[zero].abs().max() <= m.lambda_ * m.bound + within
        return int(zero.sum())


@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("rho", [1.0, 3.0])
def test_exact_steps_converge(p, rho):
    problem = Separable(lambda_=0.3, p=p, rho=rho, z_every=1)
    assert problem.moved(2000) <= 1e-15
    assert 20 < problem.check(1e-14) < 380


def test_sgd_steps_converge_as_exact_ones_do():
    """Momentum is over the coupling too, so the penalty keeps its λ."""
    problem = Separable(lambda_=0.2, rho=1.0, z_every=20)
    m, optimizer = problem.method, torch.optim.SGD([problem.bn.weight], 0.1, 0.9)
    for _ in range(300 * 20):
        before = m.z.clone()
        problem.bn.weight.grad = problem.gradient()
        m.before_step()
        optimizer.step()
        m.step(0.1)
    assert (m.z - before).abs().max() <= 1e-15
    assert 20 < problem.check(1e-12) < 380
    assert (m.read()[m.z == 0].abs() < 1e-12).all()


class Gradient(LpAdmm):
    """z ← v − λω(z)sgn(z)/ρ in place of the threshold."""

    def _update_z(self, due: Tensor) -> None:
        v = self.read() + self.u
        z = v - self.lambda_ / self.rho * self.slope(self.z.abs()) * self.z.sign()
        self.u.copy_(v - z)
        self.z.copy_(z)


def test_what_must_not_settle_does_not():
    assert Separable(Gradient, lambda_=0.3, rho=1.0, z_every=1).moved(2000, 50) > 0.1
    # A large bound with a small ρ cycles for ever.
    options = {"lambda_": 0.1, "p": 0.5, "bound": 5.0, "z_every": 1}
    assert Separable(**options, rho=0.1).moved(4000, 50) > 0.5
    assert Separable(**options, rho=1.0).moved(2000) <= 1e-15


@pytest.mark.parametrize("wrong", ["coupling", "dual"])
def test_a_wrong_sign_is_seen(wrong):
    class Wrong(LpAdmm):
        def before_step(self) -> None:
            flipped = -1 if wrong == "coupling" else 1
            self.rho *= flipped
            super().before_step()
            self.rho *= flipped

        def _update_z(self, due: Tensor) -> None:
            self.u *= -1 if wrong == "dual" else 1
            super()._update_z(due)

    problem = Separable(Wrong, lambda_=0.2, rho=1.0, z_every=20)
    m, optimizer = problem.method, torch.optim.SGD([problem.bn.weight], 0.1, 0.9)
    for _ in range(2000):
        problem.bn.weight.grad = problem.gradient()
        m.before_step()
        optimizer.step()
        m.step(0.1)
    with pytest.raises(AssertionError):
        problem.check(1e-6)


def test_the_dual_is_bounded_at_every_step_and_z_moves_when_it_is_due():
    """On a real network, in float32: |ρu| ≤ λM; γ alone moves between updates."""
    step = make_step(method=lambda graph: LpAdmm(graph, 0.02, rho=0.1, bound=1.5, z_every=3))
    m, done = step.method, 0
    assert torch.equal(m.z, m.read()) and not m.u.any()
    for epoch in range(3):
        for where in step.batches.epoch_indices(epoch):
            z, gamma = m.z.clone(), m.read().clone()
            step.launch(where)
            done += 1
            assert not torch.equal(m.read(), gamma)
            assert torch.equal(m.z, z) == (done % 3 != 0)
            assert (m.rho * m.u.abs()).max() <= m.lambda_ * m.bound * (1 + 1e-6)
    assert m.u.any() and m.count == 0
    step.launch(where)
    z = m.z.clone()
    assert m.count == 1
    m.end_epoch(0.1)
    assert not torch.equal(m.z, z) and m.count == 0
    z = m.z.clone()
    m.end_epoch(0.1)  # nothing was done since
    assert torch.equal(m.z, z)


def test_once_an_epoch_is_the_default_and_a_halted_training_changes_nothing():
    step = make_step(method=lambda graph: LpAdmm(graph, 0.02))
    m = step.method
    for where in step.batches.epoch_indices(0):
        step.launch(where)
    assert not torch.equal(m.z, m.read()) and not m.u.any()
    m.found_inf.fill_(1)
    before = {name: x.clone() for name, x in m.state_dict().items()}
    step.launch(where)
    m.end_epoch(0.1)
    assert all(torch.equal(x, before[name]) for name, x in m.state_dict().items())
    m.found_inf.zero_()
    m.end_epoch(0.1)
    assert m.u.any()


def test_its_objective_has_the_slope_of_its_steps():
    m = Separable(lambda_=0.3, bound=2.0).method
    z = m.z.copy_(torch.linspace(0.001, 2, N, dtype=torch.float64))
    value = m.penalty()
    step = 1e-6
    m.z.add_(step)
    assert (m.penalty() - value) / step == pytest.approx(
        0.3 * m.slope(z - step / 2).sum().item(), rel=1e-4
    )
    flat = Separable(lambda_=0.3, p=1.0, bound=2.0).method
    assert flat.penalty() == pytest.approx(0.3 * flat.z.abs().sum().item())
    assert flat.log_metrics(1.0)["primal_gap"] == 0


def test_p_is_an_exponent_or_the_number_below_it(capsys):
    assert (exponent("0.2"), exponent("1")) == (0.2, 1.0)
    assert not capsys.readouterr().err
    assert exponent("5") == 0.2
    assert "--p 5 is read as 1/5" in capsys.readouterr().err
    assert (every("epoch"), every("step"), every("10")) == ("epoch", 1, 10)


def test_warnings():
    def said(schedule: list[tuple[int, float]], **options: float) -> str:
        options = {"lambda_": 1e-4, **options}
        (bn,) = (graph := chain(9)).norms.values()
        nn.init.constant_(bn.weight, 0.5)
        sgd = torch.optim.SGD(bn.parameters(), 0.1, momentum=0.9)
        return " ".join(LpAdmm(graph, **options).warnings(schedule, "vgg", 16, sgd))

    assert "all channels train to the end" in said([])
    # The released settings move γ by 0.023 in such an epoch.
    assert "moves γ by 0.023," in said([(782, 0.1)])
    assert "zeros may not" in said([(782, 0.1)] * 21)
    assert "zeros may not" not in said([(782, 0.1)] * 22)
    assert "λM/ρ" not in said([(782, 0.1)] * 22)
    assert "λM/ρ = 0.6," in said([], lambda_=0.03, rho=0.05)
