"""Small training runs for tests: flags, processes, and what two runs must have in common."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch

import warm
from utils import console
from utils.experiments.jobs import Job

ROOT = Path(__file__).parents[1]
# Deterministic: nothing is measured, so that every start computes the same.
QUICK = ["--epochs", "4", "--batch-size", "8", "--deterministic", "--no-cuda"]
# Channels die, and are removed, from epoch 3 on, when the learning rate has dropped: so large a λ
# brings ξ to 0 in a few of an epoch's 16 steps, and without momentum γ follows.
DYING = "-sr --arch resnet --depth 11 --s 60 --beta 200 --momentum 0 --epochs 4".split()
DYING += ["--batch-size", "2"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def only_checkpoint(folder: Path) -> Path:
    (path,) = folder.glob("*/checkpoint.pth.tar")
    return path


def train(folder: Path, pictures: Path, *more: object) -> int:
    """Train in process, which saves importing torch each time."""
    import main

    if "--refine" not in more:
        more = ["--dataset", "folder", "--data", pictures, *more]
    argv = [*QUICK, "--save", folder, *more]
    return console.run(main.main, [str(arg) for arg in argv])


def command(program: ModuleType, *args: object) -> int | str | None:
    """Run a program in process; its exit status."""
    try:
        return console.run(program.main, list(map(str, args)))
    except SystemExit as stop:  # argparse
        return stop.code


class InThisProcess:
    """A job of an experiment that runs when started, without importing torch again."""

    def __init__(self, job: Job, gpu: str, parallel: bool) -> None:
        words = job.argv()
        module, flags = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
        main = importlib.import_module(module.removesuffix(".py")).main
        self.returncode = console.run(main, flags)

    def poll(self) -> int:
        return self.returncode


def start(folder: Path, pictures: Path, *more: object, **options: object) -> subprocess.Popen:
    """Train in a process of its own."""
    python = sys.executable if "start_new_session" in options else warm.PYTHON
    data = ["--dataset", "folder", "--data", pictures]
    argv = [python, ROOT / "main.py", *QUICK, *data, "--save", folder, *more]
    return subprocess.Popen(
        [str(arg) for arg in argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def assert_same_run(one: Path, other: Path) -> None:
    """Two folders of one run hold the same: bit by bit, and line by line but for the times."""
    path = only_checkpoint(one)
    run = path.parent.name
    for name in (path.name, "model_best.pth.tar"):
        assert_same(*(torch.load(f / run / name, weights_only=True) for f in (one, other)))
    logs = [rows(f / run / "log.csv") for f in (one, other)]
    for row in (*logs[0], *logs[1]):
        row.update(train_seconds="", test_seconds="")
    assert logs[0] == logs[1]


def assert_same(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict | list | tuple):
        assert len(one) == len(other)
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_same(one[key], other[key])
    else:
        assert one == other


DIES_AT = """
import os, signal, sys
import main
from utils import console

left = int(sys.argv[1])

def then(function):
    def dies(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return dies

for name in ("replace", "fsync", "write", "open", "unlink", "rename", "ftruncate"):
    setattr(os, name, then(getattr(os, name)))
sys.exit(console.run(main.main, sys.argv[2:]))
"""


def dies_at(call: int, argv: list[object]) -> int:
    """Train, but be killed at the ``call``-th call that touches files; the exit status."""
    command = [warm.PYTHON, "-c", DIES_AT, str(call), *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode
