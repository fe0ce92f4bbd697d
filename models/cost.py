"""Parameters and FLOPs of a network, in torch's accounting and in the paper's."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.channel_selection import ChannelSelection
from models.vgg import SIZE


@dataclass(frozen=True)
class Cost:
    """What a network costs: numbers of parameters, and FLOPs for one picture.

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


@torch.no_grad()  # FlopCounterMode sees nothing under inference_mode
def cost(model: nn.Module, size: int = SIZE) -> Cost:
    """Cost of ``model`` for one [3, size, size] picture. Nothing is computed."""
    model = copy.deepcopy(model).to("meta").float().eval()
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
                extra_flops += 2 * (inputs[0].numel() - output.numel())
                extra_parameters += module.channels + 2 * (module.channels - output.shape[1])

    for module in model.modules():
        module.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    parameters = sum(p.numel() for p in model.parameters())
    flops = counter.get_total_flops()
    return Cost(parameters, flops, parameters + extra_parameters, flops + extra_flops)
