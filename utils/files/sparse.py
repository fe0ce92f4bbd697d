"""Networks most of whose weights are 0: one bit for each, and the values of the others.

``python -m utils.export --format sparse`` writes them; they are read as any checkpoint is, and are
dense then. ``shapes`` are those of all weights by name, in order; ``mask`` is uint8, eight weights
a byte with the first one in its highest bit, and 0 where none is left; ``values`` are float32.
"""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netslim.weights import weights

State = dict[str, Tensor]

MOST_DIMENSIONS = 5


def pack(model: nn.Module) -> dict[str, Any]:
    """The weights of ``model``."""
    own = weights(model)
    flat = torch.cat([w.detach().cpu().flatten() for w in own.values()])
    kept = flat != 0
    return {
        "shapes": {name: list(w.shape) for name, w in own.items()},
        "mask": torch.from_numpy(np.packbits(kept.numpy())),
        "values": flat[kept],
    }


def unpack(packed: Any) -> State:
    """The weights by name, dense. Raises ValueError where the parts do not fit one another."""
    try:
        shapes, mask, values = (packed[key] for key in ("shapes", "mask", "values"))
    except (KeyError, TypeError, IndexError):
        raise ValueError("its sparse part has not shapes, mask and values") from None
    whole = isinstance(shapes, Mapping) and all(
        isinstance(key, str)
        and isinstance(shape, list)
        and len(shape) <= MOST_DIMENSIONS
        and all(type(size) is int and 0 < size < 2**31 for size in shape)
        for key, shape in shapes.items()
    )
    flat = all(isinstance(x, Tensor) and x.dim() == 1 for x in (mask, values))
    if not (whole and flat and mask.dtype == torch.uint8 and values.dtype == torch.float32):
        raise ValueError("its sparse part is damaged")
    sizes = [math.prod(shape) for shape in shapes.values()]
    total = sum(sizes)
    # All before memory is taken for what it says that it holds.
    if len(mask) != -(-total // 8):
        raise ValueError(f"its mask is of {8 * len(mask)} weights, and its shapes of {total}")
    bits = np.unpackbits(mask.numpy())
    if bits[total:].any() or int(bits.sum()) != len(values):
        raise ValueError(f"its mask keeps {int(bits.sum())} weights, and there are {len(values)}")
    dense = torch.zeros(total)
    dense[torch.from_numpy(bits[:total]).bool()] = values
    parts = dense.split(sizes)
    return {key: x.view(shapes[key]) for key, x in zip(shapes, parts, strict=True)}


def content(model: nn.Module, known: Mapping[str, Any]) -> dict[str, Any]:
    """A file of ``model`` and what is ``known`` of it."""
    packed, state = pack(model), model.state_dict()
    rest = {key: value for key, value in state.items() if key not in packed["shapes"]}
    return {**known, "state_dict": rest, "sparse": packed}


def bytes_of(model: nn.Module) -> tuple[int, int]:
    """Size of a file of the network alone, dense and sparse."""

    def size(parts: Mapping[str, Any]) -> int:
        file = io.BytesIO()
        torch.save(parts, file)
        return len(file.getbuffer())

    state = {key: value.cpu() for key, value in model.state_dict().items()}
    return size({"state_dict": state}), size(content(model, {}))
