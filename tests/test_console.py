"""Output of commands: readers that end, full disks, torch's errors, and the progress bar."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from functools import partial
from pathlib import Path
from select import select

import pytest
import torch

from utils import console
from workshop import error_line

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
from utils import console
from utils.console import note

def main(argv):
    for i in range(100_000):
        {line}

sys.exit(console.run(main))
"""
BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
TO_STDOUT, TO_STDERR = "print('a line', i)", "note(f'a line {i}')"


@pytest.mark.parametrize(("line", "stream"), [(TO_STDOUT, "stdout"), (TO_STDERR, "stderr")])
def test_a_command_ends_silently_after_its_reader(line, stream):
    command = [sys.executable, "-c", SCRIPT.format(line=line)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=BUFFERED, **pipes) as process:
        assert getattr(process, stream).readline() == b"a line 0\n"
        getattr(process, stream).close()
        other = process.stderr if stream == "stdout" else process.stdout
        assert other.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("line", [TO_STDOUT, "print('a line'); raise console.InputError('bad')"])
def test_output_on_a_full_disk_is_an_error(line):
    command = [sys.executable, "-c", SCRIPT.format(line=line)]
    with open("/dev/full", "w") as full:
        options = {"cwd": ROOT, "env": BUFFERED, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run(command, stdout=full, **options)
    assert done.returncode == 2 and error_line(done.stderr)


def fail(error: Exception, argv: object) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "hint"),
    [
        (MemoryError(), 2, "--batch-size"),
        (RuntimeError("CUDA out of memory. Tried ..."), 2, "--batch-size"),
        (RuntimeError("DataLoader worker (pid 3) is killed"), 1, "(DataLoader worker (pid 3) is"),
        (ValueError("Expected more than 1 value per channel when training"), 2, "--batch-size"),
        (console.InputError("one\ntwo"), 2, "one\\x0atwo"),
        (OSError("disk full"), 2, "disk full"),
        (console.NonFiniteLoss("loss"), 3, "loss"),
        (console.PeerLost("peer"), 1, "peer"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_errors_are_one_line_with_a_hint(error, status, hint, capsys):
    assert console.run(partial(fail, error)) == status
    assert hint in error_line(capsys.readouterr().err)


def test_too_little_memory_is_an_error_with_a_hint(capsys):
    assert console.run(lambda argv: torch.empty(2**50)) == 2
    assert "--batch-size" in error_line(capsys.readouterr().err)


@pytest.mark.parametrize(("kind", "processes"), [(ValueError, 2), (RuntimeError, 1)])
def test_errors_of_the_program_keep_their_traceback(kind, processes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(kind):
        console.run(partial(fail, kind("bug")))


def last_bar(columns: int, metrics: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the bar on a terminal of this width, an hour after the start of epoch 123."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = console.Progress(782, "epoch 123/160", 391, lambda: metrics, epochs_left=37)
        progress.started -= 3600
        for _ in range(391):
            progress.step()
        progress.bar.refresh()
        output = b""
        while select([master], [], [], 0.1)[0]:
            output += os.read(master, 65536)
        progress.bar.close()
    os.close(master)
    return output.decode().rstrip().split("\r")[-1]


def test_zeros_and_the_time_left_fit_into_80_columns(monkeypatch):
    zeros, rest = "γ = 0: 10234, ξ = 0: 11234", "loss 1.2345, accuracy 45.67 %"
    narrow = last_bar(80, f"{zeros}, {rest}", monkeypatch)
    assert len(narrow) <= 80
    assert narrow.startswith("epoch 123/160: ") and "391/782" in narrow and zeros in narrow
    assert re.search(r"run \d+:\d\d:\d\d left", narrow)
    wide = last_bar(160, f"{zeros}, {rest}", monkeypatch)
    assert len(wide) <= 160 and rest in wide and "it/s" in wide
