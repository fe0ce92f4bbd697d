"""Types of arguments, and a parser whose errors are one line."""

import argparse
import math
import os
from collections.abc import Callable
from typing import NoReturn

from utils.console import printable


class Parser(argparse.ArgumentParser):
    """argparse's, but its errors are one line whatever was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _number(convert: Callable, description: str, accept: Callable[[float], bool]) -> Callable:
    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not accept(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {description}")
        return value

    return parse


# Bounds keep everything within 64-bit integers and float32.
positive_int = _number(int, "a whole number from 1 to 2**31", lambda x: 1 <= x <= 2**31)
epochs = _number(int, "a whole number from 1 to 10**6", lambda x: 1 <= x <= 10**6)
natural = _number(int, "a whole number, 0 or more", lambda x: 0 <= x <= 2**31)
seed = _number(int, "a whole number from 0 to 2**63 - 1", lambda x: 0 <= x < 2**63)
positive = _number(float, "a number above 0 (1e-30 to 1e30)", lambda x: 1e-30 <= x <= 1e30)
not_negative = _number(float, "a number from 0 to 1e30", lambda x: 0 <= x <= 1e30)
number = _number(float, "a number from -1e30 to 1e30", lambda x: abs(x) <= 1e30)
fraction = _number(float, "a fraction from 0 to 1", lambda x: 0 <= x <= 1)
momentum = _number(float, "a number from 0 to below 1", lambda x: 0 <= x < 1)


def file_name(text: str) -> str:
    """A name that files begin with: no path separator, not empty, not too long for a file."""
    bad = not text or "/" in text or os.sep in text or "\0" in text or text.startswith(".")
    if bad or len(os.fsencode(text)) > 150:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name that files can begin with")
    return text
