"""State dicts in the formats of other programs and of older versions of this one.

A channel selection and the batch norm ``<name>`` behind it have one of two layouts:

* *released* (the earlier network-slimming programs): a batch norm of full width, then
  ``select.indexes``, a 0/1 float parameter [width], then a convolution of the kept inputs;
* *compact* (models in memory, see :mod:`netslim`): ``<name>.select.index``, int64 indices of the
  kept channels, and ``<name>.norm.*``, a batch norm of the kept width; a plain batch norm if all
  channels are kept.

Both compute the same function. Unpruned models are saved in the released layout, so that the
earlier programs can read them. The two ADMM programs have other names and no selections.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from netslim.files import State, take
from utils.cost import selecting_norms
from utils.network import Network

EARLIER = ("vgg", "resnet", "densenet")  # architectures of the earlier programs
# Entries of a batch norm, and their values for removed channels in the released layout.
REMOVED = {"weight": 0.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
# Keys of the state dict in a file: trained weights before moving averages.
STATE_KEYS = (
    "state_dict model_state_dict model net network module weights params"
    " state_dict_ema ema_state_dict model_ema ema_model ema"
).split()
MAX_DEPTH = 4  # of dicts around a state dict, and of modules around a model


def find_state_dict(content: Any) -> tuple[Any, list[str]]:
    """Returns the state dict in a file's ``content``, and the keys of ignored ones.

    The state dict has one of STATE_KEYS, or is the only dict of tensors; else all of ``content``.
    """
    ignored: list[str] = []
    for _ in range(MAX_DEPTH):
        if not isinstance(content, dict):
            break
        states = [
            key
            for key, x in content.items()
            if isinstance(x, dict) and x and all(isinstance(y, Tensor) for y in x.values())
        ]
        present = [key for key in STATE_KEYS if isinstance(content.get(key), dict)]
        if not present and len(states) != 1:
            break
        chosen = (present or states)[0]
        ignored += [key for key in present if key in states and key != chosen]
        content = content[chosen]
    return content, ignored


def largest_submodule(state: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Returns the state dict of the attribute that has most entries, and the other names.

    It is empty unless it has more than half of the entries.
    """
    heads = Counter(key.partition(".")[0] for key in state if "." in key)
    prefix = max(heads, key=heads.__getitem__, default="") + "."
    others = [key for key in state if not key.startswith(prefix)]
    if len(others) * 2 >= len(state):
        return {}, others
    inner = {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
    return inner, others


def to_compact(state: Mapping[str, Tensor]) -> State:
    """Returns a released or older state dict of this program in the compact layout.

    Older versions had ``<block>.select.index`` beside ``<block>.bn1``, and ``stream<n>.index``, the
    indices of the kept channels in the unpruned stream, which are not needed.

    Raises ValueError: a selection is damaged.
    """
    compact = {key: x for key, x in state.items() if not re.fullmatch(r"stream\d\.index", key)}
    for key, index in state.items():
        block, _, last = key.rpartition("select.")
        norm = f"{block}bn1" if block else "bn"
        if last == "indexes":
            mask = index
            if mask.dim() != 1 or not ((mask == 0) | (mask == 1)).all():
                raise ValueError(f"{key} is not a vector of zeros and ones")
            index = mask.nonzero().flatten()
            for entry in REMOVED:
                full = state.get(f"{norm}.{entry}")
                if full is None or full.shape != mask.shape:
                    raise ValueError(f"{norm}.{entry} is missing or not as long as {key}")
                compact[f"{norm}.{entry}"] = full[index]
        elif last != "index" or f"{norm}.weight" not in state:
            continue
        del compact[key]
        if last == "indexes" and len(index) == len(mask):
            continue
        for name in [k for k in compact if k.startswith(f"{norm}.")]:
            compact[f"{norm}.norm.{name.removeprefix(f'{norm}.')}"] = compact.pop(name)
        compact[f"{norm}.select.index"] = index
    return compact


def selection_before(norm: str) -> str:
    """Returns the name of the selection in front of batch norm ``norm`` in the released layout."""
    return f"{norm.removesuffix('bn1').removesuffix('bn')}select.indexes"


def to_released(network: Network) -> State:
    """Returns the state dict in the released layout. No stream of ``network`` may be pruned."""
    state = network.model.state_dict()
    released = {key: x for key, x in state.items() if not key.endswith("select.index")}
    full = state if network.is_full else network.full().model.state_dict()
    for name in selecting_norms(network.arch, network.model):
        index, width = state.get(f"{name}.select.index"), len(full[f"{name}.weight"])
        index = torch.arange(width) if index is None else index.cpu()
        for key in [key for key in released if key.startswith(f"{name}.norm.")]:
            kept, entry = released.pop(key).cpu(), key.removeprefix(f"{name}.norm.")
            if entry in REMOVED:
                kept = kept.new_full((width,), REMOVED[entry]).index_copy_(0, index, kept)
            released[f"{name}.{entry}"] = kept
        released[selection_before(name)] = torch.zeros(width).index_fill_(0, index, 1)
    return released


def expanded(network: Network) -> Network:
    """Returns the same function with zeros for the channels that were removed from streams.

    The kept channels come first in each layer's part of a stream; their places are arbitrary.
    """
    full, state = network.full().model, dict(network.model.state_dict())
    shapes = {key: x.shape for key, x in full.state_dict().items()}
    selecting = selecting_norms(network.arch, full)
    kept_index, width = torch.arange(0), 0  # of the kept channels in the full stream, and its width
    for name, module in full.named_modules():
        if name in selecting:
            index = state.pop(f"{name}.select.index", torch.arange(len(kept_index)))
            chosen = kept_index[index.cpu()]
            if len(chosen) < width:
                for key in [k for k in state if k.startswith(f"{name}.") and ".norm." not in k]:
                    state[f"{name}.norm.{key.removeprefix(f'{name}.')}"] = state.pop(key)
                state[f"{name}.select.index"] = chosen
        elif isinstance(module, nn.Conv2d):
            block, _, layer = name.rpartition(".")
            densenet = network.arch == "densenet"
            if densenet or layer == "conv3" or not block or "downsample" in block:
                key = f"{name}.weight"
                weight, rows = state[key], shapes[key][0]
                zeros = weight.new_zeros(rows - len(weight), *weight.shape[1:])
                state[key] = torch.cat((weight, zeros))
                if not (densenet and block.startswith("dense")):  # others replace the stream
                    kept_index, width = kept_index[:0], 0
                kept_index = torch.cat((kept_index, width + torch.arange(len(weight))))
                width += rows
    return replace(network, model=take(full, state).train(network.model.training))


# Layer names of the Lp-ADMM program (ResNets with basic blocks, VGGs), and those of this program.
RENAMED = {
    r"^conv_bn\.(conv|bn)\.": r"\g<1>1.",
    r"^(layer\d)\.block_(\d+)\.conv_bn(\d)\.(conv|bn)\.": r"\1.\2.\4\3.",
    r"^features\.": "feature.",
}


def from_admm_programs(state: Mapping[str, Tensor]) -> State:
    """Returns a state dict of the ADMM programs with the names of this one; others unchanged.

    The bias of a convolution is subtracted from the running mean of the batch norm behind it, which
    gives the same function.

    Raises ValueError: a convolution with a bias has no such batch norm.
    """
    renamed = dict(state)
    for pattern, name in RENAMED.items():
        renamed = {re.sub(pattern, name, key): value for key, value in renamed.items()}
    for key in [key for key in renamed if re.fullmatch(r"feature\.\d+\.bias", key)]:
        layer = int(key.split(".")[1])
        if renamed.get(f"feature.{layer}.weight", renamed[key]).dim() == 4:
            mean = f"feature.{layer + 1}.running_mean"
            if mean not in renamed or renamed[mean].shape != renamed[key].shape:
                raise ValueError(f"{mean} is missing or not as long as {key}")
            renamed[mean] = renamed[mean] - renamed.pop(key)
    return renamed
