"""Images of other sizes, streamed or not, and their normalisation, from training to export."""

import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import main
import resnet_prune
import warm
from models import build_model
from models.registry import ARCHITECTURES
from own_pictures import save
from runs import QUICK, ROOT, assert_same, command, only_checkpoint, rows, train
from utils import export
from utils.cost import cost
from utils.data.batches import Batches
from utils.data.datasets import CIFAR_NORM, IMAGENET_NORM, load_dataset
from utils.device import Execution
from utils.files import checkpoint
from utils.flags.config import Config
from utils.training.step import evaluate
from workshop import Refused, Workshop

RESNET = ["--arch", "resnet-basic", "--depth", 8, "--batch-size", 16]


SIGTERM_IN_STEP_6 = """
import multiprocessing, os, signal, sys, time
import main
from utils import console

train_step, steps = main.train_step, 0

def step_and_signal(*args):
    global steps
    steps += 1
    if steps == 6:
        for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
    train_step(*args)

main.train_step = step_and_signal
sys.exit(console.run(main.main, sys.argv[1:]))
"""


def test_a_streamed_run_resumed_after_a_sigterm_has_the_bits_of_one_in_memory(
    tmp_path: Path, pictures: Path
) -> None:
    """Batch systems send it to all processes: the workers end at once."""
    memory, streamed = tmp_path / "memory", tmp_path / "streamed"
    flags = [*RESNET, "-sr", "--epochs", 2, "--batch-size", 8]
    assert train(memory, pictures, *flags) == 0
    flags += ["--stream", "--workers", 2]
    argv = [*QUICK, "--dataset", "folder", "--data", pictures, "--save", streamed, *flags]
    command = [warm.PYTHON, "-c", SIGTERM_IN_STEP_6, *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM in epoch 2: resume with " in done.stderr and "Traceback" not in done.stderr
    assert train(streamed, pictures, *flags, "--resume", "auto") == 0
    contents = [torch.load(only_checkpoint(f), weights_only=True) for f in (memory, streamed)]
    for content in contents:
        content.pop("pictures")  # a checksum of pixels, or of names and sizes
        assert content["settings"].pop("stream") == (content is contents[1])
    assert_same(*contents)
    (row,) = rows(streamed / "train_record.csv")
    data = load_dataset("folder", pictures, stream=True)
    assert row["pictures"] == f"{data.checksum():08x}"
    assert row["test_pictures"] == f"{data.test.checksum():08x}"
    assert (row["stream"], row["size"]) == ("True", "32")


def test_imagenet_is_streamed_with_its_normalisation(tmp_path: Path, pictures: Path) -> None:
    shutil.copytree(pictures / "train", tmp_path / "imagenet/train")
    shutil.copytree(pictures / "test", tmp_path / "imagenet/val")
    flags = ["--dataset", "imagenet", "--workers", 0, "--epochs", 1]
    assert train(tmp_path, tmp_path / "imagenet", *RESNET, *flags) == 0
    state = checkpoint.load(only_checkpoint(tmp_path))
    assert state.config is not None and state.config.stream and state.config.size == 32
    assert state.norm == IMAGENET_NORM


def test_size_and_no_flip_are_kept_by_all_commands(
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    any_size = replace(ARCHITECTURES["resnet-basic"], any_size=True)
    monkeypatch.setitem(ARCHITECTURES, "resnet-basic", any_size)
    flags = [*RESNET, "--size", 48, "--epochs", 1, "--normalise", "data", "--stream", "--no-flip"]
    assert train(tmp_path, pictures, *flags, "-sr", "--workers", 0) == 0
    out, err = capsys.readouterr()
    assert out.endswith("--workers 0 --no-cuda\n")  # the next command
    assert "random crops, not mirrored" in err
    path = only_checkpoint(tmp_path)
    state = checkpoint.load(path)
    assert state.config is not None and state.size == state.config.size == 48
    assert state.config.no_flip and "--no-flip" in state.config.argv()
    data = load_dataset("folder", pictures, size=48, stream=True, normalise="data")
    assert [*data.mean] == state.mean != [*CIFAR_NORM[0]] and [*data.std] == state.std
    flops = cost(build_model("resnet-basic", 8, 2), 48).flops
    (row,) = rows(next(tmp_path.glob("*/log.csv")))
    assert int(row["flops"]) == flops
    (record,) = rows(tmp_path / "train_record.csv")
    assert [record[name] for name in ("size", "normalise", "no_flip")] == ["48", "data", "True"]

    runtime = ["--no-cuda", "--workers", 0]
    assert command(resnet_prune, "--model", path, "--percent", 0.5, *runtime) == 0
    assert capsys.readouterr().out.endswith("--workers 0 --no-cuda\n")
    (row,) = rows(tmp_path / "pruned_record.csv")
    (pruned,) = tmp_path.rglob("*pruned.pth.tar")
    assert int(row["flops"]) == flops
    assert int(row["flops_kept"]) == cost(checkpoint.load(pruned).network.model, 48).flops
    assert row["accuracy_before"] == record["test_accuracy"]
    assert row["test_pictures"] == record["test_pictures"]

    assert command(main, "--evaluate", path, *runtime) == 0
    accuracy = f"test accuracy {float(record['test_accuracy']):.2f} %"
    assert accuracy in capsys.readouterr().out
    assert command(main, "--evaluate", path, *runtime, "--size", 40) == 0

    refine = ["--refine", pruned, "--epochs", 1, *runtime]
    assert command(main, *refine, "--batch-size", 16) == 0
    tuned = checkpoint.load(next(tmp_path.glob("*_refine/checkpoint.pth.tar")))
    assert tuned.config is not None and tuned.config.stream and tuned.config.no_flip
    assert (tuned.size, tuned.mean) == (48, state.mean)

    output = tmp_path / "net.pt2"
    assert command(export, "--model", pruned, "--format", "pt2", "--output", output) == 0
    assert torch.export.load(output).module()(torch.rand(2, 3, 48, 48)).shape == (2, 2)


def test_digits_are_never_mirrored() -> None:
    assert Config.from_dict({"dataset": "SVHN"}).no_flip
    assert not Config.from_dict({"dataset": "cifar10"}).no_flip


def test_a_measured_normalisation_is_used_for_other_images(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", pictures, *RESNET, "--epochs", 1, "--normalise", "data") == 0
    path = only_checkpoint(tmp_path / "run")
    state, images = checkpoint.load(path), tmp_path / "images"
    for name, colour in (("blue", (0, 40, 90)), ("red", (120, 9, 0))):
        for part in ("train", "test"):
            save(images / part / name / "0.png", colour)
            save(images / part / name / "1.png", (7, 7, 7))
    capsys.readouterr()
    assert command(main, "--evaluate", path, "--no-cuda", "--data", images) == 0
    data = load_dataset("folder", images, normalise="data", norm=state.norm)
    cpu = torch.device("cpu")
    metrics = evaluate(state.network.model, Batches(data, "test", None, cpu), Execution(cpu))
    assert f"test loss {metrics.loss:.4f}" in capsys.readouterr().out


def test_top_five_accuracy_is_reported_for_more_than_ten_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = tmp_path / "images", tmp_path / "run"
    for label in range(12):
        for part, i in (("train", 0), ("train", 1), ("test", 0), ("test", 1), ("test", 2)):
            save(images / f"{part}/{label:02}/{i}.png", (20 * label, 60 * i, 128))
    assert train(run, images, *RESNET, "--epochs", 1) == 0
    out = capsys.readouterr().out
    model = checkpoint.load(only_checkpoint(run)).network.model.eval()
    batches = Batches(load_dataset("folder", images), "test", None, torch.device("cpu"))
    with torch.no_grad():
        ((top, labels),) = [(model(x).topk(5).indices, y) for x, y in batches.iter_eval()]
    expected = 100 * (top == labels[:, None]).any(1).double().mean().item()
    (log,), (record,) = rows(next(run.glob("*/log.csv"))), rows(run / "train_record.csv")
    assert record["test_top_five"] == log["test_top_five"]
    assert float(log["test_top_five"]) == pytest.approx(expected, abs=1e-4)
    assert float(log["test_accuracy"]) <= expected > 0
    assert f"(top five {expected:.2f} %)" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resume", "--stream"], ["stream False, not True"]),
        (["--resume", "--no-flip"], ["no_flip False, not True"]),
        (["--resume", "--normalise", "data"], ["normalise None, not data"]),
        (["--resume", "--size", 64], ["resnet", "32×32"]),
        (["--evaluate", "--size", 64], ["resnet", "32×32"]),
        (["--refine", "--size", 64], ["resnet", "32×32"]),
    ],
)
def test_a_checkpoint_keeps_its_size_source_and_augmentation(
    flags: list[object], words: list[str], shop: Workshop, refused: Refused
) -> None:
    reader, *more = flags
    error = refused(main, reader, shop.trained, *more, "--no-cuda")
    assert all(word in error for word in words)
