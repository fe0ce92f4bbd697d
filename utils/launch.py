"""Commands of this program in processes of their own: those of many jobs, or a run's seeds."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import IO, TypeVar

import torch

from utils.console import Signals, note
from utils.shell import ROOT

Task = TypeVar("Task")


def start_process(
    words: Sequence[str], output: int | IO[str] | None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A script, or -m and a module, and its flags, in a process that prints into ``output``."""
    script, there = [str(ROOT / words[0])], {}
    if words[0] == "-m":  # -P: modules are this program's, wherever it is called from
        script, there = ["-P", "-m"], {"PYTHONPATH": str(ROOT)}
    # In a session of its own, so that a signal from the terminal comes once: through this process.
    return subprocess.Popen(
        [sys.executable, *script, *words[1:]],
        env={**os.environ, **there, **(environment or {})},
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def visible_gpus() -> list[str]:
    """The visible GPUs, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if named is None else named.split(",")[:count]


def run_tasks(
    tasks: Iterable[Task],
    slots: Iterable[str],
    needs: Callable[[Task, Task], bool],
    start: Callable[[Task, str], subprocess.Popen[str]],
) -> Iterator[tuple[Task, int | None, float]]:
    """Start ``tasks`` in their order, one in each of ``slots`` at a time, after what each needs.

    Gives each with its exit status and seconds when it ends; None where what it needs failed. A
    first signal is passed on, once: raises Stopped when all have ended. None is left behind.
    """
    waiting, free, lost = list(tasks), list(slots), list[Task]()
    running: dict[subprocess.Popen[str], tuple[Task, str, float]] = {}
    told = 0
    hang_up = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
    # A terminal that goes away asks for an end too, unless under nohup.
    with Signals(*([hang_up] if signal.getsignal(hang_up) != signal.SIG_IGN else [])) as signals:
        try:
            while running or (waiting and not signals.received):
                for task in [] if signals.received else list(waiting):
                    unfinished = [*waiting, *(other for other, *_ in running.values())]
                    if any(needs(task, other) for other in lost):
                        waiting.remove(task)
                        lost.append(task)
                        yield task, None, 0
                    elif free and not any(needs(task, other) for other in unfinished):
                        waiting.remove(task)
                        slot = free.pop(0)
                        running[start(task, slot)] = task, slot, time.monotonic()
                time.sleep(0.1)
                if signals.received != told:
                    told = signals.received  # a second one would kill
                    for process in running:
                        process.send_signal(told)
                for process in [p for p in running if p.poll() is not None]:
                    task, slot, began = running.pop(process)
                    free.append(slot)
                    lost += [task] if process.returncode else []
                    if not told:
                        yield task, process.returncode, time.monotonic() - began
            signals.check()
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def run_seeds(argv: Sequence[str], name: str | None, no_cuda: bool) -> None:
    """Run ``main.py`` with ``argv``, once for each of its ``--seeds``.

    As ``name``_seedN, or under its default name, which has the seed.

    Side by side on the GPUs, which one small network each does not fill; in turn on a CPU, which it
    does. A process apart keeps each run what it is alone. Exits with the first status that is not
    0; raises Stopped when a signal came and all have ended.
    """
    p = argparse.ArgumentParser(allow_abbrev=False)
    p.add_argument("--seeds", nargs="+")
    given, rest = p.parse_known_args(argv)
    seeds = dict.fromkeys(given.seeds)
    gpus = [] if no_cuda else visible_gpus()
    slots = list(islice(cycle(gpus), len(seeds))) or [""]

    def say(seed: str, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            note(f"seed {seed}: {line.rstrip()}")

    def begin(seed: str, slot: str) -> subprocess.Popen[str]:
        named = [] if name is None else ["--name", f"{name}_seed{seed}"]
        where = {"CUDA_VISIBLE_DEVICES": slot} if slot else None
        process = start_process(["main.py", *rest, "--seed", seed, *named], subprocess.PIPE, where)
        readers.submit(say, seed, process)
        return process

    with ThreadPoolExecutor(len(seeds)) as readers:  # all that was printed is said before it ends
        ends = run_tasks(seeds, slots, lambda seed, other: False, begin)
        failed = next(filter(None, [status for _, status, _ in ends]), 0)
    if failed:
        sys.exit(failed if failed > 0 else 128 - failed)
