"""Which dead channels are removed during training, and runs that remove some."""

import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from resuming import assert_resumes
from test_dead import traced_network
from torch import Tensor, cat

from netslim.selection import selections
from runs import DYING, rows, train
from utils.files import checkpoint
from utils.network import Network, fresh
from utils.training.removal import select_removable

CHECKPOINT = "proximal_seed1_resnet_11_folder/checkpoint.pth.tar"


def first_channels(network: Network, share: float) -> list[Tensor]:
    """Returns masks of the first ``share`` of the channels of each batch norm."""
    return [torch.arange(width) < share * width for width in network.widths]


def select(
    network: Network, dead: list[Tensor], removed: list[Tensor] | None = None
) -> list[Tensor]:
    before = cat(first_channels(network, 0) if removed is None else removed)
    return list(select_removable(network, before, cat(dead)).split(network.widths))


@pytest.mark.parametrize(("count", "selected"), [(27, 0), (28, 28)])
def test_one_percent_of_the_channels_or_less_is_not_removed(count, selected):
    network = fresh("vgg", 11, 10, 32)  # 2,752 channels
    dead = first_channels(network, 0)
    dead[-1][:count] = True
    assert int(cat(select(network, dead)).sum()) == selected


def test_an_all_dead_layer_keeps_the_channel_of_the_largest_bias():
    network = fresh("vgg", 11, 10, 32)
    first = network.norms["feature.1"]
    with torch.no_grad():
        first.bias.uniform_(-1, -0.5)
        first.bias[7] = -0.1
    dead = first_channels(network, 0)
    dead[0][:] = True
    selected = select(network, dead)
    assert selected[0].sum() == 63 and not selected[0][7]
    with torch.no_grad():
        first.bias[:7] = 0  # of removed channels
    dead[0][:] = ~selected[0]
    assert not cat(select(network, dead, selected)).any()


def test_a_new_selection_needs_half_of_a_layer_to_be_dead():
    network = fresh("resnet", 11, 10, 32)
    few, many = (select(network, first_channels(network, share)) for share in (0.4, 0.6))
    needs_selection = [name.endswith("bn1") for name in network.norms]
    assert [bool(part.any()) for part in few] == [not needs for needs in needs_selection]
    assert all(part.any() for part in many)
    # If it exists already, fewer are enough.
    more = [~part & ((~part).cumsum(0) <= 0.4 * (~part).sum()) for part in many]
    assert all(part.any() for part in select(network, more, many))


def test_stream_channels_that_no_layer_reads_need_no_selection():
    network = fresh("densenet", 10, 10, 32)
    dead = first_channels(network, 0)
    for part in dead:  # channels of the stem, in all readers
        part[3:9] = True
    dead[0][9] = True  # and in the first reader only
    selected = select(network, dead)
    assert [int(part.sum()) for part in selected] == [6] * 9
    pruned = network.remove(network.plan([~part for part in selected])).model
    assert not list(selections(pruned)) and pruned.conv1.out_channels == 18
    dead[2][4] = False  # read by one layer: it stays in all
    assert [int(part.sum()) for part in select(network, dead)] == [5] * 3 + [6] * 6


def test_coupled_channels_are_removed_together():
    network = traced_network()  # layers 1 and 4 are coupled
    dead = first_channels(network, 0)
    dead[0][:6], dead[1][3:] = True, True
    selected = [part.nonzero().flatten().tolist() for part in select(network, dead)]
    assert selected == [[3, 4, 5], [3, 4, 5], [], [], []]
    with torch.no_grad():
        network.norms["1"].bias[7] = network.norms["4"].bias[2] = 1
    dead[0][:], dead[1][:] = True, True
    for part in select(network, dead)[:2]:  # the same one is kept in both
        assert (~part).nonzero().flatten().tolist() == [7]


@pytest.fixture(scope="module")
def removing(tmp_path_factory, pictures) -> tuple[Path, str]:
    """The folder and the output of a run that removes channels."""
    folder, output = tmp_path_factory.mktemp("removing"), io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        assert train(folder, pictures, *DYING) == 0
    return folder, output.getvalue()


def test_removal_changes_costs_but_no_file_formats(tmp_path, pictures, removing):
    (folder, output), whole = removing, tmp_path / "whole"
    assert train(whole, pictures, *DYING, "--keep-dead") == 0
    logs = [rows((f / CHECKPOINT).with_name("log.csv")) for f in (folder, whole)]
    widths = [int(row["channels"]) for row in logs[0]]
    assert len(set(widths)) > 1 and widths == sorted(widths, reverse=True)
    assert {int(row["channels"]) for row in logs[1]} == {widths[0]}
    assert output.count("dead channels are removed") == len(set(widths)) - 1
    assert "of the FLOPs of training at full width" in output
    assert logs[0][0]["train_loss"] == logs[1][0]["train_loss"]
    one, other = (torch.load(f / CHECKPOINT, weights_only=True) for f in (folder, whole))
    assert one["cut"].sum() == widths[0] - widths[-1] and not other["cut"].any()
    assert shapes(one) == shapes(other)
    records = [rows(f / "train_record.csv")[0] for f in (folder, whole)]
    assert records[0]["channels"] == records[1]["channels"]
    seconds = sum(float(row["train_seconds"]) for row in logs[0])
    assert float(records[0]["train_seconds"]) == pytest.approx(seconds, abs=0.01)


def shapes(content: dict) -> list[torch.Size]:
    """Returns the shapes of parameters, buffers and momentum."""
    momenta = [state["momentum_buffer"] for state in content["optimizer"]["state"].values()]
    return [x.shape for x in (*content["state_dict"].values(), *momenta)]


def test_a_run_stopped_while_it_removes_channels_resumes_with_the_same_bits(
    tmp_path, pictures, removing
):
    assert_resumes(3, tmp_path, pictures, removing[0], *DYING)


def test_what_was_removed_cannot_change_on_resuming(tmp_path, pictures, removing, capsys):
    path = shutil.copytree(removing[0], tmp_path, dirs_exist_ok=True) / CHECKPOINT
    assert train(tmp_path, pictures, *DYING, "--resume", "auto", "--keep-dead") == 2
    assert "keep_dead" in capsys.readouterr().err
    content = torch.load(path, weights_only=True)
    checkpoint.save(path, {**content, "cut": content["cut"][1:]})
    assert train(tmp_path, pictures, *DYING, "--resume", path) == 2
    assert "cut has not one value per channel" in capsys.readouterr().err
