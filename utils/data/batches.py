"""Training and evaluation batches of a data set, augmented on its device."""

import gc
import os
import signal
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from utils.console import InputError, PeerLost
from utils.data.datasets import Dataset
from utils.data.image_folder import ImageFiles

PAD = 4  # black pixels added on every side before a random crop
# Defaults by device type, and for files: images may be large, and every worker reads 2 batches.
TEST_BATCH_SIZE = {"cpu": 256, "cuda": 2000, "files": 64}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(4, CORES)


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
    iterate over :meth:`iter_eval`. Image files are read ahead by worker processes, and the batches
    are the same ones for any number of them: an InputError is raised if a file cannot be read,
    PeerLost if a worker was killed.

    Args:
        part: "train" or "test".
        batch_size: images per batch, the last one may have fewer; None: TEST_BATCH_SIZE.
        workers: number of processes that read files.
        local_part: returns the part of a batch index that this process trains on: what is read
            ahead.
    """

    def __init__(
        self,
        data: Dataset,
        part: str,
        batch_size: int | None,
        device: torch.device,
        seed: int = 0,
        workers: int = WORKERS,
        local_part: Callable[[Tensor], Tensor] = lambda batch_index: batch_index,
    ) -> None:
        source = getattr(data, part)
        self.labels, self.classes = source.labels.to(device), len(data.classes)
        self.mean = torch.tensor(data.mean, device=device)
        self.std = torch.tensor(data.std, device=device)
        self.augment, self.flip, self.seed = data.augment, data.flip, seed
        self.workers, self.local_part = workers, local_part
        self.streamed = isinstance(source, ImageFiles)
        self.images: Any = source if self.streamed else source.images.to(device)
        self.batch_size = batch_size or TEST_BATCH_SIZE["files" if self.streamed else device.type]
        self._scheduled = deque[Tensor]()  # batch indices of the epoch, of files not yet delivered
        self._prefetcher: list[Iterator[Tensor | InputError]] = []  # one while workers run
        weakref.finalize(self, self._prefetcher.clear)  # also ends the workers at interpreter exit
        if self.streamed:
            import torchvision.transforms  # noqa: F401  # slow import: once, not in each worker

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)

    def epoch_indices(self, epoch: int, steps: int | None = None) -> tuple[Tensor, ...]:
        """Returns the batch indices of a training epoch, a pure function of ``epoch`` and the seed.

        An epoch is every image once, or ``steps`` batches drawn with replacement. A batch index is
        int64 [4, n]: image index, top and left of the crop, flip; with ImageNet's crops, [2, n]:
        image index, seed of the crop. All are drawn on the CPU and uploaded once, so that every
        device and every resumed run sees the same batches. Files are scheduled to be read ahead.
        """
        generator = self._generator(epoch)
        if steps is None:
            image_index = torch.randperm(len(self.labels), generator=generator)
        else:
            shape = (steps * self.batch_size,)
            image_index = torch.randint(len(self.labels), shape, generator=generator)
        count = len(image_index)
        if self.streamed and self.images.imagenet:
            crops = torch.randint(2**32, (1, count), generator=generator)
        else:
            top, left = torch.randint(2 * PAD + 1, (2, count), generator=generator)
            flip = torch.randint(2, (count,), generator=generator) * self.flip
            crops = torch.stack((top, left, flip))
        rows = torch.cat((image_index[None], crops))
        if not self.streamed:
            return rows.to(self.labels.device).split(self.batch_size, dim=1)
        self._prefetcher.clear()
        batch_indices = rows.split(self.batch_size, dim=1)
        self._scheduled = deque(map(self.local_part, batch_indices))
        return batch_indices

    def _generator(self, *key: int) -> torch.Generator:
        """Returns a random generator that depends on the seed and ``key`` only."""
        state = np.random.SeedSequence((self.seed, *key)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state))

    def get_batch(self, batch_index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the training batch of one of the indices from :meth:`epoch_indices`."""
        images, batch_index = self._gather(batch_index), batch_index.to(self.labels.device)
        if self.augment:
            _, top, left, flip = batch_index
            images = crop_and_flip(images, top, left, flip.bool())
        return self._normalise(images), self.labels[batch_index[0]]

    def _gather(self, batch_index: Tensor) -> Tensor:
        """Returns the images of a batch on the device, uint8 [n, size, size, 3]."""
        if not self.streamed:
            return self.images[batch_index[0]]
        if not self._scheduled or not torch.equal(batch_index, self._scheduled[0]):
            return self._to_device(self.images[batch_index.numpy()])
        if not self._prefetcher:
            self._prefetch(self._scheduled)
        images = self._next()
        self._scheduled.popleft()
        if not self._scheduled:
            self._prefetcher.clear()
        return images

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
        if self.streamed:
            self._prefetch(image_index[None] for image_index in indices)
        for index in indices:
            images = self._next() if self.streamed else self.images[index.to(self.labels.device)]
            yield self._normalise(images)
        self._prefetcher.clear()

    def _prefetch(self, batch_indices: Iterable[Tensor]) -> None:
        """Starts workers that read these batches and no others."""
        self._prefetcher.clear()
        loader: DataLoader[Tensor] = DataLoader(
            self.images,
            batch_size=None,  # every index of the sampler is a batch
            sampler=[batch_index.cpu().numpy() for batch_index in batch_indices],
            num_workers=self.workers,
            pin_memory=self.labels.device.type == "cuda",
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # draw nothing from torch's global generator
        )
        self._prefetcher.append(iter(loader))

    def _next(self) -> Tensor:
        """Returns the next images that the workers have read."""
        try:
            images = next(self._prefetcher[0])
        except (OSError, EOFError) as error:  # the shared memory of a killed worker
            with suppress(RuntimeError):  # torch's signal handler raises it soon after: in the
                time.sleep(1)  # iterator's __del__, Python would print its traceback
            raise PeerLost(
                f"a process that loads images has ended ({error!r}): try fewer --workers"
            ) from None
        return self._to_device(images)

    def _to_device(self, images: Tensor | InputError) -> Tensor:
        if isinstance(images, InputError):
            raise images
        return images.to(self.labels.device, non_blocking=True)


def test_batches(data: Dataset, config: Mapping[str, Any], device: torch.device) -> Batches:
    """Returns the evaluation batches; ``config`` may set ``test_batch_size`` and ``workers``."""
    workers = config.get("workers", WORKERS)
    return Batches(data, "test", config.get("test_batch_size"), device, workers=workers)


def _init_worker(worker: int) -> None:
    """Frees a worker of the signal handlers and the garbage collection of the training process."""
    gc.freeze()  # a collection would write to, and so copy, the memory shared with the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent acts
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
