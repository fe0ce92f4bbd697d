"""Which channels are dead: without them, all that survives is what it would have been."""

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

NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 10), ("resnet-basic", 8)]
LR = 0.04


class Trainer:
    """Plain training by proximal slimming, with nothing of the program around it."""

    def __init__(self, network: Network, xi: Tensor | None, **sgd: float) -> None:
        self.network, self.model = network, network.model.train()
        self.method = ProximalSlimming(network.graph, lambda_=0.2, beta=10, model=self.model)
        if xi is not None:
            self.method.xi = xi.clone()
        sgd = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4} | sgd
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

    def in_float64(self) -> "Trainer":
        """A twin that goes on from here."""
        network = with_weights(self.network, copy.deepcopy(self.model).double())
        twin = Trainer(network, self.method.xi.double())
        return twin.with_momentum({n: v.double() for n, v in self.momentum().items()})

    def with_momentum(self, buffers: dict[str, Tensor]) -> "Trainer":
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = buffers[name].clone()
        return self

    def removal(self, gone: Tensor) -> Removal:
        """What it takes to train without the channels that are ``gone``."""
        return self.network.plan(self.method.split(~gone))

    def cut(self, gone: Tensor) -> "Trainer":
        """A twin without the channels that are ``gone``."""
        removal, momentum = self.removal(gone), self.momentum()
        # The full network's graph serves: it names what is left, too.
        twin = Trainer(
            with_weights(self.network, self.network.remove(removal).model), self.method.xi[~gone]
        )
        names = {name: removal.full_name(name) for name, _ in twin.model.named_parameters()}
        return twin.with_momentum(
            {n: removal.part(full, momentum[full]) for n, full in names.items()}
        )


@functools.cache
def pictures_of() -> Batches:
    return Batches(load_dataset("shapes", None, 512, 16), "train", 4, torch.device("cpu"))


def shuffled() -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for ever, augmented."""
    for epoch in itertools.count():
        yield from map(pictures_of().get_batch, pictures_of().epoch_indices(epoch))


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network[0])
def dying(request) -> Trainer:
    """A network that real training, with the momentum of the paper, has brought to its dead."""
    torch.manual_seed(0)
    network = fresh(*request.param, 10, 32)
    if request.param[0] == "vgg":  # an eighth of its width, or most of the time goes here
        masks = [torch.arange(width) < width // 8 for width in network.widths]
        network = network.remove(network.plan(masks))
    trainer = Trainer(network, None)
    for step, batch in enumerate(shuffled()):
        trainer.step(*batch, LR)
        if step % 50 == 49 and trainer.method.dead(trainer.optimizer, LR).double().mean() > 0.3:
            return trainer
        assert step < 3000


def a_kept_one(trainer: Trainer, gone: Tensor) -> Tensor:
    """``gone``, but for one channel in each layer that would be empty."""
    parts = [part.clone() for part in trainer.method.split(gone)]
    for part in parts:
        part[0] &= not part.all()
    return torch.cat(parts)


def furthest(full: Trainer, cut: Trainer, gone: Tensor) -> float:
    """By how much the two differ, in what the cut one has; and by how much a cut γ left 0."""
    removal, state = full.removal(gone), full.model.state_dict()
    if removal.carriers.any():  # for a channel that was cut gives a constant now
        return math.inf
    names = {key: removal.full_name(key) for key in cut.model.state_dict()}
    pairs = [
        (removal.part(names[key], state[names[key]]), value)
        for key, value in cut.model.state_dict().items()
        if not key.endswith(".index")
    ]
    pairs.append((full.method.xi[~gone], cut.method.xi))
    pairs.append((full.method.gamma[gone], torch.zeros(())))
    return max((one - other).abs().max().item() for one, other in pairs)


def compare(full: Trainer, cut: Trainer, gone: Tensor, steps: int = 100) -> float:
    for step, (images, labels) in zip(range(steps), shuffled(), strict=False):
        for trainer in (full, cut):
            trainer.step(images.double(), labels, LR if step < steps // 2 else LR / 10)
    return furthest(full, cut, gone)


def test_whatever_survives_is_what_it_would_have_been(dying):
    full = dying.in_float64()
    gone = a_kept_one(full, full.method.dead(full.optimizer, LR))
    assert gone.double().mean() > 0.3
    assert compare(full, full.cut(gone), gone) < 1e-12


def test_a_stream_channel_that_all_readers_have_cut_is_missed_by_nothing(dying):
    full = dying.in_float64()
    momentum, xi = full.momentum(), full.method.split(full.method.xi)
    graph = full.network.graph
    readers = [name for name in graph.norms if graph.writer(name) is None]
    for (norm, bn), part in zip(full.network.norms.items(), xi, strict=True):
        if norm in readers:  # the later half of every stream dies
            half = slice(bn.num_features // 2, None)
            with torch.no_grad():
                bn.weight[half], bn.bias[half], part[half] = 0, -0.1, 0
            for entry in ("weight", "bias"):
                momentum[f"{norm}.{entry}"][half] = 0
    gone = a_kept_one(full, full.method.dead(full.optimizer, LR))
    cut = full.cut(gone)
    removed = full.removal(gone).gone
    # A downsampling reads the streams before ResNet's last one whole.
    expected = ["bn"] if full.network.arch == "resnet" else readers
    assert [name for name in readers if removed[graph.read_by(name)].any()] == expected
    assert compare(full, cut, gone, steps=40) < 1e-12


def spoil(trainer: Trainer, what: str, channel: int) -> None:
    """Make one dead channel, number ``channel``, one that is not dead."""
    norms = trainer.network.norms.items()
    names = [(name, i) for name, bn in norms for i in range(len(bn.bias))]
    name, at = names[channel]
    momentum = trainer.momentum()
    with torch.no_grad():
        if what == "a constant":
            trainer.model.get_submodule(name).bias[at] = 0.1
        elif what == "ξ":
            trainer.method.xi[channel] = 0.3
        elif what == "momentum of γ":
            momentum[f"{name}.weight"][at] = -1.0
        elif what == "momentum of the bias":
            momentum[f"{name}.bias"][at] = -1.0


@pytest.mark.parametrize("what", ["a constant", "ξ", "momentum of γ", "momentum of the bias"])
def test_a_channel_that_could_come_back_is_not_dead_and_cutting_it_would_show(dying, what):
    full = dying.in_float64()
    gone = a_kept_one(full, full.method.dead(full.optimizer, LR))
    channel = int(gone.nonzero()[-1])
    spoil(full, what, channel)
    assert not full.method.dead(full.optimizer, LR)[channel]
    if full.removal(gone).carriers.any():
        return  # it would not even be cut: its constant is needed
    assert compare(full, full.cut(gone), gone, steps=20) > 1e-9


def one_channel() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 1, 1))


@functools.cache
def graph_of_one() -> Graph:
    return analyze(one_channel(), torch.zeros(1, 1, 2, 2))


def bias_only(
    b: float, v: float, lr: float, momentum: float, decay: float, nesterov: bool
) -> tuple[bool, list[float]]:
    """Whether such a bias is that of a dead channel, and what becomes of it without a gradient."""
    model = one_channel().double()
    norm = model[1]
    how = {"lambda_": 1.0, "beta": 100.0, "xi_init": (0.0, 0.0)}
    method = ProximalSlimming(graph_of_one(), **how, model=model)
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
    dead, seen = bool(method.dead(optimizer, lr)), []
    for _ in range(400):
        optimizer.step()
        seen.append(norm.bias.item())
    return dead, seen


@settings(max_examples=150, deadline=None)
@given(
    st.floats(-1, 0), st.floats(-3, 3), st.sampled_from((0.1, 0.01)),
    st.sampled_from((0.0, 0.5, 0.9)), st.sampled_from((0.0, 1e-4, 1e-2, 5e-2)), st.booleans(),
)  # fmt: skip
def test_the_bias_of_a_dead_channel_stays_below_0_and_no_other_does(
    b, v, lr, momentum, decay, nesterov
):
    dead, seen = bias_only(b, v, lr, momentum, decay, nesterov)
    rises = max(seen) > 1e-12
    assert not (dead and rises)
    if not dead and decay == 0 and not rises:  # nothing draws it back: on the edge at most
        assert max(seen) > -1e-9


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_edge_of_death_is_sharp(nesterov):
    """A bias that just stays below 0, and one that does not, by a part in 10⁹ of its momentum."""
    lr, momentum, decay, v = 0.1, 0.9, 1e-4, -1.0
    low, high = -2.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        dead, _ = bias_only(middle, v, lr, momentum, decay, nesterov)
        low, high = (middle, high) if dead else (low, middle)
    assert max(bias_only(low - 1e-9, v, lr, momentum, decay, nesterov)[1]) <= 0
    assert max(bias_only(high + 1e-9, v, lr, momentum, decay, nesterov)[1]) > 0
    # The simpler bound on what momentum adds up to is wrong without Nesterov, if not by much.
    simple = lr * momentum ** (1 + nesterov) / (1 - momentum) * v
    assert (low < simple - 1e-9) != nesterov or nesterov


def test_a_bias_that_oscillates_is_never_dead():
    dead, seen = bias_only(-1e-3, 1.0, 0.1, 0.9, 0.05, True)
    assert not dead
    assert max(seen) > 0


def test_without_a_penalty_nothing_is_dead():
    model = one_channel()
    nn.init.zeros_(model[1].weight)
    method = Method(graph_of_one(), model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    assert not method.dead(optimizer, 0.1).any()
