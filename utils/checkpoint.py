"""Checkpoints on disk: ours, and those of the earlier network-slimming programs.

Two layouts of the layers around a channel selection are met:

* *released*: batch norm at the stream's full width, then ``select.indexes``, a 0/1 float
  parameter of that width, then the convolution with the kept inputs only;
* *compact*: ``select.index``, the int64 positions of the kept channels, then batch norm and
  convolution at the kept width. This is the layout of the models in memory.

They compute the same function. A full network is saved in the released layout, which the earlier
programs read as well.
"""

import _codecs
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import ChannelSelection, Network
from utils.cli import InputError

State = dict[str, Tensor]
# What a numpy scalar is pickled as, under the names of numpy 1 and 2: the earlier programs keep
# best_prec1 so. None of them runs code of the file's choosing.
SCALAR_GLOBALS: list[Any] = [
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    _codecs.encode,
    (np.float64().__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64().__reduce__()[0], "numpy._core.multiarray.scalar"),
]
# What our own checkpoints add to those of the earlier programs, where it is read by type.
TYPES = {
    "cfg": list,
    "classes": list,
    "mean": list,
    "std": list,
    "settings": dict,
    "run": str,
    "precision": str,
    "channels_last": bool,
}
# A batch norm's entries, and what a removed channel has there in the released layout.
REMOVED = {"weight": 0.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` so that ``path`` is always either the old file or the new one, whole.

    Tensors are copied to the CPU first. Raises InputError where the disk refuses.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(snapshot(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} could not be written ({error})") from None
    finally:
        temporary.unlink(missing_ok=True)


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
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with torch.serialization.safe_globals(SCALAR_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of old pickles: an error follows, or nothing
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is not a checkpoint of tensors and plain values, or it is damaged: not loaded"
        ) from None
    except Exception as error:  # torch raises of all kinds on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not a whole checkpoint ({reason[:150]})") from None
    state = content.get("state_dict") if isinstance(content, dict) else None
    good = isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) and value.layout is torch.strided
        for key, value in state.items()
    )
    if not good or not state:
        raise InputError(f"{path} is not a checkpoint: it has no state_dict of tensors")
    for key, type_ in TYPES.items():
        if not isinstance(content.get(key, type_()), type_):
            raise InputError(f"{path} is damaged: its {key} is not a {type_.__name__}")
    for key, type_ in (("classes", str), ("mean", float), ("std", float)):
        if not all(isinstance(value, type_) for value in content.get(key, [])):
            raise InputError(f"{path} is damaged: its {key} holds other than {type_.__name__}s")
    content["state_dict"] = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        network = restore(to_compact(content["state_dict"]))
    except ValueError as error:
        raise InputError(f"{path} does not fit a network of this program: {error}") from None
    if content.get("cfg", network.cfg) != network.cfg:
        raise InputError(f"{path} contradicts itself: its cfg does not fit its weights")
    return content, network


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


def stream_widths(model: nn.Module) -> dict[str, int]:
    """Every selection layer's name and the width of the stream it reads."""
    return {n: m.channels for n, m in model.named_modules() if isinstance(m, ChannelSelection)}


def to_released(state: Mapping[str, Tensor], widths: Mapping[str, int]) -> State:
    """A state dict in the released layout, from the compact one.

    ``widths`` is what :func:`stream_widths` says of the model.
    """
    released: State = {}
    for key, value in state.items():
        if not key.endswith("select.index"):
            released[key] = value
    for select, width in widths.items():
        bn = _batch_norm_of(select, state)
        index = state.get(f"{select}.index", torch.arange(width)).cpu()
        released[f"{select}.indexes"] = torch.zeros(width).index_fill_(0, index, 1)
        for entry, removed in REMOVED.items():
            kept = state[f"{bn}.{entry}"].cpu()
            released[f"{bn}.{entry}"] = kept.new_full((width,), removed).index_copy_(0, index, kept)
    return released
