"""A training step captured as CUDA graphs: one launch instead of some thousands of kernels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from utils.cli import note
from utils.training import Step


@contextmanager
def preserved(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Whatever happens within, the tensors hold afterwards what they held before."""
    before = [x.clone() for x in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)


class Graphs:
    """Replays ``step``, captured once for each batch size and again when the learning rate changes.

    Where capture fails, the step runs as it is from then on.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.alpha = step, None
        self.captured: dict[int, tuple[Tensor, torch.cuda.CUDAGraph]] = {}

    def __call__(self, where: Tensor) -> None:
        if self.alpha != self.step.alpha:  # the learning rate is a number inside the graph
            self.captured, self.alpha = {}, self.step.alpha
        size = where.shape[1]
        if size not in self.captured:
            try:
                self.captured[size] = self._capture(where)
            except Exception as error:  # of any kind: the plain step needs no graph
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                note(
                    f"note: the step could not be captured as a graph ({reason}): going on without"
                )
                self.captured, self.step.launch = {}, self.step.eager
                self.step.eager(where)
                return
        static, graph = self.captured[size]
        static.copy_(where)
        graph.replay()

    def _capture(self, where: Tensor) -> tuple[Tensor, torch.cuda.CUDAGraph]:
        static, graph = where.clone(), torch.cuda.CUDAGraph()
        with preserved(self.step.state()):
            # Warm up beside the current stream, as capture wants it: libraries set themselves up.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self.step.eager(static)
            torch.cuda.current_stream().wait_stream(stream)
            self.step.optimizer.zero_grad()  # so that the graph allocates its own gradients
            with torch.cuda.graph(graph):
                self.step.eager(static)
        return static, graph
