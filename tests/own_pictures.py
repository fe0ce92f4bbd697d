"""Folders of small pictures, and what tests of data sets ask of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from utils.console import InputError
from utils.data.batches import Batches
from utils.data.datasets import Dataset


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def epoch_of(batches: Batches, epoch: int) -> list[tuple[Tensor, Tensor]]:
    return [batches.get_batch(where) for where in batches.epoch_indices(epoch)]


def one_line(error: pytest.ExceptionInfo[InputError], *culprits: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert all(str(culprit) in message for culprit in culprits), message


def save(path: Path, picture: Image.Image | np.ndarray | tuple[int, int, int]) -> Path:
    """Write a picture, an array, or a 32×32 area of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, tuple):
        picture = Image.new("RGB", (32, 32), picture)
    elif isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    picture.save(path)
    return path


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's own cache, nor what is in the current folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "user-cache"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two classes, of two training pictures and one test picture each."""
    pictures = iter(noise(6, 32, 32, 3))
    for part, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            for i in range(count):
                save(tmp_path / "own" / part / name / f"{i}.bmp", next(pictures))
    return tmp_path / "own"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were opened as pictures so far."""
    opened: list[Path] = []
    really_open = Image.open

    def record(file: Any, *args: Any, **kwargs: Any) -> Image.Image:
        opened.append(Path(file))
        return really_open(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", record)
    return opened


def same(one: Dataset, other: Dataset) -> bool:
    return one.classes == other.classes and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        for a, b in ((one.train, other.train), (one.test, other.test))
    )
