"""Copies of a run's tensors, made without waiting for the device."""

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


class PackedTensors(Generic[Key]):
    """Copies of ``tensors`` on their device, which go to the host in one transfer a type."""

    def __init__(self, tensors: Mapping[Key, Tensor]) -> None:
        alike: dict[Hashable, dict[Key, Tensor]] = defaultdict(dict)
        for key, x in tensors.items():
            alike[x.dtype, x.device][key] = x.detach()
        self.parts = [
            (
                {key: x.shape for key, x in part.items()},
                torch.cat([x.flatten() for x in part.values()]),
            )
            for part in alike.values()
        ]

    def to_cpu(self) -> dict[Key, Tensor]:
        """The copies on the CPU, by the keys of ``tensors``."""
        found: dict[Key, Tensor] = {}
        for shapes, flat in self.parts:
            pieces = flat.cpu().split([shape.numel() for shape in shapes.values()])
            found |= {key: x.view(shapes[key]) for key, x in zip(shapes, pieces, strict=True)}
        return found
