"""The drawn data set: its format, balance and unchanging bits."""

import hashlib

import numpy as np
import pytest

from utils.data.shapes import CLASSES, draw_shapes

# SHA-256 of the first 64 images and labels of seed 0. Accuracies on other bits do not compare.
FIRST_64 = "ebb13d0f52477b242a61ef46bdd4647289fa624f50fc10df7fa66374412eac2f"


def test_first_images_are_bit_identical() -> None:
    images, labels = draw_shapes(64, 0)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes())
    assert digest.hexdigest() == FIRST_64


def test_images_are_distinct_balanced_and_independent_of_the_count() -> None:
    images, labels = draw_shapes(403, 0)
    assert images.shape == (403, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (403,) and labels.dtype == np.int64
    assert sorted(np.bincount(labels, minlength=len(CLASSES))) == [40] * 7 + [41] * 3
    assert len(np.unique(labels[:400].reshape(40, 10), axis=0)) > 35
    fewer_images, fewer_labels = draw_shapes(230, 0)
    assert np.array_equal(fewer_images, images[:230])
    assert np.array_equal(fewer_labels, labels[:230])
    other_seed, _ = draw_shapes(200, 1)
    assert len({image.tobytes() for image in (*images, *other_seed)}) == 603


def test_counts_may_be_zero_but_not_negative() -> None:
    images, labels = draw_shapes(0, 0)
    assert images.shape == (0, 32, 32, 3) and labels.shape == (0,)
    for count, seed in ((-1, 0), (1, -1)):
        with pytest.raises(ValueError, match="negative"):
            draw_shapes(count, seed)
