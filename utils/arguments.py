"""Command-line flags and their value types."""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any


@dataclass(frozen=True)
class Flag:
    """A setting of a run: a command-line flag, a checkpoint entry and a record column."""

    name: str
    help: str  # a default that it does not mention is added
    type: Callable[[str], Any] = str
    default: Any = None  # a value, or a function (arch, depth) -> value
    _: KW_ONLY
    choices: tuple[str, ...] | None = None
    metavar: str | tuple[str, ...] | None = None
    nargs: int | None = None
    custom_options: tuple[str, ...] = ()  # option strings other than --name; commands use the last
    group: str = "pruning"  # heading in the help
    constructor_name: str = ""  # argument name in the method's constructor if it is not ``name``
    only_untrained: bool = False  # the default is None for a model that was trained before
    resume_must_match: bool = True  # a resumed run must keep the value
    in_experiment_key: bool = True  # runs with different values are different experiments

    @property
    def option_strings(self) -> tuple[str, ...]:
        return self.custom_options or ("--" + self.name.replace("_", "-"),)

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Adds the flag to ``parser`` without a default: a value shows that it is in argv."""
        options: dict[str, Any] = {"dest": self.name, "help": self.help}
        if isinstance(self.default, bool):
            options["action"] = "store_false" if self.default else "store_true"
        else:
            options |= {k: getattr(self, k) for k in ("type", "choices", "metavar", "nargs")}
            if isinstance(self.default, str | int | float) and "default" not in self.help:
                options["help"] += f" (default {self.default})"
        parser.add_argument(*self.option_strings, **options)

    def default_for(self, arch: str, depth: int, trained: bool) -> Any:
        if self.only_untrained and trained:
            return None
        return self.default(arch, depth) if callable(self.default) else self.default

    def parse(self, text: str) -> Any:
        """Returns the value of a record's cell. Raises ValueError: it is not a valid value."""
        is_switch = isinstance(self.default, bool)
        convert = {"True": True, "False": False}.__getitem__ if is_switch else self.type
        try:
            values = tuple(map(convert, text.split() if self.nargs else [text]))
        except (argparse.ArgumentTypeError, KeyError, ValueError):
            values = ()
        allowed = self.choices is None or {*values} <= {*self.choices, self.default}
        if len(values) != (self.nargs or 1) or not allowed:
            raise ValueError(f"{self.name} is {text!r}")
        return values if self.nargs else values[0]

    def accepts(self, value: Any) -> bool:
        """Whether ``value``, e.g. from a checkpoint, is None or one that the flag can have."""
        try:
            return value is None or bool(self.parse(to_cell(value)) == value)
        except ValueError:
            return False

    def to_argv(self, value: Any) -> list[str]:
        """Returns the command-line words that set ``value``."""
        option = self.option_strings[-1]
        if isinstance(self.default, bool):
            return [option] if value != self.default else []
        if self.nargs:
            return [option, *map(str, value)]
        return [f"{option}={value}"] if str(value).startswith("-") else [option, str(value)]


def to_cell(value: Any) -> str:
    """Returns ``value`` as the cell of a record."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _number(
    convert: Callable[[str], Any], description: str, accept: Callable[[Any], bool]
) -> Callable[[str], Any]:
    """Returns a parser of command-line numbers that ``accept`` allows."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not accept(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {description}")
        return value

    return parse


def _fraction(text: str) -> float:
    """Returns the number that 0.5 and 50% mean: a half."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def _share(text: str) -> float:
    """Returns the number that 0.5, 50 and 50% mean: a half."""
    value = _fraction(text)
    return value / 100 if value >= 1 else value


# The bounds keep all values within 64-bit integers and float32.
positive_int = _number(int, "an integer from 1 to 2**31", lambda x: 1 <= x <= 2**31)
epochs = _number(int, "an integer from 1 to 10**6", lambda x: 1 <= x <= 10**6)
size = _number(int, "a number of pixels from 8 to 4096", lambda x: 8 <= x <= 4096)
workers = _number(int, "an integer from 0 to 256", lambda x: 0 <= x <= 256)
natural = _number(int, "an integer from 0 to 2**31", lambda x: 0 <= x <= 2**31)
seed = _number(int, "an integer from 0 to 2**63 - 1", lambda x: 0 <= x < 2**63)
positive = _number(float, "a number from 1e-30 to 1e30", lambda x: 1e-30 <= x <= 1e30)
not_negative = _number(float, "a number from 0 to 1e30", lambda x: 0 <= x <= 1e30)
number = _number(float, "a number from -1e30 to 1e30", lambda x: abs(x) <= 1e30)
share = _number(
    _share,
    "a share above 0 and below 1, or a percentage from 1 to 99",
    lambda x: 0 < x <= 0.99,
)
fraction = _number(_fraction, "a fraction from 0 to 1, or a percentage: 50%", lambda x: 0 <= x <= 1)
momentum = _number(float, "a number in [0, 1)", lambda x: 0 <= x < 1)


def file_name(text: str) -> str:
    """Returns ``text`` if file names can begin with it: no separator, no leading dot, not long."""
    bad = not text or text.startswith(".") or {"/", os.sep, "\0"} & {*text}
    if bad or len(os.fsencode(text)) > 150:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be the beginning of file names")
    return text
