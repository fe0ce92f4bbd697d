"""The CSV files that runs write: a log of epochs each, and records of runs.

A row is a line. What stands after the last line end was cut off by a kill or a full disk: it counts
as not there, and the next row takes its place.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.atomic import atomic_write
from utils.console import InputError

Row = dict[str, str]


def read(path: Path, needs: Iterable[str] = (), numbers: Iterable[str] = ()) -> list[Row]:
    """Rows of ``path`` by column, none where there is no such file.

    Every row has what it ``needs``, and what is in ``numbers`` is one or empty. Raises InputError
    when the file is not one of ours, or damaged.
    """
    try:
        return _parse(path, path.read_bytes(), tuple(needs), tuple(numbers))[1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None


def append(path: Path, row: Mapping[str, object]) -> None:
    """Append ``row`` as one line, with a header first where the file is new; None as nothing.

    Several processes may do so at the same time. A file that was begun with other columns gets the
    new ones behind its own. Raises InputError when the file is not one of ours, or where the disk
    refuses.
    """
    try:
        with _locked(path) as file:
            file.seek(0)
            content = file.read()
            header, rows = _parse(path, content, list(row)[:1])
            whole = content.rfind(b"\n") + 1
            columns = list(dict.fromkeys([*header, *row]))
            if whole and columns != header:
                _write(path, columns, [*rows, row])
                return
            file.truncate(whole)
            line = _text(columns, [row], header=not whole)
            try:
                if file.write(line) < len(line):
                    raise OSError("no space left")
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise InputError(f"{path} could not be written ({error})") from None


def keep_epochs(path: Path, done: int) -> list[Row]:
    """Keep the log's lines of epochs 1 to ``done``: a resumed run writes the later ones again.

    Raises InputError when a line of the log is none of ours.
    """
    needs = ("epoch", "train_seconds", "test_accuracy", "flops")
    rows = [row for row in read(path, needs, needs) if float(row["epoch"]) <= done]
    if rows:
        _write(path, list(rows[0]), rows)
    else:
        path.unlink(missing_ok=True)
    return rows


def _parse(
    path: Path, content: bytes, needs: Sequence[str], numbers: Sequence[str] = ()
) -> tuple[list[str], list[Row]]:
    """The columns and the rows in a file's ``content``, checked as :func:`read` says."""
    other = f"{path} has other columns than this program writes"
    try:
        whole = content[: content.rfind(b"\n") + 1].decode()
        # Without a line end it may be a header that was cut off, or anything.
        if not re.fullmatch(rb"[a-z_,]*\r?", content.partition(b"\n")[0]):
            raise InputError(f"{other}: move it away")
        reader = csv.DictReader(io.StringIO(whole, newline=""), restkey="beyond the last column")
        rows, header = list(reader), list(reader.fieldnames or [])
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None
    if missing := [column for column in (*needs, *numbers) if header and column not in header]:
        raise InputError(f"{other} (it has no column {missing[0]}): move it away")
    for number, row in enumerate(rows, 2):
        for column, cell in row.items():
            fits = isinstance(cell, str) and (cell or column not in needs)  # neither none nor more
            if not fits or (column in numbers and not _is_number(cell)):
                raise InputError(
                    f"{path}, line {number}: {column} is {cell!r}; mend that line or move the file"
                    " away"
                )
    return header, rows


def _is_number(cell: str) -> bool:
    try:
        return not cell or abs(float(cell)) < 1e30
    except ValueError:
        return False


def _text(
    columns: Sequence[str], rows: Iterable[Mapping[str, object]], header: bool = True
) -> bytes:
    """A line for each of ``rows``, whatever characters are in them."""
    text = io.StringIO()
    writer = csv.writer(text)
    if header:
        writer.writerow(columns)
    for row in rows:
        cells = ["" if row.get(column) is None else str(row[column]) for column in columns]
        writer.writerow("".join(c if c.isprintable() else " " for c in cell) for cell in cells)
    return text.getvalue().encode()


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Replace the whole file."""
    with atomic_write(path) as new:
        new.write_bytes(_text(columns, rows))


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """``path`` opened to read and append, alone among the processes that do so by this function."""
    while True:
        with path.open("a+b", buffering=0) as file:
            # Windows and some network file systems know no locks: rows of one moment may mix there.
            with suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            # Another process may have replaced the file while this one waited.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return
