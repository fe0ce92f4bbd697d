"""Pictures of other sizes, streamed or not, from the training to what is made of its network."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import main
import resnet_prune
from models import build_model
from models.registry import ARCHITECTURES
from own_pictures import save
from runs import assert_same, assert_same_run, command, kill_and_resume, rows, start, train
from utils import export
from utils.data.datasets import CIFAR_NORM, IMAGENET_NORM, load_dataset
from utils.data.streaming import batches_of
from utils.device import Execution
from utils.files import checkpoint
from utils.flags.config import Config
from utils.paper.accounting import cost
from utils.training.step import TrainMetrics, evaluate
from utils.training.trainer import Trainer
from workshop import Refused, Workshop

NETWORK = ["--arch", "resnet-basic", "--depth", 8, "--batch-size", 16]


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that says that it takes pictures of any size; the mean at its end lets it."""
    lets = replace(ARCHITECTURES["resnet-basic"], any_size=True)
    monkeypatch.setitem(ARCHITECTURES, "resnet-basic", lets)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    place = tmp_path_factory.mktemp("imagenet")
    shutil.copytree(pictures / "train", place / "train")
    shutil.copytree(pictures / "test", place / "val")
    return place


def _stop_in(epoch: int) -> Callable[..., TrainMetrics]:
    """What interrupts a training at the end of that epoch, counted from 1."""
    read = Trainer.metrics

    def stopping(run: Trainer, *args: object) -> TrainMetrics:
        if run.epoch + 1 == epoch:
            raise KeyboardInterrupt
        return read(run, *args)  # type: ignore[arg-type]

    return stopping


def made(folder: Path) -> Path:
    (path,) = folder.glob("*checkpoint.pth.tar")
    return path


def test_a_streamed_run_is_the_run_in_memory(tmp_path: Path, pictures: Path) -> None:
    memory, streamed, none = (tmp_path / name for name in ("memory", "streamed", "none"))
    flags = [*NETWORK, "-sr", "--epochs", 2]
    assert train(memory, pictures, *flags) == 0
    assert train(streamed, pictures, *flags, "--stream", "--workers", 2) == 0
    assert train(none, pictures, *flags, "--stream", "--workers", 0) == 0
    assert_same_run(streamed, none)
    contents = [torch.load(made(place), weights_only=True) for place in (memory, streamed)]
    for content in contents:
        content.pop("pictures")  # of pixels, and of names and sizes
        assert content["settings"].pop("stream") == (content is contents[1])
    assert_same(*contents)
    (row,) = rows(streamed / "train_record.csv")
    data = load_dataset("folder", pictures, stream=True)
    assert row["pictures"] == f"{data.checksum():08x}"
    assert row["test_pictures"] == f"{data.test.checksum():08x}"
    assert (row["stream"], row["size"]) == ("True", "32")


def test_imagenet_is_streamed_and_survives_kills(tmp_path: Path, imagenet: Path) -> None:
    flags = [*NETWORK, "--dataset", "imagenet", "--workers", "2"]
    kill_and_resume(tmp_path, imagenet, list(map(str, flags)), 1, random.Random(1))
    given = checkpoint.load(made(tmp_path / "whole"))
    assert given.config.stream and given.config.size == 32
    assert (tuple(given.mean), tuple(given.std)) == IMAGENET_NORM


def test_a_sigterm_to_all_processes_ends_the_training_as_one_to_it_alone(
    tmp_path: Path, imagenet: Path
) -> None:
    """As a batch system sends it: the workers go at once."""
    flags = [*NETWORK, "--dataset", "imagenet", "--workers", 2, "--epochs", 10**6]
    process = start(tmp_path, imagenet, *flags, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert said.count("go on with ") == 1 and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_size_goes_from_the_run_to_all_that_follows(
    tmp_path: Path, pictures: Path, any_size: None, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*NETWORK, "--size", 48, "--epochs", 1, "--normalise", "data", "--stream"]
    assert train(tmp_path, pictures, *flags, "-sr", "--workers", 0) == 0
    assert capsys.readouterr().out.endswith("--workers 0 --no-cuda\n")  # what comes next
    path = made(tmp_path)
    given = checkpoint.load(path)
    assert given.size == given.config.size == 48
    data = load_dataset("folder", pictures, size=48, stream=True, normalise="data")
    assert (data.mean, data.std) == (tuple(given.mean), tuple(given.std)) != CIFAR_NORM
    flops = {size: cost(build_model("resnet-basic", 8, 2), size).flops for size in (32, 48)}
    assert flops[48] > 2 * flops[32]
    (row,) = rows(next(tmp_path.glob("*log.csv")))
    assert int(row["flops"]) == flops[48]
    (record,) = rows(tmp_path / "train_record.csv")
    assert (record["size"], record["normalise"]) == ("48", "data")

    prune = ["--model", path, "--percent", 0.5, "--no-cuda", "--workers", 0]
    assert command(resnet_prune, *prune) == 0
    assert capsys.readouterr().out.endswith("--workers 0 --no-cuda\n")
    (row,) = rows(tmp_path / "pruned_record.csv")
    assert int(row["flops"]) == flops[48]
    assert row["accuracy_before"] == record["test_accuracy"]
    assert row["test_pictures"] == record["test_pictures"]
    slim = next(tmp_path.glob("*pruned.pth.tar"))
    small = checkpoint.load(slim).network.model
    assert int(row["flops_kept"]) == cost(small, 48).flops
    percent = 100 * (1 - cost(small, 48).flops / flops[48])
    assert float(row["original_flops_pruned_percent"]) == pytest.approx(percent, abs=0.006)

    assert command(main, "--evaluate", path, "--no-cuda", "--workers", 0) == 0
    accuracy = float(record["test_accuracy"])
    assert f"test accuracy {accuracy:.2f} %" in capsys.readouterr().out
    assert command(main, "--evaluate", path, "--no-cuda", "--workers", 0, "--size", 40) == 0

    refine = ["--refine", slim, "--epochs", 1, "--no-cuda", "--workers", 0]
    assert command(main, *refine, "--batch-size", 16) == 0
    tuned = checkpoint.load(next(tmp_path.glob("*_refinecheckpoint.pth.tar")))
    assert (tuned.size, tuned.config.stream, tuned.mean) == (48, True, given.mean)

    output = tmp_path / "net.pt2"
    assert command(export, "--model", slim, "--format", "pt2", "--output", output) == 0
    assert "[n, 3, 48, 48]" in capsys.readouterr().out
    program = torch.export.load(output).module()
    assert program(torch.rand(2, 3, 48, 48)).shape == (2, 2)


@pytest.mark.parametrize("more", [[], ["--stream", "--workers", 0]])
def test_whether_images_are_mirrored_goes_from_the_run_to_all_that_follows(
    more: list[object], tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrored, upright = tmp_path / "mirrored", tmp_path / "upright"
    flags = [*NETWORK, "-sr", "--epochs", 1, *more]
    assert train(mirrored, pictures, *flags) == 0
    err = capsys.readouterr().err
    assert "training images: 16 of each of 2 classes; test images: 8 of each of 2" in err
    assert "random crops, mirrored at random" in err
    assert train(upright, pictures, *flags, "--no-flip") == 0
    assert "random crops, not mirrored" in capsys.readouterr().err
    states = [
        torch.load(made(place), weights_only=True)["state_dict"] for place in (mirrored, upright)
    ]
    assert not torch.equal(*(state["conv1.weight"] for state in states))
    given = checkpoint.load(made(upright))
    assert given.config is not None and given.config.no_flip
    (record,) = rows(upright / "train_record.csv")
    assert record["no_flip"] == "True" and "--no-flip" in given.config.argv()

    resume = ["--resume", made(mirrored), "--no-cuda", "--no-flip"]
    assert command(main, *resume) == 2
    assert "was started with no_flip False, not True" in capsys.readouterr().err
    assert command(main, "--resume", made(upright), "--no-cuda") == 0

    prune = ["--model", made(upright), "--percent", 0.3, "--no-cuda"]
    assert command(resnet_prune, *prune) == 0
    slim = next(upright.glob("*pruned.pth.tar"))
    refine = ["--refine", slim, "--epochs", 1, "--batch-size", 16, "--no-cuda"]
    assert command(main, *refine) == 0
    tuned = checkpoint.load(next(upright.glob("*_refinecheckpoint.pth.tar"))).config
    assert tuned is not None and tuned.no_flip


def test_what_was_trained_before_images_could_be_upright_goes_on_mirrored(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*NETWORK, "--epochs", 2]
    assert train(whole, pictures, *flags) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "read", _stop_in(2))
        assert train(parts, pictures, *flags) == 130
    content = torch.load(made(parts), weights_only=True)
    del content["settings"]["no_flip"]
    torch.save(content, made(parts))
    capsys.readouterr()
    assert train(parts, pictures, *flags, "--resume", "auto") == 0
    assert "mirrored at random" in capsys.readouterr().err
    assert_same_run(whole, parts)


def test_digits_are_never_mirrored() -> None:
    assert Config.from_dict({"dataset": "SVHN"}).no_flip
    assert not Config.from_dict({"dataset": "cifar10"}).no_flip


def test_what_was_measured_on_one_set_of_pictures_is_used_on_another(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network knows pictures normalised so, and no others."""
    flags = [*NETWORK, "--epochs", 1, "--normalise", "data"]
    assert train(tmp_path / "run", pictures, *flags) == 0
    given = checkpoint.load(made(tmp_path / "run"))
    other = tmp_path / "other"
    for name, colour in (("blue", (0, 40, 90)), ("red", (120, 9, 0))):
        for part in ("train", "test"):
            save(other / part / name / "0.png", colour)
            save(other / part / name / "1.png", (7, 7, 7))
    capsys.readouterr()
    evaluate_ = ["--evaluate", made(tmp_path / "run"), "--no-cuda", "--data", other]
    assert command(main, *evaluate_) == 0
    data = load_dataset("folder", other, normalise="data", norm=given.norm)
    assert load_dataset("folder", other, normalise="data").mean != data.mean
    cpu = torch.device("cpu")
    score = evaluate(given.network.model, batches_of(data, "test", None, cpu), Execution(cpu))
    assert f"test loss {score.loss:.4f}" in capsys.readouterr().out


def test_top_five_is_told_of_more_than_ten_classes(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "many"
    for part, count in (("train", 2), ("test", 4)):
        for label in range(12):
            for i in range(count):
                save(many / part / f"{label:02}" / f"{i}.png", (20 * label, 60 * i, 128))
    run = tmp_path / "run"
    assert train(run, many, *NETWORK, "--epochs", 2) == 0
    out = capsys.readouterr().out
    given = checkpoint.load(made(run))
    data = load_dataset("folder", many)
    logits, labels = [], []
    for images, classes in batches_of(data, "test", None, torch.device("cpu")).iter_eval():
        logits.append(given.network.model.eval()(images).detach())
        labels.append(classes)
    rank = (torch.cat(logits) > torch.cat(logits).gather(1, torch.cat(labels)[:, None])).sum(1)
    expected = 100 * (rank < 5).double().mean().item()
    log, (record,) = rows(next(run.glob("*log.csv"))), rows(run / "train_record.csv")
    assert float(record["test_top_five"]) == float(log[-1]["test_top_five"])
    assert float(log[-1]["test_top_five"]) == pytest.approx(expected, abs=1e-4)
    assert float(log[-1]["test_accuracy"]) <= expected > 0
    assert f"(top five {expected:.2f} %)" in out
    few = tmp_path / "few"
    assert train(few, pictures, *NETWORK, "--epochs", 1) == 0
    assert "test_top_five" not in rows(few / "train_record.csv")[0]
    assert "top five" not in capsys.readouterr().out


def test_a_run_goes_on_with_pictures_of_its_own_size_and_source(
    shop: Workshop, refused: Refused
) -> None:
    path = shop.trained["resnet"]
    said = "started with stream False, not True"
    assert said in refused(main, "--resume", path, "--stream", "--no-cuda")
    said = "started with normalise None, not data"
    assert said in refused(main, "--resume", path, "--normalise", "data", "--no-cuda")
    for flag in ("--resume", "--evaluate", "--refine"):
        line = refused(main, flag, path, "--size", 64, "--no-cuda")
        assert "resnet takes pictures of 32×32 pixels" in line
