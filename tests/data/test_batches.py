"""Batches equal those of torchvision's transforms and depend on seed and epoch only."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from own_pictures import epoch_of, noise
from utils.data.batches import Batches
from utils.data.datasets import CIFAR_NORM, SVHN_NORM, Dataset, ImageSet
from utils.training.recalibrate import IMAGES, recalibrate_bn

CPU = torch.device("cpu")
# All crops of 32×32 from 40×40 pixels, with and without flip.
CROPS = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]


def batches_of(
    images: np.ndarray,
    batch_size: int = 1000,
    seed: int = 1,
    norm: Any = ((0.0,) * 3, (1.0,) * 3),
    **options: bool,
) -> Batches:
    """Returns batches of ``images``, labelled by their index."""
    part = ImageSet(torch.from_numpy(images), torch.arange(len(images)))
    data = Dataset("own", ("a",), part, part, *norm, **{"augment": False, **options})
    return Batches(data, "train", batch_size, CPU, seed)


def repeated(count: int) -> np.ndarray:
    return np.broadcast_to(noise(32, 32, 3), (count, 32, 32, 3)).copy()


def torchvision_crop(image: np.ndarray, top: int, left: int, flip: bool) -> Tensor:
    """Returns the crop as a batch has it for mean 0 and standard deviation 1."""
    padded = tv.pad(torch.from_numpy(image).permute(2, 0, 1), [4])
    cropped = tv.crop(padded, top, left, 32, 32)
    return (tv.hflip(cropped) if flip else cropped) / 255


@pytest.mark.parametrize("norm", [CIFAR_NORM, SVHN_NORM])
def test_normalisation_equals_torchvision_bit_by_bit(norm: Any) -> None:
    values = np.arange(256, dtype=np.uint8)
    images = np.resize(np.stack([values, values[::-1], np.roll(values, 100)], 1), (2, 32, 32, 3))
    batch, _ = next(batches_of(images, norm=norm).iter_eval())
    theirs = [tv.normalize(tv.to_tensor(image), *norm) for image in images]
    assert torch.equal(batch, torch.stack(theirs))


@pytest.mark.parametrize("flip", [True, False])
def test_crops_equal_torchvisions_and_are_about_equally_frequent(flip: bool) -> None:
    image = noise(32, 32, 3)
    crops = {torchvision_crop(image, *crop).numpy().tobytes(): crop for crop in CROPS}
    seen: Counter[tuple[int, int, bool]] = Counter()
    for batch, _ in epoch_of(batches_of(repeated(30 * len(CROPS)), augment=True, flip=flip), 0):
        seen.update(crops[x.contiguous().numpy().tobytes()] for x in batch)
    assert seen.keys() == {crop for crop in CROPS if flip or not crop[2]}
    if flip:  # 30 expected, with a standard deviation of 5.5
        assert min(seen.values()) > 3 and max(seen.values()) < 58


@settings(deadline=None, max_examples=15)
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
    source = noise(count, 32, 32, 3)

    def draw(seed: int, epoch: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        batches = batches_of(source, batch_size, seed, augment=augment)
        epoch_of(batches, epoch + 1)
        return epoch_of(batches, epoch), torch.cat(batches.epoch_indices(epoch), dim=1)

    batches, indices = draw(seed, epoch)
    torch.manual_seed(count)
    again, _ = draw(seed, epoch)
    images, labels = map(torch.cat, zip(*batches, strict=True))
    assert torch.equal(images, torch.cat([x for x, _ in again]))
    crops = indices.T.tolist() if augment else [(i, 4, 4, 0) for i in labels.tolist()]
    theirs = [torchvision_crop(source[i], top, left, bool(f)) for i, top, left, f in crops]
    assert torch.equal(images, torch.stack(theirs)) and torch.equal(labels, indices[0])
    assert labels.sort().values.tolist() == list(range(count))
    last = [count % batch_size] if count % batch_size else []
    assert [len(x) for x, _ in batches] == [batch_size] * (count // batch_size) + last
    # the last one would be equal if seed and epoch were added
    for other in ((seed, epoch + 1), (seed + 1, epoch), (seed + 1, max(epoch - 1, 0))):
        _, others = draw(*other)
        different = (others != indices).any(1)  # order, top, left and flip
        assert count < 20 or different.all()


def test_evaluation_is_in_file_order_and_not_augmented() -> None:
    images = noise(7, 32, 32, 3)
    batches = batches_of(images, 3, augment=True)
    assert [labels.tolist() for _, labels in batches.iter_eval()] == [[0, 1, 2], [3, 4, 5], [6]]
    expected = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    assert torch.equal(torch.cat([x for x, _ in batches.iter_eval()]), expected)
    assert [labels.tolist() for _, labels in batches.iter_eval(1, 2)] == [[3, 4, 5]]


@settings(deadline=None, max_examples=10)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 45), wanted=st.integers(1, 50))
def test_a_sample_is_random_images_in_equal_batches(
    count: int, batch_size: int, wanted: int
) -> None:
    images = noise(count, 32, 32, 3)
    batches = batches_of(images, batch_size, 7, augment=True)
    sample = list(batches.sample(wanted))
    torch.manual_seed(count)
    epoch_of(batches, 1)
    assert all(map(torch.equal, sample, batches.sample(wanted)))
    evaluated = torch.cat([x for x, _ in batches.iter_eval()])
    index = {image.numpy().tobytes(): i for i, image in enumerate(evaluated)}
    chosen = [index[image.numpy().tobytes()] for batch in sample for image in batch]
    assert len(chosen) == len({*chosen}) == min(count, wanted)
    sizes = [len(batch) for batch in sample]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    other = torch.cat([*batches_of(images, batch_size, 8).sample(wanted)])
    assert wanted < 30 or count < 30 or not torch.equal(torch.cat(sample), other)


def test_recalibrated_statistics_are_those_of_all_classes() -> None:
    """The images are sorted by class, as a folder is, and more than recalibration samples."""
    labels = torch.arange(3).repeat_interleave(IMAGES + 100)
    images = (labels * 100).to(torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3).contiguous()
    bn = nn.BatchNorm2d(3)
    recalibrate_bn(bn, batches_of(images.numpy(), 64))
    pixels = images.float() / 255
    # The mean of 2,000 images is off by less than 0.03, five standard deviations.
    torch.testing.assert_close(bn.running_mean, pixels.mean((0, 1, 2)), atol=0.03, rtol=0)
    torch.testing.assert_close(bn.running_var, pixels.var((0, 1, 2)), atol=0.03, rtol=0)
