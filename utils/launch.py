"""The same run for several seeds, each in a process of its own."""

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.console import Signals, note

MAIN = Path(__file__).parents[1] / "main.py"


def run_seeds(argv: Sequence[str], name: str, no_cuda: bool) -> None:
    """Run ``main.py`` with ``argv``, once for each of its ``--seeds``, as ``name``_seedN.

    Side by side on a GPU, which one small network does not fill; in turn on a CPU, which it does.
    A process apart keeps each run what it is alone. Exits with the first status that is not 0;
    raises Stopped when a signal came and all have ended.
    """
    p = argparse.ArgumentParser(allow_abbrev=False)
    p.add_argument("--seeds", nargs="+")
    given, rest = p.parse_known_args(argv)
    waiting = list(dict.fromkeys(given.seeds))
    together = len(waiting) if torch.cuda.is_available() and not no_cuda else 1
    running: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    statuses: list[int] = []
    told = False
    with Signals() as signals:
        while running or (waiting and not signals.received):
            while waiting and len(running) < together and not signals.received:
                running.append(_start(rest, name, waiting.pop(0), readers))
            time.sleep(0.1)
            if signals.received and not told:
                told = True  # a second one would kill
                for child in running:
                    child.send_signal(signals.received)
            for child in [c for c in running if c.poll() is not None]:
                running.remove(child)
                statuses.append(child.returncode)
        for reader in readers:
            reader.join()
        signals.check()
    if failed := next(filter(None, statuses), 0):
        sys.exit(failed if failed > 0 else 128 - failed)


def _start(
    argv: Sequence[str], name: str, seed: str, readers: list[threading.Thread]
) -> subprocess.Popen:
    command = [sys.executable, str(MAIN), *argv, "--seed", seed, "--name", f"{name}_seed{seed}"]
    # A session of its own, so that a signal from the terminal comes once: through this process.
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def say() -> None:
        for line in child.stdout or ():
            note(f"seed {seed}: {line.rstrip()}")

    readers.append(threading.Thread(target=say))
    readers[-1].start()
    return child
