"""torchvision's networks by their names there."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from models.surgery import norms
from models.traced import Traced, adopt
from models.tracing import Chains, trace

# And how many layers they have.
DEPTHS = {
    **{f"resnet{depth}": depth for depth in (18, 34, 50, 101, 152)},
    **{f"vgg{depth}_bn": depth for depth in (11, 13, 16, 19)},
    "mobilenet_v2": 53,
    "alexnet": 8,
}

SIZE = 224  # pixels of the side of a picture
SMALLEST = {"alexnet": 63}  # where that is not 32


class Named(Traced):
    """One of them."""

    def narrowed(self, widths: Sequence[int], **streams: Sequence[int]) -> Traced:
        small = super().narrowed(widths)
        small.cfg = list(widths)
        return small


@cache
def full(name: str, size: int) -> Named:
    """Network ``name`` without content, on the meta device, for pictures of ``size``.

    Raises ValueError where it cannot take such.
    """
    with torch.device("meta"):
        model = _theirs(name, 1)
        chains = trace(model, torch.empty(1, 3, size, size))
    return _adopt(model, chains, 1)


def build(name: str, num_classes: int, size: int) -> Named:
    """Network ``name`` with its own initial values, but for γ = 0.5 where channels can go.

    Raises ValueError where it cannot take pictures of ``size``.
    """
    model = _theirs(name, num_classes)
    network = _adopt(model, full(name, size).chains, num_classes)
    for bn in norms(network).values():
        nn.init.constant_(bn.weight, 0.5)
    return network


def _theirs(name: str, num_classes: int) -> nn.Module:
    from torchvision.models import get_model  # here: its import takes as long as that of all else

    return get_model(name, weights=None, num_classes=num_classes)


def _adopt(model: nn.Module, chains: Chains, num_classes: int) -> Named:
    network = adopt(model, chains, Named)
    network.num_classes = num_classes
    network.cfg = [bn.num_features for bn in norms(network).values()]
    return network
