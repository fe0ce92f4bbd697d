"""Files are never found half written: kills, full disks and several writers."""

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
from utils.atomic import atomic_write
from utils.console import InputError
from utils.files import checkpoint, records
from workshop import ROOT, Workshop, error_line

COLUMNS = ["epoch", "text"]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As if the disk were full: no file grows beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(number: float) -> dict[str, object]:
    return {"state_dict": {"a": torch.full((100_000,), number)}, "epoch": 1}


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    checkpoint.save(path, content(1))
    good = path.read_bytes()
    with files_up_to(100_000), pytest.raises(InputError) as error:
        checkpoint.save(path, content(2))
    assert f"{path} could not be written" in str(error.value)
    assert "File too large" in str(error.value) and "the one before is kept" in str(error.value)
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_ends_a_run_in_one_line(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    with files_up_to(100_000):
        assert command(main, *shop.train(), "--save", tmp_path) == 2
    line = error_line(capsys.readouterr().err.splitlines()[-1])
    assert "baseline_seed1_resnet_11_foldermodel_best.pth.tar could not be written" in line
    assert [path.suffix for path in tmp_path.iterdir()] == [".csv"]


def test_a_folder_that_is_taken_away_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(InputError, match="logs/x could not be written"):
        checkpoint.save(tmp_path / "logs/x", content(1))


def _save_for_ever(path: Path) -> None:
    number = 0
    while True:
        checkpoint.save(path, content(number := number + 1))


def test_a_killed_writer_leaves_a_whole_file_and_nothing_for_long(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    checkpoint.save(path, content(0))
    left = 0
    for i in range(10):
        writer = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(path,))
        writer.start()
        time.sleep(0.02 + 0.003 * i)
        writer.kill()
        writer.join()
        state = torch.load(path, weights_only=True)["state_dict"]["a"]
        assert (state == state[0]).all()
        assert len(list(tmp_path.iterdir())) <= 2
        left += len(list(tmp_path.iterdir())) - 1
    assert left, "no writer was killed while it wrote"
    checkpoint.save(path, content(0))
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_writers_of_one_file_one_fails_and_the_other_is_whole(tmp_path: Path) -> None:
    with pytest.raises(OSError), atomic_write(tmp_path / "x") as first:
        first.write_text("first")
        (tmp_path / "x.1.tmp").write_text("as another process would begin")
        with atomic_write(tmp_path / "x") as second:
            second.write_text("second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "second"}


APPENDING = """
import sys
from pathlib import Path
from utils.files import records
for i in range(int(sys.argv[2])):
    row = {"epoch": i, "text": sys.argv[1] * (i % 100)}
    records.append(Path(sys.argv[3]), row)
"""


def appending(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", APPENDING, name, str(count), str(path)]
    return subprocess.Popen(argv, cwd=ROOT)


def whole_rows(path: Path) -> list[dict[str, str]]:
    """All rows, each of which must be as it was appended."""
    rows = records.read(path)
    assert all(
        row.get("text", "") == row.get("text", "")[:1] * (int(row["epoch"]) % 100) for row in rows
    )
    return rows


@pytest.mark.parametrize("before", [None, b"", b"epoch\r\n0\r\n", b"epoch,text\r\n0,\r\n9,tor"])
def test_five_processes_append_to_one_record(tmp_path: Path, before: bytes | None) -> None:
    """Whether it is there or not, began with fewer columns, or ends in a torn line."""
    path = tmp_path / "record.csv"
    if before is not None:
        path.write_bytes(before)
    writers = [appending(path, name, 60) for name in "abcde"]
    while any(writer.poll() is None for writer in writers):
        whole_rows(path)  # while it is written
    assert not any(writer.returncode for writer in writers)
    rows = whole_rows(path)
    assert len(rows) == 300 + bool(before)
    for name in "abcde":  # each one's in its order
        own = [int(row["epoch"]) for row in rows if row["text"][:1] == name]
        assert own == [i for i in range(60) if i]
    with path.open(newline="") as file:
        assert [row for row in csv.reader(file)].count(COLUMNS) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_of_a_record_stops_no_other(tmp_path: Path) -> None:
    path = tmp_path / "record.csv"
    victim = appending(path, "a", 10**6)
    while not path.exists():
        time.sleep(0.01)
    other = appending(path, "b", 200)
    time.sleep(0.3)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert other.wait(60) == 0
    assert len([row for row in whole_rows(path) if row["text"].startswith("b")]) == 198


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "record.csv"
    records.append(path, {"epoch": 1, "text": "a"})
    before = path.read_bytes()
    with files_up_to(len(before) + 5), pytest.raises(InputError, match="could not be written"):
        records.append(path, {"epoch": 2, "text": "a" * 100})
    assert path.read_bytes() == before


@pytest.mark.parametrize("tail", [b"2", b"2,bb", b'2,"b', b"\0\0\0\0", b"\xff"])
def test_a_torn_tail_is_no_row_and_makes_room(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "record.csv"
    records.append(path, {"epoch": 1, "text": "a"})
    with path.open("ab") as file:
        file.write(tail)
    first = {"epoch": "1", "text": "a"}
    assert records.read(path) == [first]
    records.append(path, {"epoch": 2, "text": "c"})
    assert records.read(path) == [first, {"epoch": "2", "text": "c"}]


@pytest.mark.parametrize("cut", range(len("epoch,text\r\n")))
def test_a_torn_header_is_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "record.csv"
    path.write_bytes(b"epoch,text\r\n"[:cut])
    assert records.read(path) == []
    records.append(path, {"epoch": 1, "text": "a"})
    assert path.read_bytes() == b"epoch,text\r\n1,a\r\n"


def test_a_record_with_fewer_columns_gets_the_new_ones(tmp_path: Path) -> None:
    path = tmp_path / "record.csv"
    records.append(path, {"epoch": 1, "text": "a"})
    records.append(path, {"epoch": 2, "commit": "39c68fc", "text": "b"})
    assert path.read_bytes() == b"epoch,text,commit\r\n1,a,\r\n2,b,39c68fc\r\n"
    records.append(path, {"epoch": 3, "text": "c"})  # the earlier one, again
    assert path.read_bytes().splitlines()[-1] == b"3,c,"


def test_whatever_is_in_a_row_it_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "record.csv"
    text = 'a\r\nb\0c\x1bd\udcffe,"f"\u2028γ'
    records.append(path, {"epoch": 1, "text": text})
    assert len(path.read_bytes().splitlines()) == 2
    assert records.read(path) == [{"epoch": "1", "text": 'a  b c d e,"f" γ'}]


@pytest.mark.parametrize(
    ("line", "why"), [(b"1\r\n", "line 2"), (b"1,a,b\r\n", "line 2"), (b"\xff,a\n", "be read")]
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "record.csv"
    path.write_bytes(b"epoch,text\r\n" + line + b"2,b\r\n")
    before = path.read_bytes()
    for use in (records.read, lambda p: records.append(p, {"epoch": 3})):
        with pytest.raises(InputError, match=why):
            use(path)
    assert path.read_bytes() == before
