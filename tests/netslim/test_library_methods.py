"""The methods own no tensor of the model, and notice what is done to it."""

import copy
import warnings

import pytest
import torch
from checks import example, plain_net
from torch import nn

import netslim

WAYS = {
    "assigned": lambda m: m.load_state_dict(copy.deepcopy(m.state_dict()), assign=True),
    "replaced": lambda m: m.__setitem__(4, nn.BatchNorm2d(6)),
    "new parameter": lambda m: setattr(m[4], "weight", nn.Parameter(torch.ones(6))),
    "double": lambda m: m.double(),
    "half": lambda m: m[4].half(),
}


def slimming(model: nn.Module, **options) -> netslim.ProximalSlimming:
    return netslim.ProximalSlimming(
        netslim.analyze(model.eval(), example()), **{"lambda_": 1.0, "beta": 100, **options}
    )


@pytest.mark.parametrize("way", WAYS)
def test_gamma_that_is_swapped_is_followed(way: str) -> None:
    model = plain_net()
    method = slimming(model)
    WAYS[way](model)
    for _ in range(1000):
        method.step(0.1)
    for name, zeros in method.zeros().items():
        assert zeros.all() and not model.get_submodule(name).weight.any(), name


def test_rounding_does_not_stop_the_shrinking() -> None:
    """A step smaller than the resolution of bfloat16 is not lost."""
    gamma = []
    for dtype in (torch.float32, torch.bfloat16):
        model = plain_net().to(dtype)
        method = slimming(model, beta=1.0, lambda_=0.01, xi_init=(0, 0))
        for _ in range(200):
            method.step(1e-3)  # by a thousandth each
        gamma.append(model[1].weight.detach().float())
    assert gamma[0].max() < 0.9
    assert torch.equal(gamma[0].bfloat16().float(), gamma[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_ends_with_the_same_bits(dtype: torch.dtype) -> None:
    """Where the model rounds γ, the method's state dict holds it unrounded."""
    options = {"beta": 1.0, "lambda_": 0.01, "xi_init": (0, 0)}
    model = plain_net().to(dtype)
    method = slimming(model, **options)
    for _ in range(100):
        method.step(1e-3)
    other = plain_net().to(dtype)
    resumed = slimming(other, **options)
    state = copy.deepcopy(method.state_dict())
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    for _ in range(100):
        method.step(1e-3)
        resumed.step(1e-3)
    assert torch.equal(resumed.gamma, method.gamma) and torch.equal(resumed.xi, method.xi)
    assert torch.equal(other[1].weight, model[1].weight)
    assert state.keys() == ({"xi"} if dtype is torch.float32 else {"xi", "gamma"})
    resumed.load_state_dict({"xi": state["xi"]})  # as before γ was in it
    assert torch.equal(resumed.xi, state["xi"])


def test_another_width_is_noticed() -> None:
    model = plain_net()
    method = slimming(model)
    model[4] = nn.BatchNorm2d(5)
    with pytest.raises(RuntimeError, match="4 has 5 channels now, not 6: construct"):
        method.step(0.1)


def test_frozen_factors_stay() -> None:
    model = plain_net()
    model[1].requires_grad_(False)
    before = model[1].weight.clone()
    method = slimming(model)
    for _ in range(1000):
        method.step(0.1)
    assert torch.equal(model[1].weight, before) and not model[4].weight.any()
    model[1].requires_grad_(True)  # thawed in between
    for _ in range(1000):
        method.step(0.1)
    assert not model[1].weight.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_zero_is_one_number_for_every_type(dtype: torch.dtype) -> None:
    model = plain_net().to(dtype)
    method = slimming(model)
    tiny = torch.tensor([0.0, 2.0**-127, -(2.0**-130), 2.0**-120, 1, 1, 1, 1])
    with torch.no_grad():
        model[1].weight.copy_(tiny)
    expected = [True, True, True, dtype is torch.float16, *[False] * 4]
    assert method.zeros()["1"].tolist() == expected


def test_a_run_without_a_zero_is_told() -> None:
    method = slimming(plain_net(), lambda_=1e-6)
    method.step(0.1)
    with pytest.warns(UserWarning, match="no scaling factor is zero"):
        method.zeros()


def test_where_xi_is_zero_and_no_gamma_is_it_is_told_and_can_be_pruned_by() -> None:
    """As at the end of a short run with momentum, which γ follows slowly."""
    model = plain_net()
    method = slimming(model)
    method.xi[3:] = 0
    with pytest.warns(UserWarning, match=rf"{len(method.xi) - 3} of {len(method.xi)} ξ are zero"):
        assert not any(zeros.any() for zeros in method.zeros().values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zeros = method.zeros("xi")
    assert zeros["1"].tolist() == [False] * 3 + [True] * 5 and zeros["4"].all()
    with pytest.raises(ValueError, match="there is no factor 'z', only gamma, xi"):
        method.zeros("z")


@pytest.mark.parametrize("method", [netslim.Subgradient, netslim.LpADMM])
def test_methods_that_change_gradients_have_to_before_every_step(method) -> None:
    model = plain_net()
    method = method(netslim.analyze(model, example()), lambda_=0.1)
    model.train()(example()).sum().backward()
    before = model[1].weight.grad.clone()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="before_step"):
            method.step(0.1)
        method.before_step()
        method.step(0.1)
    if isinstance(method, netslim.Subgradient):
        assert torch.allclose(model[1].weight.grad - before, torch.full((8,), 0.2))


BY_END_EPOCH = {
    "chooses λ": lambda graph: netslim.ProximalSlimming(
        graph, target=netslim.Budget("flops", 0.3, 10, 0.1)
    ),
    "updates ξ": lambda graph: netslim.ProximalSlimming(graph, 1.0, 100, prox_every="epoch"),
    "updates z": lambda graph: netslim.LpADMM(graph, lambda_=0.1),
}


@pytest.mark.parametrize("what", BY_END_EPOCH)
def test_a_run_without_end_epoch_is_told(what: str) -> None:
    model = plain_net()
    with torch.no_grad():
        model[1].weight[0] = 0  # a zero from an earlier training
    method = BY_END_EPOCH[what](netslim.analyze(model, example()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.zeros()  # before the first step nothing is missing
        for epoch in range(2):
            method.before_step()
            method.step(0.1)
            if not epoch:
                with pytest.warns(UserWarning, match=rf"end_epoch\(\) has .* only it {what}"):
                    method.zeros()
                method.end_epoch(0.1)
            method.zeros()
        if isinstance(method, netslim.LpADMM):  # u ≠ 0 tells it, also after resuming
            resumed = netslim.LpADMM(method.graph, lambda_=0.1)
            resumed.load_state_dict(method.state_dict())
            resumed.before_step()
            resumed.step(0.1)
            resumed.zeros()


def test_the_state_of_another_model_is_refused() -> None:
    method = slimming(plain_net(), lambda_=0.0, beta=1.0)
    with pytest.raises(ValueError, match=r"^ξ is missing$"):
        method.load_state_dict({})
    with pytest.raises(ValueError, match=rf"^ξ has shape \[3\], not \[{len(method.gamma)}\]$"):
        method.load_state_dict({"xi": torch.zeros(3)})


def test_a_step_sets_just_what_is_subnormal_to_zero() -> None:
    tiny = torch.tensor(torch.finfo(torch.float32).tiny)
    below = tiny.nextafter(torch.tensor(0.0))
    method = slimming(plain_net(), lambda_=0.0, beta=1.0)
    gamma = torch.stack([tiny, -tiny, below, -below, *[2 * tiny] * (len(method.gamma) - 4)])
    method.write(gamma)
    method.xi.copy_(gamma)  # (γ + ξ)/2 is γ
    method.step(1.0)
    assert method.read().tolist() == gamma.masked_fill(gamma.abs() < tiny, 0).tolist()
    assert sum(int(zeros.sum()) for zeros in method.zeros().values()) == 2


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_a_step_with_learning_rate_0_changes_nothing(every: str) -> None:
    """As in a warm-up that starts at 0, or at the end of a cosine schedule."""
    method = slimming(plain_net(), xi_init=(0.47, 0.50), prox_every=every)
    gamma, xi = method.read().clone(), method.xi.clone()
    method.step(0.0)
    method.end_epoch(0.0)
    assert torch.equal(method.read(), gamma) and torch.equal(method.xi, xi)
    method.step(0.1)
    assert not torch.equal(method.read(), gamma)


def test_a_budget_is_steered_by_the_epochs_whose_learning_rate_is_not_0() -> None:
    """Steps with learning rate 0 count, so that the budget is met in time all the same."""
    graph = netslim.analyze(plain_net(), example())
    method = netslim.ProximalSlimming(graph, target=netslim.Budget("channels", 0.3, 10, 0.1))
    seen = []
    for lr in (0.0, 0.1, 0.0, 0.0, 0.0):
        method.step(lr)
        method.end_epoch(lr)
        seen.append(method.lambda_)
    assert seen[0] == 0 < seen[1] == seen[2] == seen[3]
    assert method.budget_met and sum(int(zeros.sum()) for zeros in method.zeros().values()) == 5


def test_an_unknown_penalty_is_refused_with_the_names_that_exist():
    graph = netslim.analyze(plain_net(), example())
    with pytest.raises(ValueError, match="no penalty 'lasso', only l1, group"):
        netslim.ProximalSlimming(graph, 0.3, 10, penalty="lasso")
