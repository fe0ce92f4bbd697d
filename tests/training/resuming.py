"""Runs that are stopped and resumed."""

from pathlib import Path

import pytest

from runs import assert_same_run, train
from utils.training.trainer import Trainer


def stop_in(epoch: int, folder: Path, pictures: Path, *flags: object) -> None:
    """Trains up to the end of ``epoch``, whose log line is written, but not its checkpoint."""
    save = Trainer.save

    def stop(trainer: Trainer, accuracy: float) -> None:
        if trainer.epoch == epoch:
            raise KeyboardInterrupt
        save(trainer, accuracy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", stop)
        assert train(folder, pictures, *flags) == 130


def assert_resumes(epoch: int, folder: Path, pictures: Path, whole: Path, *flags: object) -> None:
    """A run that is stopped in ``epoch`` and resumed equals the uninterrupted one in ``whole``."""
    stop_in(epoch, folder, pictures, *flags)
    assert train(folder, pictures, *flags, "--resume", "auto") == 0
    assert_same_run(whole, folder)
