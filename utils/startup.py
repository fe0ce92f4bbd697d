"""Checks of a command before its other imports; import it first. Standard library only."""

import re
import shlex
import sys
from importlib.util import find_spec

from utils.shell import ROOT, path_argument, python_command, relative_path


def check_packages() -> None:
    """Exits if a required package is missing, with the commands that install it."""
    requirements = ROOT / "requirements.txt"
    names = re.findall(r"^\w+", requirements.read_text(), re.MULTILINE)
    missing = [name for name in names if find_spec(name) is None]
    if not missing:
        return
    pip = ["-m", "pip", "install", "-r", path_argument(relative_path(requirements))]
    venv = path_argument(relative_path(ROOT / ".venv"))
    advice = shlex.join([python_command(), *pip])
    if sys.prefix == sys.base_prefix:  # no virtual environment is active
        venv_python = f"{venv}/bin/python"
        commands = [python_command(), "-m", "venv", venv], [venv_python, *pip]
        again = [venv_python, *sys.orig_argv[1:]]
        advice = " && ".join(map(shlex.join, (*commands, again)))
    sys.exit(print_error(f"{python_command()} has no {', '.join(missing)}: type {advice}"))


def print_error(message: str) -> int:
    """Prints an error; returns the exit status of unusable input."""
    print(f"error: {message}", file=sys.stderr)
    return 2


if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(print_error(f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed"))
check_packages()
