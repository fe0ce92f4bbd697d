"""What every command needs: one-line errors, exit codes, signals, progress."""

import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

_muted = False  # nothing is said but errors
ONE_VALUE = "more than 1 value per channel"  # what torch says of a batch norm that lacks them
UNREAD = 141  # the status that a shell tells of what SIGPIPE ended
# What matters most stands first behind the bar: tqdm shortens the bar, then cuts off the end.
BAR = "{desc}: |{bar}| {n_fmt}/{total_fmt}{postfix}, {rate_fmt}"


class InputError(Exception):
    """Something the user gave cannot be used. The message is one line: what, and what to do."""


class NonFiniteLoss(Exception):
    """Training produced a number that is not finite. The message is one line."""

    status = 3


class PeerLost(Exception):
    """Another process of the group is gone. The message is one line."""

    status = 1


class Interrupted(Exception):
    """A signal asked the program to end, and it has come to a good place to do so."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    0; 1 when another process is gone, of the group or a reading one; 2 for bad input; 3 for a
    diverged training; 130 or 143 after SIGINT or SIGTERM; 141 when nobody reads any more what is
    printed.
    """
    global _muted
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # all is imported: utils.startup
    if os.environ.get("RANK", "0") != "0":  # the first of the processes speaks for all
        _muted, sys.stdout = True, io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no γ gets \\u03b3
            stream.reconfigure(errors="backslashreplace")
    try:
        return _status(main, argv)
    except OSError:  # what is printed reaches nobody, as behind `| head`
        return UNREAD
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # or Python would try again when it ends, and say so
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _status(main: Callable[[list[str] | None], None], argv: list[str] | None) -> int:
    try:
        main(argv)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        raise
    except Interrupted as stopped:
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (InputError, NonFiniteLoss, PeerLost, OSError) as error:  # OSError: a disk full or gone
        message, status = str(error), getattr(error, "status", 2)
    except (MemoryError, RuntimeError, ValueError) as error:
        said = "out of memory|can't allocate memory|not enough memory"  # by torch
        if isinstance(error, MemoryError) or re.search(said, str(error)):
            message = (
                "there is not enough memory: try a smaller --batch-size or --test-batch-size, or"
                " --stream where it is for the pictures"
            )
            status = 2
        elif "DataLoader worker" in str(error):  # torch says so wherever the program is just then
            reason = str(error).strip().splitlines()[-1]
            message = f"a process that reads pictures is gone ({reason}): try fewer --workers"
            status = 1
        elif "deterministic implementation" in str(error):  # of an operation of a user's network
            reason = str(error).partition(",")[0]
            message, status = f"{reason}: leave out --deterministic, or train on the CPU", 2
        elif ONE_VALUE in str(error):  # a batch norm, of maps of one pixel
            message = (
                "a batch of one image cannot be normalised: choose another --batch-size, of which"
                " the last batch has more, or a larger --size"
            )
            status = 2
        elif isinstance(error, ValueError) or int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        else:
            message, status = f"the processes lost one another ({error})", 1
    print(f"error: {printable(message)}", file=sys.stderr)
    return status


def printable(message: object) -> str:
    """In one line, and harmless for a terminal: a message may quote a stranger's file."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(message))


def note(message: str) -> None:
    """A line beside the results: a warning, or a decision the user should know of."""
    if not _muted:
        tqdm.write(printable(message), file=sys.stderr)


class Signals:
    """Within, a first SIGINT or SIGTERM only asks for an end; a second one ends at once.

    And so does one of ``more``, which is then said to be a SIGTERM.
    """

    def __init__(self, *more: int) -> None:
        self.received, self.asking = 0, {signal.SIGINT, signal.SIGTERM, *more}

    def __enter__(self) -> "Signals":
        self.before = {s: signal.signal(s, self._ask) for s in self.asking}
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        if self.received and isinstance(error, RuntimeError):  # processes beside were told, too
            raise Interrupted(self.received) from None

    def _ask(self, signum: int, frame: object) -> None:
        self.received = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        for each in self.before:
            signal.signal(each, signal.SIG_DFL)
        note(f"{signal.Signals(self.received).name}: finishing the step; once more ends at once")

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.received:
            raise Interrupted(self.received)


class Progress:
    """A tqdm ``bar`` on a terminal; into a file, a line every ``interval`` steps.

    ``postfix`` is asked for the numbers to show only when they are shown, since reading a loss
    from an accelerator waits for it.
    """

    def __init__(
        self, total: int, text: str, interval: int, postfix: Callable[[], str], epochs_left: int
    ) -> None:
        self.total, self.text, self.interval = total, text, interval
        self.postfix, self.epochs_left, self.done = postfix, epochs_left, 0
        self.started = time.perf_counter()
        hidden = _muted or None  # None: where nobody watches
        look: dict[str, Any] = {"bar_format": BAR, "leave": False, "dynamic_ncols": True}
        self.bar = tqdm(total=total, desc=text, disable=hidden, **look)

    def step(self) -> None:
        """Count a step, and show its numbers now and then."""
        self.done += 1
        if self.done == 1:  # the first step warms up and says nothing of the others
            self.first = time.perf_counter() - self.started
        shown = self.done % self.interval == 0 or self.done == self.total
        if shown:
            numbers = self.postfix()
            spent = time.perf_counter() - self.started
            warm = (spent - self.first) / (self.done - 1) if self.done > 1 else spent
            epoch = self.first + warm * (self.total - 1)
            left = format_duration(epoch * (1 + self.epochs_left) - spent)
            self.bar.set_postfix_str(f"run {left} left, {numbers}", False)
            if self.bar.disable:
                where = f"{self.text}: {self.done}/{self.total}"
                note(f"{where}, {numbers}, epoch {format_duration(epoch)}, run {left} left")
        self.bar.update()


def format_duration(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
