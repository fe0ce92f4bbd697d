"""The processes that train one model together, as torchrun starts them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
LOADING_TIMEOUT, TRAINING_TIMEOUT = timedelta(minutes=30), timedelta(seconds=45)


@dataclass(frozen=True)
class ProcessGroup:
    """A process group of torch, or a single process. Collectives do nothing in the latter."""

    rank: int = 0
    size: int = 1
    processes: dist.ProcessGroup | None = None  # None: the default group

    @classmethod
    def join(cls, device: torch.device) -> "ProcessGroup":
        """Joins the processes that torchrun started, if it did; waits for all of them."""
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return SINGLE_PROCESS
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=LOADING_TIMEOUT,
            device_id=device if on_gpu else None,
        )
        group = cls(dist.get_rank(), dist.get_world_size())
        group.barrier()
        return group

    def with_timeout(self) -> "ProcessGroup":
        """Returns a group with a 45 s timeout for training: a stalled rank fails fast."""
        if self.size == 1:
            return self
        processes = cast(dist.ProcessGroup, dist.new_group(timeout=TRAINING_TIMEOUT))
        return replace(self, processes=processes)

    def destroy(self) -> None:
        """Leaves the group; not after an error, which must not wait for other processes."""
        if self.size > 1:
            dist.destroy_process_group()

    def replicate(self, model: nn.Module) -> nn.Module:
        """Returns ``model`` such that backward averages its gradients over the processes."""
        if self.size == 1:
            return model
        # Rank 0's buffers are broadcast after an epoch; nothing reads them earlier.
        return nn.parallel.DistributedDataParallel(
            model, process_group=self.processes, broadcast_buffers=False
        )

    def local_shard(self, batch_index: Tensor) -> tuple[Tensor, float]:
        """Returns this process's part of a batch [..., n], and the weight of its mean loss.

        The average of the weighted losses over the processes is the mean loss of the batch.
        """
        part, count = self.local_part(batch_index), batch_index.shape[-1]
        return part, 1 if part is batch_index else part.shape[-1] * self.size / count

    def local_part(self, batch_index: Tensor) -> Tensor:
        """Returns this process's part of a batch [..., n]; all of it if n is below the size."""
        if self.size == 1 or batch_index.shape[-1] < self.size:
            return batch_index
        return batch_index.tensor_split(self.size, dim=-1)[self.rank]

    def all_reduce_(self, tensor: Tensor) -> None:
        """Sums ``tensor`` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.processes)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(self.processes)

    def broadcast_object(self, value: Callable[[], T]) -> T:
        """Returns rank 0's ``value()`` in all processes; only rank 0 calls it."""
        if self.size == 1:
            return value()
        values: list[Any] = [value() if self.rank == 0 else None]
        dist.broadcast_object_list(values, group=self.processes)
        return values[0]

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Sets ``tensors`` to rank 0's values, in place."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, 0, self.processes)

    def all_equal(self, tensors: Sequence[Tensor]) -> bool:
        """Returns whether all processes hold the same ``tensors``, bit for bit."""
        if self.size == 1:
            return True
        mine = [x.detach().cpu() for x in tensors]
        gathered: list[list[Tensor]] = [[]] * self.size
        dist.all_gather_object(gathered, mine, self.processes)
        return all(all(map(torch.equal, mine, others)) for others in gathered)


SINGLE_PROCESS = ProcessGroup()
