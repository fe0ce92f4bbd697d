"""Where and how a network runs: device, precision, memory format."""

import copy
import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.console import InputError


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
        return model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """``model``'s answers in this precision and memory format, as float32 [n, classes]."""
        # Every weight is cast once a pass, so a cache gains nothing; a captured graph forbids it.
        with torch.autocast(
            self.device.type, torch.bfloat16, self.precision == "bf16", cache_enabled=False
        ):
            return model(images.contiguous(memory_format=self.memory_format)).float()


def pick_device(no_cuda: bool) -> torch.device:
    """The GPU where there is one and it is wanted, else the CPU. float32 is float32 on both."""
    torch.backends.cudnn.allow_tf32 = False
    # Speed only: nothing relies on subnormals being flushed, or not. Before threads are made.
    torch.set_flush_denormal(True)
    if no_cuda or not torch.cuda.is_available():
        if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None:
            # Have glibc keep what is freed: each step wants the same large pieces again, and to
            # map them anew is a tenth to a quarter of a step on the CPU. Numbers of its malloc.h.
            m_trim_threshold, m_mmap_max = -1, -4
            mallopt(m_mmap_max, 0)
            mallopt(m_trim_threshold, 2**31 - 1)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.index >= torch.cuda.device_count():
        raise InputError(
            f"there are {torch.cuda.device_count()} GPUs for more processes: --nproc-per-node"
        )
    torch.cuda.set_device(device)
    return device


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What ``work`` takes, until an idle ``device`` is idle again."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def fastest(
    model: nn.Module, images: Tensor, labels: Tensor, device: torch.device, precision: str
) -> Execution:
    """Measure which memory format, and at ``precision`` ``"auto"`` which precision, trains fastest.

    Takes a few steps of each, on a GPU as a graph; ``model`` is left as it is. What comes out
    flips with noise where two are alike, so decide once per run and keep it.
    """
    precisions = ["fp32", "bf16"] if precision == "auto" else [precision]
    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto" and emulated:
        precisions.remove("bf16")
    candidates = [Execution(device, p, last) for p in precisions for last in (False, True)]
    return min(candidates, key=lambda execution: _step_seconds(execution, model, images, labels))


def capture(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """``work`` as a CUDA graph. Runs it three times, which sets the libraries up."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        work()
    return graph


def _step_seconds(execution: Execution, model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fewest seconds of a few training steps of a copy, after one that warms up."""
    trial = execution.place(copy.deepcopy(model)).train()

    def step() -> None:
        F.cross_entropy(execution.logits(trial, images), labels).backward()
        trial.zero_grad()

    work = step
    if execution.device.type == "cuda":
        with suppress(Exception):  # it runs without a graph then, as the training will
            work = capture(step).replay
    return min([seconds(work, execution.device) for _ in range(4)][1:])
