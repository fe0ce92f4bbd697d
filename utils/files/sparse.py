"""Sparse checkpoints: one bit per weight, and the values of the nonzero weights.

``python -m utils.export --format sparse`` writes them; they are loaded as dense models. An entry
``sparse`` has ``shapes`` {name: sizes} of all weights in order, ``mask``, uint8 with eight weights
per byte, the first one in the highest bit, and ``values``, the nonzero weights as float32.
"""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netslim.weights import weights


def unpack(packed: Any) -> dict[str, Tensor]:
    """Returns the dense weights by name. Raises ValueError if the parts do not fit each other."""
    try:
        shapes, mask, values = (packed[key] for key in ("shapes", "mask", "values"))
        sizes = [math.prod(shape) for shape in shapes.values()]
        total = sum(sizes)
        if len(mask) != -(-total // 8):  # checked before memory for the shapes is allocated
            raise ValueError(
                f"is damaged: its mask has {8 * len(mask)} weights, and its shapes {total}"
            )
        bits = np.unpackbits(mask.numpy())
        kept = int(bits.sum())
        if bits[total:].any() or kept != len(values):
            raise ValueError(f"is damaged: its mask keeps {kept} weights of {len(values)}")
        dense = torch.zeros(total)
        dense[torch.from_numpy(bits[:total]).bool()] = values
        parts = zip(shapes.items(), dense.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}
    except ValueError:
        raise
    except Exception as error:  # of any kind, for entries of other types
        raise ValueError(f"is damaged: its entry sparse has {error!r}") from None


def content(model: nn.Module, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a sparse checkpoint of ``model`` with these other entries."""
    tensors = weights(model)
    flat = torch.cat([w.detach().cpu().flatten() for w in tensors.values()])
    mask = flat != 0
    packed = {
        "shapes": {name: list(w.shape) for name, w in tensors.items()},
        "mask": torch.from_numpy(np.packbits(mask.numpy())),
        "values": flat[mask],
    }
    rest = {name: value for name, value in model.state_dict().items() if name not in tensors}
    return {**metadata, "state_dict": rest, "sparse": packed}


def bytes_of(model: nn.Module) -> tuple[int, int]:
    """Returns the sizes in bytes of a dense and of a sparse file of ``model``."""

    def size(entries: Mapping[str, Any]) -> int:
        file = io.BytesIO()
        torch.save(entries, file)
        return len(file.getbuffer())

    state = {name: value.cpu() for name, value in model.state_dict().items()}
    return size({"state_dict": state}), size(content(model, {}))
