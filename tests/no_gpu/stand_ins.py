"""Replacements of cuDNN's and cuBLAS's operations, which the fake runtime lacks.

A convolution and a linear layer are one kernel forward and two backward; a batch norm in float32,
which cuDNN would compute, is one and one.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

runtime = ctypes.CDLL(os.environ["LD_PRELOAD"])
KINDS = "kernels to_device to_host on_device fills waits graphs forbidden captures".split()


def counts() -> dict[str, int]:
    """Returns the counts since the last call."""
    into = (ctypes.c_long * len(KINDS))()
    runtime.gpu_counts(into)
    return dict(zip(KINDS, into, strict=True))


def nodes_by_kernel(path: str) -> str:
    """Returns the kernels of the latest capture."""
    runtime.gpu_print_nodes(path.encode())
    with open(path) as file:
        return file.read()


def kernel(tensor: Tensor) -> Tensor:
    """Runs one kernel on ``tensor``."""
    return tensor.trunc_()


def autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Casts the inputs of a convolution or a linear layer as autocast does."""
    if not torch.is_autocast_enabled("cuda"):
        return list(tensors)
    return [None if x is None else x.bfloat16() for x in tensors]


def like(x: Tensor, *shape: int) -> Tensor:
    """Returns an empty tensor in the memory format of ``x``."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


class Product(torch.autograd.Function):
    """A convolution or a linear layer, with outputs of ``shape``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple) -> Tensor:
        assert x.dtype == weight.dtype
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return kernel(like(x, *shape))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        of_bias = grads[0].sum(0) if ctx.biased else None
        return kernel(torch.empty_like(x)), kernel(torch.empty_like(weight)), of_bias, None


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    x, weight, bias = autocast(x, weight, bias)
    stride, padding = (v if isinstance(v, int) else v[0] for v in (stride, padding))
    size = (x.shape[2] + 2 * padding - weight.shape[2]) // stride + 1
    return Product.apply(x, weight, bias, (len(x), len(weight), size, size))


def linear(x, weight, bias=None):
    x, weight, bias = autocast(x, weight, bias)
    return Product.apply(x, weight, bias, (len(x), len(weight)))


class Normalisation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return kernel(torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, weight, bias = ctx.saved_tensors
        return kernel(torch.empty_like(x)), torch.empty_like(weight), torch.empty_like(bias)


own = F.conv2d, F.linear, F.batch_norm


def batch_norm(x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if x.dtype == torch.float32:
        return Normalisation.apply(x, weight, bias)
    return own[2](x, mean, var, weight, bias, training, momentum, eps)


def install() -> None:
    F.conv2d, F.linear, F.batch_norm = conv2d, linear, batch_norm


@contextmanager
def torchs_own() -> Iterator[None]:
    """Computes on the CPU within, as the tracing of a dependency graph needs."""
    F.conv2d, F.linear, F.batch_norm = own
    try:
        yield
    finally:
        install()
