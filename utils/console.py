"""What every command needs: one-line errors, exit codes, signals, progress."""

import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

# What torch says, on the CPU and on a GPU.
NO_MEMORY = "out of memory|can't allocate memory|not enough memory"


class InputError(Exception):
    """Something the user gave cannot be used. The message is one line: what, and what to do."""


class Diverged(Exception):
    """Training produced a number that is not finite. The message is one line."""


class Lost(Exception):
    """Another process of the group is gone. The message is one line."""


class Stopped(Exception):
    """A signal asked the program to end, and it has come to a good place to do so."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run(main: Callable[[list[str] | None], None], argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    0; 1 when another process of the group is gone; 2 for bad input; 3 for a diverged training; 130
    or 143 after SIGINT or SIGTERM.
    """
    if os.environ.get("RANK", "0") != "0":  # the first of the processes speaks for all
        mute()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no γ gets \\u03b3
            stream.reconfigure(errors="backslashreplace")
    try:
        main(argv)
    except (InputError, OSError) as error:  # OSError: a full disk, a folder taken away
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except (Diverged, Lost) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 3 if isinstance(error, Diverged) else 1
    except Stopped as stopped:
        return 128 + stopped.signum
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error)):
            print(
                "error: there is not enough memory: try a smaller --batch-size or"
                " --test-batch-size",
                file=sys.stderr,
            )
            return 2
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        print(f"error: the processes lost one another ({printable(error)})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def printable(message: object) -> str:
    """In one line, and harmless for a terminal: a message may quote a stranger's file."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(message))


_muted = False


def mute() -> None:
    """Say nothing but errors from now on."""
    global _muted
    _muted = True
    sys.stdout = io.StringIO()


def note(message: str) -> None:
    """A line beside the results: a warning, or a decision the user should know of."""
    if not _muted:
        tqdm.write(printable(message), file=sys.stderr)


class Signals:
    """Within, a first SIGINT or SIGTERM only asks for an end; a second one ends at once."""

    def __enter__(self) -> "Signals":
        self.received = 0
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def _ask(self, signum: int, frame: object) -> None:
        self.received = signum
        for each in self.before:
            signal.signal(each, signal.SIG_DFL)
        note(f"{signal.Signals(signum).name}: finishing the step; once more ends at once")

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self.received:
            raise Stopped(self.received)


class Progress:
    """A tqdm bar on a terminal; into a file, a line every ``interval`` steps.

    ``postfix`` is asked for the numbers to show only when they are shown, since reading a loss
    from an accelerator waits for it.
    """

    def __init__(
        self,
        total: int,
        description: str,
        interval: int,
        postfix: Callable[[], str],
        epochs_left: int = 0,
    ) -> None:
        self.total, self.description, self.interval = total, description, interval
        self.postfix, self.epochs_left = postfix, epochs_left
        self.done = 0
        self.started = self.second = time.perf_counter()
        self.bar = None
        if sys.stderr.isatty() and not _muted:
            self.bar = tqdm(total=total, desc=description, leave=False, dynamic_ncols=True)

    def step(self) -> bool:
        """Count a step. True if its numbers are shown."""
        self.done += 1
        if self.done == 1:  # the first step warms up and says nothing of the others
            self.second = time.perf_counter()
        shown = self.done % self.interval == 0 or self.done == self.total
        if self.bar is not None:
            if shown:
                self.bar.set_postfix_str(f"{self.postfix()}, run {self._left()} left", False)
            self.bar.update()
        elif shown:
            note(
                f"{self.description}: {self.done}/{self.total}, {self.postfix()},"
                f" epoch {clock(self.epoch_seconds())}, run {self._left()} left"
            )
        return shown

    def epoch_seconds(self) -> float:
        """The whole epoch's estimated seconds."""
        now = time.perf_counter()
        if self.done < 2:
            return (now - self.started) * self.total
        warm = (now - self.second) / (self.done - 1)
        return (self.second - self.started) + warm * (self.total - 1)

    def _left(self) -> str:
        spent = time.perf_counter() - self.started
        return clock(self.epoch_seconds() * (1 + self.epochs_left) - spent)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
