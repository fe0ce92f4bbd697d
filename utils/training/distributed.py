"""The processes that train one network together."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
LOADING, TRAINING = timedelta(minutes=30), timedelta(seconds=45)  # the longest wait for another


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one network together: one, unless torchrun started more."""

    rank: int = 0
    size: int = 1
    processes: dist.ProcessGroup | None = None  # torch's; None: the first one made

    @classmethod
    def join(cls, device: torch.device) -> "ProcessGroup":
        """Meet the other processes that torchrun started, if it did: waits until all are here."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return SINGLE_PROCESS
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=LOADING,
            device_id=device if on_gpu else None,
        )
        group = cls(dist.get_rank(), size)
        group.barrier()
        return group

    def with_timeout(self) -> "ProcessGroup":
        """For training, when all is loaded: one that is not where the others are is soon lost."""
        if self.size == 1:
            return self
        return replace(self, processes=cast(dist.ProcessGroup, dist.new_group(timeout=TRAINING)))

    def destroy(self) -> None:
        """When all is done: an error must not wait for the others, who may be gone."""
        if self.size > 1:
            dist.destroy_process_group()

    def replicate(self, model: nn.Module) -> nn.Module:
        """``model``, with its gradients averaged over the processes in every backward pass."""
        if self.size == 1:
            return model
        # Buffers are the first process's after an epoch; nothing reads them before.
        return nn.parallel.DistributedDataParallel(
            model, process_group=self.processes, broadcast_buffers=False
        )

    def local_shard(self, where: Tensor) -> tuple[Tensor, float]:
        """This process's part of a batch [..., n], and the weight of its mean loss.

        With these weights the average of the processes' gradients is the gradient of the whole
        batch's mean loss. A batch too small to be shared is everybody's.
        """
        count, part = where.shape[-1], self.local_part(where)
        return part, 1 if part is where else part.shape[-1] * self.size / count

    def local_part(self, where: Tensor) -> Tensor:
        """This process's part of a batch [..., n], which is all where it is too small."""
        if self.size == 1 or where.shape[-1] < self.size:
            return where
        return where.tensor_split(self.size, dim=-1)[self.rank]

    def all_reduce_(self, tensor: Tensor) -> None:
        """Add up ``tensor`` over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.processes)

    def barrier(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier(self.processes)

    def broadcast_object(self, value: Callable[[], T]) -> T:
        """What the first process makes of ``value``, in all processes."""
        if self.size == 1:
            return value()
        said = [value() if self.rank == 0 else None]
        dist.broadcast_object_list(said, group=self.processes)
        return cast(T, said[0])

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Set ``tensors`` to what the first process has, in place."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, 0, self.processes)

    def all_equal(self, tensors: Sequence[Tensor]) -> bool:
        """Whether all processes hold the same ``tensors``, bit for bit."""
        if self.size == 1:
            return True
        mine = [x.detach().cpu() for x in tensors]
        everybodys: list[list[Tensor]] = [[]] * self.size
        dist.all_gather_object(everybodys, mine, self.processes)
        return all(
            torch.equal(x, y) for other in everybodys for x, y in zip(mine, other, strict=True)
        )


SINGLE_PROCESS = ProcessGroup()
