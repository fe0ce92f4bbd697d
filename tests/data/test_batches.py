"""Batches equal those of torchvision's transforms and depend on seed and epoch only."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from own_pictures import epoch_of, noise
from utils.data.batches import Batches, crop_and_flip
from utils.data.datasets import CIFAR_NORM, SVHN_NORM, Dataset, ImageSet
from utils.training.recalibrate import IMAGES, recalibrate_bn

CPU = torch.device("cpu")
# All crops of 32×32 from 40×40 pixels, with and without flip.
CROPS = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]


def dataset(images: np.ndarray, augment: bool = False, norm: Any = ((0,) * 3, (1,) * 3)) -> Dataset:
    """Return a data set whose training and test images are ``images``, labelled by their index."""
    part = ImageSet(torch.from_numpy(images), torch.arange(len(images)))
    return Dataset("own", ("a",), part, part, *norm, augment)


def repeated(count: int) -> np.ndarray:
    return np.broadcast_to(noise(32, 32, 3), (count, 32, 32, 3)).copy()


def scaled(images: np.ndarray) -> Tensor:
    """Return the batch of ``images`` for mean 0 and standard deviation 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def torchvision_crop(image: np.ndarray, top: int, left: int, flip: bool) -> np.ndarray:
    padded = tv.pad(torch.from_numpy(image).permute(2, 0, 1), [4])
    cropped = tv.crop(padded, top, left, 32, 32)
    return (tv.hflip(cropped) if flip else cropped).permute(1, 2, 0).numpy()


def test_crop_and_flip_equals_torchvision_for_every_crop() -> None:
    images = noise(len(CROPS), 32, 32, 3)
    top, left, flip = (torch.tensor(column) for column in zip(*CROPS, strict=True))
    ours = crop_and_flip(torch.from_numpy(images), top, left, flip)
    theirs = [torchvision_crop(image, *crop) for image, crop in zip(images, CROPS, strict=True)]
    assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("norm", [CIFAR_NORM, SVHN_NORM])
def test_normalisation_equals_torchvision_bit_by_bit(norm: Any) -> None:
    values = np.arange(256, dtype=np.uint8)
    images = np.resize(np.stack([values, values[::-1], np.roll(values, 100)], 1), (2, 32, 32, 3))
    batch, _ = next(Batches(dataset(images, norm=norm), "train", 2, CPU).iter_eval())
    theirs = [tv.normalize(tv.to_tensor(image), *norm) for image in images]
    assert torch.equal(batch, torch.stack(theirs))


def test_every_crop_and_flip_is_about_equally_frequent() -> None:
    image, count = noise(32, 32, 3), 30 * len(CROPS)
    crops = {torchvision_crop(image, *crop).tobytes(): crop for crop in CROPS}
    seen: Counter[tuple[int, int, bool]] = Counter()
    batches = Batches(dataset(repeated(count), augment=True), "train", 1000, CPU, seed=1)
    for batch, _ in epoch_of(batches, 0):
        pixels = batch.permute(0, 2, 3, 1).mul(255).round().byte().contiguous().numpy()
        seen.update(crops[image.tobytes()] for image in pixels)
    assert seen.keys() == set(CROPS)
    # 30 expected, with a standard deviation of 5.5
    assert min(seen.values()) > 3 and max(seen.values()) < 58


@settings(deadline=None, max_examples=20)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10_000),
    augment=st.booleans(),
)
def test_an_epoch_is_all_images_once_and_a_function_of_seed_and_epoch(
    count: int, batch_size: int, seed: int, epoch: int, augment: bool
) -> None:
    data = dataset(noise(count, 32, 32, 3), augment)
    batches = Batches(data, "train", batch_size, CPU, seed)
    first = epoch_of(batches, epoch)
    torch.manual_seed(count)
    epoch_of(batches, epoch + 1)
    again = epoch_of(Batches(data, "train", batch_size, CPU, seed), epoch)
    for (images, labels), (same_images, same_labels) in zip(first, again, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
        assert augment or torch.equal(images, scaled(data.train.images.numpy())[labels])
    assert torch.cat([labels for _, labels in first]).sort().values.tolist() == list(range(count))
    last = [count % batch_size] if count % batch_size else []
    assert [len(images) for images, _ in first] == [batch_size] * (count // batch_size) + last


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**62), epoch=st.integers(0, 10_000))
def test_seeds_and_epochs_have_their_own_order_and_crops(seed: int, epoch: int) -> None:
    data = dataset(repeated(30), augment=True)

    def draw(seed: int, epoch: int) -> tuple[list[int], Tensor]:
        ((images, labels),) = epoch_of(Batches(data, "train", 30, CPU, seed), epoch)
        return labels.tolist(), images

    order, images = draw(seed, epoch)
    # the last one would be equal if seed and epoch were added
    for other in ((seed, epoch + 1), (seed + 1, epoch), (seed + 1, max(epoch - 1, 0))):
        other_order, other_images = draw(*other)
        assert order != other_order and not torch.equal(images, other_images)


def test_no_flip_keeps_the_crops() -> None:
    data = dataset(repeated(50), augment=True)
    batches = Batches(data, "train", 50, CPU, 1)
    ((flipped, labels),) = epoch_of(batches, 0)
    ((upright, same_labels),) = epoch_of(Batches(replace(data, flip=False), "train", 50, CPU, 1), 0)
    assert torch.equal(labels, same_labels)
    ((_, top, left, flip),) = batches.epoch_indices(0)
    assert 0 < flip.sum() < 50
    for i in range(50):
        crop = torchvision_crop(noise(32, 32, 3), int(top[i]), int(left[i]), False)
        assert torch.equal(upright[i], scaled(crop[None])[0])
        assert torch.equal(flipped[i], upright[i]) != bool(flip[i])


@pytest.mark.parametrize("augment", [False, True])
def test_evaluation_is_in_file_order_and_not_augmented(augment: bool) -> None:
    images = noise(7, 32, 32, 3)
    batches = Batches(dataset(images, augment), "test", 3, CPU)
    assert [len(labels) for _, labels in batches.iter_eval()] == [3, 3, 1]
    assert torch.cat([labels for _, labels in batches.iter_eval()]).tolist() == list(range(7))
    assert torch.equal(torch.cat([x for x, _ in batches.iter_eval()]), scaled(images))
    assert [labels.tolist() for _, labels in batches.iter_eval(1, 2)] == [[3, 4, 5]]


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 45), wanted=st.integers(1, 50))
def test_a_sample_is_random_images_in_equal_batches(
    count: int, batch_size: int, wanted: int
) -> None:
    images = noise(count, 32, 32, 3)
    batches = Batches(dataset(images, augment=True), "train", batch_size, CPU, 7)
    sample = list(batches.sample(wanted))
    torch.manual_seed(count)
    epoch_of(batches, 1)
    assert all(map(torch.equal, sample, batches.sample(wanted)))
    index = {image.numpy().tobytes(): i for i, image in enumerate(scaled(images))}
    chosen = [index[image.numpy().tobytes()] for batch in sample for image in batch]
    assert len(chosen) == len({*chosen}) == min(count, wanted)
    sizes = [len(batch) for batch in sample]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    other = Batches(dataset(images, augment=True), "train", batch_size, CPU, 8).sample(wanted)
    assert wanted < 30 or count < 30 or not torch.equal(torch.cat(sample), torch.cat([*other]))


def test_recalibrated_statistics_are_those_of_all_classes() -> None:
    """The images are sorted by class, as a folder is, and more than recalibration samples."""
    labels = torch.arange(3).repeat_interleave(IMAGES + 100)
    images = (labels * 100).to(torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3).contiguous()
    bn = nn.BatchNorm2d(3)
    recalibrate_bn(bn, Batches(dataset(images.numpy()), "train", 64, CPU, 1))
    pixels = images.float() / 255
    # The mean of 2,000 images is off by less than 0.03, five standard deviations.
    torch.testing.assert_close(bn.running_mean, pixels.mean((0, 1, 2)), atol=0.03, rtol=0)
    torch.testing.assert_close(bn.running_var, pixels.var((0, 1, 2)), atol=0.03, rtol=0)
