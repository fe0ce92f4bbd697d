"""The CSV files that runs write: a log of epochs each, and records of runs.

A row is a line. What stands after the last line end was cut off by a kill or a full disk: it counts
as not there, and the next row takes its place.
"""

import csv
import errno
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.atomic import replacing
from utils.console import InputError

Row = dict[str, str]


def read(path: Path, needs: Iterable[str] = (), numbers: Iterable[str] = ()) -> list[Row]:
    """Rows of ``path`` by column, none where there is no such file.

    Every row has what it ``needs``, and what is in ``numbers`` is one or empty. Raises InputError
    when the file is not one of ours, or damaged.
    """
    needs, numbers = tuple(needs), tuple(numbers)
    try:
        rows = _parse(path, path.read_bytes(), (*needs, *numbers))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None
    for number, row in enumerate(rows, 2):
        for column in dict.fromkeys((*needs, *numbers)):
            empty = column in needs and not row[column]
            if empty or (column in numbers and not _is_number(row[column])):
                raise InputError(
                    f"{path}, line {number}: {column} is {row[column]!r}; mend that line or move"
                    " the file away"
                )
    return rows


def _is_number(cell: str) -> bool:
    try:
        return not cell or abs(float(cell)) < 1e30
    except ValueError:
        return False


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
            rows = _parse(path, content, list(row)[:1])
            whole = content.rfind(b"\n") + 1
            columns = list(dict.fromkeys([*_header(content), *row]))
            if whole and columns != _header(content):
                _write(path, columns, [*rows, row])
                return
            file.truncate(whole)
            line = _text([row], columns, header=not whole)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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
    if path.exists():
        _write(path, list(rows[0]) if rows else _header(path.read_bytes()), rows)
    return rows


def _header(content: bytes) -> list[str]:
    """The columns of a file, [] where its first line is not whole."""
    line, end, _ = content.partition(b"\n")
    return next(csv.reader([line.decode().rstrip("\r")]), []) if end else []


def _parse(path: Path, content: bytes, needs: Sequence[str]) -> list[Row]:
    """The rows in a file's ``content``, which has the columns that it ``needs``."""
    other, rows = f"{path} has other columns than this program writes", []
    try:
        header = _header(content)
        whole = content[: content.rfind(b"\n") + 1].decode()
        # Without a line end it may be a header that was cut off, or anything.
        if not re.fullmatch(rb"[a-z_,]*\r?", content.partition(b"\n")[0]):
            raise InputError(f"{other}: move it away")
        if missing := [column for column in needs if header and column not in header]:
            raise InputError(f"{other} (it has no column {missing[0]}): move it away")
        reader = csv.reader(io.StringIO(whole, newline=""))
        next(reader, [])
        for values in filter(None, reader):
            if len(values) != len(header):
                raise InputError(f"{path} is damaged in line {reader.line_num}: move it away")
            rows.append(dict(zip(header, values, strict=True)))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None
    return rows


def _text(
    rows: Iterable[Mapping[str, object]], columns: Sequence[str], header: bool = False
) -> bytes:
    """A line for each of ``rows``, whatever characters are in them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    if header:
        writer.writeheader()
    for row in rows:
        values = {key: "" if value is None else str(value) for key, value in row.items()}
        writer.writerow(
            {k: "".join(c if c.isprintable() else " " for c in v) for k, v in values.items()}
        )
    return text.getvalue().encode()


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Replace the whole file."""
    with replacing(path) as new:
        new.write_bytes(_text(rows, columns, header=True))


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
