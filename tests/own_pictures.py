"""Small image folders, and helpers of the tests of data sets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from utils.console import InputError
from utils.data.batches import Batches
from utils.data.datasets import Dataset


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def epoch_of(batches: Batches, epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Return all training batches of an epoch."""
    return [batches.get_batch(batch_index) for batch_index in batches.epoch_indices(epoch)]


def one_line(error: pytest.ExceptionInfo[InputError], *parts: object) -> None:
    """Assert that the error message is one line and contains ``parts``."""
    message = str(error.value)
    assert "\n" not in message
    assert all(str(part) in message for part in parts), message


def save(path: Path, image: Image.Image | np.ndarray | tuple[int, int, int]) -> Path:
    """Save an image, an array or 32×32 pixels of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, tuple):
        image = Image.new("RGB", (32, 32), image)
    elif isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(path)
    return path


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty user cache and an empty working directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "user-cache"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of two classes with two training images and one test image each."""
    images = iter(noise(6, 32, 32, 3))
    for part, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            for i in range(count):
                save(tmp_path / "own" / part / name / f"{i}.bmp", next(images))
    return tmp_path / "own"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The image files that were opened so far."""
    opened: list[Path] = []
    open_image = Image.open

    def record(file: Any, *args: Any, **kwargs: Any) -> Image.Image:
        opened.append(Path(file))
        return open_image(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", record)
    return opened


def same(one: Dataset, other: Dataset) -> bool:
    """Return whether both have equal classes, images and labels, in memory."""
    return one.classes == other.classes and one.checksum() == other.checksum()
