"""Cutting while training, of a network that is traced: depthwise pairs, flattened maps, dropout."""

import pytest
import torch
from test_cutting import LR, Trainer, furthest, shuffled
from torch import Tensor, nn

from models.surgery import norms
from models.traced import Traced, slimmable
from utils.training.cutting import worth_cutting


def network() -> Traced:
    """Number 4 is tied to number 1, and behind number 15 there is dropout."""
    layers = (
        *(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()),
        *(nn.Conv2d(12, 12, 3, 2, 1, groups=12), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(256, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 10)),
    )
    model = slimmable(nn.Sequential(*layers), torch.zeros(1, 3, 32, 32))
    for bn in norms(model).values():
        nn.init.constant_(bn.weight, 0.5)
    return model


@pytest.fixture(scope="module")
def dying() -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(network(), None)
    trainer.method.lambda_ = 0.3
    for step, batch in enumerate(shuffled()):
        trainer.step(*batch, LR)
        if step % 50 == 49 and trainer.method.dead(trainer.optimizer, LR).double().mean() > 0.4:
            return trainer
        assert step < 3000


def compare(full: Trainer, cut: Trainer, gone: Tensor) -> float:
    for step, (images, labels) in zip(range(60), shuffled(), strict=False):
        for trainer in (full, cut):
            torch.manual_seed(step)  # dropout draws the same, where it draws as much
            trainer.step(images.double(), labels, LR)
    return furthest(full, cut, gone)


def test_whatever_survives_is_what_it_would_have_been(dying):
    full = dying.in_float64()
    dead = full.method.dead(full.optimizer, LR)
    gone = worth_cutting(full.model, full.method.split(dead))
    named = dict(zip(norms(full.model), gone, strict=True))
    assert list(named) == ["1", "4", "7", "11", "15"]
    assert torch.equal(named["1"], named["4"]) and not named["15"].any()
    assert all(named[name].any() for name in ("1", "7", "11"))
    assert compare(full, full.cut(torch.cat(gone)), torch.cat(gone)) < 1e-12


def test_cutting_before_dropout_would_show(dying):
    full = dying.in_float64()
    dead = full.method.split(full.method.dead(full.optimizer, LR))
    *gone, last = worth_cutting(full.model, dead)
    last[:] = dead[-1]
    assert last.any() and not last.all()
    gone = torch.cat([*gone, last])
    assert compare(full, full.cut(gone), gone) > 1e-9


def test_of_a_depthwise_pair_both_must_have_died():
    model = network()
    dead = [torch.zeros(bn.num_features, dtype=torch.bool) for bn in norms(model).values()]
    dead[0][:6], dead[1][3:] = True, True
    cut = [part.nonzero().flatten().tolist() for part in worth_cutting(model, dead)]
    assert cut == [[3, 4, 5], [3, 4, 5], [], [], []]
    with torch.no_grad():
        norms(model)["1"].bias[7] = 1
    dead[0][:], dead[1][:] = True, True
    for part in worth_cutting(model, dead)[:2]:  # the same one stays in both
        assert (~part).nonzero().flatten().tolist() == [7]
