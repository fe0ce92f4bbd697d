"""The flags of the penalties, which :mod:`netslim.methods.penalties` has."""

from collections.abc import Mapping
from typing import Any

from netslim.methods.penalties import L1, PENALTIES
from utils import arguments
from utils.arguments import Flag

FLAG = Flag(
    "penalty",
    "φ (default l1); lp only with the proximal method: its slope at 0 is infinite",
    default=L1.name,
    choices=tuple(PENALTIES),
)
SHAPE = Flag(
    "shape",
    "of φ: a of l1-l2 and tl1, θ of mcp and scad (default 1), p of lp (default 0.5)",
    arguments.positive,
)


def check(options: Mapping[str, Any]) -> None:
    """Raise ValueError where the ``options`` that were given have a shape that does not fit."""
    if "penalty" in options:
        try:
            PENALTIES[options["penalty"]](options.get("shape"))
        except ValueError as error:
            words = str(error).replace("shape", "--shape")
            raise ValueError(f"--{words}") from None
