"""Small training runs for tests: flags, processes, and what two runs must have in common."""

import csv
import subprocess
import sys
from pathlib import Path

import torch

from utils import cli

ROOT = Path(__file__).parents[1]
# Deterministic: nothing is measured, so that every start computes the same.
QUICK = ["--epochs", "8", "--batch-size", "8", "--deterministic", "--no-cuda"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(folder: Path, pictures: Path, *more: object) -> int:
    """Train in process, which saves importing torch each time."""
    import main

    if "--refine" not in more:
        more = ["--dataset", "folder", "--data", pictures, *more]
    argv = [*QUICK, "--save", folder, *more]
    return cli.run(main.main, [str(arg) for arg in argv])


def start(folder: Path, pictures: Path, *more: object, **options: object) -> subprocess.Popen:
    """Train in a process of its own."""
    data = ["--dataset", "folder", "--data", pictures]
    argv = [sys.executable, ROOT / "main.py", *QUICK, *data, "--save", folder, *more]
    return subprocess.Popen(
        [str(arg) for arg in argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def assert_same_run(one: Path, other: Path) -> None:
    """Two folders of one run hold the same: bit by bit, and line by line but for the times."""
    (path,) = one.glob("*checkpoint.pth.tar")
    contents = [torch.load(folder / path.name, weights_only=True) for folder in (one, other)]
    assert_same(*contents)
    for log in one.glob("*log.csv"):
        lines = [
            [
                {k: v for k, v in row.items() if not k.endswith("seconds")}
                for row in rows(f / log.name)
            ]
            for f in (one, other)
        ]
        assert lines[0] == lines[1]
    best = path.name.replace("checkpoint", "model_best")
    assert_same(*(torch.load(folder / best, weights_only=True) for folder in (one, other)))


def assert_same(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other
