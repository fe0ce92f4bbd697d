"""The precision and memory format of a training, chosen or measured."""

import copy
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.device import PRECISIONS, Execution, capture_cuda_graph, time_call
from utils.network import Network


def build_execution(network: Network, precision: str, device: torch.device) -> Execution:
    """Returns the execution with the memory format that is usually faster, not a measured one.

    Measurements would differ from run to run. On a CPU (AMD EPYC with AVX512-BF16, torch 2.15)
    channels last is faster: 0.40 s a step against 0.45 for a pruned DenseNet-40 in float32, 0.98
    against 1.34 for ResNet-164. The exception is a pruned ResNet in float32, whose selections
    gather and scatter: 1.00 against 0.75. On a GPU, tensor cores (bf16, tf32) need channels last.
    """
    if device.type == "cuda":
        return Execution(device, precision, precision != "fp32")
    pruned_resnet = network.arch == "resnet" and not network.is_full
    return Execution(device, precision, not (pruned_resnet and precision == "fp32"))


def fastest_precision(
    network: Network, images: Tensor, labels: Tensor, device: torch.device, graphs: bool
) -> str:
    """Returns the precision in which a few training steps of ``network`` take least time.

    The result flips with noise where two are alike: decide once and store it. ``network`` and
    torch's random state do not change.

    Args:
        graphs: whether to capture the steps as CUDA graphs, as training does.
    """
    on_gpu = device.type == "cuda"
    supported = {
        "fp32": True,
        "tf32": on_gpu and torch.cuda.is_tf32_supported(),
        "bf16": not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False),
    }

    def seconds_in(precision: str) -> float:
        execution = build_execution(network, precision, device)
        return _step_seconds(execution, network.model, images, labels, graphs)

    with torch.random.fork_rng([device] if on_gpu else []):
        return min((p for p in PRECISIONS if supported[p]), key=seconds_in)


def _step_seconds(
    execution: Execution, model: nn.Module, images: Tensor, labels: Tensor, graphs: bool
) -> float:
    """Returns the least seconds of three training steps of a copy, after one warm-up step."""
    trial = execution.place(copy.deepcopy(model)).train()

    def step() -> None:
        with execution.arithmetic():
            F.cross_entropy(execution.logits(trial, images), labels).backward()
        trial.zero_grad()

    work = step
    if graphs:
        with suppress(Exception):  # training runs without a graph then, too
            work = capture_cuda_graph(step).replay
    return min([time_call(work, execution.device) for _ in range(4)][1:])
