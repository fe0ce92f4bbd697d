"""Cutting while training, of a network that is traced: depthwise pairs, flattened maps, dropout."""

import pytest
import torch
from test_dead import LR, Trainer, furthest
from torch import Tensor, nn

from utils.network import Network
from utils.training.removal import select_removable


def network() -> Network:
    """Number 4 is tied to number 1, and behind number 15 there is dropout."""
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


def worth(trainer: Trainer, dead: Tensor) -> Tensor:
    return select_removable(trainer.network, torch.zeros_like(dead), dead)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Noise: all that matters here is that there are gradients."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(count, 8, 3, 32, 32, generator=random)
    return list(zip(images, torch.randint(10, (count, 8), generator=random), strict=True))


@pytest.fixture(scope="module")
def dying() -> Trainer:
    """After some steps of real training, as if much of every layer had died."""
    torch.manual_seed(0)
    trainer = Trainer(network(), None)
    for images, labels in batches(30):
        trainer.step(images, labels, LR)
    momentum, xi = trainer.momentum(), trainer.method.split(trainer.method.xi)
    for (name, bn), part in zip(trainer.network.norms.items(), xi, strict=True):
        some = slice(3, 9) if name == "4" else slice(0, 6)
        with torch.no_grad():
            bn.weight[some], bn.bias[some], part[some] = 0, -0.1, 0
        for entry in ("weight", "bias"):
            momentum[f"{name}.{entry}"][some] = 0
    return trainer


def compare(full: Trainer, cut: Trainer, gone: Tensor) -> float:
    for step, (images, labels) in enumerate(batches(30)):
        for trainer in (full, cut):
            torch.manual_seed(step)  # dropout draws the same, where it draws as much
            trainer.step(images.double(), labels, LR)
    return furthest(full, cut, gone)


def test_whatever_survives_is_what_it_would_have_been(dying):
    full = dying.in_float64()
    dead = full.method.dead(full.optimizer, LR)
    gone = worth(full, dead)
    assert list(full.network.norms) == ["1", "4", "7", "11", "15"]
    assert [int(part.sum()) for part in full.method.split(gone)] == [3, 3, 6, 6, 0]
    assert dead.sum() == 30
    assert compare(full, full.cut(gone), gone) < 1e-12


def test_cutting_before_dropout_would_show(dying):
    full = dying.in_float64()
    dead = full.method.dead(full.optimizer, LR)
    gone = worth(full, dead)
    gone[-24:] = dead[-24:]
    assert compare(full, full.cut(gone), gone) > 1e-9


def test_of_a_depthwise_pair_both_must_have_died():
    own = network()
    dead = torch.zeros(sum(own.widths), dtype=torch.bool)
    parts = dead.split(own.widths)  # views
    parts[0][:6], parts[1][3:] = True, True

    def cut() -> tuple[Tensor, ...]:
        return select_removable(own, torch.zeros_like(dead), dead).split(own.widths)

    assert [part.nonzero().flatten().tolist() for part in cut()] == [
        *([3, 4, 5], [3, 4, 5], [], [], []),
    ]
    with torch.no_grad():
        own.norms["1"].bias[7] = own.norms["4"].bias[2] = 1
    parts[0][:], parts[1][:] = True, True
    for part in cut()[:2]:  # the same one stays in both
        assert (~part).nonzero().flatten().tolist() == [7]
