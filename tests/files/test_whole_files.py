"""Files are never half written: after kills, on full disks, with several writers."""

import csv
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import main
from runs import command
from utils.console import InputError
from utils.files import checkpoint, records
from workshop import ROOT, error_line


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Acts as a full disk: no file grows beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(number: float) -> dict[str, object]:
    return {"state_dict": {"a": torch.full((100_000,), number)}, "epoch": 1}


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "x.pth.tar"
    checkpoint.save(path, content(1))
    good = path.read_bytes()
    with file_size_limit(100_000), pytest.raises(InputError) as error:
        checkpoint.save(path, content(2))
    for part in (f"{path} could not be written", "File too large", "previous file is unchanged"):
        assert part in str(error.value)
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_ends_a_run_with_one_line(shop, tmp_path, capsys):
    capsys.readouterr()
    with file_size_limit(100_000):
        assert command(main, *shop.train(), "--save", tmp_path) == 2
    line = error_line(capsys.readouterr().err.splitlines()[-1])
    assert "baseline_seed1_resnet_11_folder/model_best.pth.tar could not be written" in line
    assert [path.name for path in tmp_path.rglob("*.*")] == ["log.csv"]


def save_forever(path: Path) -> None:
    number = 0
    while True:
        checkpoint.save(path, content(number := number + 1))


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "x.pth.tar"
    checkpoint.save(path, content(0))
    temporary = 0
    for i in range(8):
        writer = multiprocessing.get_context("fork").Process(target=save_forever, args=(path,))
        writer.start()
        time.sleep(0.02 + 0.003 * i)
        writer.kill()
        writer.join()
        state = torch.load(path, weights_only=True)["state_dict"]["a"]
        assert (state == state[0]).all()
        assert len(list(tmp_path.iterdir())) <= 2
        temporary += len(list(tmp_path.iterdir())) - 1
    assert temporary, "no writer was killed while it wrote"
    checkpoint.save(path, content(0))
    assert list(tmp_path.iterdir()) == [path]


APPEND = """
import sys
from pathlib import Path
from utils.files import records
for i in range(int(sys.argv[2])):
    row = {"epoch": i, "text": sys.argv[1] * (i % 100)}
    records.append(Path(sys.argv[3]), row)
"""


def start_appending(path: Path, letter: str, count: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", APPEND, letter, str(count), str(path)]
    return subprocess.Popen(argv, cwd=ROOT)


def read_whole(path: Path) -> list[dict[str, str]]:
    """Reads all rows, each of which must be as it was appended."""
    rows = records.read(path)
    for row in rows:
        text = row.get("text", "")
        assert text == text[:1] * (int(row["epoch"]) % 100)
    return rows


@pytest.mark.parametrize("before", [None, b"epoch\r\n0\r\n9"])
def test_several_processes_append_to_one_record(tmp_path, before):
    """It is new, or has fewer columns and an incomplete line. One process is killed."""
    path = tmp_path / "record.csv"
    if before is not None:
        path.write_bytes(before)
    writers = [start_appending(path, letter, 30) for letter in "abc"]
    killed = start_appending(path, "k", 10**6)
    while not path.exists() or not path.read_bytes().count(b",k"):
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    while any(writer.poll() is None for writer in writers):
        read_whole(path)
    assert not any(writer.returncode for writer in writers)
    rows = read_whole(path)
    for letter in "abc":
        epochs = [int(row["epoch"]) for row in rows if row["text"][:1] == letter]
        assert epochs == [i for i in range(30) if i]
    with path.open(newline="") as file:
        assert [*csv.reader(file)].count(["epoch", "text"]) == 1


def test_a_full_disk_leaves_the_record_unchanged(tmp_path):
    path = tmp_path / "record.csv"
    records.append(path, {"epoch": 1, "text": "a"})
    before = path.read_bytes()
    with file_size_limit(len(before) + 5), pytest.raises(InputError, match="could not be written"):
        records.append(path, {"epoch": 2, "text": "a" * 100})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


HEADER, FIRST = b"epoch,text\r\n", b"1,a\r\n"
INCOMPLETE = [*(HEADER[:n] for n in (0, 3, 6, 11)), *(HEADER + FIRST + tail for tail in (
    b"2", b"2,bb", b'2,"b', b"\0\0\0\0", b"\xff"))]  # fmt: skip


@pytest.mark.parametrize("content", INCOMPLETE)
def test_an_incomplete_line_is_ignored_and_replaced(tmp_path, content):
    path = tmp_path / "record.csv"
    path.write_bytes(content)
    first = [{"epoch": "1", "text": "a"}] if FIRST in content else []
    assert records.read(path) == first
    records.append(path, {"epoch": 2, "text": "c"})
    assert path.read_bytes() == HEADER + FIRST * len(first) + b"2,c\r\n"


def test_new_columns_are_added_and_every_row_is_one_line(tmp_path):
    path = tmp_path / "record.csv"
    records.append(path, {"epoch": 1, "text": "a"})
    records.append(path, {"epoch": 2, "commit": "39c68fc", "text": "b"})
    assert path.read_bytes() == b"epoch,text,commit\r\n1,a,\r\n2,b,39c68fc\r\n"
    records.append(path, {"epoch": 3, "text": 'a\r\nb\0c\x1bd\udcffe,"f"\u2028γ'})
    assert len(path.read_bytes().splitlines()) == 4
    assert records.read(path)[-1] == {"epoch": "3", "text": 'a  b c d e,"f" γ', "commit": ""}


@pytest.mark.parametrize(
    ("line", "reason"), [(b"1\r\n", "line 2"), (b"1,a,b\r\n", "line 2"), (b"\xff,a\n", "be read")]
)
def test_a_damaged_line_is_named(tmp_path, line, reason):
    path = tmp_path / "record.csv"
    path.write_bytes(b"epoch,text\r\n" + line + b"2,b\r\n")
    before = path.read_bytes()
    for use in (records.read, lambda p: records.append(p, {"epoch": 3})):
        with pytest.raises(InputError, match=reason):
            use(path)
    assert path.read_bytes() == before
