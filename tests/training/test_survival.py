"""Kills during writes, signals, damaged checkpoints, and contradictory resumes."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from runs import QUICK, assert_same, assert_same_run, dies_at, rows, start, train

RESNET = ["--arch", "resnet", "--depth", "11", "-sr", "--s", "1", "--beta", "100"]
NAME = "proximal_seed1_resnet_11_folder"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pictures) -> Path:
    """An uninterrupted run of two epochs."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, pictures, *RESNET, "--epochs", "2") == 0
    return folder


@pytest.mark.parametrize("call", [1, 4, 8, 15])
def test_a_run_killed_while_it_writes_resumes_with_the_same_bits(call, tmp_path, pictures, whole):
    """Killed at the ``call``-th call that touches files, whichever that is."""
    argv = [*QUICK, "--dataset", "folder", "--data", pictures, *RESNET, "--epochs", "2"]
    assert dies_at(call, [*argv, "--save", tmp_path]) == -signal.SIGKILL
    assert train(tmp_path, pictures, *RESNET, "--epochs", "2", "--resume", "auto") == 0
    assert_same_run(whole, tmp_path)
    assert not list(tmp_path.rglob("*tmp*"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_every_finished_epoch_is_saved(signum, tmp_path, pictures):
    process = start(tmp_path, pictures, *RESNET, "--epochs", "40")
    for line in process.stdout:
        if line.startswith("epoch 2/40: lr"):
            process.send_signal(signum)
            break
    output, _ = process.communicate()
    assert process.returncode == 128 + signum and "Traceback" not in output
    checkpoint = tmp_path / f"{NAME}/checkpoint.pth.tar"
    stopped, command = re.search(r"SIG\w+ in epoch (\d+): resume with (.*)", output).groups()
    assert command.endswith(f" --resume {checkpoint} --no-cuda")
    assert torch.load(checkpoint, weights_only=True)["epoch"] == int(stopped) - 1


def test_resume_auto_skips_damaged_checkpoints(tmp_path, pictures, whole, capsys):
    flags = [*RESNET, "--epochs", "2", "--resume", "auto"]
    path = shutil.copytree(whole, tmp_path, dirs_exist_ok=True) / f"{NAME}/checkpoint.pth.tar"
    before = torch.load(path, weights_only=True)
    best = torch.load(path.with_name("model_best.pth.tar"), weights_only=True)
    accuracies = [float(row["test_accuracy"]) for row in rows(path.with_name("log.csv"))]
    assert best["best_accuracy"] == max(accuracies)
    assert best["epoch"] == len(accuracies) - accuracies[::-1].index(max(accuracies))
    path.write_bytes(b"torn")
    assert train(tmp_path, pictures, *flags) == 0
    assert f"{path}" in capsys.readouterr().err
    assert_same(before, torch.load(path, weights_only=True))


def test_resume_auto_with_another_flag_is_refused(tmp_path, pictures, whole, capsys):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    run = [*RESNET, "--epochs", "2", "--name", "proximal_seed1"]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    assert train(tmp_path, pictures, *run, "--s", "2", "--resume", "auto") == 2
    assert "--lambda 1" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before


def test_resuming_with_other_images_is_refused(tmp_path, pictures, capsys):
    images = tmp_path / "images"
    shutil.copytree(pictures, images, ignore=shutil.ignore_patterns("*.npz"))
    assert train(tmp_path / "run", images, *RESNET, "--epochs", "1") == 0
    shutil.copy(images / "train" / "red" / "0.png", images / "train" / "blue" / "0.png")
    for cache in images.glob("*.npz"):
        cache.unlink()
    assert train(tmp_path / "run", images, *RESNET, "--epochs", "1", "--resume", "auto") == 2
    assert "other images" in capsys.readouterr().err
