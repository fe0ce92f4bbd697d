"""Training steps captured as CUDA graphs: one launch instead of thousands of kernels."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from utils.console import note
from utils.device import capture_cuda_graph
from utils.training.step import Step


@contextmanager
def preserved(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restores the values of ``tensors`` on exit."""
    before = [x.clone() for x in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)


class CapturedSteps:
    """Replays ``train_step(step, ·)``, captured for each batch size and learning rate.

    If a capture fails, ``failed`` is set and all later steps run without graphs.
    """

    def __init__(self, train_step: Callable[[Step, Tensor], None], step: Step) -> None:
        self.train_step, self.step = train_step, step
        self.lr, self.failed = 0.0, False
        self.captured: dict[int, tuple[Tensor, torch.cuda.CUDAGraph]] = {}

    def __call__(self, batch_index: Tensor) -> None:
        if self.lr != self.step.lr:  # the graph contains the learning rate as a number
            self.captured, self.lr = {}, self.step.lr
        size = batch_index.shape[1]
        if size not in self.captured and not self.failed:
            self._capture(batch_index)
        if self.failed:
            self.train_step(self.step, batch_index)
            return
        static_index, graph = self.captured[size]
        static_index.copy_(batch_index)
        graph.replay()

    def _capture(self, batch_index: Tensor) -> None:
        static_index = batch_index.clone()
        # Dropout draws the same numbers whether a step was captured or not.
        devices = [batch_index.device] if batch_index.is_cuda else []
        try:
            with torch.random.fork_rng(devices), preserved(self.step.state()):
                graph = capture_cuda_graph(lambda: self.train_step(self.step, static_index))
        except Exception as error:  # whatever it is, the step runs without a graph
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            note(f"note: the step cannot be captured as a CUDA graph ({reason}): training without")
            self.captured, self.failed = {}, True
            self.step.model.zero_grad()  # a half-recorded gradient was never computed
        else:
            self.captured[batch_index.shape[1]] = static_index, graph
