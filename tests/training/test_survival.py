"""What a run survives: kills while it writes, signals, damaged checkpoints, numbers gone wrong."""

import re
import signal
from pathlib import Path

import pytest
import torch

from runs import QUICK, assert_same, assert_same_run, dies_at, rows, start, train

RESNET = ["--arch", "resnet", "--depth", "11", "-sr", "--s", "1", "--beta", "100"]
NAME = "proximal_seed1_resnet_11_folder"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pictures) -> Path:
    """Of two epochs, left alone."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, pictures, *RESNET, "--epochs", "2") == 0
    return folder


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6, 8, 11])
def test_a_run_killed_while_it_writes_is_the_uninterrupted_one(at, tmp_path, pictures, whole):
    """At the ``at``-th call that touches files, whichever that is."""
    argv = [*QUICK, "--dataset", "folder", "--data", pictures, *RESNET, "--epochs", "2"]
    assert dies_at(at, [*argv, "--save", tmp_path]) == -signal.SIGKILL
    assert train(tmp_path, pictures, *RESNET, "--epochs", "2", "--resume", "auto") == 0
    assert_same_run(whole, tmp_path)
    assert not list(tmp_path.glob("*tmp*"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_so_that_it_can_go_on(signum, tmp_path, pictures):
    flags = [*RESNET, "--epochs", "40"]
    process = start(tmp_path, pictures, *flags)
    for line in process.stdout:
        if line.startswith("epoch 2/40: lr"):
            process.send_signal(signum)
            break
    said, _ = process.communicate()
    assert process.returncode == 128 + signum
    checkpoint = tmp_path / f"{NAME}checkpoint.pth.tar"
    stopped, way_on = re.search(r"SIG\w+ in epoch (\d+): go on with (.*)", said).groups()
    assert way_on.endswith(f" --resume {checkpoint} --no-cuda")
    assert "Traceback" not in said
    # Every finished epoch is saved, whatever the clock says of writing.
    assert torch.load(checkpoint, weights_only=True)["epoch"] == int(stopped) - 1


def test_states_the_clock_has_not_written_are_written_at_the_end(tmp_path, pictures, monkeypatch):
    """Best and last, when the run is broken off: writes are far apart where epochs are short."""
    from utils.training import logs, trainer

    monkeypatch.setattr(trainer, "WRITES", 1e9)
    epochs, at = [], logs.log

    def log(run, *args):
        epochs.append(torch.load(p, weights_only=True)["epoch"] if (p := path()) else None)
        if run.epoch == 4:
            raise KeyboardInterrupt
        return at(run, *args)

    def path() -> Path | None:
        return next(tmp_path.glob("*checkpoint.pth.tar"), None)

    monkeypatch.setattr(logs, "log", log)
    assert train(tmp_path, pictures, *RESNET) == 130
    assert epochs == [None, 1, 1, 1]  # written once, and then not yet again
    assert torch.load(path(), weights_only=True)["epoch"] == 3
    best = torch.load(tmp_path / f"{NAME}model_best.pth.tar", weights_only=True)
    accuracies = [float(row["test_accuracy"]) for row in rows(tmp_path / f"{NAME}log.csv")]
    assert best["best_accuracy"] == max(accuracies)
    assert best["epoch"] == len(accuracies) - accuracies[::-1].index(max(accuracies))


def test_resume_auto_starts_goes_on_and_passes_over_what_is_damaged(tmp_path, pictures, capsys):
    flags = [*RESNET, "--epochs", "2", "--resume", "auto"]
    assert train(tmp_path, pictures, *flags) == 0
    assert "going on" not in capsys.readouterr().err
    before = torch.load(tmp_path / f"{NAME}checkpoint.pth.tar", weights_only=True)
    (tmp_path / f"{NAME}checkpoint.pth.tar").write_bytes(b"torn")
    assert train(tmp_path, pictures, *flags) == 0
    said = capsys.readouterr().err
    assert "passed over" in said
    assert "going on with" in said
    after = torch.load(tmp_path / f"{NAME}checkpoint.pth.tar", weights_only=True)
    assert_same(before, after)


@pytest.mark.parametrize(
    ("flags", "word"),
    [(["--s", "2"], "s 1"), (["--beta", "3"], "beta"), (["--epochs", "9"], "epochs"),
     (["--seed", "2"], "seed"), (["--no-nesterov"], "nesterov"), (["--batch-size", "4"], "batch")],
)  # fmt: skip
def test_a_run_goes_on_only_as_it_was_started(flags, word, tmp_path, pictures, capsys):
    run = [*RESNET, "--epochs", "1", "--name", "one"]
    assert train(tmp_path, pictures, *run) == 0
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert train(tmp_path, pictures, *run, *flags, "--resume", "auto") == 2
    assert word in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_run_does_not_go_on_with_other_pictures(tmp_path, pictures, capsys):
    import shutil

    own = tmp_path / "pictures"
    shutil.copytree(pictures, own, ignore=shutil.ignore_patterns("*.npz"))
    assert train(tmp_path / "run", own, *RESNET, "--epochs", "1") == 0
    shutil.copy(own / "train" / "red" / "0.png", own / "train" / "blue" / "0.png")
    for cache in own.glob("*.npz"):
        cache.unlink()
    assert train(tmp_path / "run", own, *RESNET, "--epochs", "1", "--resume", "auto") == 2
    assert "other pictures" in capsys.readouterr().err
