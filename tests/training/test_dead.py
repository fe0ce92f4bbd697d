"""Dead channels: without them, whatever remains is what it would have been, in float64."""

import copy
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from main import train_step
from netslim.graph import Graph, analyze
from utils.data.batches import Batches
from utils.data.datasets import load_dataset
from utils.device import Execution
from utils.files.checkpoint import Checkpoint
from utils.files.paths import RunPaths
from utils.flags.config import Config
from utils.methods.base import Method
from utils.methods.slimming import ProximalSlimming
from utils.network import Network, fresh, with_weights
from utils.training.removal import select_removable
from utils.training.trainer import Trainer

# So little momentum and so large a β let γ and its momentum reach 0 in some 60 steps.
LR = 0.04
FLAGS = {"method": "proximal", "s": 1.5, "beta": 100.0, "momentum": 0.3, "lr": LR, "epochs": 9}


class AnyPrecision(Execution):
    """Computes in the type of the model."""

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        return model(images.to(next(model.parameters())))


def make_trainer(network: Network, state: Checkpoint | None = None) -> Trainer:
    data, cpu = load_dataset("shapes", None, 64, 16), torch.device("cpu")
    run = Config.from_dict(FLAGS), RunPaths(Path(), "dead"), network
    batches = Batches(data, "train", 4, cpu)
    return Trainer(*run, data, batches, AnyPrecision(cpu), resume_from=state)


def shuffled(trainer: Trainer) -> Iterator[Tensor]:
    return itertools.chain.from_iterable(map(trainer.batches.epoch_indices, itertools.count()))


@functools.cache
def trained(arch: str, depth: int) -> Trainer:
    """A model whose training killed more than 30 % of its channels."""
    torch.manual_seed(0)
    network = fresh(arch, depth, 10, 32)
    if arch == "vgg":  # an eighth of its width, to be fast
        masks = [torch.arange(width) < width // 8 for width in network.widths]
        network = network.remove(network.plan(masks))
    trainer = make_trainer(network)
    trainer.step.start_epoch(LR)
    for step, batch_index in enumerate(itertools.islice(shuffled(trainer), 500)):
        train_step(trainer.step, batch_index)
        if step % 10 == 9 and dead(trainer).double().mean() > 0.3:
            return trainer
    raise AssertionError("too few channels died")


def dead(trainer: Trainer) -> Tensor:
    """Returns the dead channels, but for one in each layer that would be empty."""
    method = trainer.step.method
    parts = [p.clone() for p in method.split(method.dead(trainer.step.optimizer, LR))]
    for part in parts:
        part[0] &= not part.all()
    return torch.cat(parts)


@torch.no_grad()
def kill(trainer: Trainer, norm: str, channels: slice) -> None:
    """Makes channels of a batch norm dead."""
    step, index = trainer.step, list(trainer.network.norms).index(norm)
    bn, xi = step.model.get_submodule(norm), step.method.split(step.method.xi)[index]
    bn.weight[channels], bn.bias[channels], xi[channels] = 0, -0.1, 0
    for entry in ("weight", "bias"):
        step.momentum()[f"{norm}.{entry}"][channels] = 0


def in_float64(trainer: Trainer, removed: Tensor | None = None) -> Trainer:
    """Returns a twin in float64, without the channels ``removed``."""
    state = replace(trainer.state_dict(), removed=removed)
    model = copy.deepcopy(trainer.network.model).double()
    return make_trainer(with_weights(trainer.network, model), state)


def train_both(trainer: Trainer, removed: Tensor, steps: int) -> float:
    """Trains with and without the channels ``removed``.

    Returns the largest difference in what remains, or the largest |γ| of what was removed if that
    is larger.
    """
    full, pruned = in_float64(trainer), in_float64(trainer, removed)
    if pruned.removal.carriers.any():  # a removed channel emits a constant
        return math.inf
    for number, batch_index in enumerate(itertools.islice(shuffled(trainer), steps)):
        for each in (full, pruned):
            if number in (0, steps // 2):
                each.step.start_epoch(LR / 10 if number else LR)
            torch.manual_seed(number)  # dropout
            train_step(each.step, batch_index)
    removal, state = pruned.removal, full.step.model.state_dict()
    pairs = [
        (removal.part(removal.full_name(key), state[removal.full_name(key)]), value)
        for key, value in pruned.step.model.state_dict().items()
        if not key.endswith(".index")
    ]
    pairs.append((full.step.method.xi[~removed], pruned.step.method.xi))
    pairs.append((full.step.method.gamma[removed], torch.zeros(())))
    return max((one - other).abs().max().item() for one, other in pairs)


@pytest.mark.parametrize("network", [("vgg", 11), ("resnet", 11), ("densenet", 7)], ids=str)
def test_removing_dead_channels_changes_nothing_else(network):
    """Nor does the removal of the stream channels that nothing reads then."""
    trainer = trained(*network)
    removed = dead(trainer)
    assert removed.double().mean() > 0.3
    assert train_both(trainer, removed, 20) < 1e-12
    graph = trainer.network.graph
    readers = [name for name in graph.norms if graph.writer(name) is None]
    for norm in readers:  # the second half of every stream dies
        kill(trainer, norm, slice(trainer.network.norms[norm].num_features // 2, None))
    removed = dead(trainer)
    stream_channels = in_float64(trainer, removed).removal.removed_classes
    # In a ResNet, a downsampling convolution reads all of the earlier streams.
    expected = ["bn"] if trainer.network.arch == "resnet" else readers
    assert [n for n in readers if stream_channels[graph.read_by(n)].any()] == expected
    assert not readers or train_both(trainer, removed, 20) < 1e-12


@pytest.mark.parametrize("cause", ["constant", "ξ", "momentum of γ", "momentum of the bias"])
def test_a_channel_that_can_revive_is_not_dead_and_removing_it_shows(cause):
    trainer = trained("vgg", 11)
    trainer = make_trainer(trainer.network, trainer.state_dict())
    step, removed = trainer.step, dead(trainer)
    channel = int(removed.nonzero()[-1])
    norms = trainer.network.norms.items()
    name, i = [(name, i) for name, bn in norms for i in range(len(bn.bias))][channel]
    with torch.no_grad():
        if cause == "constant":
            step.model.get_submodule(name).bias[i] = 0.1
        elif cause == "ξ":
            step.method.xi[channel] = 0.3
        else:
            entry = "weight" if cause == "momentum of γ" else "bias"
            step.momentum()[f"{name}.{entry}"][i] = -10.0
    assert not step.method.dead(step.optimizer, LR)[channel]
    assert train_both(trainer, removed, 10) > 1e-9


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


def test_a_users_model_loses_nothing_unless_channels_before_dropout_are_removed():
    torch.manual_seed(0)
    trainer = make_trainer(traced_network())
    for norm in trainer.network.norms:
        kill(trainer, norm, slice(3, 9) if norm == "4" else slice(0, 6))
    trainer.state_dict()  # select_removable reads the biases of trainer.network
    all_dead = dead(trainer)
    removed = select_removable(trainer.network, torch.zeros_like(all_dead), all_dead)
    assert [int(p.sum()) for p in trainer.step.method.split(removed)] == [3, 3, 6, 6, 0]
    assert train_both(trainer, removed, 8) < 1e-12
    removed[-24:] = all_dead[-24:]
    assert train_both(trainer, removed, 8) > 1e-9


def one_channel() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 1, 1))


@functools.cache
def graph_of_one() -> Graph:
    return analyze(one_channel(), torch.zeros(1, 1, 2, 2))


def bias_without_gradient(
    b: float, v: float, lr: float, momentum: float, decay: float, nesterov: bool, steps: int = 200
) -> tuple[bool, float]:
    """Returns whether a channel of bias b and buffer v is dead, and its largest bias to come."""
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
    dead, largest = bool(method.dead(optimizer, lr)), -math.inf
    for _ in range(steps):
        optimizer.step()
        largest = max(largest, norm.bias.item())
    return dead, largest


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-1, 0), st.floats(-3, 3), st.sampled_from((0.1, 0.01)),
    st.sampled_from((0.0, 0.5, 0.9)), st.sampled_from((0.0, 1e-4, 1e-2, 5e-2)), st.booleans(),
)  # fmt: skip
def test_the_bias_of_a_dead_channel_never_becomes_positive(b, v, lr, momentum, decay, nesterov):
    dead, largest = bias_without_gradient(b, v, lr, momentum, decay, nesterov)
    assert not (dead and largest > 1e-12)
    if not dead and decay == 0 and largest <= 1e-12:  # without decay, only at the edge
        assert largest > -1e-9


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_condition_of_death_is_sharp(nesterov):
    """By a part in 10⁹ of the momentum."""
    setting = -1.0, 0.1, 0.9, 1e-4, nesterov
    low, high = -2.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        dead, _ = bias_without_gradient(middle, *setting, steps=0)
        low, high = (middle, high) if dead else (low, middle)
    assert bias_without_gradient(low - 1e-9, *setting, steps=400)[1] <= 0
    assert bias_without_gradient(high + 1e-9, *setting, steps=400)[1] > 0


def test_an_oscillating_bias_and_a_channel_without_a_penalty_are_never_dead():
    dead, largest = bias_without_gradient(-1e-3, 1.0, 0.1, 0.9, 0.05, True)
    assert not dead and largest > 0
    model = one_channel()
    nn.init.zeros_(model[1].weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    assert not Method(graph_of_one(), model).dead(optimizer, 0.1).any()
