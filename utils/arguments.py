"""What a user may say on a command line: flags, their types, a parser whose errors are one line."""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, NoReturn

from utils.console import printable


class Parser(argparse.ArgumentParser):
    """argparse's, but its errors are one line whatever was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


@dataclass(frozen=True)
class Flag:
    """One thing that may be said of a run: on command lines, in checkpoints, records and tables."""

    name: str
    help: str | None = None  # if None, the default is told
    type: Callable[[str], Any] = str
    default: Any = None  # or a function of the architecture and the depth
    _: KW_ONLY
    choices: tuple[str, ...] | None = None
    metavar: str | tuple[str, ...] | None = None
    nargs: int | None = None
    custom_options: tuple[str, ...] = ()  # what is typed, where that is not --name
    group: str = "slimming"  # in -h
    constructor_name: str = ""  # what the method's constructor calls it, where that is not ``name``
    only_untrained: bool = False  # None by default where the network has been trained before
    resume_must_match: bool = True  # whether a run that is resumed must keep it
    in_experiment_key: bool = True  # whether runs that differ in it are different experiments

    @property
    def option_strings(self) -> tuple[str, ...]:
        return self.custom_options or ("--" + self.name.replace("_", "-"),)

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """As an argument without a default: what was given can be told from what was not."""
        if isinstance(self.default, bool):
            action = "store_false" if self.default else "store_true"
            parser.add_argument(*self.option_strings, dest=self.name, help=self.help, action=action)
            return
        parser.add_argument(
            *self.option_strings,
            dest=self.name,
            help=self.help or f"default {self.default}",
            type=self.type,
            choices=self.choices,
            metavar=self.metavar,
            nargs=self.nargs,
        )

    def default_for(self, arch: str, depth: int, trained: bool) -> Any:
        if self.only_untrained and trained:
            return None
        return self.default(arch, depth) if callable(self.default) else self.default

    def parse(self, text: str) -> Any:
        """The value in a cell of a record; the text itself, not accepted, where it is none."""
        if text == "":
            return None
        if isinstance(self.default, bool):
            return {"True": True, "False": False}.get(text, text)
        try:
            values = tuple(self.type(word) for word in (text.split() if self.nargs else [text]))
        except (argparse.ArgumentTypeError, ValueError):
            return text
        return values if self.nargs else values[0]

    def accepts(self, value: Any) -> bool:
        """Whether ``value``, from anywhere, could have been given."""
        if value is None:
            return True
        if isinstance(self.default, bool) or isinstance(value, bool):
            return type(value) is type(self.default)
        if self.choices is not None:
            return value in (*self.choices, self.default)
        values = value if self.nargs else (value,)
        if not isinstance(values, tuple) or len(values) != (self.nargs or 1):
            return False
        try:
            return all(self.type(str(v)) == v for v in values)
        except (argparse.ArgumentTypeError, ValueError):
            return False

    def to_argv(self, value: Any) -> list[str]:
        """What to type for ``value``."""
        word = self.option_strings[-1]
        if isinstance(self.default, bool):
            return [word] if value != self.default else []
        if self.nargs:
            return [word, *map(str, value)]
        return [f"{word}={value}"] if str(value).startswith("-") else [word, str(value)]


def _number(
    convert: Callable[[str], Any], description: str, accept: Callable[[Any], bool]
) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
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
size = _number(int, "a whole number of pixels from 8 to 4096", lambda x: 8 <= x <= 4096)
workers = _number(int, "a whole number from 0 to 256", lambda x: 0 <= x <= 256)
natural = _number(int, "a whole number, 0 or more", lambda x: 0 <= x <= 2**31)
seed = _number(int, "a whole number from 0 to 2**63 - 1", lambda x: 0 <= x < 2**63)
positive = _number(float, "a number above 0 (1e-30 to 1e30)", lambda x: 1e-30 <= x <= 1e30)
not_negative = _number(float, "a number from 0 to 1e30", lambda x: 0 <= x <= 1e30)
number = _number(float, "a number from -1e30 to 1e30", lambda x: abs(x) <= 1e30)
percent = _number(float, "a percentage from 1 to 99: of a half, 50", lambda x: 1 <= x <= 99)
fraction = _number(float, "a fraction from 0 to 1", lambda x: 0 <= x <= 1)
momentum = _number(float, "a number from 0 to below 1", lambda x: 0 <= x < 1)


def file_name(text: str) -> str:
    """A name that files begin with: no path separator, not empty, not too long for a file."""
    bad = not text or text.startswith(".") or {"/", os.sep, "\0"} & {*text}
    if bad or len(os.fsencode(text)) > 150:
        raise argparse.ArgumentTypeError(f"{text!r} is not a name that files can begin with")
    return text
