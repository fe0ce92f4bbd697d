"""CSV files of runs: a log of epochs for each run, and records of runs.

A final line without a newline is incomplete: it is ignored, and the next row replaces it.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.atomic import atomic_write
from utils.console import InputError
from utils.files.locks import is_file_at

Row = dict[str, str]
NUMBER = r"(-?\d+(\.\d*)?(e[-+]?\d+)?)?"  # or an empty cell


def read(path: Path, needs: Iterable[str] = (), numbers: Iterable[str] = ()) -> list[Row]:
    """Returns the rows of ``path``, none if there is no such file.

    Args:
        needs: columns without empty cells.
        numbers: columns whose cells are numbers or empty.

    Raises InputError: the file was written by another program, or is damaged.
    """
    try:
        return _parse(path, path.read_bytes(), tuple(needs), tuple(numbers))[1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None


def append(path: Path, row: Mapping[str, object], key: Sequence[str] = ()) -> None:
    """Appends ``row``, with None as an empty cell, and new columns behind those of the file.

    With ``key``, it replaces the row that has the same cells in these columns, if there is one.
    Several processes may append at the same time. Raises InputError: the file was written by
    another program, or could not be written; it is then unchanged.
    """
    cells = {name: "" if value is None else str(value) for name, value in row.items()}
    try:
        with _locked(path):
            columns, rows = _parse(path, path.read_bytes(), list(row)[:1])
            same = [bool(key) and all(old.get(k) == cells[k] for k in key) for old in rows]
            new = [cells if match else old for old, match in zip(rows, same, strict=True)]
            new += [] if any(same) else [cells]
            _write(path, list(dict.fromkeys([*columns, *cells])), new)
    except OSError as error:
        raise InputError(f"{path} could not be written ({error})") from None


def keep_epochs(path: Path, count: int) -> list[Row]:
    """Deletes the rows of a log after epoch ``count``, which a resumed run repeats.

    Returns the other rows. Raises InputError if the log was written by another program.
    """
    needs = ("epoch", "train_seconds", "test_accuracy", "flops")
    rows = [row for row in read(path, needs, needs) if float(row["epoch"]) <= count]
    if rows:
        _write(path, list(rows[0]), rows)
    else:
        path.unlink(missing_ok=True)
    return rows


def _parse(
    path: Path, content: bytes, needs: Sequence[str], numbers: Sequence[str] = ()
) -> tuple[list[str], list[Row]]:
    """Returns the columns and rows of a file's ``content``, checked as in :func:`read`."""
    other = f"{path} has other columns than this program writes"
    # Even an incomplete header must look like one, or the file is not of this program.
    if not re.fullmatch(rb"[a-z_,]*\r?", content.partition(b"\n")[0]):
        raise InputError(f"{other}: move it away")
    try:
        text = content[: content.rfind(b"\n") + 1].decode()
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="beyond the last column")
        rows, header = list(reader), list(reader.fieldnames or [])
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None
    if missing := [column for column in (*needs, *numbers) if header and column not in header]:
        raise InputError(f"{other} (it has no column {missing[0]}): move it away")
    for number, row in enumerate(rows, 2):
        for column, cell in row.items():
            valid = isinstance(cell, str) and (cell or column not in needs)  # no cell too few
            if not valid or (column in numbers and not re.fullmatch(NUMBER, cell)):
                raise InputError(
                    f"{path}, line {number}: {column} is {cell!r}; correct that line, or move the"
                    " file away"
                )
    return header, rows


def _write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Replaces the file; unprintable characters become spaces, so that a row is a line."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        writer.writerow("".join(c if c.isprintable() else " " for c in cell) for cell in cells)
    with atomic_write(path) as new:
        new.write_bytes(text.getvalue().encode())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Creates ``path`` if needed, and locks it where the system has locks."""
    while True:
        with path.open("a") as file:
            with suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            if is_file_at(path, file):
                yield
                return
