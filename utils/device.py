"""Where and how a network runs: device, precision, memory format."""

import copy
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from utils.console import InputError
from utils.network import Network

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class Execution:
    """Device, precision and memory format.

    All state is float32. ``bf16`` is autocast; ``tf32`` rounds what a GPU multiplies in training
    steps, and only there: see :meth:`arithmetic`.
    """

    device: torch.device
    precision: str = "fp32"
    channels_last: bool = False

    @property
    def layout(self) -> str:
        """The memory format as records have it."""
        return "channels last" if self.channels_last else "channels first"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        return model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]

    def logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """``model``'s answers in this precision and memory format, as float32 [n, classes]."""
        images = images.contiguous(memory_format=self.memory_format)
        if self.precision != "bf16":
            return model(images).float()
        # What autocast would cast one by one, all at once.
        layers = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
        weights = {f"{n}.{key}": x for n, m in layers for key, x in m.named_parameters()}
        cast = dict(zip(weights, _ToBFloat16.apply(*weights.values()), strict=True))
        # A captured graph forbids a cache.
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            return functional_call(model, cast, (images,)).float()

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """A training step's, forward and backward. Elsewhere float32 is float32."""
        _allow_tf32(self.precision == "tf32")
        try:
            yield
        finally:
            _allow_tf32(False)


class _ToBFloat16(torch.autograd.Function):
    """Tensors of any shapes in bfloat16; their gradients in float32. A kernel each way."""

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
    """The GPU where there is one and it is wanted, else the CPU. float32 is float32 on both."""
    _allow_tf32(False)
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


def time_call(work: Callable[[], object], device: torch.device) -> float:
    """What ``work`` takes, until an idle ``device`` is idle again."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def be_deterministic(wanted: bool) -> None:
    """Only operations that give the same result every time; if not ``wanted``, the fastest ones."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.use_deterministic_algorithms(wanted)
    # Nothing here reads what it has not written, and to fill it all would double the kernels.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not wanted


def mps_runs() -> bool:
    """Whether NVIDIA's MPS is there, without which processes on one GPU take turns."""
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")  # its own default
    return (Path(pipes) / "control").exists()


def build_execution(network: Network, precision: str, device: torch.device) -> Execution:
    """How ``network`` trains: in a memory format that is a constant, for a measurement flips.

    Measured on an AMD EPYC with AVX512-BF16, torch 2.15, batch 64 and, in one thread, 32. Channels
    last is the faster one on a CPU: of all three networks, full and slim, in one thread (slim
    DenseNet-40: 0.40 s a step against 0.45 in float32, the same in bfloat16; slim ResNet-164 in
    bfloat16: 0.77 against 0.85), and of the full ResNet-164 in two (0.98 against 1.34). The
    exception is a slim ResNet in float32, whose selections gather and scatter: 1.00 against 0.75 in
    two threads, if 0.97 against 1.22 in one. On a GPU nothing was measured: tensor cores (bf16,
    tf32) want channels last.
    """
    if device.type == "cuda":
        return Execution(device, precision, precision != "fp32")
    slim_resnet = network.arch == "resnet" and not network.is_full
    return Execution(device, precision, not (slim_resnet and precision == "fp32"))


def fastest_precision(
    network: Network, images: Tensor, labels: Tensor, device: torch.device, graphs: bool
) -> str:
    """Measure in which precision ``network`` trains fastest, each in its memory format.

    Takes a few steps of each, as a graph where training takes ``graphs``; ``network`` and torch's
    generators (dropout draws) are left as they are. What comes out flips with noise where two are
    alike, so decide once and keep it.
    """
    on_gpu = device.type == "cuda"
    has = {
        "fp32": True,
        "tf32": on_gpu and torch.cuda.is_tf32_supported(),
        "bf16": not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False),
    }

    def seconds_in(precision: str) -> float:
        execution = build_execution(network, precision, device)
        return _step_seconds(execution, network.model, images, labels, graphs)

    with torch.random.fork_rng([device] if on_gpu else []):
        return min((p for p in PRECISIONS if has[p]), key=seconds_in)


def capture_cuda_graph(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """``work`` as a CUDA graph. Runs it three times, which sets the libraries up."""
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


def _step_seconds(
    execution: Execution, model: nn.Module, images: Tensor, labels: Tensor, graphs: bool
) -> float:
    """The fewest seconds of a few training steps of a copy, after one that warms up."""
    trial = execution.place(copy.deepcopy(model)).train()

    def step() -> None:
        with execution.arithmetic():
            F.cross_entropy(execution.logits(trial, images), labels).backward()
        trial.zero_grad()

    work = step
    if graphs:
        with suppress(Exception):  # it runs without a graph then, as the training will
            work = capture_cuda_graph(step).replay
    return min([time_call(work, execution.device) for _ in range(4)][1:])
