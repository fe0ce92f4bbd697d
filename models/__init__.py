"""The models: one file each, and torchvision's, built by :func:`build_model`."""

import math
from importlib import import_module
from pkgutil import iter_modules

from torch import nn

from models import torchvision_models as tv
from models.registry import ARCHITECTURES, SIZE

for _module in iter_modules(__path__):  # each registers its class
    import_module(f"models.{_module.name}")

NAMES = (*ARCHITECTURES, *tv.DEPTHS)
DEFAULT_DEPTHS = {name: arch.depth for name, arch in ARCHITECTURES.items()} | tv.DEPTHS


def family(arch: str) -> str:
    """Returns the prefix of the prune command ``<family>_prune.py`` of ``arch``, or ""."""
    return ARCHITECTURES[arch].family if arch in ARCHITECTURES else ""


def pruner(arch: str) -> list[str]:
    """Returns the program that prunes ``arch``: a script, or -m and a module."""
    return [f"{family(arch)}_prune.py"] if family(arch) else ["-m", "utils.prune"]


def display_name(arch: str, depth: int, between: str = "-") -> str:
    """Returns the name with the depth, which the names of torchvision's models include."""
    return arch if arch in tv.DEPTHS else f"{arch}{between}{depth}"


def size_of(arch: str) -> int:
    """Returns the default side of an image in pixels."""
    return tv.SIZE if arch in tv.DEPTHS else SIZE


def check_size(arch: str, size: int) -> None:
    """Raises ValueError if ``arch`` does not take images of ``size``×``size`` pixels."""
    if arch in tv.DEPTHS:
        if size < (least := tv.SMALLEST.get(arch, SIZE)):
            raise ValueError(f"{arch} takes {least}×{least} pixels or more, not {size}×{size}")
    elif size != SIZE and not ARCHITECTURES[arch].any_size:
        raise ValueError(f"{arch} takes images of {SIZE}×{SIZE} pixels, not of {size}×{size}")


def build_model(arch: str, depth: int, num_classes: int) -> nn.Module:
    """Builds an initialised model from [n, 3, size, size] images to [n, num_classes] logits.

    Initial values are those of section 5.1: γ = 0.5, convolutions N(0, √(2 / (k²·out))), batch-norm
    biases 0. torchvision's models have torchvision's.

    Raises:
        ValueError: ``arch`` is unknown, or there is none of this ``depth``.
    """
    if arch in tv.DEPTHS:
        if depth != tv.DEPTHS[arch]:
            raise ValueError(f"{arch} has no depth {depth}: leave --depth out")
        return tv.build(arch, num_classes)
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: choose {', '.join(NAMES)}")
    model = ARCHITECTURES[arch].build(num_classes, depth)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # it is slow there
            nn.init.normal_(module.weight, 0, math.sqrt(2 / module.weight[:, 0].numel()))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    return model
