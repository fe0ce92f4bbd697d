"""What a state dict's entries are called, in files of ours and of others.

There are two layouts of the layers around a channel selection.

* *released*: batch norm at the stream's full width, then ``select.indexes``, a 0/1 float
  parameter of that width, then the convolution with the kept inputs only;
* *compact*: in place of the batch norm, ``<name>.select.index``, the int64 positions of the kept
  channels, and ``<name>.norm.*``, the batch norm at the kept width, as :mod:`netslim` makes them;
  where all channels are kept, the batch norm alone. This is the layout of the models in memory.

They compute the same function. A full network is saved in the released layout, which the earlier
programs read as well. The two ADMM programs have no selections, and names of their own.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from netslim.files import take
from utils.network import Network
from utils.paper.accounting import selecting_norms

State = dict[str, Tensor]
EARLIER = ("vgg", "resnet", "densenet")  # what the programs of network slimming know
# A batch norm's entries, and what a removed channel has there in the released layout.
REMOVED = {"weight": 0.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}

# Where files have their state dict: trained weights before moving averages of them.
HOLDERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema"),
)
# What DataParallel, torch.compile, FSDP, checkpointed activations and Lightning's Fabric put into
# the names of what they wrap.
WRAPPERS = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    "_forward_module",
}
DEEPEST = 4  # dicts, or modules, around a network


def state_dict_in(content: Any) -> tuple[Any, list[str]]:
    """The state dict in a file's ``content``, and the keys of others that are not taken.

    It is under the first of HOLDERS, or is the only dict of tensors; else all of ``content``.
    """
    others: list[str] = []
    for _ in range(DEEPEST):
        if not isinstance(content, dict):
            break
        states = [key for key, value in content.items() if _is_state(value)]
        held = [key for key in HOLDERS if isinstance(content.get(key), dict)]
        if not held and len(states) != 1:
            break
        taken = (held or states)[0]
        others += [key for key in held if key in states and key != taken]
        content = content[taken]
    return content, others


def _is_state(x: Any) -> bool:
    return isinstance(x, dict) and bool(x) and all(isinstance(y, Tensor) for y in x.values())


def unwrapped(state: Mapping[str, Tensor]) -> State:
    """``state`` without WRAPPERS in its names. Raises ValueError where two get the same one."""
    plain: State = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in plain:
            raise ValueError(f"it has {name} twice, once as {key}")
        plain[name] = value
    plain.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel's own
    return plain


def within(state: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """The entries below the module that has most of them, named as it names them; the others.

    A network may be an attribute of the module that was saved.
    """
    heads = Counter(key.partition(".")[0] for key in state if "." in key)
    prefix = max(heads, key=heads.__getitem__, default="") + "."
    others = [key for key in state if not key.startswith(prefix)]
    if len(others) * 2 >= len(state):
        return {}, others
    inner = ((key, x) for key, x in state.items() if key.startswith(prefix))
    return {key.removeprefix(prefix): x for key, x in inner}, others


def to_compact(state: Mapping[str, Tensor]) -> State:
    """A state dict in the compact layout, from the released one or from this program's older one.

    There, ``<block>.select.index`` stood beside the batch norm, and ``stream<n>.index`` said where
    in its unpruned stream a channel had been. Raises ValueError if it is none of these.
    """
    compact = {key: x for key, x in state.items() if not re.fullmatch(r"stream\d\.index", key)}
    for key, indexes in state.items():
        block, _, last = key.rpartition("select.")
        norm = f"{block}bn1" if block else "bn"
        if last == "index" and f"{norm}.weight" in state:
            del compact[key]
            index = indexes
        elif last == "indexes":
            del compact[key]
            if indexes.dim() != 1 or not ((indexes == 0) | (indexes == 1)).all():
                raise ValueError(f"{key} is not a vector of zeros and ones")
            index = indexes.nonzero().flatten()
            for entry in REMOVED:
                full = state.get(f"{norm}.{entry}")
                if full is None or full.shape != indexes.shape:
                    raise ValueError(f"{norm}.{entry} is missing or not as long as {key}")
                compact[f"{norm}.{entry}"] = full[index]
            if len(index) == len(indexes):
                continue
        else:
            continue
        for name in [k for k in compact if k.startswith(f"{norm}.")]:
            compact[f"{norm}.norm.{name.removeprefix(f'{norm}.')}"] = compact.pop(name)
        compact[f"{norm}.select.index"] = index
    return compact


def to_released(network: Network) -> State:
    """The state dict of ``network``, whose streams are whole, in the released layout."""
    state = network.model.state_dict()
    released = {key: x for key, x in state.items() if not key.endswith("select.index")}
    full = state if network.is_full else network.full().model.state_dict()
    for name in selecting_norms(network.arch, network.model):
        block = name.removesuffix("bn1").removesuffix("bn")
        index, width = state.get(f"{name}.select.index"), len(full[f"{name}.weight"])
        if index is None:
            index = torch.arange(width)
        else:
            index = index.cpu()
            for key in [key for key in released if key.startswith(f"{name}.norm.")]:
                kept, entry = released.pop(key).cpu(), key.removeprefix(f"{name}.norm.")
                if entry in REMOVED:
                    kept = kept.new_full((width,), REMOVED[entry]).index_copy_(0, index, kept)
                released[f"{name}.{entry}"] = kept
        released[f"{block}select.indexes"] = torch.zeros(width).index_fill_(0, index, 1)
    return released


def widened(network: Network) -> Network:
    """The same function, with what was removed from streams put back as zeros.

    Where in its layer's part of a stream a channel stands is free: here the kept ones come first.
    """
    full, state = network.full().model, dict(network.model.state_dict())
    shapes = {key: x.shape for key, x in full.state_dict().items()}
    selecting = selecting_norms(network.arch, full)
    there, width = torch.arange(0), 0  # where in the whole stream what is left of it is
    for name, module in full.named_modules():
        if name in selecting:
            index = state.pop(f"{name}.select.index", torch.arange(len(there)))
            chosen = there[index.cpu()]
            if len(chosen) < width:
                for key in [k for k in state if k.startswith(f"{name}.") and ".norm." not in k]:
                    state[f"{name}.norm.{key.removeprefix(f'{name}.')}"] = state.pop(key)
                state[f"{name}.select.index"] = chosen
        elif isinstance(module, nn.Conv2d):
            block, _, layer = name.rpartition(".")
            appends = network.arch == "densenet" and block.startswith("dense")
            if network.arch == "densenet" or layer == "conv3" or not block or "downsample" in block:
                key = f"{name}.weight"
                kept, rows = state[key], shapes[key][0]
                state[key] = torch.cat((kept, kept.new_zeros(rows - len(kept), *kept.shape[1:])))
                before, start = (there, width) if appends else (there[:0], 0)
                there = torch.cat((before, start + torch.arange(len(kept))))
                width = start + rows
    return replace(network, model=take(full, state).train(network.model.training))


# What the Lp program calls the layers of a ResNet with basic blocks and of a VGG, and what they are
# called here.
RENAMED = {
    r"^conv_bn\.(conv|bn)\.": r"\g<1>1.",
    r"^(layer\d)\.block_(\d+)\.conv_bn(\d)\.(conv|bn)\.": r"\1.\2.\4\3.",
    r"^features\.": "feature.",
}


def from_admm_programs(state: Mapping[str, Tensor]) -> State:
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
