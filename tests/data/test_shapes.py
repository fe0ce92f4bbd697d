"""The drawn data set: its format, balance and unchanging bits."""

import hashlib
from collections.abc import Iterable

import numpy as np

from utils.data.datasets import load_dataset
from utils.data.shapes import CLASSES, draw_shapes

# SHA-256 of the first 64 images and labels of seed 0. Accuracies on other bits do not compare.
FIRST_64 = "ebb13d0f52477b242a61ef46bdd4647289fa624f50fc10df7fa66374412eac2f"


def test_images_never_change_and_are_distinct_and_balanced() -> None:
    images, labels = draw_shapes(403, 0)
    digest = hashlib.sha256(images[:64].tobytes() + labels[:64].astype("<i8").tobytes())
    assert digest.hexdigest() == FIRST_64
    assert sorted(np.bincount(labels, minlength=len(CLASSES))) == [40] * 7 + [41] * 3
    assert len(np.unique(labels[:400].reshape(40, 10), axis=0)) > 35
    data = load_dataset("shapes", subset=230, test_subset=200)
    assert data.classes == CLASSES and data.augment
    train = zip(data.train.images.numpy(), data.train.labels.numpy(), strict=True)
    expected = zip(images[:230], labels[:230], strict=True)
    assert pixels_and_labels(train) == pixels_and_labels(expected)
    assert len({image.tobytes() for image in (*images, *data.test.images.numpy())}) == 603


def pixels_and_labels(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), int(label)) for image, label in pairs}
