"""The two layouts of the layers around a channel selection.

* *released*: batch norm at the stream's full width, then ``select.indexes``, a 0/1 float
  parameter of that width, then the convolution with the kept inputs only;
* *compact*: ``select.index``, the int64 positions of the kept channels, then batch norm and
  convolution at the kept width. This is the layout of the models in memory.

They compute the same function. A full network is saved in the released layout, which the earlier
programs read as well.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models import ChannelSelection
from models.surgery import Slimmable, State

# A batch norm's entries, and what a removed channel has there in the released layout.
REMOVED = {"weight": 0.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def to_compact(state: Mapping[str, Tensor]) -> State:
    """A state dict in the compact layout, from either one. Raises ValueError if it is neither."""
    compact = dict(state)
    for key, indexes in state.items():
        if not key.endswith("select.indexes"):
            continue
        del compact[key]
        if indexes.dim() != 1 or not ((indexes == 0) | (indexes == 1)).all():
            raise ValueError(f"{key} is not a vector of zeros and ones")
        index = indexes.nonzero().flatten()
        block = key.removesuffix("select.indexes")
        bn = f"{block}bn1" if block else "bn"
        for entry in REMOVED:
            full = state.get(f"{bn}.{entry}")
            if full is None or full.shape != indexes.shape:
                raise ValueError(f"{bn}.{entry} is missing or not as long as {key}")
            compact[f"{bn}.{entry}"] = full[index]
        if len(index) < len(indexes):
            compact[f"{block}select.index"] = index
    return compact


def to_released(state: Mapping[str, Tensor], model: Slimmable) -> State:
    """``state``, a state dict of ``model``'s in the compact layout, in the released one."""
    wiring = model.wiring()
    released = {key: value for key, value in state.items() if not key.endswith("select.index")}
    for name, layer in model.named_modules():
        if isinstance(layer, ChannelSelection):
            index, width = layer.positions().cpu(), layer.channels
            released[f"{name}.indexes"] = torch.zeros(width).index_fill_(0, index, 1)
            for entry, removed in REMOVED.items():
                key = f"{wiring[name][0]}.{entry}"
                kept = state[key].cpu()
                released[key] = kept.new_full((width,), removed).index_copy_(0, index, kept)
    return released
