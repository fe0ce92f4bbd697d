"""Flags of the penalties of :mod:`netslim.methods.penalties`."""

from collections.abc import Mapping
from typing import Any

from netslim.methods.penalties import L1, PENALTIES, GroupLasso, penalty_named
from utils import arguments
from utils.arguments import Flag

FLAG = Flag(
    "penalty",
    "φ (default l1; with the proximal method group for torchvision's resnets and mobilenet_v2); lp"
    " only with the proximal method, as its slope at 0 is infinite; group is l1, but makes the"
    " channels of a residual or dense stream 0 in all layers that write it",
    default=L1.name,
    choices=tuple(PENALTIES),
)
SHAPE = Flag(
    "shape",
    "parameter of φ: a of l1-l2 and tl1, θ of mcp and scad (default 1), p of lp (default 0.5)",
    arguments.positive,
)


def grouped(options: Mapping[str, Any]) -> bool:
    """Returns whether channels of streams become zero together."""
    return options.get("penalty") == GroupLasso.name


def check(options: Mapping[str, Any]) -> None:
    """Raises ValueError if --shape does not fit --penalty."""
    if "penalty" in options:
        try:
            penalty_named(options["penalty"], options.get("shape"))
        except ValueError as error:  # name the flags
            text = str(error).replace(" shape ", " --shape ", 1)
            raise ValueError(f"--{text}") from None
