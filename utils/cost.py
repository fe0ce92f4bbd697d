"""Parameters and FLOPs, as torch and as the released program count them."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import SIZE
from netslim import cost as netslim_cost
from netslim.selection import ChannelSelection

# Last name part of the batch norms that the released program puts a selection layer in front of.
SELECTING = {"resnet": ("bn1", "bn"), "densenet": ("bn1", "bn")}


def selecting_norms(arch: str, model: nn.Module) -> dict[str, nn.Module]:
    """Returns the batch norms that follow a selection layer in the released program, by name.

    In a pruned model, some of them are a module that selects and normalises.
    """
    names = SELECTING.get(arch, ())
    return {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in names}


@dataclass(frozen=True)
class Cost:
    """Numbers of parameters, and FLOPs per image.

    ``parameters`` and ``flops`` are torch's (2 × multiply-adds of convolutions and linear layers).
    The ``paper_`` ones are the released program's, which adds linear biases, 2 FLOPs per input
    element of a batch norm, 1 per element of a ReLU and k² per output element of a pooling module.
    It also keeps the batch norm before a selection at full width and counts its index vector as
    parameters, so its savings are about a point lower.
    """

    parameters: int
    flops: int
    paper_parameters: int
    paper_flops: int


def image_shape(model: nn.Module, size: int) -> tuple[int, int, int]:
    """Returns the shape of an image for ``model``.

    It has three channels, or where no convolution reads three, as many as the first one reads.
    """
    channels = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    return (3 if 3 in channels else channels[0] if channels else 3), size, size


def cost(model: nn.Module, size: int = SIZE, arch: str = "") -> Cost:
    """Returns the cost of ``model`` for one image."""
    extra = Counter[str]()

    def counting() -> netslim_cost.Hook:
        extra.clear()
        return count

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        match module:
            case nn.Linear() | nn.ReLU():
                extra["flops"] += output.numel()
            case nn.BatchNorm2d():
                extra["flops"] += 2 * output.numel()
            case nn.MaxPool2d(kernel_size=int(k)) | nn.AvgPool2d(kernel_size=int(k)):
                extra["flops"] += output.numel() * k**2
            case ChannelSelection():
                removed = inputs[0].shape[1] - output.shape[1]
                extra["flops"] += 2 * (inputs[0].numel() - output.numel())
                extra["parameters"] += inputs[0].shape[1] + 2 * removed

    total = netslim_cost.cost(model, torch.zeros(1, *image_shape(model, size)), counting)
    for norm in selecting_norms(arch, model).values():
        if isinstance(norm, nn.BatchNorm2d):  # all channels are kept: there is no selection
            extra["parameters"] += norm.num_features
    paper = total.parameters + extra["parameters"], total.flops + extra["flops"]
    return Cost(total.parameters, total.flops, *paper)
