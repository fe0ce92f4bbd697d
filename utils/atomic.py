"""Files that nobody ever finds half written, and folders that can be written to."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path

from utils.console import InputError, note


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
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


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Within, this process has the lock ``path``, a file that is there as long; a kill frees it.

    Raises InputError at once where another process has it; one that only looks (:func:`is_held`) is
    waited for. What must be made of its folder goes again if nothing else comes into it.
    """
    check_writable(path.parent)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for folder in reversed(made):
            stack.callback(_discard, folder.rmdir)
        while True:
            file = stack.enter_context(path.open("a"))
            try:
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    # Who only looks shares it, with this process too.
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    file.close()
                    time.sleep(0.01)
                    continue
                # What is forked from here must not hold it for longer than this process.
                os.register_at_fork(after_in_child=file.close)
            except BlockingIOError:
                raise InputError(
                    f"another process trains {path.with_suffix('')}: wait for it, or give this run"
                    " another --name or --save"
                ) from None
            except (ImportError, OSError):  # Windows and some network file systems
                note(
                    "note: locks are unknown here: see to it that no other process trains this run"
                )
                break
            # The process before may have removed the file while this one opened it.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        stack.callback(_discard, path.unlink)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process is :func:`alone` with the lock ``path``."""
    try:
        import fcntl

        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # none there, or locks are unknown here
        return False
    return False


def _discard(remove: Callable[[], None]) -> None:
    with suppress(OSError):  # as a folder that is not empty
        remove()


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
