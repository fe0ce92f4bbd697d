"""Registry of architectures: ``@register`` on a class in a file of this folder adds one.

The class is an ordinary ``nn.Module`` built from ``(num_classes, depth)``. It maps
[n, 3, size, size] images to [n, num_classes] logits, and raises ValueError for a depth that does
not exist.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

SIZE = 32  # side of a CIFAR image in pixels
Class = TypeVar("Class", bound=type[nn.Module])


@dataclass(frozen=True)
class Architecture:
    """How a model is built, and which images it takes.

    Attributes:
        build: maps (num_classes, depth) to an initialised model.
        depth: default depth.
        depths: possible depths, as text.
        any_size: whether an image may have another side than ``SIZE`` pixels.
        family: prefix of its prune command ``<family>_prune.py``; "" for ``-m utils.prune``.
    """

    build: Callable[[int, int], nn.Module]
    depth: int
    depths: str
    any_size: bool = False
    family: str = ""


ARCHITECTURES: dict[str, Architecture] = {}


def register(
    name: str, *, depth: int, depths: str, any_size: bool = False, family: str = ""
) -> Callable[[Class], Class]:
    """Registers the decorated class as ``--arch name``, see :class:`Architecture`."""

    def add(cls: Class) -> Class:
        ARCHITECTURES[name] = Architecture(cls, depth, depths, any_size, family)
        return cls

    return add
