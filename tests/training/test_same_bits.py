"""The same command gives the same bits on the same machine."""

from pathlib import Path

import pytest
import torch
from torch import nn

import main
from runs import assert_same, command, rows
from utils.device import Execution
from utils.files import checkpoint
from utils.network import Network, fresh
from utils.training import precision as precisions
from utils.training.precision import build_execution, fastest_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def measured(monkeypatch) -> list[tuple[str, bool]]:
    """What was measured; bfloat16 is found to be the fastest, after real steps."""
    calls, step_seconds = [], precisions._step_seconds

    def seconds(execution: Execution, *args: object) -> float:
        calls.append((execution.precision, execution.channels_last))
        step_seconds(execution, *args)
        return {"bf16": 1.0, "fp32": 2.0}[execution.precision]

    monkeypatch.setattr(precisions, "_step_seconds", seconds)
    return calls


def test_equal_commands_give_equal_files_and_auto_those_of_the_precision_it_chose(
    tmp_path, pictures, measured, capsys
):
    def run(name: str, *flags: object) -> Path:
        """Trains without --deterministic."""
        words = "-sr --arch resnet --depth 11 --epochs 2 --batch-size 16 --no-cuda --name net"
        data = "--dataset", "folder", "--data", pictures, "--save", tmp_path / name
        assert command(main, *words.split(), *data, *flags) == 0
        (path,) = (tmp_path / name).glob("net_*/checkpoint.pth.tar")
        return path

    def precision_in(path: Path) -> str:
        """By the checkpoint and by the record."""
        (row,) = rows(path.parents[1] / "train_record.csv")
        assert row["memory_format"] == "channels last"
        assert checkpoint.load(path).precision == row["precision"]
        return row["precision"]

    one, other, third = run("one"), run("other"), run("third", "--seed", 2)
    assert one.read_bytes() == other.read_bytes() != third.read_bytes()
    assert precision_in(one) == "fp32" and not measured
    explicit, auto = run("explicit", "--precision", "bf16"), run("auto", "--precision", "auto")
    assert measured == [("fp32", True), ("bf16", True)]
    assert "fastest here: --precision bf16" in capsys.readouterr().err
    assert precision_in(explicit) == precision_in(auto) == "bf16"
    contents = [torch.load(path, weights_only=True) for path in (explicit, auto)]
    for content in contents:
        content["settings"].pop("precision")
    assert_same(*contents)


def test_a_measurement_leaves_random_state_and_model(measured):
    """Dropout draws during it, and ξ is drawn after it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.Flatten())
    network = Network(model.append(nn.Linear(4 * 36, 2)), "own", 1, 8)
    random, state = torch.get_rng_state(), {k: x.clone() for k, x in model.state_dict().items()}
    images, labels = torch.zeros(4, 3, 8, 8), torch.arange(4) % 2
    assert fastest_precision(network, images, labels, CPU, False) == "bf16"
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(dict(model.state_dict()), state)


@pytest.mark.parametrize(("arch", "depth"), [("vgg", 11), ("resnet", 11), ("densenet", 7)])
def test_the_memory_format_depends_on_network_precision_and_device_only(arch, depth):
    full = fresh(arch, depth, 2, 32)
    pruned = full.remove(full.plan([torch.arange(width) < width / 2 for width in full.widths]))
    for network in (full, pruned):
        for place in (CPU, GPU):
            for precision in ("fp32", "tf32", "bf16"):
                pruned_resnet = arch == "resnet" and network is pruned
                first = precision == "fp32" and (place == GPU or pruned_resnet)
                expected = Execution(place, precision, channels_last=not first)
                assert build_execution(network, precision, place) == expected
