"""Training and evaluation batches of a data set in memory, augmented on its device."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.data.datasets import Dataset

PAD = 4  # black pixels added on every side before a random crop
TEST_BATCH_SIZE = {"cpu": 256, "cuda": 2000}  # default by device type


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Returns ``images`` padded by PAD, cropped at (``top``, ``left``), mirrored where ``flip``.

    The result equals that of torchvision's pad, crop and hflip, with one gather for the batch.

    Args:
        images: uint8 [n, size, size, 3], as is the result.
        top, left: int64 [n], 0 to 2 * PAD.
        flip: bool [n].
    """
    padded = F.pad(images, (0, 0, PAD, PAD, PAD, PAD))
    pixels = torch.arange(images.shape[1], device=images.device)
    rows = top[:, None] + pixels
    columns = left[:, None] + torch.where(flip[:, None], pixels.flip(0), pixels)
    image_index = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[image_index, rows[:, :, None], columns[:, None, :]]


class Batches:
    """Normalised batches (images float32 [n, 3, size, size], labels int64 [n]) of one image set.

    To train, pass each batch index of :meth:`epoch_indices` to :meth:`get_batch`; to evaluate,
    iterate over :meth:`iter_eval`. Batches have ``batch_size`` images (None: TEST_BATCH_SIZE of the
    device), the last one may have fewer.
    """

    def __init__(
        self, data: Dataset, part: str, batch_size: int | None, device: torch.device, seed: int = 0
    ) -> None:
        images = getattr(data, part)
        self.labels = images.labels.to(device)
        self.classes = len(data.classes)
        self.index_device = device  # of the indices of a training batch
        self._set_images(images)
        self.mean = torch.tensor(data.mean, device=device)
        self.std = torch.tensor(data.std, device=device)
        self.batch_size = batch_size or TEST_BATCH_SIZE[device.type]
        self.augment, self.flip, self.seed = data.augment, data.flip, seed

    def _set_images(self, images: Any) -> None:
        self.images = images.images.to(self.labels.device)

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)

    def epoch_indices(self, epoch: int, steps: int | None = None) -> tuple[Tensor, ...]:
        """Returns the batch indices of a training epoch, a pure function of ``epoch`` and the seed.

        An epoch is every image once, or ``steps`` batches drawn with replacement. A batch index is
        int64 [4, n]: image index, top and left of the crop, flip. All are drawn on the CPU and
        uploaded once, so that every device and every resumed run sees the same batches.
        """
        generator = self._generator(epoch)
        if steps is None:
            image_index = torch.randperm(len(self.labels), generator=generator)
        else:
            shape = (steps * self.batch_size,)
            image_index = torch.randint(len(self.labels), shape, generator=generator)
        rows = image_index[None], self._draw_crops(len(image_index), generator)
        return torch.cat(rows).to(self.index_device).split(self.batch_size, dim=1)

    def _generator(self, *key: int) -> torch.Generator:
        """Returns a random generator that depends on the seed and ``key`` only."""
        state = np.random.SeedSequence((self.seed, *key)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state))

    def _draw_crops(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns the rows of a batch index after the first, int64 [k, count]."""
        top, left = torch.randint(2 * PAD + 1, (2, count), generator=generator)
        flip = torch.randint(2, (count,), generator=generator) * self.flip
        return torch.stack((top, left, flip))

    def get_batch(self, batch_index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the training batch of one of the indices from :meth:`epoch_indices`."""
        images, batch_index = self._gather(batch_index), batch_index.to(self.labels.device)
        if self.augment:
            _, top, left, flip = batch_index
            images = crop_and_flip(images, top, left, flip.bool())
        return self._normalise(images), self.labels[batch_index[0]]

    def _gather(self, batch_index: Tensor) -> Tensor:
        """Returns the images of a batch on the device, uint8 [n, size, size, 3]."""
        return self.images[batch_index[0]]

    def iter_eval(self, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields batches ``first``, ``first + every``, ... in file order, not augmented."""
        indices = torch.arange(len(self.labels), device=self.labels.device).split(self.batch_size)
        labels = self.labels.split(self.batch_size)[first::every]
        yield from zip(self._iter_images(indices[first::every]), labels, strict=True)

    def sample(self, count: int) -> Iterator[Tensor]:
        """Yields ``count`` images (at most all), a pure function of the seed, not augmented.

        Batch sizes differ by at most one, so that batch means may be averaged.
        """
        chosen = torch.randperm(len(self.labels), generator=self._generator(0, 1))[:count]
        return self._iter_images(chosen.tensor_split(-(-len(chosen) // self.batch_size)))

    def _iter_images(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields batches of normalised images, given the index, int64 [n], of each."""
        for image_index in indices:
            yield self._normalise(self.images[image_index.to(self.labels.device)])
