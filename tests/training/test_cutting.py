"""Channels that died are cut out while training, and nothing else changes."""

import copy
import functools
import itertools
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import build_model, full_cfg
from models.surgery import norms, put_back, selections, slim, still_read, streams, whereabouts
from runs import DYING, kill_and_resume, rows, start, train
from utils.data.batches import Batches
from utils.data.datasets import load_dataset
from utils.files import checkpoint
from utils.methods.base import Method
from utils.methods.slimming import ProximalSlimming
from utils.training.cutting import worth_cutting

NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 10), ("resnet-basic", 8)]


LR = 0.04


class Trainer:
    """Plain training by proximal slimming, with nothing of the program around it."""

    def __init__(self, model: nn.Module, xi: Tensor | None, **sgd: float) -> None:
        self.model = model.train()
        self.method = ProximalSlimming(model, lambda_=0.2, beta=10)
        if xi is not None:
            self.method.xi = xi.clone()
        sgd = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4} | sgd
        self.optimizer = torch.optim.SGD(model.parameters(), LR, **sgd)

    def step(self, images: Tensor, labels: Tensor, lr: float) -> None:
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        self.method.on_step(1 / lr)

    def momentum(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {n: self.optimizer.state[p]["momentum_buffer"] for n, p in named}

    def in_float64(self) -> "Trainer":
        """A twin that goes on from here."""
        twin = Trainer(copy.deepcopy(self.model).double(), self.method.xi.double())
        return twin.with_momentum({n: v.double() for n, v in self.momentum().items()})

    def with_momentum(self, buffers: dict[str, Tensor]) -> "Trainer":
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = buffers[name].clone()
        return self

    def left(self, gone: Tensor) -> tuple:
        masks = self.method.split(~gone)
        return self.model, masks, still_read(self.model, masks)

    def cut(self, gone: Tensor) -> "Trainer":
        """A twin without the channels that are ``gone``."""
        left = self.left(gone)
        index = whereabouts(*left)
        twin = Trainer(slim(*left), self.method.xi[~gone])
        return twin.with_momentum({n: v[index[n]] for n, v in self.momentum().items()})


@functools.cache
def pictures_of() -> Batches:
    return Batches(load_dataset("shapes", None, 512, 16), "train", 4, torch.device("cpu"))


def shuffled() -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for ever, augmented."""
    for epoch in itertools.count():
        yield from map(pictures_of().cut, pictures_of().order(epoch))


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network[0])
def dying(request) -> Trainer:
    """A network that real training, with the momentum of the paper, has brought to its dead."""
    torch.manual_seed(0)
    cfg = full_cfg(*request.param)
    if request.param[0] == "vgg":  # an eighth of its width, or most of the time goes here
        cfg = [width if width == "M" else width // 8 for width in cfg]
    trainer = Trainer(build_model(*request.param, 10, cfg), None)
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
    index = whereabouts(*full.left(gone))
    state = full.model.state_dict()
    pairs = [
        (state[key][index[key]], value)
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
    momentum, wiring = full.momentum(), full.model.wiring()
    for name, select in selections(full.model).items():
        norm, source = wiring[name]
        if source:  # the later half of every stream dies
            half = slice(select.channels // 2, None)
            bn, xi = full.model.get_submodule(norm), full.method.split(full.method.xi)
            with torch.no_grad():
                bn.weight[half], bn.bias[half] = 0, -0.1
                xi[list(norms(full.model)).index(norm)][half] = 0
            for entry in ("weight", "bias"):
                momentum[f"{norm}.{entry}"][half] = 0
    gone = a_kept_one(full, full.method.dead(full.optimizer, LR))
    cut = full.cut(gone)
    widths = [(s.width, s.channels) for s in streams(cut.model).values()]
    assert all(width < whole for width, whole in widths)
    assert compare(full, cut, gone, steps=40) < 1e-12


def spoil(trainer: Trainer, what: str, channel: int) -> None:
    """Make one dead channel, number ``channel``, one that is not dead."""
    names = [(name, i) for name, bn in norms(trainer.model).items() for i in range(len(bn.bias))]
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
    assert compare(full, full.cut(gone), gone, steps=20) > 1e-9


def bias_only(
    b: float, v: float, lr: float, momentum: float, decay: float, nesterov: bool
) -> tuple[bool, list[float]]:
    """Whether such a bias is that of a dead channel, and what becomes of it without a gradient."""
    model = nn.BatchNorm2d(1).double()
    method = ProximalSlimming(model, 1.0, 100.0, xi_init=(0.0, 0.0))
    sgd = {"momentum": momentum, "weight_decay": decay, "nesterov": nesterov and momentum > 0}
    optimizer = torch.optim.SGD(model.parameters(), lr, **sgd)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(b)
    for parameter, value in ((model.weight, 0.0), (model.bias, v)):
        parameter.grad = torch.zeros_like(parameter)
        if momentum:
            buffer = torch.full_like(parameter, value)
            optimizer.state[parameter]["momentum_buffer"] = buffer
    dead, seen = bool(method.dead(optimizer, lr)), []
    for _ in range(400):
        optimizer.step()
        seen.append(model.bias.item())
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
    model = nn.Sequential(nn.BatchNorm2d(4))
    nn.init.zeros_(model[0].weight)
    method = Method(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    assert not method.dead(optimizer, 0.1).any()


def deaths(model: nn.Module, share: float) -> list[Tensor]:
    return [torch.arange(bn.num_features) < share * bn.num_features for bn in norms(model).values()]


@pytest.mark.parametrize("count", [27, 28])
def test_dead_ones_wait_until_they_are_more_than_one_in_a_hundred(count):
    model = build_model("vgg", 11, 10)
    dead = deaths(model, 0)
    dead[-1][:count] = True  # of 2,752 channels in all
    assert int(torch.cat(worth_cutting(model, dead)).sum()) == (count if count > 27 else 0)


def test_a_layer_that_died_keeps_the_channel_of_the_largest_bias_and_is_no_reason_to_cut():
    model = build_model("vgg", 11, 10)
    first = norms(model)["feature.1"]
    with torch.no_grad():
        first.bias.uniform_(-1, -0.5)
        first.bias[7] = -0.1
    dead = deaths(model, 0)
    dead[0][:] = True
    cut = worth_cutting(model, dead)
    assert cut[0].sum() == 63 and not cut[0][7]
    left = slim(model, [~part for part in cut])
    again = worth_cutting(left, [torch.ones(1, dtype=torch.bool), *deaths(model, 0)[1:]])
    assert not torch.cat(again).any()


def test_a_selection_is_only_made_for_half_a_layer():
    model = build_model("resnet", 11, 10)
    few, many = (worth_cutting(model, deaths(model, share)) for share in (0.4, 0.6))
    # (The last batch norm is here the only reader of its stream, which goes along.)
    reads = [name.endswith("bn1") for name in norms(model)]
    assert [bool(part.any()) for part in few] == [not read for read in reads]
    assert all(part.any() for part in many)
    # Where it is there already, more may go.
    masks = [~part for part in many]
    left = slim(model, masks, still_read(model, masks))
    assert all(part.any() for part in worth_cutting(left, deaths(left, 0.4)))


def test_what_no_reader_needs_is_cut_without_a_selection():
    model = build_model("densenet", 10, 10)
    dead = [torch.zeros(bn.num_features, dtype=torch.bool) for bn in norms(model).values()]
    for part in dead:  # a few of the stem's, the same for all readers, and one more for the first
        part[3:9] = True
    dead[0][9] = True
    cut = worth_cutting(model, dead)
    masks = [~part for part in cut]
    assert [int(part.sum()) for part in cut] == [6] * 9
    left = slim(model, masks, still_read(model, masks))
    assert all(select.index is None for select in selections(left).values())
    assert left.conv1.out_channels == 18
    # One that a single reader needs stays in all of them.
    dead[2][4] = False
    assert [int(part.sum()) for part in worth_cutting(model, dead)] == [5] * 3 + [6] * 6


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_what_is_cut_can_be_put_back(arch, depth):
    torch.manual_seed(0)
    model = build_model(arch, depth, 10)
    masks = [torch.rand(bn.num_features) < 0.5 for bn in norms(model).values()]
    for mask in masks:
        mask[0] = True
    index, before = whereabouts(model, masks), copy.deepcopy(model.state_dict())
    part = {k: v[index[k]] + 1 for k, v in before.items()}
    assert part.keys() >= slim(model, masks).state_dict().keys() - {
        key for key in slim(model, masks).state_dict() if key.endswith("select.index")
    }
    put_back(part, model.state_dict(), index)
    for key, value in model.state_dict().items():
        there = torch.zeros_like(value, dtype=torch.bool)
        there[index[key]] = True
        assert torch.equal(value, torch.where(there, before[key] + 1, before[key]))


def channels_of(log: Path) -> list[int]:
    return [int(row["channels"]) for row in rows(log)]


@pytest.fixture(scope="module")
def cutting(tmp_path_factory, pictures) -> tuple[Path, str]:
    """A run that cuts what dies: where it is, and what it said."""
    folder = tmp_path_factory.mktemp("cutting")
    process = start(folder, pictures, *DYING)
    said, _ = process.communicate()
    assert process.returncode == 0
    return folder, said


def test_a_run_that_cuts_writes_what_one_that_does_not_would(tmp_path, pictures, cutting):
    """Up to rounding: the files are as wide, and count and cost the same channels."""
    (cut, said), whole = cutting, tmp_path / "whole"
    assert train(whole, pictures, *DYING, "--keep-dead") == 0
    name = "proximal_seed1_resnet_11_folder"
    widths = channels_of(cut / f"{name}log.csv")
    assert len(set(widths)) > 2 and widths == sorted(widths, reverse=True)
    assert set(channels_of(whole / f"{name}log.csv")) == {widths[0]}
    assert said.count("dead channels are cut") == len(set(widths)) - 1
    assert "of the FLOPs that it takes at full width" in said
    one, other = (
        torch.load(folder / f"{name}checkpoint.pth.tar", weights_only=True)
        for folder in (cut, whole)
    )
    assert one["cut"].sum() == widths[0] - widths[-1]
    assert not other["cut"].any()
    shapes = [{k: v.shape for k, v in c["state_dict"].items()} for c in (one, other)]
    assert shapes[0] == shapes[1]
    momenta = [[s["momentum_buffer"].shape for s in c["optimizer"]["state"].values()]
               for c in (one, other)]  # fmt: skip
    assert momenta[0] == momenta[1]
    first = rows(cut / f"{name}log.csv")[0], rows(whole / f"{name}log.csv")[0]
    assert first[0]["train_loss"] == first[1]["train_loss"]
    records = [rows(folder / "train_record.csv")[0] for folder in (cut, whole)]
    assert records[0]["channels"] == records[1]["channels"]
    seconds = sum(float(row["train_seconds"]) for row in rows(cut / f"{name}log.csv"))
    assert float(records[0]["train_seconds"]) == pytest.approx(seconds, abs=0.01)


def test_whether_the_dead_are_kept_does_not_change_on_resuming(tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, *DYING, "--epochs", "1") == 0
    again = [*DYING, "--epochs", "1", "--resume", "auto", "--keep-dead"]
    assert train(tmp_path, pictures, *again) == 2
    assert "keep_dead" in capsys.readouterr().err


def test_a_run_killed_where_it_cuts_and_at_random_moments_is_the_uninterrupted_one(
    tmp_path, pictures, cutting
):
    """First as soon as the line that says so is there: in the first epoch at the new width."""
    for _ in range(2):
        process = start(tmp_path / "parts0", pictures, *DYING, "--resume", "auto")
        for line in process.stdout:
            if "dead channels are cut" in line:
                process.kill()
        assert process.wait() == -signal.SIGKILL
    kill_and_resume(tmp_path, pictures, DYING, 2, random.Random(0), cutting[0])  # goes on there


@pytest.mark.parametrize(
    "spoilt", ["a bias above 0", "γ", "ξ", "a whole layer", "too short", "no ξ"]
)
def test_a_cut_of_channels_that_are_not_dead_is_refused(
    spoilt, tmp_path, pictures, cutting, capsys
):
    shutil.copytree(cutting[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "proximal_seed1_resnet_11_foldercheckpoint.pth.tar"
    content = torch.load(path, weights_only=True)
    channel = int(content["cut"][:16].logical_not().nonzero()[0])  # of layer1.0.bn1
    if spoilt == "a whole layer":
        content["cut"][:16] = True
        content["method"]["xi"][:16] = 0
        for entry in ("weight", "bias"):
            content["state_dict"][f"layer1.0.bn1.{entry}"].zero_()
    elif spoilt == "too short":
        content["cut"] = content["cut"][1:]
    elif spoilt == "no ξ":
        content["method"] = {}
    else:
        content["cut"][channel] = True
        content["method"]["xi"][channel] = 0.1 if spoilt == "ξ" else 0
        state = content["state_dict"]
        state["layer1.0.bn1.weight"][channel] = 0.1 if spoilt == "γ" else 0
        state["layer1.0.bn1.bias"][channel] = 0.1 if spoilt == "a bias above 0" else -0.1
    checkpoint.save(path, content)
    capsys.readouterr()
    assert train(tmp_path, pictures, *DYING, "--resume", str(path)) == 2
    assert "its cut has channels that were not dead" in capsys.readouterr().err
