"""A run is trained by one process at a time: the others are refused, a kill frees it."""

import signal
import sys
import threading
from pathlib import Path

import pytest

from runs import assert_same_run, rows, start, train
from utils import atomic
from utils.console import InputError, Interrupted

RESNET = ["--arch", "resnet", "--depth", "11", "--name", "net", "--epochs", "40"]


def test_a_second_run_of_the_same_name_is_refused_at_once(tmp_path, pictures, capsys):
    process = start(tmp_path, pictures, *RESNET)
    try:
        for line in process.stdout:  # before, or while, it trains
            if "epoch 1/40" in line:
                break
        for more in ([], ["--resume", "auto"]):
            assert train(tmp_path, pictures, *RESNET, *more) == 2
            err = capsys.readouterr().err
            assert err.startswith("error: ") and err.count("\n") == 1
            assert "another process" in err and "--name" in err
        # Another name, or another folder, is another run.
        assert train(tmp_path, pictures, *RESNET, "--name", "other", "--epochs", 1) == 0
        assert train(tmp_path / "b", pictures, *RESNET, "--epochs", 1) == 0
    finally:
        process.kill()
        process.communicate()
    # A kill frees it; and nothing of the lock is left when a run ends.
    assert train(tmp_path, pictures, *RESNET, "--resume", "auto") == 0
    assert [row["epoch"] for row in rows(tmp_path / "net_resnet_11_folderlog.csv")] == [
        str(epoch) for epoch in range(1, 41)
    ]
    assert not list(tmp_path.rglob("*lock*"))


def test_what_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(InputError), atomic.file_lock(tmp_path / "a" / "b" / "run.lock"):
        raise InputError("something else was wrong")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unknown", ["module", "file system"])
def test_where_locks_are_unknown_a_note_says_so_once(unknown, tmp_path, monkeypatch, capsys):
    import fcntl

    def fails(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    if unknown == "module":  # as on Windows
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", fails)
    with atomic.file_lock(tmp_path / "run.lock"), atomic.file_lock(tmp_path / "run.lock"):
        pass
    assert capsys.readouterr().err.count("lock") == 2  # one of each of the two


def test_a_lock_left_behind_by_a_kill_is_nobodys(tmp_path: Path):
    (tmp_path / "run.lock").touch()
    with atomic.file_lock(tmp_path / "run.lock"):
        with pytest.raises(InputError), atomic.file_lock(tmp_path / "run.lock"):
            pass
        assert (tmp_path / "run.lock").exists()
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize("resume", ["auto", "path"])
def test_what_another_process_trained_meanwhile_is_not_trained_again(
    resume, tmp_path, pictures, monkeypatch
):
    """The checkpoint is read under the lock: before, another process may have gone on with it."""
    import main

    flags = ["--arch", "resnet", "--depth", "11", "--epochs", 3]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, pictures, *flags) == 0
    evaluate, alone, calls = main.evaluate, main.file_lock, []

    def stops(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise Interrupted(signal.SIGTERM)
        return evaluate(*args)

    with monkeypatch.context() as patched:
        patched.setattr(main, "evaluate", stops)
        assert train(parts, pictures, *flags) == 128 + signal.SIGTERM
    (path,) = parts.glob("*checkpoint.pth.tar")
    again = [*flags, "--resume", "auto" if resume == "auto" else path]

    def later(lock: Path) -> object:
        monkeypatch.setattr(main, "file_lock", alone)
        assert train(parts, pictures, *again) == 0
        return alone(lock)

    monkeypatch.setattr(main, "file_lock", later)
    assert train(parts, pictures, *again) == 0
    assert_same_run(whole, parts)
    assert len(rows(parts / "train_record.csv")) == 1


def test_who_only_looks_keeps_no_training_from_starting(tmp_path: Path):
    fcntl = pytest.importorskip("fcntl")
    lock = tmp_path / "run.lock"
    lock.touch()
    looking = lock.open()
    fcntl.flock(looking, fcntl.LOCK_SH)  # as --list does for a moment
    timer = threading.Timer(0.3, looking.close)
    timer.start()
    with atomic.file_lock(lock):
        assert atomic.is_locked(lock)
    timer.join()
