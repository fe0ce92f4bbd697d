"""Same command, same machine, same bits: nothing is measured unless it is asked for."""

from pathlib import Path

import pytest
import torch

from runs import assert_same, rows
from utils import console, device
from utils.device import Execution, build_execution
from utils.files import checkpoint
from utils.network import fresh

NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 7)]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def run(folder: Path, pictures: Path, *flags: object) -> Path:
    """A training with no flag of how to execute it; its checkpoint."""
    import main

    argv = ["--dataset", "folder", "--data", pictures, "--save", folder, "--epochs", 3, "--no-cuda",
            "--batch-size", 16, "--name", "net", *flags]  # fmt: skip
    assert console.run(main.main, list(map(str, argv))) == 0
    (path,) = folder.glob("net_*checkpoint.pth.tar")
    return path


@pytest.fixture
def noisy(monkeypatch):
    """Each measurement finds another order: whatever is measured differs from run to run."""
    state = {"seconds": 1.0}

    def seconds(*args: object) -> float:
        state["seconds"] = -state["seconds"] * 1.5
        return state["seconds"]

    monkeypatch.setattr(device, "_step_seconds", seconds)


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_two_equal_commands_give_byte_equal_checkpoints(arch, depth, tmp_path, pictures, noisy):
    network = ["--arch", arch, "--depth", depth, "-sr"]
    one, other = (run(tmp_path / name, pictures, *network) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    assert run(tmp_path / "third", pictures, *network, "--seed", 2).read_bytes() != one.read_bytes()


def test_precision_is_float32_unless_asked_for_and_the_record_says_how(tmp_path, pictures, noisy):
    network = ["--arch", "resnet", "--depth", 11]
    found = {}
    for name, flags in (("a", []), ("b", ["--precision", "bf16"])):
        path = run(tmp_path / name, pictures, *network, *flags)
        (row,) = rows(tmp_path / name / "train_record.csv")
        found[name] = row["precision"], row["memory_format"]
        assert checkpoint.load(path).precision == row["precision"]
    assert found == {"a": ("fp32", "channels last"), "b": ("bf16", "channels last")}


def test_the_memory_format_is_a_constant_of_network_precision_and_device():
    for arch, depth in NETWORKS:
        full = fresh(arch, depth, 2, 32)
        slim = full.remove(full.plan([torch.arange(width) < width / 2 for width in full.widths]))
        for network in (full, slim):
            for where in (CPU, GPU):
                for precision in ("fp32", "tf32", "bf16"):
                    found = build_execution(network, precision, where)
                    slim_resnet = arch == "resnet" and network is slim
                    first = precision == "fp32" and (where == GPU or slim_resnet)
                    assert found == Execution(where, precision, channels_last=not first)


def test_auto_measures_precision_alone(tmp_path, pictures, monkeypatch, capsys):
    measured = []

    def seconds(execution: Execution, *args: object) -> float:
        measured.append((execution.precision, execution.channels_last))
        return {"bf16": 1.0, "fp32": 2.0}[execution.precision]

    monkeypatch.setattr(device, "_step_seconds", seconds)
    run(tmp_path, pictures, "--arch", "densenet", "--depth", 7, "--precision", "auto")
    assert measured == [("fp32", True), ("bf16", True)]
    assert "fastest here: bf16" in capsys.readouterr().err


def test_auto_is_the_run_of_the_precision_that_it_chose(tmp_path, pictures, monkeypatch):
    """Dropout draws while precisions are measured, and ξ is drawn after that."""
    network = ["--arch", "mobilenet_v2", "--size", 32, "-sr"]
    told = run(tmp_path / "told", pictures, *network, "--precision", "bf16")
    really = device._step_seconds

    def seconds(execution: Execution, *args: object) -> float:
        really(execution, *args)
        return {"bf16": 1.0, "fp32": 2.0}[execution.precision]

    monkeypatch.setattr(device, "_step_seconds", seconds)
    auto = run(tmp_path / "auto", pictures, *network, "--precision", "auto")
    contents = [torch.load(path, weights_only=True) for path in (told, auto)]
    for content in contents:
        content["settings"].pop("precision")
    assert_same(*contents)
