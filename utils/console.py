"""Parser, exit statuses, one-line errors, notes, signals and progress of all commands."""

import argparse
import io
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, NoReturn

from tqdm import tqdm

_muted = False  # on ranks other than 0: prints errors only
SIGPIPE_STATUS = 141  # what a shell reports for a command that SIGPIPE ended
# tqdm shortens the bar and then cuts off the end, so the important numbers come first.
BAR = "{desc}: |{bar}| {n_fmt}/{total_fmt}{postfix}, {rate_fmt}"


class Parser(argparse.ArgumentParser):
    """argparse's parser without abbreviations, whose errors are one line with a suggestion."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        typed = re.search(r"(?:arguments:|choice:) '?([^\s'=]+)", message)
        if typed:
            listed = re.findall(r"[\w-]+", message.partition("(choose from ")[2])
            near = get_close_matches(typed[1], listed or self._option_string_actions, 1)
            message += f": did you mean {near[0]}?" if near else ""
        self.exit(2, f"error: {printable(message)}\n")


class InputError(Exception):
    """Unusable input. The message is one line: what is wrong, and what to do."""

    status = 2


class NonFiniteLoss(Exception):
    """Training diverged. The message is one line."""

    status = 3


class PeerLost(Exception):
    """Another process of the process group has ended. The message is one line."""

    status = 1


class Interrupted(Exception):
    """A signal asked the program to end, and the current step is finished."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


# Errors of torch by a part of their message: exit status, and the message to print instead, with
# {last} for the last line of torch's own.
TORCH_ERRORS = {
    "out of memory|can't allocate memory|not enough memory": (
        2,
        "not enough memory: try a smaller --batch-size or --test-batch-size, or --stream if the"
        " images do not fit",
    ),
    "DataLoader worker": (1, "a process that loads images has ended ({last}): try fewer --workers"),
    "more than 1 value per channel": (
        2,
        "a batch of one image cannot be normalised: choose another --batch-size, so that the last"
        " batch has more images, or a larger --size",
    ),
}


def missing_packages(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if find_spec(package) is None]


def require_packages(feature: str, *packages: str) -> None:
    """Raises InputError with the command that installs those of ``packages`` that are missing."""
    if missing := missing_packages(packages):
        install = shlex.join([sys.executable, "-m", "pip", "install", *missing])
        raise InputError(f"{feature} needs {' and '.join(missing)}: {install}")


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    0: success; 1: a process of the group or a data loader has ended; 2: unusable input; 3: training
    diverged; 130 or 143: SIGINT or SIGTERM; 141: the reader of the output has ended.
    """
    global _muted
    if os.environ.get("RANK", "0") != "0":
        _muted, sys.stdout = True, io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # γ is \\u03b3 on a terminal without it
            stream.reconfigure(errors="backslashreplace")
    try:
        return _status(main, argv)
    except OSError:  # the output cannot be printed, e.g. behind `| head`
        return SIGPIPE_STATUS
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # else Python would flush again at exit and print an error
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _status(main: Callable[[list[str] | None], None], argv: list[str] | None) -> int:
    """Runs a command, prints its error as one line, and returns the exit status."""
    try:
        main(argv)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        raise
    except Interrupted as error:
        return 128 + error.signum
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (InputError, NonFiniteLoss, PeerLost, OSError) as error:  # OSError: disk full or removed
        message, status = str(error), getattr(error, "status", 2)
    except (MemoryError, RuntimeError, ValueError) as error:
        text = "out of memory" if isinstance(error, MemoryError) else str(error).strip()
        if hint := next((h for part, h in TORCH_ERRORS.items() if re.search(part, text)), None):
            status, message = hint[0], hint[1].format(last=text.splitlines()[-1])
        elif isinstance(error, ValueError) or int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        else:
            message, status = f"the process group lost a process ({error})", 1
    print(f"error: {printable(message)}", file=sys.stderr)
    return status


def printable(message: object) -> str:
    """Returns the message as one line; control characters, e.g. of a file's keys, are escaped."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(message))


def note(message: str) -> None:
    """Prints a line to stderr: a warning, or a decision that the user should know of."""
    if not _muted:
        tqdm.write(printable(message), file=sys.stderr)


class Signals:
    """Context in which a first SIGINT or SIGTERM only sets ``received``; a second one kills.

    ``more`` signals are handled as SIGTERM is.
    """

    def __init__(self, *more: int) -> None:
        self.received, self.signals = 0, {signal.SIGINT, signal.SIGTERM, *more}

    def __enter__(self) -> "Signals":
        self.previous = {s: signal.signal(s, self._handle) for s in self.signals}
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
        # The other ranks got the signal too, so communication with them may have failed.
        if self.received and isinstance(error, RuntimeError):
            raise Interrupted(self.received) from None

    def _handle(self, signum: int, frame: object) -> None:
        self.received = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        for each in self.signals:
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(self.received).name
        note(f"{name}: finishing the step; a second signal ends at once")

    def check(self) -> None:
        """Raises Interrupted if a signal was received."""
        if self.received:
            raise Interrupted(self.received)


@dataclass
class Progress:
    """A tqdm ``bar`` on a terminal; a line every ``interval`` steps in a file.

    ``postfix`` returns the metrics to print. It is called only when they are printed, because
    reading a loss from an accelerator waits for it.
    """

    total: int
    text: str
    interval: int
    postfix: Callable[[], str]
    epochs_left: int

    def __post_init__(self) -> None:
        self.done, self.started = 0, time.perf_counter()
        layout: dict[str, Any] = {"bar_format": BAR, "leave": False, "dynamic_ncols": True}
        # None disables the bar where stderr is no terminal.
        self.bar = tqdm(total=self.total, desc=self.text, disable=_muted or None, **layout)

    def step(self) -> None:
        """Counts a step; prints the metrics every ``interval`` steps."""
        self.done += 1
        if self.done == 1:  # the first step is slow and does not predict the others
            self.first = time.perf_counter() - self.started
        if self.done % self.interval == 0 or self.done == self.total:
            metrics = self.postfix()
            spent = time.perf_counter() - self.started
            per_step = (spent - self.first) / (self.done - 1) if self.done > 1 else spent
            epoch = self.first + per_step * (self.total - 1)
            left = format_duration(epoch * (1 + self.epochs_left) - spent)
            self.bar.set_postfix_str(f"run {left} left, {metrics}", False)
            if self.bar.disable:
                step = f"{self.text}: {self.done}/{self.total}"
                note(f"{step}, {metrics}, epoch {format_duration(epoch)}, run {left} left")
        self.bar.update()


def format_duration(seconds: float) -> str:
    """Returns ``m:ss`` or ``h:mm:ss``."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
