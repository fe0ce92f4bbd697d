"""Channels that died are cut out while training, and nothing else changes."""

import random
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, cat

from netslim.selection import selections
from runs import DYING, kill_and_resume, rows, start, train
from utils.network import Network, fresh
from utils.training.removal import select_removable


def network_of(arch: str, depth: int) -> Network:
    return fresh(arch, depth, 10, 32)


def deaths(network: Network, share: float) -> list[Tensor]:
    return [torch.arange(width) < share * width for width in network.widths]


def cuts(network: Network, dead: list[Tensor], before: list[Tensor] | None = None) -> list[Tensor]:
    """What is worth cutting of the ``dead``, by batch norm, where some have gone ``before``."""
    gone = torch.zeros(sum(network.widths), dtype=torch.bool) if before is None else cat(before)
    return list(select_removable(network, gone, cat(dead)).split(network.widths))


@pytest.mark.parametrize("count", [27, 28])
def test_dead_ones_wait_until_they_are_more_than_one_in_a_hundred(count):
    network = network_of("vgg", 11)
    dead = deaths(network, 0)
    dead[-1][:count] = True  # of 2,752 channels in all
    assert int(cat(cuts(network, dead)).sum()) == (count if count > 27 else 0)


def test_a_layer_that_died_keeps_the_channel_of_the_largest_bias_and_is_no_reason_to_cut():
    network = network_of("vgg", 11)
    first = network.norms["feature.1"]
    with torch.no_grad():
        first.bias.uniform_(-1, -0.5)
        first.bias[7] = -0.1
    dead = deaths(network, 0)
    dead[0][:] = True
    cut = cuts(network, dead)
    assert cut[0].sum() == 63 and not cut[0][7]
    with torch.no_grad():
        first.bias[:7] = 0  # of those that have gone
    dead[0][:] = ~cut[0]
    assert not cat(cuts(network, dead, cut)).any()


def test_a_selection_is_only_made_for_half_a_layer():
    network = network_of("resnet", 11)
    few, many = (cuts(network, deaths(network, share)) for share in (0.4, 0.6))
    # (The last batch norm is here the only reader of its stream, which goes along.)
    reads = [name.endswith("bn1") for name in network.norms]
    assert [bool(part.any()) for part in few] == [not read for read in reads]
    assert all(part.any() for part in many)
    # Where it is there already, more may go.
    more = [cut.logical_not() & (cut.logical_not().cumsum(0) <= 0.4 * (~cut).sum()) for cut in many]
    assert all(part.any() for part in cuts(network, more, many))


def test_what_no_reader_needs_is_cut_without_a_selection():
    network = network_of("densenet", 10)
    dead = deaths(network, 0)
    for part in dead:  # a few of the stem's, the same for all readers, and one more for the first
        part[3:9] = True
    dead[0][9] = True
    cut = cuts(network, dead)
    assert [int(part.sum()) for part in cut] == [6] * 9
    left = network.remove(network.plan([~part for part in cut])).model
    assert not list(selections(left))
    assert left.conv1.out_channels == 18
    # One that a single reader needs stays in all of them.
    dead[2][4] = False
    assert [int(part.sum()) for part in cuts(network, dead)] == [5] * 3 + [6] * 6


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
