"""A budget in place of λ: what is removed, and that the state of a training is all of it."""

import copy

import pytest
import torch
from checks import example, plain_net, random_keep, silence
from networks import build
from torch import nn

import netslim
from netslim.cost import PrunedCost, cost
from netslim.methods.budget import Planner, steered

STEPS, LR, EPOCH = 200, 0.1, 20


@pytest.mark.parametrize("seed", range(20))
def test_what_masks_leave_is_counted_as_the_pruned_model_is(seed: int) -> None:
    model = build(seed, silent=seed % 3 > 0, padded=seed % 2 > 0)
    inputs = example().double()
    graph = netslim.analyze(model, inputs)
    keep = random_keep(graph)
    silence(graph, keep)
    small, report = netslim.prune(model, keep, inputs)
    counted, found = cost(small, inputs), PrunedCost(graph)(keep)
    assert (found.flops, found.parameters) == (counted.flops, counted.parameters)
    assert found.channels == sum(after for _, after in report.channels.values())


class Training:
    """Some steps of a small model on two kinds of noise."""

    def __init__(self, what: str = "flops", share: float = 0.4, frozen: bool = False) -> None:
        torch.manual_seed(0)
        self.model = plain_net()
        for norm in (self.model[1], self.model[4]):
            nn.init.constant_(norm.weight, 0.5)
        self.model[1].requires_grad_(not frozen)
        self.graph = netslim.analyze(self.model.train(), example())
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR, momentum=0.9)
        self.budget = netslim.Budget(what, share, STEPS, LR)
        self.method = netslim.ProximalSlimming(self.graph, target=self.budget, xi_init=(0.47, 0.50))

    def epoch(self, number: int) -> None:
        random = torch.Generator().manual_seed(number)
        for _ in range(EPOCH):
            labels = torch.randint(0, 2, (16,), generator=random)
            images = torch.randn(16, 3, 8, 8, generator=random) + labels[:, None, None, None]
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
            self.method.step(LR)
        self.method.end_epoch(LR)

    def state(self) -> dict[str, object]:
        method = dict(self.method.state_dict())
        kinds = self.model.state_dict(), self.optimizer.state_dict(), method
        return dict(zip(("model", "optimizer", "method"), copy.deepcopy(kinds), strict=True))


@pytest.mark.parametrize(
    ("what", "share"), [("flops", 0.5), ("parameters", 0.2), ("channels", 0.7)]
)
def test_the_budget_is_met_by_as_few_channels_as_do(what: str, share: float) -> None:
    run = Training(what, share)
    planner = Planner(run.graph, run.budget)
    for number in range(STEPS // EPOCH):
        run.epoch(number)
    zeros = run.method.zeros()
    assert all(torch.equal(x, run.method.zeros("xi")[name]) for name, x in zeros.items())
    keep = {name: ~zero for name, zero in zeros.items()}
    small, report = netslim.prune(run.model.eval(), keep, example())
    full, left = (cost(model, example()) for model in (run.model, small))
    removed = 1 - left.flops / full.flops if what == "flops" else 0
    if what == "parameters":
        removed = 1 - left.parameters / full.parameters
    if what == "channels":
        removed = report.removed / sum(before for before, _ in report.channels.values())
    assert removed == pytest.approx(run.method.removed) and removed >= share
    for name, zero in zeros.items():  # with any one of them back it would not be met
        for channel in zero.nonzero().flatten():
            fewer = {**keep, name: keep[name].clone()}
            fewer[name][channel] = True
            assert planner.removed(planner.cost(fewer)) < share
    assert report.alive == report.folded == 0 and report.difference < 1e-5 * max(report.largest, 1)


def test_it_is_met_by_half_of_the_steps_and_then_nothing_draws_on_the_others() -> None:
    run = Training()
    for number in range(STEPS // EPOCH):
        run.epoch(number)
        if budget_met := run.method.budget_met:
            break
    assert budget_met and number <= STEPS // EPOCH // 2
    zero = run.method.xi == 0
    run.epoch(100)
    assert torch.equal(run.method.xi == 0, zero) and torch.equal(run.method.xi, run.method.read())
    assert run.method.penalty() == 0


def test_what_is_resumed_from_the_state_goes_on_with_the_same_bits() -> None:
    whole = Training()
    for number in range(5):
        if number in (1, 4):  # λ rises; it is steered
            state, resumed = whole.state(), Training()
            resumed.model.load_state_dict(state["model"])
            resumed.optimizer.load_state_dict(state["optimizer"])
            resumed.method.load_state_dict(state["method"])
            resumed.epoch(number)
        whole.epoch(number)
        if number in (1, 4):
            assert str(whole.state()) == str(resumed.state())
            torch.testing.assert_close(resumed.method.xi, whole.method.xi, rtol=0, atol=0)


def test_a_step_reads_nothing_from_the_device() -> None:
    run = Training()
    run.model.to("meta")  # where nothing can be read
    run.method.step(LR)
    assert all(x.is_meta for x in (run.method.gamma, *run.method.state_dict().values()))


def test_frozen_channels_stay_and_what_is_out_of_reach_is_told() -> None:
    run = Training("channels", 0.3, frozen=True)
    for number in range(STEPS // EPOCH):
        run.epoch(number)
    zeros = run.method.zeros()
    assert not zeros["1"].any() and zeros["4"].sum() == 5
    with pytest.raises(ValueError, match=r"40 % of the channels cannot be removed: .* make 35.7 %"):
        Training("channels", 0.4, frozen=True)


def test_what_a_target_does_not_go_with_is_refused() -> None:
    graph = netslim.analyze(plain_net(), example())
    budget = netslim.Budget("flops", 0.5, STEPS, LR)
    for options in ({"lambda_": 1.0}, {"beta": 1.0}, {"penalty": "mcp"}, {"prox_every": "epoch"}):
        with pytest.raises(ValueError, match="a target determines"):
            netslim.ProximalSlimming(graph, target=budget, **options)
    with pytest.raises(ValueError, match="takes λ and β, or a target"):
        netslim.ProximalSlimming(graph, beta=1.0)
    for bad in (("flops", 1.5, 9, 0.1), ("layers", 0.5, 9, 0.1), ("flops", 0.5, 0, 0.1)):
        with pytest.raises(ValueError, match="a budget is a share"):
            netslim.Budget(*bad)


def test_lambda_is_steered_to_where_the_rest_falls_in_time() -> None:
    """Held up by G = 0.3, λ = 0.6 lets ξ fall by 0.01 a step; and 0.9 by 0.02."""
    assert steered(0.6, 0.01, 0.02, 1 / 30) == pytest.approx(0.9)
    assert steered(0.6, 0.01, 1.0, 1 / 30) == 1.2  # at most twice as large
    assert steered(0.6, 0.02, 0.0, 1 / 30) == 0.3
