"""Code in users' models that netslim cannot follow: channels stay, or the pruning is refused."""

import io
import math
import types
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import Own, example, plain_net
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import l1_unstructured
from torch.optim.swa_utils import AveragedModel

import netslim
from netslim.cost import PrunedCost, cost

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KEEP = {"norm": torch.arange(8) > 3}


class Net(nn.Module):
    """Applies ``between`` to the feature map and ``wrap`` to logits and feature map."""

    def __init__(
        self,
        between: Callable[[Any, Tensor], Tensor] = lambda model, x: x,
        wrap: Callable[[Tensor, Tensor], Any] = lambda logits, features: logits,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 3, 1)
        self.between, self.wrap = between, wrap
        with torch.no_grad():  # silent where KEEP removes
            self.norm.weight[:4] = 0
            self.norm.bias[:4] = -1
        self.eval()

    def forward(self, x: Tensor) -> Any:
        x = self.between(self, self.norm(self.conv(x)).relu())
        return self.wrap(self.head(x).mean((2, 3)), x)


@dataclass
class Out:
    logits: Any
    features: Any


@dataclass(slots=True)
class Slots:
    features: Any


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits, x: [Out(logits, x)],
        lambda logits, x: {"detections": Out(logits, [x])},
        lambda logits, x: Out(logits, Slots(x)),
        lambda logits, x: types.MappingProxyType({"logits": logits, "features": x}),
        lambda logits, x: {logits, x},
    ],
)
def test_a_feature_map_inside_an_object_is_an_output(wrap):
    graph = netslim.analyze(Net(wrap=wrap), X)
    assert graph.reasons == {"norm": "it is an output of the model"}


def test_tensors_in_objects_are_inputs():
    class Unwraps(Net):
        def forward(self, batch: Any) -> Any:
            return super().forward(batch.features)

    assert [*netslim.analyze(Unwraps(), (Slots(X),)).norms] == ["norm"]


# A number of channels becomes a value: the pruned model would compute another function.
COMPUTES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "an attribute of a layer": lambda model, x: x / math.sqrt(model.conv.out_channels),
    "an attribute of the reader": lambda model, x: x * model.head.in_channels,
    "numpy": lambda model, x: x / float(np.sqrt(x.shape[1])),
    "a loop": lambda model, x: x * sum(1 for _ in range(x.shape[1])),
    "math": lambda model, x: x / math.log(x.shape[1]),
}


@pytest.mark.parametrize("code", COMPUTES)
def test_code_that_computes_with_a_number_of_channels_is_refused(code):
    with pytest.raises(ValueError, match="computes something else than with γ = 0"):
        netslim.prune(Net(COMPUTES[code]), KEEP, X)


@pytest.mark.parametrize(
    "between",
    [
        lambda model, x: x * torch.arange(x.shape[1]).sum(),
        lambda model, x: x / x.stride(0),
        lambda model, x: F.interpolate(x, size=x.shape[1]),
    ],
)
def test_channels_whose_number_torch_computes_with_stay(between):
    reasons = netslim.analyze(Net(between), X).reasons
    assert reasons == {"norm": "code of the model computes with its width"}


def test_a_model_that_draws_numbers_is_not_refused():
    model = Net(wrap=lambda logits, x: logits + torch.randn(2, 3))
    small, report = netslim.prune(model, KEEP, X)
    assert report.silent == 4 and small.conv.out_channels == 4


def test_batch_norms_without_a_gamma_of_their_own_stay():
    computed = "its γ is computed from other parameters"
    model = Net()
    parametrize.register_parametrization(model.norm, "weight", nn.ReLU())
    assert netslim.analyze(model, X).reasons == {"norm": computed}
    model = Net()
    l1_unstructured(model.norm, "weight", 0.5)
    assert netslim.analyze(model, X).reasons == {"norm": computed}
    model = nn.Sequential(Net(wrap=lambda logits, x: x), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    model.append(nn.Conv2d(8, 2, 1))
    model[2].weight = model[0].norm.weight
    reasons = {"0.norm": "its γ is also that of 2", "2": "its γ is also that of 0.norm"}
    assert netslim.analyze(model, X).reasons == reasons


def test_a_module_that_is_to_be_compiled_is_seen():
    model = Net()
    model.compile(backend="eager")
    assert [*netslim.analyze(model, X).norms] == ["norm"]
    small, report = netslim.prune(model, KEEP, X)
    assert report.difference < 1e-6 and small(X).shape == (2, 3)


def test_what_has_batch_norms_of_another_kind_is_not_said_to_have_none():
    model = Net()
    model.norm = Own(lambda m, x: F.batch_norm(x, m.mean, m.var, m.weight, m.bias))
    for name, value in {"weight": 1.0, "bias": 0.0}.items():
        model.norm.register_parameter(name, nn.Parameter(torch.full((8,), value)))
    for name, value in {"mean": 0.0, "var": 1.0}.items():
        model.norm.register_buffer(name, torch.full((8,), value))
    other = "its module is none of torch's batch norms"
    assert netslim.analyze(model, X).why_none() == f"norm: {other}"
    program = torch.export.export(nn.Sequential(Net().conv, Net().norm).eval(), (X,)).module()
    assert "prune the model it was made from" in netslim.analyze(program, X).why_none()


class Trains(nn.Module):
    """Constants of ``norm`` reach a convolution without bias and a batch norm behind it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.conv, self.norm, self.other = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.reader, self.behind = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.head, self.aux = nn.Linear(6, 3), nn.Conv2d(6, 3, 1)
        self.center = nn.Buffer(torch.zeros(8))
        for norm in (self.norm, self.other):
            nn.init.zeros_(norm.weight[:4])
        nn.init.ones_(self.norm.bias)
        nn.init.constant_(self.other.bias, 2)
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        training = self.training and self.kind
        x = (self.other if training == "another batch norm" else self.norm)(self.conv(x)).relu()
        if training == "a sum":
            x = x + 1
        if self.kind == "a moving average":
            if training:
                self.center.mul_(0.9).add_(x.mean((0, 2, 3)).detach(), alpha=0.1)
            x = x - self.center.view(1, -1, 1, 1)
        padding = 1 if training == "padding" else 0
        x = F.conv2d(x, self.reader.weight, padding=padding)
        y = self.head(self.behind(x).relu().mean((2, 3)))
        return (y, self.aux(x)) if training == "a head" else (y, x) if training == "x" else (y,)


@pytest.mark.parametrize("removed", ["a head", "x", "padding"])
def test_constants_are_folded_for_what_only_training_reads(removed):
    model = Trains(removed)
    small, report = netslim.prune(model, KEEP, X.double())
    assert report.folded >= 3
    for training in (False, True, True):
        for a, b in zip(*(m.train(training)(X.double()) for m in (model, small)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["another batch norm", "a sum", "a moving average"])
def test_channels_stay_whose_constant_is_another_in_training(kind):
    model, x = Trains(kind), X.double()
    keep = {n: KEEP["norm"] for n in netslim.analyze(model, x).norms if n in ("norm", "other")}
    small, report = netslim.prune(model, keep, x)
    assert report.removed == 0
    for m in (model, small):
        m.train()(x)
    assert torch.equal(model.eval()(x)[0], small.eval()(x)[0])


def test_a_literal_width_is_none_that_follows():
    reasons = netslim.analyze(Net(lambda model, x: x.narrow(1, 0, 8)), X).reasons
    assert "has a width that is written in the code" in reasons["norm"]
    assert not netslim.analyze(Net(lambda model, x: x.narrow(2, 0, 4)), X).reasons


def test_costs_are_counted_where_the_meta_device_fails():
    def by_hand(model, x):
        return model.net(x / x.abs().max().item()) + torch.zeros(len(x), 3)

    plain, hands = Net(), Own(by_hand, net=Net(lambda model, x: x * torch.ones(1)))
    costs = [PrunedCost(netslim.analyze(model, X)) for model in (plain, hands)]
    assert costs[0](KEEP) == costs[1]({"net.norm": KEEP["norm"]})
    assert cost(plain, X) == cost(hands, X) and cost(plain, X).flops > 0


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, AveragedModel])
def test_wrapped_models_are_pruned_saved_and_loaded(wrap, tmp_path):
    wrapped = wrap(Net())
    names = netslim.analyze(wrapped, X).norms
    assert len(names) == 1
    small, report = netslim.prune(wrapped, dict.fromkeys(names, KEEP["norm"]), X)
    assert report.removed == 4
    netslim.save(small, tmp_path / "wrapped.pt")
    plain, _ = netslim.prune(Net(), KEEP, X)
    netslim.save(plain, tmp_path / "plain.pt")
    for path in tmp_path.iterdir():
        loaded = netslim.load(Net(), path), netslim.load(wrap(Net()), path)
        for x, y, z in zip(*(m.parameters() for m in (plain, *loaded)), strict=True):
            assert torch.equal(x, y) and torch.equal(x, z)


def test_a_model_for_distributed_training_is_analyzed(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(Net())
        assert [*netslim.analyze(wrapped, X).norms] == ["module.norm"]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # torch's, about TorchScript
def test_what_is_no_ordinary_module_is_refused_by_name():
    with pytest.raises(ValueError, match="TorchScript"):
        netslim.analyze(torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 1))), X)
    with pytest.raises(ValueError, match="weight is lazy still"):
        netslim.analyze(nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8)), X)


def test_inference_mode_changes_nothing():
    with torch.inference_mode():
        small, report = netslim.prune(Net(), KEEP, X)
    assert report.removed == 4 and small.head.weight.requires_grad
    small.train()(X).sum().backward()


def analyzed() -> netslim.Graph:
    return netslim.analyze(Net(), X)


REFUSED = [
    (lambda: netslim.analyze(Net(), (1, 3, 8, 8)), "the example has no tensor"),
    (lambda: netslim.limit(analyzed(), KEEP, minimum={"norm": 2}), "minimum of norm is 2, not a"),
    (lambda: netslim.limit(analyzed(), KEEP, round_to=0), "round_to is 0, not a positive number"),
    (
        lambda: netslim.ProximalSlimming(Net(), lambda_=0.1, beta=1),
        r"give netslim.analyze\(model, example\), not Net",
    ),
    *(
        (
            lambda lr=lr: netslim.ProximalSlimming(analyzed(), lambda_=0.1, beta=1).step(lr),
            "give this step's learning rate",
        )
        for lr in (None, [0.1])
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_arguments_that_mean_nothing_are_refused_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_channel_that_another_factor_made_constant_is_not_alive():
    """Behind a depthwise convolution, γ = 0 before it makes the channel constant."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8)
    model = nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    nn.init.zeros_(model[1].weight[:4])
    _, report = netslim.prune(model, {"1": KEEP["norm"], "4": KEEP["norm"]}, X)
    assert (report.removed, report.alive) == (8, 0)


class _Unreadable(UserDict):
    """A config that raises for values that were left open."""

    def __getitem__(self, key):
        raise ValueError("missing mandatory value")


def test_objects_of_the_model_are_copied_unread() -> None:
    net = plain_net()
    net.config = _Unreadable({"a": 1})
    assert netslim.analyze(net, example()).norms


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_graphs_in_sparse_tensors_are_taken() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    layers = nn.ModuleList([net, nn.Linear(2, 2)])
    model = Own(lambda net, x, edges: net.layers[1](torch.sparse.mm(edges, net.layers[0](x))))
    model.layers = layers
    graph = netslim.analyze(model, (torch.randn(3, 4), torch.eye(3).to_sparse_csr()))
    assert list(graph.norms) == ["layers.0.1"]


def test_a_parametrized_module_splits_at_its_own_ints() -> None:
    net = Own(lambda net, x: torch.cat(net.norm(net.conv(x)).split([net.width, net.width], 1), 1))
    net.conv, net.norm, net.width = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), 4
    net.scale = nn.Parameter(torch.ones(1))
    nn.utils.parametrize.register_parametrization(net, "scale", nn.Tanh())
    graph = netslim.analyze(nn.Sequential(net, nn.ReLU(), nn.Conv2d(8, 2, 1)), example())
    assert list(graph.norms) == ["0.norm"]


def test_a_bias_that_is_a_buffer_is_left_alone() -> None:
    net = plain_net()
    del net[1].bias
    net[1].register_buffer("bias", torch.zeros(8))
    budget = netslim.Budget("flops", 0.2, 4, 0.1)
    method = netslim.ProximalSlimming(netslim.analyze(net, example()), target=budget)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(4):
        method.step(0.1)
        method.end_epoch(0.1)
    assert method.budget_met and method.dead(optimizer, 0.1).any()
    assert not net[1].bias.any()


def test_costs_count_tied_weights_once_and_arguments_by_name() -> None:
    net = Own(lambda net, x: net.last(net.norm(F.conv_transpose2d(weight=net.up.weight, input=x))))
    net.up, net.norm, net.last = nn.ConvTranspose2d(3, 8, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
    net.again = nn.Conv2d(8, 8, 1)
    net.again.weight = net.last.weight
    pruned_cost = PrunedCost(netslim.analyze(net, example()))
    assert replace(pruned_cost.full, channels=0) == cost(net, example())
    assert pruned_cost.other_flops == 0


def test_a_batch_norm_of_two_names_selects_once() -> None:
    def made() -> nn.Module:
        net = Own(lambda net, x: net.last(F.relu(net.blocks[0](net.conv(x)))) + net.conv(x))
        net.conv, net.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        net.blocks = nn.ModuleList([nn.BatchNorm2d(8)])
        net.again = nn.ModuleList([net.blocks])
        return net.eval()

    net = made()
    keep = {"blocks.0": torch.arange(8) < 5}
    with torch.no_grad():
        net.blocks[0].weight[5:] = net.blocks[0].bias[5:] = 0
    small, _ = netslim.prune(net, keep, example())
    netslim.save(small, file := io.BytesIO())
    file.seek(0)
    assert torch.equal(netslim.load(made(), file)(example()), small(example()))
    state = {**small.state_dict(), "other.select.index": torch.arange(3)}
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    with pytest.raises(ValueError, match=r"other\.select\.index is not expected"):
        netslim.load(made(), file)
