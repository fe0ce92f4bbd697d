"""Architectures by name: a class with ``@register`` in a file of this folder is a new one.

It is an ordinary ``nn.Module`` made by ``(num_classes, depth)``, from [n, 3, size, size] images to
[n, num_classes] logits, and raises ValueError for a depth that it does not come in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

SIZE = 32  # pixels of an image's side, CIFAR's
Class = TypeVar("Class", bound=type[nn.Module])


@dataclass(frozen=True)
class Architecture:
    """How a network is built, and what it takes.

    Attributes:
        build: (num_classes, depth) to a freshly initialised module.
        depth: the default one.
        depths: which there are, in words.
        any_size: whether images may have another side than ``SIZE`` pixels.
        family: what its prune command ``<family>_prune.py`` is called after, "" where it is
            ``-m utils.prune``.
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
    """Have ``--arch name`` build the decorated class; the rest is :class:`Architecture`'s."""

    def add(cls: Class) -> Class:
        ARCHITECTURES[name] = Architecture(cls, depth, depths, any_size, family)
        return cls

    return add
