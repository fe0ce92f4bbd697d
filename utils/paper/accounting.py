"""What a network costs, in torch's accounting and in the released program's."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import SIZE
from netslim import cost as netslim_cost
from netslim.selection import ChannelSelection

# The batch norms in front of which the released programs have a selection layer, by architecture.
SELECTING = {"resnet": ("bn1", "bn"), "densenet": ("bn1", "bn")}


def selecting_norms(arch: str, model: nn.Module) -> dict[str, nn.Module]:
    """By name, the batch norms in front of which the released program has a selection layer.

    In a slim ``model``, what selects and normalises is in the place of some of them.
    """
    wanted = SELECTING.get(arch, ())
    return {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in wanted}


@dataclass(frozen=True)
class Cost:
    """Numbers of parameters, and FLOPs for one image.

    ``parameters`` and ``flops`` are torch's (2 × multiply-adds of convolutions and linear layers).
    The ``paper_`` ones are what the released program counts. It also counts linear biases, 2 FLOPs
    an input element of a batch norm, 1 an element of a ReLU, k² an output element of a pooling
    module; and it keeps the batch norm before a selection at full width, with an index vector of
    that width counted as parameters, so its savings come out about a point lower.
    """

    parameters: int
    flops: int
    paper_parameters: int
    paper_flops: int


def cost(model: nn.Module, size: int = SIZE, arch: str = "") -> Cost:
    """Cost of ``model``, of architecture ``arch``, for one [3, size, size] image.

    Nothing is computed.
    """
    extra_parameters = extra_flops = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal extra_parameters, extra_flops
        match module:
            case nn.Linear() | nn.ReLU():
                extra_flops += output.numel()
            case nn.BatchNorm2d():
                extra_flops += 2 * output.numel()
            case nn.MaxPool2d(kernel_size=int(k)) | nn.AvgPool2d(kernel_size=int(k)):
                extra_flops += output.numel() * k**2
            case ChannelSelection():
                removed = inputs[0].shape[1] - output.shape[1]
                extra_flops += 2 * (inputs[0].numel() - output.numel())
                extra_parameters += inputs[0].shape[1] + 2 * removed

    found = netslim_cost.cost(model, torch.empty(1, 3, size, size, device="meta"), count)
    for norm in selecting_norms(arch, model).values():
        if isinstance(norm, nn.BatchNorm2d):  # all channels are kept: no selection is here
            extra_parameters += norm.num_features
    return Cost(
        found.parameters,
        found.flops,
        found.parameters + extra_parameters,
        found.flops + extra_flops,
    )
