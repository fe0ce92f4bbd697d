"""The networks: one file each, and torchvision's, behind one :func:`build_model`."""

import math
from importlib import import_module
from pkgutil import iter_modules

from torch import nn

from models import torchvision_models as theirs
from models.registry import ARCHITECTURES, SIZE

for _module in iter_modules(__path__):  # each registers its own
    import_module(f"models.{_module.name}")

NAMES = (*ARCHITECTURES, *theirs.DEPTHS)
DEFAULT_DEPTHS = {name: arch.depth for name, arch in ARCHITECTURES.items()} | theirs.DEPTHS


def family(arch: str) -> str:
    """The prune command for networks of this architecture is ``<family>_prune.py``, if not ""."""
    return ARCHITECTURES[arch].family if arch in ARCHITECTURES else ""


def pruner(arch: str) -> list[str]:
    """The program that prunes networks of this architecture: a script, or -m and a module."""
    return [f"{family(arch)}_prune.py"] if family(arch) else ["-m", "utils.prune"]


def display_name(arch: str, depth: int, between: str = "-") -> str:
    """A network's name: of torchvision's, the depth is in it already."""
    return arch if arch in theirs.DEPTHS else f"{arch}{between}{depth}"


def size_of(arch: str) -> int:
    """Pixels of the side of an image that ``arch`` takes, where no other size is asked for."""
    return theirs.SIZE if arch in theirs.DEPTHS else SIZE


def check_size(arch: str, size: int) -> None:
    """Raise ValueError where ``arch`` takes no images of ``size``×``size`` pixels."""
    if arch in theirs.DEPTHS:
        if size < (least := theirs.SMALLEST.get(arch, SIZE)):
            raise ValueError(f"{arch} takes {least}×{least} pixels or more, not {size}×{size}")
    elif size != SIZE and not ARCHITECTURES[arch].any_size:
        raise ValueError(f"{arch} takes pictures of {SIZE}×{SIZE} pixels, not of {size}×{size}")


def build_model(arch: str, depth: int, num_classes: int) -> nn.Module:
    """Build a freshly initialised network from [n, 3, size, size] to [n, num_classes] logits.

    Initial values are section 5.1's: γ = 0.5, convolutions N(0, √(2 / (k²·out))), batch-norm biases
    0. Torchvision's networks have its own.

    Raises:
        ValueError: an unknown ``arch``, or a ``depth`` it does not come in.
    """
    if arch in theirs.DEPTHS:
        if depth != theirs.DEPTHS[arch]:
            raise ValueError(f"{arch} has no depth {depth}: leave --depth out")
        return theirs.build(arch, num_classes)
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: choose {', '.join(NAMES)}")
    model = ARCHITECTURES[arch].build(num_classes, depth)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, math.sqrt(2 / module.weight[:, 0].numel()))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    return model
