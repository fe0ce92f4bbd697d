"""Files that nobody ever finds half written, and folders that can be written to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from utils.console import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write the file that becomes ``path`` when the block ends without an error.

    At any moment, a kill or a power cut included, ``path`` is the old file or the new one, whole.
    What killed writers left beside it goes first; of two that write at the same time, the first
    thus fails. Raises OSError where the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f"{escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on the disk."""
    if os.name == "nt":  # opens no folders, and syncs no file that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Raise InputError unless files can be made in ``folder``, or it can be made itself."""
    found = (path for path in (folder, *folder.parents) if os.path.lexists(path))
    existing = next(found, folder)
    if not existing.is_dir():
        raise InputError(f"cannot save in {folder}: {existing} is not a folder")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError:
        raise InputError(f"cannot save in {folder}: {existing} is not writable") from None
