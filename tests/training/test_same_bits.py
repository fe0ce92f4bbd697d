"""The same command gives the same bits on the same machine."""

from pathlib import Path

import pytest
import torch

import main
from runs import assert_same, command, rows
from utils.device import Execution
from utils.files import checkpoint
from utils.network import fresh
from utils.training import precision as precisions
from utils.training.precision import build_execution

NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 7)]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def run(folder: Path, pictures: Path, *flags: object) -> Path:
    """Trains without --deterministic and --precision; returns the checkpoint."""
    argv = ["--dataset", "folder", "--data", pictures, "--save", folder, "--epochs", 3, "--no-cuda",
            "--batch-size", 16, "--name", "net", *flags]  # fmt: skip
    assert command(main, *argv) == 0
    (path,) = folder.glob("net_*/checkpoint.pth.tar")
    return path


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


def test_equal_commands_give_equal_files_and_other_seeds_others(tmp_path, pictures, measured):
    network = ["--arch", "resnet", "--depth", 11, "-sr"]
    one, other = (run(tmp_path / name, pictures, *network) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    assert_precision(one, "fp32")
    assert run(tmp_path / "third", pictures, *network, "--seed", 2).read_bytes() != one.read_bytes()
    assert not measured


def assert_precision(path: Path, precision: str) -> None:
    """The checkpoint at ``path`` and the record of its run name this precision."""
    (row,) = rows(path.parents[1] / "train_record.csv")
    assert (row["precision"], row["memory_format"]) == (precision, "channels last")
    assert checkpoint.load(path).precision == precision


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
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


def test_precision_auto_gives_the_bits_of_the_precision_it_chose(
    tmp_path, pictures, measured, capsys
):
    """Dropout draws during the measurement, and ξ is drawn after it."""
    network = ["--arch", "mobilenet_v2", "--size", 32, "-sr", "--epochs", 1]
    explicit = run(tmp_path / "explicit", pictures, *network, "--precision", "bf16")
    auto = run(tmp_path / "auto", pictures, *network, "--precision", "auto")
    assert measured == [("fp32", True), ("bf16", True)]
    assert "fastest here: --precision bf16" in capsys.readouterr().err
    for path in (explicit, auto):
        assert_precision(path, "bf16")
    contents = [torch.load(path, weights_only=True) for path in (explicit, auto)]
    for content in contents:
        content["settings"].pop("precision")
    assert_same(*contents)
