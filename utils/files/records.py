"""The CSV files that runs write: a log of epochs each, and records of runs.

A row is a line. What stands after the last line end was cut off by a kill or a full disk: it counts
as not there, and the next row takes its place.
"""

import csv
import errno
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from utils.atomic import replacing
from utils.console import InputError

try:
    import fcntl
except ImportError:  # Windows: rows that are appended at the same moment may mix there
    fcntl = None

# Columns may be added at the end of these, never elsewhere: people's scripts read them.
LOG = (
    "epoch,lr,alpha,train_loss,objective,ns_objective,test_loss,test_accuracy,"
    "gamma_zeros,xi_zeros,train_seconds,test_seconds,change,"
    "channels,flops"
).split(",")
TRAINED = (
    "run,method,arch,depth,dataset,seed,epochs,s,beta,prox_every,precision,channels,"
    "gamma_zeros,xi_zeros,test_accuracy,best_accuracy,seconds_per_epoch,checkpoint,command,"
    "subset,batch_size,commit,python,torch,device,threads,processes,"
    "test_subset,lr,momentum,weight_decay,nesterov,xi_init,source,train_seconds,"
    "keep_dead"
).split(",")
PRUNED = (
    "model,run,method,arch,depth,dataset,seed,s,beta,percent,channels,channels_kept,"
    "channels_pruned_percent,parameters,parameters_kept,parameters_pruned_percent,flops,"
    "flops_kept,flops_pruned_percent,paper_parameters_pruned_percent,"
    "paper_flops_pruned_percent,accuracy_before,accuracy_masked,accuracy_slim,"
    "mask,silent,constant,alive,difference_masked,changed_masked,near_ties_masked,"
    "difference_slim,changed_slim,near_ties_slim,largest_logit,target_flops,target_params"
).split(",")


def read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of ``path``, none where there is no such file.

    Columns that were added since the file was begun are empty. Raises InputError when the file is
    not one of ours: other columns, a damaged line, or not text.
    """
    try:
        return _parse(path, path.read_bytes(), columns)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None


def append(path: Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Append ``row`` as one line, with a header first where the file is new; None as nothing.

    Several processes may do so at the same time. A file that was begun with fewer columns gets the
    new ones. Raises InputError when the file is not one of ours, or where the disk refuses.
    """
    try:
        with _locked(path) as file:
            file.seek(0)
            content = file.read()
            rows = _parse(path, content, columns)
            whole, header = content.rfind(b"\n") + 1, _header(columns)
            if whole and not content.startswith(header):
                _write(path, columns, [*rows, row])
                return
            file.truncate(whole)
            line = (b"" if whole else header) + _text([row], columns)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(whole)
                raise
    except OSError as error:
        raise InputError(f"{path} could not be written ({error})") from None


def keep_epochs(path: Path, done: int) -> list[dict[str, str]]:
    """Keep the log's lines of epochs 1 to ``done``: a resumed run writes the later ones again.

    Raises InputError when a line of the log is none of ours.
    """
    try:
        rows = [row for row in read(path, LOG) if int(row["epoch"]) <= done]
        for row in rows:
            float(row["train_seconds"]), float(row["test_accuracy"])
    except ValueError:
        raise InputError(f"{path} has a line that is no epoch's: move it away") from None
    if path.exists():
        _write(path, LOG, rows)
    return rows


def _parse(path: Path, content: bytes, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows in a file's ``content``."""
    whole = content[: content.rfind(b"\n") + 1]
    other = f"{path} has other columns than this program writes: move it away"
    if not whole and not _header(columns).startswith(content):
        raise InputError(other)
    rows = []
    try:
        reader = csv.reader(io.StringIO(whole.decode(), newline=""))
        header = next(reader, [])
        if header != columns[: len(header)]:
            raise InputError(other)
        for values in filter(None, reader):
            if len(values) != len(header):
                raise InputError(f"{path} is damaged in line {reader.line_num}: move it away")
            rows.append(dict.fromkeys(columns, "") | dict(zip(header, values, strict=True)))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None
    return rows


def _header(columns: Sequence[str]) -> bytes:
    return _text([dict(zip(columns, columns, strict=True))], columns)


def _text(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> bytes:
    """A line for each of ``rows``, whatever characters are in them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    for row in rows:
        values = {key: "" if value is None else str(value) for key, value in row.items()}
        writer.writerow(
            {k: "".join(c if c.isprintable() else " " for c in v) for k, v in values.items()}
        )
    return text.getvalue().encode()


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Replace the whole file."""
    with replacing(path) as new:
        new.write_bytes(_header(columns) + _text(rows, columns))


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """``path`` opened to read and append, alone among the processes that do so by this function."""
    while True:
        with path.open("a+b", buffering=0) as file:
            with suppress(OSError):  # some network file systems know no locks
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
            # Another process may have replaced the file while this one waited.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return
