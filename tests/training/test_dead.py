"""Dead channels: without them, whatever remains is what it would have been, in float64."""

import copy
import functools
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from netslim.graph import Graph, analyze
from netslim.surgery import Removal
from utils.data.batches import Batches
from utils.data.datasets import load_dataset
from utils.methods.base import Method
from utils.methods.slimming import ProximalSlimming
from utils.network import Network, fresh, with_weights
from utils.training.removal import select_removable

NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 10)]
LR = 0.04
Batch = tuple[Tensor, Tensor]


class Trainer:
    """A minimal training by proximal slimming."""

    def __init__(self, network: Network, xi: Tensor | None) -> None:
        self.network, self.model = network, network.model.train()
        # The paper's for the VGG. It takes 830 steps until no bit of a gradient is left, 0.7 takes
        # 250.
        momentum = 0.9 if network.arch == "vgg" else 0.7
        self.method = ProximalSlimming(network.graph, lambda_=0.2, beta=10, model=self.model)
        if xi is not None:
            self.method.xi = xi.clone()
        sgd = {"momentum": momentum, "nesterov": True, "weight_decay": 1e-4}
        self.optimizer = torch.optim.SGD(self.model.parameters(), LR, **sgd)

    def step(self, images: Tensor, labels: Tensor, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        self.method.step(lr)

    def momentum(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {n: self.optimizer.state[p]["momentum_buffer"] for n, p in named}

    def kill(self, norm: str, channels: slice) -> None:
        """Makes channels of a batch norm dead."""
        names = list(self.network.norms)
        bn, xi = self.network.norms[norm], self.method.split(self.method.xi)[names.index(norm)]
        with torch.no_grad():
            bn.weight[channels], bn.bias[channels], xi[channels] = 0, -0.1, 0
        for entry in ("weight", "bias"):
            self.momentum()[f"{norm}.{entry}"][channels] = 0

    def in_float64(self) -> "Trainer":
        network = with_weights(self.network, copy.deepcopy(self.model).double())
        twin = Trainer(network, self.method.xi.double())
        return twin.with_momentum({n: v.double() for n, v in self.momentum().items()})

    def with_momentum(self, buffers: dict[str, Tensor]) -> "Trainer":
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = buffers[name].clone()
        return self

    def removal(self, removed: Tensor) -> Removal:
        return self.network.plan(self.method.split(~removed))

    def without(self, removed: Tensor) -> "Trainer":
        """Returns a twin without the channels ``removed``."""
        removal, momentum = self.removal(removed), self.momentum()
        # The graph of the full network also names the parts of a pruned one.
        network = with_weights(self.network, self.network.remove(removal).model)
        twin = Trainer(network, self.method.xi[~removed])
        names = {name: removal.full_name(name) for name, _ in twin.model.named_parameters()}
        return twin.with_momentum(
            {n: removal.part(full, momentum[full]) for n, full in names.items()}
        )

    def dead(self) -> Tensor:
        """Returns the dead channels, but for one in each layer that would be empty."""
        parts = [p.clone() for p in self.method.split(self.method.dead(self.optimizer, LR))]
        for part in parts:
            part[0] &= not part.all()
        return torch.cat(parts)


@functools.cache
def shapes() -> Batches:
    return Batches(load_dataset("shapes", None, 512, 16), "train", 4, torch.device("cpu"))


def shuffled() -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from map(shapes().get_batch, shapes().epoch_indices(epoch))


@functools.cache
def trained(arch: str, depth: int) -> Trainer:
    """A model whose training killed more than 30 % of its channels."""
    torch.manual_seed(0)
    network = fresh(arch, depth, 10, 32)
    if arch == "vgg":  # an eighth of its width, to be fast
        masks = [torch.arange(width) < width // 8 for width in network.widths]
        network = network.remove(network.plan(masks))
    trainer = Trainer(network, None)
    for step, batch in enumerate(shuffled()):
        trainer.step(*batch, LR)
        if step % 50 == 49 and trainer.method.dead(trainer.optimizer, LR).double().mean() > 0.3:
            return trainer
        assert step < 3000


@pytest.fixture(params=NETWORKS, ids=lambda network: network[0])
def full(request) -> Trainer:
    return trained(*request.param).in_float64()


def largest_difference(full: Trainer, pruned: Trainer, removed: Tensor) -> float:
    """Returns the largest difference in what remains, and the largest |γ| of what was removed."""
    removal, state = full.removal(removed), full.model.state_dict()
    if removal.carriers.any():  # a removed channel emits a constant
        return math.inf
    pairs = [
        (removal.part(removal.full_name(key), state[removal.full_name(key)]), value)
        for key, value in pruned.model.state_dict().items()
        if not key.endswith(".index")
    ]
    pairs.append((full.method.xi[~removed], pruned.method.xi))
    pairs.append((full.method.gamma[removed], torch.zeros(())))
    return max((one - other).abs().max().item() for one, other in pairs)


def train_both(
    full: Trainer, removed: Tensor, steps: int = 60, batches: Iterator[Batch] | None = None
) -> float:
    pruned = full.without(removed)
    for step, (images, labels) in zip(range(steps), batches or shuffled(), strict=False):
        for trainer in (full, pruned):
            torch.manual_seed(step)  # dropout
            trainer.step(images.double(), labels, LR if step < steps // 2 else LR / 10)
    return largest_difference(full, pruned, removed)


def test_removing_dead_channels_changes_nothing_else(full):
    removed = full.dead()
    assert removed.double().mean() > 0.3
    assert train_both(full, removed) < 1e-12


@pytest.mark.parametrize("network", [("resnet", 11), ("densenet", 10)], ids=lambda n: n[0])
def test_a_stream_channel_without_readers_can_be_removed(network):
    full = trained(*network).in_float64()
    graph = full.network.graph
    readers = [name for name in graph.norms if graph.writer(name) is None]
    for norm in readers:  # the second half of every stream dies
        full.kill(norm, slice(full.network.norms[norm].num_features // 2, None))
    removed = full.dead()
    stream_channels = full.removal(removed).removed_classes
    # In a ResNet, a downsampling convolution reads all of the earlier streams.
    expected = ["bn"] if full.network.arch == "resnet" else readers
    assert [n for n in readers if stream_channels[graph.read_by(n)].any()] == expected
    assert train_both(full, removed, steps=40) < 1e-12


@pytest.mark.parametrize("cause", ["constant", "ξ", "momentum of γ", "momentum of the bias"])
def test_a_channel_that_can_revive_is_not_dead_and_removing_it_shows(cause):
    full = trained("resnet", 11).in_float64()
    removed = full.dead()
    channel = int(removed.nonzero()[-1])
    norms = full.network.norms.items()
    name, i = [(name, i) for name, bn in norms for i in range(len(bn.bias))][channel]
    with torch.no_grad():
        if cause == "constant":
            full.model.get_submodule(name).bias[i] = 0.1
        elif cause == "ξ":
            full.method.xi[channel] = 0.3
        else:
            entry = "weight" if cause == "momentum of γ" else "bias"
            full.momentum()[f"{name}.{entry}"][i] = -1.0
    assert not full.method.dead(full.optimizer, LR)[channel]
    if not full.removal(removed).carriers.any():  # else a removal would keep it anyway
        assert train_both(full, removed, steps=20) > 1e-9


def traced_network() -> Network:
    """Layers 1 and 4 are coupled by a depthwise convolution; dropout follows layer 15."""
    layers = (
        *(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()),
        *(nn.Conv2d(12, 12, 3, 2, 1, groups=12), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(256, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 10)),
    )
    network = Network(nn.Sequential(*layers), "own", 5, 32)
    for bn in network.norms.values():
        nn.init.constant_(bn.weight, 0.5)
    return network


def noise(count: int) -> Iterator[Batch]:
    random = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.randn(8, 3, 32, 32, generator=random)
        yield images, torch.randint(10, (8,), generator=random)


@pytest.mark.parametrize("before_dropout", [False, True])
def test_a_users_model_loses_nothing_unless_channels_before_dropout_are_removed(before_dropout):
    torch.manual_seed(0)
    trainer = Trainer(traced_network(), None)
    for images, labels in noise(30):
        trainer.step(images, labels, LR)
    for norm in trainer.network.norms:
        trainer.kill(norm, slice(3, 9) if norm == "4" else slice(0, 6))
    full = trainer.in_float64()
    dead = full.method.dead(full.optimizer, LR)
    removed = select_removable(full.network, torch.zeros_like(dead), dead)
    assert [int(part.sum()) for part in full.method.split(removed)] == [3, 3, 6, 6, 0]
    if before_dropout:
        removed[-24:] = dead[-24:]
    assert (train_both(full, removed, 30, noise(30)) > 1e-9) == before_dropout


def one_channel() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 1, 1))


@functools.cache
def graph_of_one() -> Graph:
    return analyze(one_channel(), torch.zeros(1, 1, 2, 2))


def bias_without_gradient(
    b: float, v: float, lr: float, momentum: float, decay: float, nesterov: bool
) -> tuple[bool, list[float]]:
    """Returns whether a channel of bias b and buffer v is dead, and its bias in 400 steps."""
    model = one_channel().double()
    norm = model[1]
    options = {"lambda_": 1.0, "beta": 100.0, "xi_init": (0.0, 0.0)}
    method = ProximalSlimming(graph_of_one(), **options, model=model)
    sgd = {"momentum": momentum, "weight_decay": decay, "nesterov": nesterov and momentum > 0}
    optimizer = torch.optim.SGD(norm.parameters(), lr, **sgd)
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.fill_(b)
    for parameter, value in ((norm.weight, 0.0), (norm.bias, v)):
        parameter.grad = torch.zeros_like(parameter)
        if momentum:
            buffer = torch.full_like(parameter, value)
            optimizer.state[parameter]["momentum_buffer"] = buffer
    dead, biases = bool(method.dead(optimizer, lr)), []
    for _ in range(400):
        optimizer.step()
        biases.append(norm.bias.item())
    return dead, biases


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-1, 0), st.floats(-3, 3), st.sampled_from((0.1, 0.01)),
    st.sampled_from((0.0, 0.5, 0.9)), st.sampled_from((0.0, 1e-4, 1e-2, 5e-2)), st.booleans(),
)  # fmt: skip
def test_the_bias_of_a_dead_channel_never_becomes_positive(b, v, lr, momentum, decay, nesterov):
    dead, biases = bias_without_gradient(b, v, lr, momentum, decay, nesterov)
    rises = max(biases) > 1e-12
    assert not (dead and rises)
    if not dead and decay == 0 and not rises:  # without decay, only at the edge
        assert max(biases) > -1e-9


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_condition_of_death_is_sharp(nesterov):
    """By a part in 10⁹ of the momentum."""
    lr, momentum, decay, v = 0.1, 0.9, 1e-4, -1.0
    low, high = -2.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        dead, _ = bias_without_gradient(middle, v, lr, momentum, decay, nesterov)
        low, high = (middle, high) if dead else (low, middle)
    assert max(bias_without_gradient(low - 1e-9, v, lr, momentum, decay, nesterov)[1]) <= 0
    assert max(bias_without_gradient(high + 1e-9, v, lr, momentum, decay, nesterov)[1]) > 0


def test_an_oscillating_bias_is_never_dead():
    dead, biases = bias_without_gradient(-1e-3, 1.0, 0.1, 0.9, 0.05, True)
    assert not dead and max(biases) > 0


def test_nothing_is_dead_without_a_penalty():
    model = one_channel()
    nn.init.zeros_(model[1].weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    assert not Method(graph_of_one(), model).dead(optimizer, 0.1).any()
