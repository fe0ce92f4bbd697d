"""Parameters and FLOPs of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from netslim.trace import call, copied

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True)
class Cost:
    """Number of parameters, and FLOPs for the example: 2 × multiply-adds of convolutions and
    linear layers."""

    parameters: int
    flops: int


@torch.no_grad()  # FlopCounterMode sees nothing under inference_mode
def cost(model: nn.Module, example: Any, hook: Hook | None = None) -> Cost:
    """Cost of ``model`` for ``example``, as its forward pass takes it. Nothing is computed.

    ``hook`` is called after each module as a forward hook is, on the meta device.
    """
    model = copied(model).to("meta").float().eval()
    if hook is not None:
        for module in model.modules():
            module.register_forward_hook(hook)
    example = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, example)
    with FlopCounterMode(display=False) as counter:
        call(model, example)
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops())
