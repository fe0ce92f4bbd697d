"""The same run for several seeds, each in a process of its own."""

import argparse
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from utils.cli import Signals, note

MAIN = Path(__file__).parents[1] / "main.py"


def run_seeds(argv: Sequence[str], name: str, no_cuda: bool) -> None:
    """Run ``main.py`` with ``argv``, once for each of its ``--seeds``, as ``name``_seedN.

    Side by side on a GPU, which one small network does not fill; in turn on a CPU, which it does.
    A process apart keeps each run what it is alone. Exits with the first status that is not 0.
    """
    p = argparse.ArgumentParser(allow_abbrev=False)
    p.add_argument("--seeds", nargs="+")
    given, rest = p.parse_known_args(argv)
    side_by_side = torch.cuda.is_available() and not no_cuda
    statuses, children = [], []
    with Signals() as signals:
        for seed in dict.fromkeys(given.seeds):
            command = [sys.executable, str(MAIN), *rest]
            command += ["--seed", seed, "--name", f"{name}_seed{seed}"]
            # A session of its own, so that a signal from the terminal comes once: through us.
            child = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            children.append(child)
            reader = threading.Thread(target=_say, args=(child, seed), daemon=True)
            reader.start()
            if not side_by_side:
                statuses.append(_wait(child, signals))
                if signals.received:
                    break
        if side_by_side:
            statuses = [_wait(child, signals) for child in children]
    if failed := next((status for status in statuses if status), 0):
        sys.exit(failed if failed > 0 else 128 - failed)


def _say(child: subprocess.Popen, seed: str) -> None:
    for line in child.stdout or ():
        note(f"seed {seed}: {line.rstrip()}")


def _wait(child: subprocess.Popen, signals: Signals) -> int:
    forwarded = False
    while True:
        try:
            return child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if signals.received and not forwarded:
                child.send_signal(signals.received)
                forwarded = True
