"""A training step captured as CUDA graphs: one launch instead of some thousands of kernels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from utils.console import note
from utils.device import capture_cuda_graph
from utils.training.step import Step


@contextmanager
def preserved(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Whatever happens within, the tensors hold afterwards what they held before."""
    before = [x.clone() for x in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)


class CapturedSteps:
    """Replays ``step``, captured once for each batch size and again when the learning rate changes.

    Where capture fails, the step runs as it is from then on.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.alpha = step, 0.0
        self.captured: dict[int, tuple[Tensor, torch.cuda.CUDAGraph]] = {}

    def __call__(self, where: Tensor) -> None:
        if self.alpha != self.step.alpha:  # the learning rate is a number inside the graph
            self.captured, self.alpha = {}, self.step.alpha
        size = where.shape[1]
        if size not in self.captured:
            self._capture(where)
        if size not in self.captured:  # here, where the memory of what failed is free again
            self.step.eager(where)
            return
        static, graph = self.captured[size]
        static.copy_(where)
        graph.replay()

    def _capture(self, where: Tensor) -> None:
        static = where.clone()
        # What is drawn on the device (dropout) is the same whether a step was captured or not.
        devices = [where.device] if where.is_cuda else []
        try:
            with torch.random.fork_rng(devices), preserved(self.step.state()):
                graph = capture_cuda_graph(lambda: self.step.eager(static))
        except Exception as error:  # of any kind: the plain step needs no graph
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            note(f"note: the step could not be captured as a graph ({reason}): going on without")
            self.captured, self.step.launch = {}, self.step.eager
            self.step.model.zero_grad()  # what was recorded halfway was never computed
        else:
            self.captured[where.shape[1]] = static, graph
