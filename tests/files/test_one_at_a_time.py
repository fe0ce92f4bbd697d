"""A run is trained by one process at a time; a kill releases its lock."""

import shutil
import signal
import sys
import threading

import pytest

import main
from runs import assert_same_run, rows, start, train
from utils.console import InputError, Interrupted
from utils.files import locks

FLAGS = ["--arch", "resnet", "--depth", "11", "--name", "net", "--epochs", "10"]


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, pictures, capsys):
    process = start(tmp_path, pictures, *FLAGS)
    try:
        for line in process.stdout:
            if "epoch 1/10" in line:
                process.send_signal(signal.SIGSTOP)
                break
        for more in ([], ["--resume", "auto"]):
            assert train(tmp_path, pictures, *FLAGS, *more) == 2
            err = capsys.readouterr().err
            assert err.startswith("error: ") and err.count("\n") == 1
            assert "another process" in err and "--name" in err
        assert train(tmp_path, pictures, *FLAGS, "--name", "other", "--epochs", 1) == 0
    finally:
        process.kill()
        process.communicate()
    assert train(tmp_path, pictures, *FLAGS, "--resume", "auto") == 0
    epochs = [row["epoch"] for row in rows(tmp_path / "net_resnet_11_folder/log.csv")]
    assert epochs == [str(epoch) for epoch in range(1, 11)]
    assert not list(tmp_path.rglob("*lock*"))


@pytest.mark.parametrize("missing", ["module", "file system"])
def test_without_locks_a_note_is_printed(missing, tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def fails(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    if missing == "module":  # as on Windows
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", fails)
    with locks.file_lock(tmp_path / "run.lock"):
        pass
    assert capsys.readouterr().err.count("no file locks") == 1


def test_a_lock_file_of_a_killed_process_is_ignored(tmp_path):
    lock = tmp_path / "a" / "b" / "run.lock"
    with pytest.raises(InputError), locks.file_lock(lock):
        raise InputError("another error")
    assert list(tmp_path.iterdir()) == []  # folders that were made for the lock
    lock = tmp_path / "run.lock"
    lock.touch()
    with locks.file_lock(lock):
        with pytest.raises(InputError), locks.file_lock(lock):
            pass
        assert lock.exists() and locks.is_locked(lock)
    assert not lock.exists() and not locks.is_locked(lock)


def test_a_listing_does_not_stop_a_training(tmp_path):
    """--list holds a shared lock for a moment."""
    fcntl = pytest.importorskip("fcntl")
    lock = tmp_path / "run.lock"
    lock.touch()
    listing = lock.open()
    fcntl.flock(listing, fcntl.LOCK_SH)
    timer = threading.Timer(0.2, listing.close)
    timer.start()
    with locks.file_lock(lock):
        assert locks.is_locked(lock)
    timer.join()


def test_epochs_of_another_process_are_not_repeated(tmp_path, pictures, monkeypatch):
    """The checkpoint is loaded with the lock: another process may have trained until then."""
    flags = ["--arch", "resnet", "--depth", "11", "--epochs", 2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, pictures, *flags) == 0
    evaluate, file_lock, calls = main.evaluate, main.file_lock, []

    def interrupt(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise Interrupted(signal.SIGTERM)
        return evaluate(*args)

    with monkeypatch.context() as patched:
        patched.setattr(main, "evaluate", interrupt)
        assert train(parts, pictures, *flags) == 128 + signal.SIGTERM
    saved = tmp_path / "saved"
    shutil.copytree(parts, saved)
    for resume in ("auto", next(parts.glob("*/checkpoint.pth.tar"))):
        shutil.rmtree(parts)
        shutil.copytree(saved, parts)
        again = [*flags, "--resume", resume]

        def lock_after_another_process(lock: object, again: list[object] = again) -> object:
            monkeypatch.setattr(main, "file_lock", file_lock)
            assert train(parts, pictures, *again) == 0
            return file_lock(lock)

        monkeypatch.setattr(main, "file_lock", lock_after_another_process)
        assert train(parts, pictures, *again) == 0
        assert_same_run(whole, parts)
        assert len(rows(parts / "train_record.csv")) == 1
