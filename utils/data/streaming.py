"""Batches of pictures that are read from the disk as they are needed, by processes beside."""

import atexit
import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from utils.console import InputError, PeerLost
from utils.data.batches import Batches
from utils.data.datasets import Dataset
from utils.data.image_files import ImageFiles

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(4, CORES)
TEST_BATCH_SIZE = 64  # large pictures, and every worker is two batches ahead


_STREAMS = WeakSet["StreamedBatches"]()


@atexit.register
def _end_workers() -> None:
    """In peace, before the interpreter kills them."""
    for stream in _STREAMS:
        stream._ahead.clear()


def batches_of(
    data: Dataset,
    part: str,
    batch_size: int | None,
    device: torch.device,
    seed: int = 0,
    workers: int = WORKERS,
    share: Callable[[Tensor], Tensor] = lambda where: where,
) -> Batches:
    """Batches of a part of ``data``, wherever its pictures are: see :class:`Stream`."""
    if isinstance(getattr(data, part), ImageFiles):
        return StreamedBatches(data, part, batch_size, device, seed, workers, share)
    return Batches(data, part, batch_size, device, seed)


def test_batches(data: Dataset, given: Mapping[str, Any], device: torch.device) -> Batches:
    """Those that a command tests on; what its flags did not say has its default."""
    workers = given.get("workers", WORKERS)
    return batches_of(data, "test", given.get("test_batch_size"), device, workers=workers)


class StreamedBatches(Batches):
    """:class:`Batches` of files: the same ones, however many ``workers`` read them.

    What is random is drawn beforehand, by :meth:`order`. Of a training batch only the ``share``
    that this process takes is read ahead. Raises InputError where a picture cannot be read.
    """

    def __init__(
        self,
        data: Dataset,
        part: str,
        batch_size: int | None,
        device: torch.device,
        seed: int,
        workers: int,
        share: Callable[[Tensor], Tensor],
    ) -> None:
        import torchvision.transforms  # noqa: F401  # slow: before the workers are forked

        super().__init__(data, part, batch_size or TEST_BATCH_SIZE, device, seed)
        self.share = share
        self._due = deque[Tensor]()  # what is left of the order
        self._told: list[np.ndarray] = []  # what the workers read
        self._ahead: list[Iterator[Tensor]] = []  # what they have read: while they do, one
        _STREAMS.add(self)
        self._loader: DataLoader[Tensor] = DataLoader(
            self._reader,  # type: ignore[arg-type]
            batch_size=None,  # an index is a batch
            sampler=self._told,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=_settle,
            generator=torch.Generator(),  # torch's own is left alone
        )

    def _take(self, pictures: Any) -> None:
        self._reader = _Reader(pictures)

    def _crops(self, count: int, generator: torch.Generator) -> Tensor:
        if not self._reader.listing.as_imagenet:
            return super()._crops(count, generator)
        return torch.randint(2**32, (1, count), generator=generator)  # see Listing.picture

    def epoch_indices(self, epoch: int, steps: int | None = None) -> tuple[Tensor, ...]:
        """As that of :class:`Batches`, but on the CPU: it is what is then read ahead."""
        order = self._drawn(epoch, steps).split(self.batch_size, dim=1)
        self._due = deque(map(self.share, order))
        self._ahead.clear()
        return order

    def _gather(self, where: Tensor) -> Tensor:
        if not self._due or not torch.equal(where, self._due[0]):
            return self._received(self._reader[where.numpy()])
        if not self._ahead:
            self._read(self._due)
        images = self._next()
        self._due.popleft()
        if not self._due:
            self._ahead.clear()
        return images

    def _as_they_are(self, chosen: Sequence[Tensor]) -> Iterator[Tensor]:
        """As that of :class:`Batches`."""
        self._read([where[None] for where in chosen])
        for _ in chosen:
            yield self._normalised(self._next())
        self._ahead.clear()

    def _read(self, order: Iterable[Tensor]) -> None:
        """Have the pictures of these batches read ahead, and no others."""
        self._ahead.clear()
        self._told[:] = [where.cpu().numpy() for where in order]
        # A terminal sends SIGINT to all its processes: it is the training's from the fork on.
        training = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._ahead.append(iter(self._loader))
        finally:
            signal.signal(signal.SIGINT, training)

    def _next(self) -> Tensor:
        try:
            batch = next(self._ahead[0])
        except (OSError, EOFError) as error:  # a worker took along what it had read
            raise PeerLost(f"a process that reads pictures is gone ({error!r})") from None
        return self._received(batch)

    def _received(self, batch: Tensor | InputError) -> Tensor:
        if isinstance(batch, InputError):
            raise batch
        return batch.to(self.labels.device, non_blocking=True)


class _Reader:
    """What a worker does: see :meth:`Listing.picture`."""

    def __init__(self, listing: ImageFiles) -> None:
        self.listing = listing

    def __getitem__(self, where: np.ndarray) -> Tensor | InputError:
        """The pictures of a batch, uint8 [n, size, size, 3]; ``where`` is what an order says."""
        rows = where[:2] if self.listing.as_imagenet else where[:1]
        try:
            pictures = [self.listing.image(*each) for each in rows.T.tolist()]
        except InputError as error:  # raised here, it would bring a traceback's many lines along
            return error
        return torch.from_numpy(np.stack(pictures))


def _settle(worker: int) -> None:
    """As a process beside a training, which may have been forked from it."""
    gc.freeze()  # to look for garbage in what both share would copy it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also where it was not forked: see Stream._read
    # Else the handler would be the training's.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
