"""Checkpoints on disk: ours, and those of the earlier network-slimming programs.

Two layouts of the layers around a channel selection are met:

* *released*: batch norm at the stream's full width, then ``select.indexes``, a 0/1 float
  parameter of that width, then the convolution with the kept inputs only;
* *compact*: ``select.index``, the int64 positions of the kept channels, then batch norm and
  convolution at the kept width. This is the layout of the models in memory.

They compute the same function. A full network is saved in the released layout, which the earlier
programs read as well.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import ChannelSelection, Network
from models.surgery import norms
from utils.atomic import replacing
from utils.console import InputError
from utils.files import untrusted

State = dict[str, Tensor]


def _list_of(*types: type) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, list) and all(isinstance(item, types) for item in x)


def _rgb(low: float) -> Callable[[Any], bool]:
    """Three floats above ``low``."""
    return lambda x: _list_of(float)(x) and len(x) == 3 and all(low < v < 1e30 for v in x)


def _is_settings(x: Any) -> bool:
    return isinstance(x, dict) and all(
        (isinstance(v, tuple) and all(isinstance(bound, float) for bound in v))
        or isinstance(v, str | int | float | None)
        for v in x.values()
    )


# What our own checkpoints add to those of the earlier programs, where it is there: how it must be.
OURS: dict[str, Callable[[Any], bool]] = {
    "cfg": _list_of(int, str),
    "classes": _list_of(str),
    "mean": _rgb(-1e30),
    "std": _rgb(0),
    "settings": _is_settings,
    "run": lambda x: isinstance(x, str),
    "precision": lambda x: isinstance(x, str) and x in ("fp32", "bf16"),
    "channels_last": lambda x: isinstance(x, bool),
    "cut": lambda x: isinstance(x, Tensor) and x.dtype == torch.bool and x.dim() == 1,
}
# A batch norm's entries, and what a removed channel has there in the released layout.
REMOVED = {"weight": 0.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` so that ``path`` is always either the old file or the new one, whole.

    Tensors are copied to the CPU first. Raises InputError where the disk refuses.
    """
    try:
        with replacing(path) as new, new.open("wb") as file:
            torch.save(snapshot(content), file)
    except (OSError, RuntimeError) as error:
        # What the disk said, where torch raises its own error after it.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = "; the one before is kept" if path.exists() else ""
        raise InputError(f"{path} could not be written ({reason}){kept}") from None


def snapshot(value: Any) -> Any:
    """``value`` with all its tensors copied to the CPU."""
    if isinstance(value, Tensor):
        # A copy, for a view (γ is one) would take its whole storage along.
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    return [snapshot(item) for item in value] if isinstance(value, list) else value


def load(path: Path, restore: Callable[[State], Network]) -> tuple[dict[str, Any], Network]:
    """Read a checkpoint of ours or of an earlier program, and ``restore`` its network.

    Raises InputError when the file is missing, damaged, not a checkpoint, or does not fit itself.
    """
    content = untrusted.read(path)
    state = content.get("state_dict") if isinstance(content, dict) else None
    good = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )
    if not good or not state:
        raise InputError(f"{path} is not a checkpoint: it has no state_dict of tensors")
    for key, value in state.items():
        if not value.isfinite().all():
            raise InputError(f"{path} is of no use: its {key} has values that are not finite")
    for key, is_good in OURS.items():
        if key in content and not is_good(content[key]):
            raise InputError(f"{path} is damaged: its {key} is not what it should be")
    if ("precision" in content) != ("channels_last" in content):
        raise InputError(f"{path} is damaged: it has only one of precision and channels_last")
    content["state_dict"] = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        network = restore(to_compact(content["state_dict"]))
    except ValueError as error:
        raise InputError(f"{path} does not fit a network of this program: {error}") from None
    if content.get("cfg", network.cfg) != network.cfg:
        raise InputError(f"{path} contradicts itself: its cfg does not fit its weights")
    if "cut" in content and not _was_dead(content["cut"], content.get("xi"), network.model):
        raise InputError(f"{path} is damaged: its cut has channels that were not dead")
    return content, network


def _was_dead(cut: Tensor, xi: object, model: nn.Module) -> bool:
    """Whether the channels in ``cut`` may be cut: γ = ξ = 0, no bias above 0, no layer emptied."""
    if not cut.any():
        return len(cut) == sum(bn.num_features for bn in norms(model).values())
    parts = zip(*((bn.weight, bn.bias) for bn in norms(model).values()), strict=True)
    gamma, bias = (torch.cat(part).detach() for part in parts)
    if not isinstance(xi, Tensor) or not cut.shape == xi.shape == gamma.shape:
        return False
    emptied = any(part.all() for part in cut.split([len(b.weight) for b in norms(model).values()]))
    dead = (gamma == 0) & (xi == 0) & (bias <= 0)
    return bool(dead[cut].all()) and not emptied


def momentum(content: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Momentum buffers by parameter name, from the checkpoint's ``optimizer``; {} where none.

    The earlier programs number ``select.indexes`` among the parameters, and batch norms before a
    selection have full-width buffers there. Raises ValueError when the states do not fit.
    """
    saved = content.get("optimizer")
    if saved is None:
        return {}
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    state = content["state_dict"]
    not_trained = ("running_mean", "running_var", "num_batches_tracked", "select.index")
    released = [key for key in state if not key.endswith(not_trained)]
    names = next((n for n in (list(parameters), released) if len(n) == len(numbers)), None)
    if names is None:
        raise ValueError(f"its optimizer has {len(numbers)} states, not {len(parameters)}")
    buffers = {}
    for name, number in zip(names, numbers, strict=True):
        buffer = saved["state"].get(number, {}).get("momentum_buffer")
        if buffer is None or name not in parameters:
            continue
        select = f"{name.rpartition('.')[0].removesuffix('bn1').removesuffix('bn')}select.indexes"
        if select in state and buffer.shape == state[select].shape:
            buffer = buffer[state[select].bool()]
        if buffer.shape != parameters[name].shape:
            raise ValueError(f"its optimizer state of {name} has another shape")
        buffers[name] = buffer
    if len(buffers) not in (0, len(parameters)):
        raise ValueError("its optimizer has no momentum of some parameters")
    return buffers


def _batch_norm_of(select: str, state: Mapping[str, Tensor]) -> str:
    """The batch norm beside the selection layer with this prefix: a block's bn1, or the last bn."""
    prefix = select.removesuffix("select")
    return prefix + ("bn1" if f"{prefix}bn1.weight" in state else "bn")


def to_compact(state: Mapping[str, Tensor]) -> State:
    """A state dict in the compact layout, from either one. Raises ValueError if it is neither."""
    compact = dict(state)
    for key, indexes in state.items():
        if not key.endswith("select.indexes"):
            continue
        del compact[key]
        select = key.removesuffix(".indexes")
        if indexes.dim() != 1 or not ((indexes == 0) | (indexes == 1)).all():
            raise ValueError(f"{key} is not a vector of zeros and ones")
        index = indexes.nonzero().flatten()
        bn = _batch_norm_of(select, state)
        for entry in REMOVED:
            full = state.get(f"{bn}.{entry}")
            if full is None or full.shape != indexes.shape:
                raise ValueError(f"{bn}.{entry} is missing or not as long as {key}")
            compact[f"{bn}.{entry}"] = full[index]
        if len(index) < len(indexes):
            compact[f"{select}.index"] = index
    return compact


def to_released(state: Mapping[str, Tensor], model: Any) -> State:
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
