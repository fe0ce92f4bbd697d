"""Device, precision and memory format of training and evaluation."""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from utils.console import InputError

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class Execution:
    """Device, precision and memory format.

    All state is float32. ``bf16`` is autocast; ``tf32`` holds in training steps only, see
    :meth:`arithmetic`.
    """

    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False

    @property
    def layout(self) -> str:
        """The memory format as in records."""
        return "channels last" if self.channels_last else "channels first"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the logits of ``images``, float32 [n, classes]."""
        images = images.contiguous(memory_format=self.memory_format)
        if self.precision != "bf16":
            return model(images).float()
        # Casts all weights in one kernel; autocast would take one each.
        layers = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
        weights = {f"{n}.{key}": x for n, m in layers for key, x in m.named_parameters()}
        cast = dict(zip(weights, _ToBFloat16.apply(*weights.values()), strict=True))
        # A CUDA graph forbids autocast's cache.
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            return functional_call(model, cast, (images,)).float()

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Allows TF32 within a training step, if it is the precision."""
        _allow_tf32(self.precision == "tf32")
        try:
            yield
        finally:
            _allow_tf32(False)


class _ToBFloat16(torch.autograd.Function):
    """Casts tensors to bfloat16, and their gradients to float32, in one kernel each way."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _cast(tensors, torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return _cast(gradients, torch.float32)


def _cast(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    cast = tuple(torch.empty_like(x, dtype=dtype) for x in tensors)
    torch._foreach_copy_(cast, tensors)
    return cast


def pick_device(no_cuda: bool) -> torch.device:
    """Returns the GPU of this process if there is one, else the CPU; TF32 is off.

    Raises InputError: torchrun started more processes than there are GPUs.
    """
    _allow_tf32(False)
    torch.set_flush_denormal(True)  # for speed only; must precede the creation of threads
    if no_cuda or not torch.cuda.is_available():
        if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None:
            # Has glibc keep freed memory (constants of malloc.h): each step allocates the same
            # large blocks, and mapping them anew takes 10 to 25 % of a step on the CPU.
            m_trim_threshold, m_mmap_max = -1, -4
            mallopt(m_mmap_max, 0)
            mallopt(m_trim_threshold, 2**31 - 1)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.index >= torch.cuda.device_count():
        raise InputError(
            f"there are only {torch.cuda.device_count()} GPUs: start as many processes by"
            f" --nproc-per-node {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(device)
    return device


def time_call(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that ``work`` takes on ``device``.

    With one thread on a CPU, CPU time, which other programs hardly change.
    """
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    synchronize()
    start = clock()
    work()
    synchronize()
    return clock() - start


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def be_deterministic(wanted: bool) -> None:
    """Allows deterministic operations only, or if not ``wanted`` the fastest ones."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    torch.use_deterministic_algorithms(wanted)
    # Filling uninitialized memory, which nothing here reads, would double the kernels.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not wanted


def capture_cuda_graph(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """Returns ``work`` as a CUDA graph, after three warm-up runs."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
    finally:
        torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        work()
    return graph
