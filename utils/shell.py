"""Command lines of this program that can be pasted into the current shell."""

import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def format_command(*words: str) -> str:
    """Returns a command line for the current folder and the running Python.

    ``words`` are a script of this program, or ``-m`` and a module, and its flags.
    """
    if words[0] != "-m":
        script = path_argument(relative_path(ROOT / words[0]))
        return shlex.join([python_command(), script, *words[1:]])
    if Path.cwd() == ROOT or not words[1].startswith("utils."):
        return shlex.join([python_command(), *words])
    path = shlex.quote(str(relative_path(ROOT)))  # -P: ignores a package utils of this folder
    return f"PYTHONPATH={path} {shlex.join([python_command(), '-P', *words])}"


def path_argument(path: Path) -> str:
    """Returns ``path`` as a command-line word that is not parsed as a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def python_command() -> str:
    """Returns the command for the running Python: ``python``, ``python3`` or its path."""
    own = Path(sys.executable)
    for name in ("python", "python3"):
        path = shutil.which(name)
        # Pythons of virtual environments link to the same file, so the folders are compared too.
        if path and Path(path).absolute().parent == own.parent and os.path.samefile(path, own):
            return name
    path = str(relative_path(own))
    return path if os.sep in path else f"./{path}"


def relative_path(path: Path) -> Path:
    """Returns ``path`` relative to the current folder if it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
