"""Command lines of this program, as they are pasted into the shell that it was started from."""

import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def format_command(*words: str) -> str:
    """What to type for a script, or ``-m`` and a module, and its flags: from this folder.

    It starts the running python, where this program lies, whatever is in the names.
    """
    script, where = [path_argument(relative_path(ROOT / words[0])), *words[1:]], ""
    if words[0] == "-m":
        script = list(words)
        if Path.cwd() != ROOT and words[1].startswith("utils."):  # -P: no utils of this folder's
            script, where = ["-P", *words], f"PYTHONPATH={shlex.quote(str(relative_path(ROOT)))} "
    return where + shlex.join([python_command(), *script])


def path_argument(path: Path) -> str:
    """``path`` as a word of a command: what begins with a dash would be read as a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def python_command() -> str:
    """The running python: as the shell finds it, if that is the one, else its path."""
    own = Path(sys.executable)
    for name in ("python", "python3"):
        found = shutil.which(name)
        # A virtual environment's is a link to another's: the folder must be the same, too.
        if found and Path(found).absolute().parent == own.parent and os.path.samefile(found, own):
            return name
    path = relative_path(own)
    return str(path) if len(path.parts) > 1 else f"./{path}"  # or the shell would search for it


def relative_path(path: Path) -> Path:
    """``path``, relative where it lies below this folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
