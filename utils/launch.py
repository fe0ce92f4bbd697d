"""Commands of this program as subprocesses: the jobs of an experiment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, TypeVar

import torch

from utils.console import Signals
from utils.shell import ROOT

Task = TypeVar("Task")


def start_process(
    words: Sequence[str], output: int | IO[str] | None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts a script of this program, or ``-m`` and a module, with its flags, into ``output``."""
    command, path = [str(ROOT / words[0])], {}
    if words[0] == "-m":  # -P: ignores a package utils of the current folder
        command, path = ["-P", "-m"], {"PYTHONPATH": str(ROOT)}
    # A session of its own gets signals of the terminal once, through this process.
    return subprocess.Popen(
        [sys.executable, *command, *words[1:]],
        env={**os.environ, **path, **(environment or {})},
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def visible_gpus() -> list[str]:
    """Returns the visible GPUs as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if names is None else names.split(",")[:count]


def run_tasks(
    tasks: Iterable[Task],
    slots: Iterable[str],
    needs: Callable[[Task, Task], bool],
    start: Callable[[Task, str], subprocess.Popen[str]],
) -> Iterator[tuple[Task, int | None, float]]:
    """Runs ``tasks`` in order, one per slot at a time, each after the tasks that it needs.

    Yields each finished task with its exit status and seconds. The status is None if a needed task
    failed. A first signal is passed on to the running tasks. All have ended when this returns.

    Raises Interrupted: a signal was received.
    """
    waiting, free, failed = list(tasks), list(slots), list[Task]()
    running: dict[subprocess.Popen[str], tuple[Task, str, float]] = {}
    # A closed terminal sends SIGHUP, which nohup ignores. Windows has none.
    hang_up = getattr(signal, "SIGHUP", signal.SIGTERM)
    passed_on = 0
    with Signals(*([hang_up] if signal.getsignal(hang_up) != signal.SIG_IGN else [])) as signals:
        try:
            while running or (waiting and not signals.received):
                for task in [] if signals.received else list(waiting):
                    unfinished = [*waiting, *(other for other, *_ in running.values())]
                    if any(needs(task, other) for other in failed):
                        waiting.remove(task)
                        failed.append(task)
                        yield task, None, 0
                    elif free and not any(needs(task, other) for other in unfinished):
                        waiting.remove(task)
                        slot = free.pop(0)
                        running[start(task, slot)] = task, slot, time.monotonic()
                time.sleep(0.1)
                if signals.received != passed_on:
                    passed_on = signals.received
                    for process in running:
                        process.send_signal(passed_on)
                for process in [p for p in running if p.poll() is not None]:
                    task, slot, started = running.pop(process)
                    free.append(slot)
                    failed += [task] if process.returncode else []
                    if not passed_on:
                        yield task, process.returncode, time.monotonic() - started
            signals.check()
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
