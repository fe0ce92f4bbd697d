"""Batches are what torchvision's transforms would hand over, and the same ones every time."""

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
from utils.data import batches as datasets
from utils.data.batches import Batches
from utils.data.datasets import CIFAR_NORM, SVHN_NORM, Dataset, ImageSet
from utils.training.recalibrate import IMAGES, recalibrate_bn

CPU = torch.device("cpu")
# Every way to cut 32×32 out of 40×40, as it is and mirrored.
CROPS = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]


def dataset(images: np.ndarray, augment: bool = False, norm: Any = ((0,) * 3, (1,) * 3)) -> Dataset:
    """These pictures to train and to test on, each labelled with its own number."""
    pictures = ImageSet(torch.from_numpy(images), torch.arange(len(images)))
    mean, std = norm
    return Dataset("own", ("a",), pictures, pictures, mean, std, augment)


def scaled(images: np.ndarray) -> Tensor:
    """What a batch of ``images`` is where mean is 0 and standard deviation 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def torchvision_crop(image: np.ndarray, top: int, left: int, flip: bool) -> np.ndarray:
    padded = tv.pad(torch.from_numpy(image).permute(2, 0, 1), [4])
    cropped = tv.crop(padded, top, left, 32, 32)
    return (tv.hflip(cropped) if flip else cropped).permute(1, 2, 0).numpy()


def test_crops_and_flips_are_torchvisions_for_every_offset() -> None:
    images = noise(len(CROPS), 32, 32, 3)
    top, left, flip = (torch.tensor(column) for column in zip(*CROPS, strict=True))
    ours = datasets.crop_and_flip(torch.from_numpy(images), top, left, flip)
    theirs = [torchvision_crop(image, *crop) for image, crop in zip(images, CROPS, strict=True)]
    assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("norm", [CIFAR_NORM, SVHN_NORM])
def test_normalisation_is_torchvisions_to_the_last_bit(norm: Any) -> None:
    values = np.arange(256, dtype=np.uint8)
    images = np.resize(np.stack([values, values[::-1], np.roll(values, 100)], 1), (2, 32, 32, 3))
    batch, _ = next(Batches(dataset(images, norm=norm), "train", 2, CPU).iter_eval())
    theirs = [tv.normalize(tv.to_tensor(image), *norm) for image in images]
    assert torch.equal(batch, torch.stack(theirs))


def test_the_usual_constants() -> None:
    assert CIFAR_NORM == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert SVHN_NORM == (
        (0.4376821, 0.4437697, 0.47280442),
        (0.19803012, 0.20101562, 0.19703614),
    )


def test_every_crop_and_flip_is_drawn_about_equally_often() -> None:
    picture, count = noise(32, 32, 3), 100 * len(CROPS)
    which = {torchvision_crop(picture, *crop).tobytes(): crop for crop in CROPS}
    images = np.broadcast_to(picture, (count, 32, 32, 3)).copy()
    seen: Counter[tuple[int, int, bool]] = Counter()
    for batch, _ in epoch_of(Batches(dataset(images, augment=True), "train", 1000, CPU, seed=1), 0):
        bytes_ = batch.permute(0, 2, 3, 1).mul(255).round().byte().contiguous().numpy()
        seen.update(which[image.tobytes()] for image in bytes_)
    assert seen.keys() == set(CROPS)
    # five standard deviations around 100
    assert min(seen.values()) > 50 and max(seen.values()) < 150


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10_000),
    augment=st.booleans(),
)
def test_an_epoch_is_a_pure_function_of_seed_and_number(
    count: int, batch_size: int, seed: int, epoch: int, augment: bool
) -> None:
    of = dataset(noise(count, 32, 32, 3), augment)
    batches = Batches(of, "train", batch_size, CPU, seed)
    first = epoch_of(batches, epoch)
    # neither torch's own generator nor the epochs before play a part
    torch.manual_seed(count)
    epoch_of(batches, epoch + 1)
    again = epoch_of(Batches(of, "train", batch_size, CPU, seed), epoch)
    for (images, labels), (same_images, same_labels) in zip(first, again, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)

    labels = torch.cat([labels for _, labels in first])
    assert labels.sort().values.tolist() == list(range(count))
    sizes = [len(images) for images, _ in first]
    ragged = [count % batch_size] if count % batch_size else []
    assert sizes == [batch_size] * (count // batch_size) + ragged
    assert len(batches.epoch_indices(epoch)) == len(sizes)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**62), epoch=st.integers(0, 10_000))
def test_other_seeds_and_epochs_are_other_orders_and_crops(seed: int, epoch: int) -> None:
    of = dataset(np.broadcast_to(noise(32, 32, 3), (30, 32, 32, 3)).copy(), augment=True)

    def drawn(seed: int, epoch: int) -> tuple[list[int], Tensor]:
        ((images, labels),) = epoch_of(Batches(of, "train", 30, CPU, seed), epoch)
        return labels.tolist(), images

    order, images = drawn(seed, epoch)
    # the last one would be the same if seed and epoch were just added up
    for other in ((seed, epoch + 1), (seed + 1, epoch), (seed + 1, max(epoch - 1, 0))):
        other_order, other_images = drawn(*other)
        assert order != other_order and not torch.equal(images, other_images)


@pytest.mark.parametrize("augment", [False, True])
def test_tests_see_everything_in_order_and_as_it_is(augment: bool) -> None:
    images = noise(7, 32, 32, 3)
    batches = list(Batches(dataset(images, augment), "test", 3, CPU).iter_eval())
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(7))
    assert torch.equal(torch.cat([x for x, _ in batches]), scaled(images))


def test_without_flips_the_crops_are_the_same_and_none_is_mirrored() -> None:
    images = np.broadcast_to(noise(32, 32, 3), (50, 32, 32, 3)).copy()
    of = dataset(images, augment=True)
    ((flipped, labels),) = epoch_of(Batches(of, "train", 50, CPU, 1), 0)
    ((upright, same),) = epoch_of(Batches(replace(of, flip=False), "train", 50, CPU, 1), 0)
    assert torch.equal(labels, same)
    (where,) = Batches(of, "train", 50, CPU, 1).epoch_indices(0)
    _, top, left, flip = where
    assert 0 < flip.sum() < 50
    for x, y, mirrored, *corner in zip(flipped, upright, flip, top, left, strict=True):
        crop = torchvision_crop(images[0], *map(int, corner), False)
        assert torch.equal(y, scaled(crop[None])[0])
        assert mirrored or torch.equal(x, y)


def test_what_is_not_to_be_augmented_is_only_shuffled() -> None:
    images = noise(20, 32, 32, 3)
    for batch, labels in epoch_of(Batches(dataset(images), "train", 6, CPU), 3):
        assert torch.equal(batch, scaled(images)[labels])


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 45), wanted=st.integers(1, 50))
def test_a_sample_is_images_at_random_as_they_are(count: int, batch_size: int, wanted: int) -> None:
    images = noise(count, 32, 32, 3)
    batches = Batches(dataset(images, augment=True), "train", batch_size, CPU, 7)
    found = list(batches.sample(wanted))
    torch.manual_seed(count)  # neither torch's own generator nor the batches before play a part
    epoch_of(batches, 1)
    again = list(batches.sample(wanted))
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
    whole = [x.numpy().tobytes() for x in scaled(images)]
    seen = Counter(whole.index(x.numpy().tobytes()) for batch in found for x in batch)
    assert seen.total() == len(seen) == min(count, wanted)
    sizes = [len(x) for x in found]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_other_seeds_take_other_samples() -> None:
    of = dataset(noise(100, 32, 32, 3))
    one, other = (torch.cat(list(Batches(of, "train", 9, CPU, s).sample(50))) for s in (1, 2))
    assert not torch.equal(one, other)
    (first,) = Batches(of, "train", 100, CPU, 1).epoch_indices(0)
    assert not torch.equal(one, scaled(of.train.images.numpy())[first[0][:50]])


def test_statistics_are_those_of_all_classes_in_a_folders_order_too() -> None:
    """Class after class, as a folder is read: class k has brightness 100 k, and more images than
    are taken."""
    labels = torch.arange(3).repeat_interleave(IMAGES + 100)
    images = (labels * 100).to(torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3).contiguous()
    pictures = ImageSet(images, labels)
    data = Dataset("own", ("a", "b", "c"), pictures, pictures, (0,) * 3, (1,) * 3, False)
    bn = nn.BatchNorm2d(3)
    recalibrate_bn(bn, Batches(data, "train", 64, CPU, 1))
    pixels = images.float() / 255
    # Of 2,000 images the mean is off by less than 0.03, at five standard deviations.
    torch.testing.assert_close(bn.running_mean, pixels.mean((0, 1, 2)), atol=0.03, rtol=0)
    torch.testing.assert_close(bn.running_var, pixels.var((0, 1, 2)), atol=0.03, rtol=0)
