"""The built-in shapes data set: its format, and that it never changes."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from utils.data.shapes import CLASSES, draw_shapes

# The first 64 pictures and labels of seed 0. Accuracies measured on other bits do not compare, so
# a change of this constant is a change of data set.
FIRST_64 = "ebb13d0f52477b242a61ef46bdd4647289fa624f50fc10df7fa66374412eac2f"


def digest(count: int, seed: int) -> str:
    """sha256 of the pictures' bytes followed by the labels' (little-endian), in hex."""
    images, labels = draw_shapes(count, seed)
    return hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


def test_format_and_balance() -> None:
    images, labels = draw_shapes(1003, 0)
    assert images.shape == (1003, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (1003,) and labels.dtype == np.int64
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert len(set(CLASSES)) == len(counts) == 10
    assert sorted(counts) == [100] * 7 + [101] * 3


def test_labels_are_shuffled() -> None:
    labels = draw_shapes(1000, 0)[1].reshape(100, 10)
    assert len(np.unique(labels, axis=0)) > 90


def test_no_pictures() -> None:
    images, labels = draw_shapes(0, 0)
    assert images.shape == (0, 32, 32, 3) and labels.shape == (0,)


@pytest.mark.parametrize(("count", "seed"), [(-1, 0), (1, -1)])
def test_negative_arguments_are_refused(count: int, seed: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        draw_shapes(count, seed)


def test_the_pictures_are_the_known_ones() -> None:
    assert digest(64, 0) == FIRST_64


def test_same_bits_in_a_fresh_process() -> None:
    np.random.seed(7)  # The global state must not matter.
    code = "from tests.data.test_shapes import digest; print(digest(450, 3))"
    root = Path(__file__).parents[2]
    fresh = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert fresh.stdout.strip() == digest(450, 3) == digest(450, 3)


def test_a_picture_does_not_depend_on_the_count() -> None:
    few, many = draw_shapes(230, 5), draw_shapes(700, 5)
    for short, long in zip(few, many, strict=True):
        assert np.array_equal(short, long[:230])


def test_no_picture_occurs_twice_within_or_across_seeds() -> None:
    pictures = [image.tobytes() for seed in (0, 1) for image in draw_shapes(1000, seed)[0]]
    assert len(set(pictures)) == 2000
