"""Locks on the files of a run, and a check that a folder is writable."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from utils.console import InputError, note

# --list holds a lock for a moment.
LOCK_ATTEMPTS, LOCK_WAIT = 6, 0.1  # seconds between attempts


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``path``, which is deleted at the end; a kill releases it.

    Folders that were created for the lock are deleted too if they are still empty.

    Raises InputError: another process holds the lock.
    """
    check_writable(path.parent)
    created = [folder for folder in path.parents if not folder.exists()]
    try:
        with _open_locked(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # not empty
            for folder in created:
                folder.rmdir()


def _open_locked(path: Path) -> TextIO:
    """Returns the locked file, or an unlocked one with a note where there are no locks."""
    for _ in range(LOCK_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)  # another process may delete it, empty
        file = path.open("a")
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_WAIT)
        except (ImportError, OSError):  # Windows and some network file systems
            note("note: no file locks here: make sure that no other process trains this run")
            return file
        else:
            if is_file_at(path, file):
                os.register_at_fork(after_in_child=file.close)  # children do not keep the lock
                return file
        file.close()
    raise InputError(
        f"another process trains {path.parent}: wait for it, or give this run another --name or"
        " --save"
    )


def is_file_at(path: Path, file: TextIO) -> bool:
    """Whether ``file`` is still at ``path``: the lock's holder may have deleted or replaced it."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def is_locked(path: Path) -> bool:
    """Returns whether another process has locked ``path`` by :func:`file_lock`."""
    try:
        import fcntl

        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # no such file, or no locks on this system
        pass
    return False


def check_writable(folder: Path) -> None:
    """Raises InputError unless ``folder`` can be created or files can be created in it."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise InputError(f"cannot save in {folder}: {existing} is not a folder")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError:
        raise InputError(f"cannot save in {folder}: {existing} is not writable") from None
