"""The two layouts of the layers around a channel selection.

* *released*: batch norm at the stream's full width, then ``select.indexes``, a 0/1 float
  parameter of that width, then the convolution with the kept inputs only;
* *compact*: ``select.index``, the int64 positions of the kept channels, then batch norm and
  convolution at the kept width. This is the layout of the models in memory.

They compute the same function. A full network is saved in the released layout, which the earlier
programs read as well. The two ADMM programs have no selections, and names of their own.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models import ChannelSelection
from models.surgery import Slimmable, State

EARLIER = ("vgg", "resnet", "densenet")  # what the programs of network slimming know
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


# What the Lp program calls the layers of a ResNet with basic blocks and of a VGG, and what they are
# called here.
RENAMED = {
    r"^conv_bn\.(conv|bn)\.": r"\g<1>1.",
    r"^(layer\d)\.block_(\d+)\.conv_bn(\d)\.(conv|bn)\.": r"\1.\2.\4\3.",
    r"^features\.": "feature.",
}


def of_admm_programs(state: Mapping[str, Tensor]) -> State:
    """A state dict of the ADMM programs' as one of ours; any other one as it is.

    A convolution's bias goes into the running mean of the batch norm behind it, which is what it
    is subtracted from: the function stays the same.

    Raises ValueError where there is no such batch norm.
    """
    named = dict(state)
    for pattern, name in RENAMED.items():
        named = {re.sub(pattern, name, key): value for key, value in named.items()}
    for key in [key for key in named if re.fullmatch(r"feature\.\d+\.bias", key)]:
        layer = int(key.split(".")[1])
        if named.get(f"feature.{layer}.weight", named[key]).dim() == 4:
            mean = f"feature.{layer + 1}.running_mean"
            if mean not in named or named[mean].shape != named[key].shape:
                raise ValueError(f"{mean} is missing or not as long as {key}")
            named[mean] = named[mean] - named.pop(key)
    return named
