"""The batches that training and tests see, cut on the device that the pictures live on."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.data.datasets import Dataset

PAD = 4
TEST_BATCH_SIZE = {"cpu": 256, "cuda": 2000}  # by device, where no other is asked for


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Pad 4 black pixels, crop back to the size at (``top``, ``left``), mirror where ``flip``.

    ``images`` uint8 [n, size, size, 3]; ``top`` and ``left`` int64 [n], 0 to 8; ``flip`` bool [n].
    The same pictures as torchvision's pad, crop and hflip give, one gather for the batch.
    """
    padded = F.pad(images, (0, 0, PAD, PAD, PAD, PAD))
    along = torch.arange(images.shape[1], device=images.device)
    rows = top[:, None] + along
    columns = left[:, None] + torch.where(flip[:, None], along.flip(0), along)
    picture = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[picture, rows[:, :, None], columns[:, None, :]]


class Batches:
    """Normalised float32 batches of one set of pictures, cut on the device they live on.

    To train, :meth:`cut` each batch of :meth:`order` (shuffled and, where the data set says so,
    augmented); to test, iterate over :meth:`in_order`. Both give ([n, 3, size, size], int64 [n])
    with ``batch_size`` pictures each but for the last; None is a good one to test on that device.
    """

    def __init__(
        self,
        data: Dataset,
        part: str,
        batch_size: int | None,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        pictures = getattr(data, part)
        self.labels = pictures.labels.to(device)
        self.classes = len(data.classes)
        self._take(pictures)
        self.mean = torch.tensor(data.mean, device=device)
        self.std = torch.tensor(data.std, device=device)
        self.batch_size = batch_size or TEST_BATCH_SIZE[device.type]
        self.augment, self.flip, self.seed = data.augment, data.flip, seed

    def _take(self, pictures: Any) -> None:
        self.images = pictures.images.to(self.labels.device)

    def _normalised(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)

    def epoch_indices(self, epoch: int, steps: int | None = None) -> tuple[Tensor, ...]:
        """What training epoch ``epoch`` sees, batch by batch: a pure function of it and the seed.

        Every picture once; or so many ``steps``, drawn with replacement.

        A batch is int64 [4, n] on the device: which pictures, the top and the left of their crops,
        and whether they are mirrored. All is drawn on the CPU and uploaded once, so that a CPU and
        a GPU, an interrupted and a resumed run see the same batches.
        """
        return self._drawn(epoch, steps).to(self.labels.device).split(self.batch_size, dim=1)

    def _drawn(self, epoch: int, steps: int | None) -> Tensor:
        """The batches of :meth:`order` in one, on the CPU."""
        pictures = len(self.labels)
        generator = self._generator(epoch)
        if steps is None:
            count = pictures
            chosen = torch.randperm(count, generator=generator)
        else:
            count = steps * self.batch_size
            chosen = torch.randint(pictures, (count,), generator=generator)
        return torch.cat((chosen[None], self._crops(count, generator)))

    def _generator(self, *which: int) -> torch.Generator:
        """The random numbers of an epoch, or of what else ``which`` and the seed stand for."""
        state = np.random.SeedSequence((self.seed, *which)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state))

    def _crops(self, count: int, generator: torch.Generator) -> Tensor:
        """What an order says of each picture beside which it is, int64 [k, count]."""
        top, left = torch.randint(2 * PAD + 1, (2, count), generator=generator)
        flip = torch.randint(2, (count,), generator=generator) * self.flip
        return torch.stack((top, left, flip))

    def get_batch(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """The batch that ``where`` says, one of :meth:`order`'s."""
        images, where = self._gather(where), where.to(self.labels.device)
        if self.augment:
            _, top, left, flip = where
            images = crop_and_flip(images, top, left, flip.bool())
        return self._normalised(images), self.labels[where[0]]

    def _gather(self, where: Tensor) -> Tensor:
        """The pictures of that batch on the device, uint8 [n, size, size, 3]."""
        return self.images[where[0]]

    def iter_eval(self, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in the order of the files, as they are: from ``first``, ``every`` so many."""
        everything = torch.arange(len(self.labels), device=self.labels.device)
        chosen, labels = (x.split(self.batch_size)[first::every] for x in (everything, self.labels))
        yield from zip(self._as_they_are(chosen), labels, strict=True)

    def sample(self, count: int) -> Iterator[Tensor]:
        """``count`` images at random, or all, not augmented: a pure function of the seed.

        In batches that are equally large, but for one: their means may be averaged.
        """
        chosen = torch.randperm(len(self.labels), generator=self._generator(0, 1))[:count]
        return self._as_they_are(chosen.tensor_split(-(-len(chosen) // self.batch_size)))

    def _as_they_are(self, chosen: Sequence[Tensor]) -> Iterator[Tensor]:
        """Batches of the ``chosen`` images, int64 [n] each, normalised only."""
        for where in chosen:
            yield self._normalised(self.images[where.to(self.labels.device)])
