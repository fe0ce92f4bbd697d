"""Where and how a network runs: device, precision, memory format."""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Execution:
    """Device, ``fp32`` or ``bf16`` (autocast; all state stays float32), and memory format."""

    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device, memory_format=self.memory_format)

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """``model``'s answers in this precision and memory format, as float32 [n, classes]."""
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"
        ):
            return model(images.contiguous(memory_format=self.memory_format)).float()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def pick_device(no_cuda: bool) -> torch.device:
    """The GPU where there is one and it is wanted, else the CPU. float32 is float32 on both."""
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() and not no_cuda else "cpu")


def fastest(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> Execution:
    """Measure which precision and memory format trains ``model`` fastest on this batch.

    Takes a few steps of each; ``model`` is left as it is. What comes out flips with noise where
    two are alike, so decide once per run and keep it.
    """
    seconds: dict[Execution, float] = {}
    for execution in _candidates(device):
        trial = execution.place(copy.deepcopy(model)).train()
        limit = 3 * min(seconds.values(), default=float("inf"))
        seconds[execution] = min(_steps(trial, images, labels, execution, limit))
    return min(seconds, key=seconds.__getitem__)


def _candidates(device: torch.device) -> list[Execution]:
    precisions = ["fp32", "bf16"]
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        precisions.remove("bf16")
    return [Execution(device, p, last) for p in precisions for last in (False, True)]


def _steps(
    model: nn.Module, images: Tensor, labels: Tensor, execution: Execution, limit: float
) -> Iterator[float]:
    """Seconds of training steps, the first of which warms up; one is enough if over ``limit``."""
    for step in range(4):
        execution.synchronize()
        start = time.perf_counter()
        model.zero_grad()
        F.cross_entropy(execution.logits(model, images), labels).backward()
        execution.synchronize()
        spent = time.perf_counter() - start
        if step > 0 or spent > limit:
            yield spent
        if spent > limit:
            return
