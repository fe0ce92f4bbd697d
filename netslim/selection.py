"""Parts that pruning adds to a model.

A batch norm that reads a tensor with several readers gets a ChannelSelection in front. A module
that splits channels at an int attribute gets a buffer with its new value, for the state dict.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import TypeGuard

import torch
import torch.fx
from torch import Tensor, nn

WIDTH = "_as_pruned"  # suffix of the buffer, behind the name of the attribute


@torch.fx.wrap  # it asks for the memory format, which a symbolic trace cannot answer
def select_channels(x: Tensor, index: Tensor) -> Tensor:
    """Returns the channels ``index`` of ``x`` [n, channels, ...], in its memory format."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.index_select(1, index)
    # Channels last, where index_select is slower (torch 2.14: 5 times) and leaves the format.
    pixels = x.permute(0, 2, 3, 1)
    rows = pixels.flatten(0, 2)
    kept = rows.gather(1, index.expand(rows.shape[0], -1))
    return kept.unflatten(0, pixels.shape[:3]).permute(0, 3, 1, 2)


class ChannelSelection(nn.Module):
    """Selects the channels ``index`` (int64 [kept], sorted, a buffer) of [n, channels, ...]."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return select_channels(x, self.index)


def selecting(index: Tensor, norm: nn.Module) -> nn.Sequential:
    """Returns ``norm`` behind a selection of ``index``, as modules ``select`` and ``norm``."""
    return nn.Sequential(OrderedDict(select=ChannelSelection(index), norm=norm))


def selections(model: nn.Module) -> Iterator[tuple[str, nn.Sequential]]:
    """Yields the selecting batch norms of a pruned model, with their names in the full model."""
    for name, module in model.named_modules():
        if _selects(module):
            yield name, module


def name_in(model: nn.Module, name: str) -> str:
    """Returns the name of the full model's batch norm ``name`` in ``model``, pruned or not."""
    return f"{name}.norm" if _selects(model.get_submodule(name)) else name


def _selects(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return isinstance(module, nn.Sequential) and isinstance(
        getattr(module, "select", None), ChannelSelection
    )
