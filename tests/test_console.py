"""What is printed: to readers that leave, onto full disks, and how an epoch stands."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from select import select

import pytest

from utils import console

ROOT = Path(__file__).parents[1]
PRINTS = """
import sys
from utils import console
from utils.console import note

def main(argv):
    for i in range(100_000):
        {line}

sys.exit(console.run(main))
"""
TO_OUT, TO_ERR = "print('a line', i)", "note(f'a line {i}')"


@pytest.mark.parametrize(("line", "stream"), [(TO_OUT, "stdout"), (TO_ERR, "stderr")])
def test_a_reader_that_leaves_ends_it_without_a_word(line, stream):
    command = [sys.executable, "-c", PRINTS.format(line=line)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert getattr(process, stream).readline() == b"a line 0\n"
        getattr(process, stream).close()
        other = process.stderr if stream == "stdout" else process.stdout
        assert other.read() == b""
    assert process.returncode == 141


def test_an_operation_that_is_not_deterministic_is_named(capsys):
    def main(argv):
        reason = "f_cuda does not have a deterministic implementation"
        raise RuntimeError(f"{reason}, but you set 'torch.use_deterministic_algorithms(True)'. ...")

    assert console.run(main) == 2
    said = "error: f_cuda does not have a deterministic implementation: leave out --deterministic"
    assert capsys.readouterr().err.startswith(said)


def test_what_is_printed_last_counts_too():
    """A few lines stay in Python's buffer until the end."""
    few = PRINTS.format(line=TO_OUT).replace("100_000", "10")
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys\nsys.stdin.read()\n{few}"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_the_output_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", PRINTS.format(line=TO_OUT)]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def shown(columns: int, numbers: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The last of what a bar draws on a terminal so wide, late in a long run."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = console.Progress(782, "epoch 123/160", 391, lambda: numbers, epochs_left=37)
        progress.started -= 3600  # as if the steps had taken so long
        for _ in range(391):
            progress.step()
        progress.bar.refresh()
        drawn = b""
        while select([master], [], [], 1)[0]:  # a terminal passes on what it is given by and by
            drawn += os.read(master, 65536)
        progress.bar.close()
    os.close(master)
    return drawn.decode().rstrip().split("\r")[-1]


def test_zeros_and_the_time_left_are_seen_at_80_columns(monkeypatch):
    zeros, rest = "γ = 0: 10234, ξ = 0: 11234", "loss 1.2345, accuracy 45.67 %"
    narrow = shown(80, f"{zeros}, {rest}", monkeypatch)
    assert len(narrow) <= 80
    assert narrow.startswith("epoch 123/160: ") and "391/782" in narrow and zeros in narrow
    assert re.search(r"run \d+:\d\d:\d\d left", narrow)
    wide = shown(160, f"{zeros}, {rest}", monkeypatch)
    assert len(wide) <= 160
    assert rest in wide and "it/s" in wide
