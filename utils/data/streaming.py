"""Batches of image files that worker processes read from disk while the model trains."""

import gc
import os
import signal
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from utils.console import InputError, PeerLost
from utils.data.batches import Batches
from utils.data.datasets import Dataset
from utils.data.image_folder import ImageFiles

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(4, CORES)
STREAMED_TEST_BATCH_SIZE = 64  # small, as images may be large and every worker reads 2 batches


def batches_of(
    data: Dataset,
    part: str,
    batch_size: int | None,
    device: torch.device,
    seed: int = 0,
    workers: int = WORKERS,
    local_part: Callable[[Tensor], Tensor] = lambda batch_index: batch_index,
) -> Batches:
    """Returns :class:`StreamedBatches` if ``part`` of ``data`` is files, else :class:`Batches`."""
    if isinstance(getattr(data, part), ImageFiles):
        return StreamedBatches(data, part, batch_size, device, seed, workers, local_part)
    return Batches(data, part, batch_size, device, seed)


def test_batches(data: Dataset, config: Mapping[str, Any], device: torch.device) -> Batches:
    """Returns the evaluation batches; ``config`` may set ``test_batch_size`` and ``workers``."""
    workers = config.get("workers", WORKERS)
    return batches_of(data, "test", config.get("test_batch_size"), device, workers=workers)


class StreamedBatches(Batches):
    """:class:`Batches` of image files, the same ones for any number of ``workers``.

    Of a training batch only the ``local_part`` of this process is read ahead. Raises InputError if
    an image cannot be read, PeerLost if a worker was killed.
    """

    def __init__(
        self,
        data: Dataset,
        part: str,
        batch_size: int | None,
        device: torch.device,
        seed: int,
        workers: int,
        local_part: Callable[[Tensor], Tensor],
    ) -> None:
        import torchvision.transforms  # noqa: F401  # slow import: once here, not in each worker

        super().__init__(data, part, batch_size or STREAMED_TEST_BATCH_SIZE, device, seed)
        self.workers, self.local_part = workers, local_part
        self._scheduled = deque[Tensor]()  # batch indices of the epoch that are not yet delivered
        self._prefetcher: list[Iterator[Tensor | InputError]] = []  # one while workers run
        weakref.finalize(self, self._prefetcher.clear)  # also ends the workers at interpreter exit

    def _set_images(self, images: Any) -> None:
        self.files, self.index_device = images, torch.device("cpu")

    def _draw_crops(self, count: int, generator: torch.Generator) -> Tensor:
        if not self.files.imagenet:
            return super()._draw_crops(count, generator)
        return torch.randint(2**32, (1, count), generator=generator)  # seeds for ImageFiles.image

    def epoch_indices(self, epoch: int, steps: int | None = None) -> tuple[Tensor, ...]:
        """Returns the batch indices of an epoch, on the CPU, and schedules them to be read ahead.

        With ImageNet's crops, a batch index is int64 [2, n]: image index, seed of the crop.
        """
        indices = super().epoch_indices(epoch, steps)
        self._prefetcher.clear()
        self._scheduled = deque(map(self.local_part, indices))
        return indices

    def _gather(self, batch_index: Tensor) -> Tensor:
        if not self._scheduled or not torch.equal(batch_index, self._scheduled[0]):
            return self._to_device(self.files[batch_index.numpy()])
        if not self._prefetcher:
            self._prefetch(self._scheduled)
        images = self._next()
        self._scheduled.popleft()
        if not self._scheduled:
            self._prefetcher.clear()
        return images

    def _iter_images(self, indices: Sequence[Tensor]) -> Iterator[Tensor]:
        self._prefetch(image_index[None] for image_index in indices)
        for _ in indices:
            yield self._normalise(self._next())
        self._prefetcher.clear()

    def _prefetch(self, batch_indices: Iterable[Tensor]) -> None:
        """Starts workers that read these batches and no others."""
        self._prefetcher.clear()
        loader: DataLoader[Tensor] = DataLoader(
            self.files,  # type: ignore[arg-type]
            batch_size=None,  # every index of the sampler is a batch
            sampler=[batch_index.cpu().numpy() for batch_index in batch_indices],
            num_workers=self.workers,
            pin_memory=self.labels.device.type == "cuda",
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # draw nothing from torch's global generator
        )
        self._prefetcher.append(iter(loader))

    def _next(self) -> Tensor:
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


def _init_worker(worker: int) -> None:
    """Frees a worker of the signal handlers and the garbage collection of the training process."""
    gc.freeze()  # a collection would write to, and so copy, the memory shared with the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the parent acts
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
