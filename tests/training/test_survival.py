"""Kills during writes, signals, damaged checkpoints, and contradictory resumes."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

import main
from runs import QUICK, assert_same, assert_same_run, dies_at, rows, train

RESNET = ["--arch", "resnet", "--depth", "11", "-sr", "--s", "1", "--beta", "100", "--epochs", "2"]
CHECKPOINT = "proximal_seed1_resnet_11_folder/checkpoint.pth.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pictures) -> Path:
    """An uninterrupted run of two epochs."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, pictures, *RESNET) == 0
    return folder


@pytest.mark.parametrize("call", [4, 15])
def test_a_run_killed_while_it_writes_resumes_with_the_same_bits(call, tmp_path, pictures, whole):
    """Killed at the ``call``-th call that touches files, whichever that is."""
    argv = [*QUICK, "--dataset", "folder", "--data", pictures, *RESNET]
    assert dies_at(call, [*argv, "--save", tmp_path]) == -signal.SIGKILL
    assert train(tmp_path, pictures, *RESNET, "--resume", "auto") == 0
    assert_same_run(whole, tmp_path)
    assert not list(tmp_path.rglob("*tmp*"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_every_finished_epoch_is_saved(
    signum, tmp_path, pictures, monkeypatch, capfd
):
    steps, train_step = [], main.train_step

    def step_and_signal(*args: object) -> None:
        train_step(*args)
        steps.append(args)
        if len(steps) == 6:  # the second step of epoch 2
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(main, "train_step", step_and_signal)
    assert train(tmp_path, pictures, *RESNET) == 128 + signum
    (command,) = re.findall(r"SIG\w+ in epoch 2: resume with (.*)", "\n".join(capfd.readouterr()))
    assert command.endswith(f" --resume {tmp_path / CHECKPOINT} --no-cuda")
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["epoch"] == 1
    assert len(steps) == 6


def test_resume_auto_skips_damaged_checkpoints(tmp_path, pictures, whole, capsys):
    path = shutil.copytree(whole, tmp_path, dirs_exist_ok=True) / CHECKPOINT
    before = torch.load(path, weights_only=True)
    best = torch.load(path.with_name("model_best.pth.tar"), weights_only=True)
    accuracies = [float(row["test_accuracy"]) for row in rows(path.with_name("log.csv"))]
    assert best["best_accuracy"] == max(accuracies)
    assert best["epoch"] == len(accuracies) - accuracies[::-1].index(max(accuracies))
    path.write_bytes(b"torn")
    assert train(tmp_path, pictures, *RESNET, "--resume", "auto") == 0
    assert f"{path}" in capsys.readouterr().err
    assert_same(before, torch.load(path, weights_only=True))


def test_resuming_with_another_flag_or_other_images_is_refused(tmp_path, pictures, whole, capsys):
    run, images = shutil.copytree(whole, tmp_path / "run"), tmp_path / "images"
    before = {p: p.read_bytes() for p in run.rglob("*.*")}
    shutil.copytree(pictures, images, ignore=shutil.ignore_patterns("*.npz"))
    shutil.copy(images / "train" / "red" / "0.png", images / "train" / "blue" / "0.png")
    named = [*RESNET, "--name", "proximal_seed1", "--resume", "auto"]
    assert train(run, pictures, *named, "--s", "2") == 2
    assert "--lambda 1" in capsys.readouterr().err
    assert train(run, images, *named) == 2
    assert "other images" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in run.rglob("*.*")} == before
