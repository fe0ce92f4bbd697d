"""The first import of what is run as a command: what must be right before all others.

Importing it changes the process, so nothing else does. It needs the standard library only.
"""

import os
import re
import shlex
import signal
import sys
from importlib.util import find_spec
from typing import NoReturn

from utils.shell import ROOT, path_argument, python_command, relative_path


def exit_with_error(why: str) -> NoReturn:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def interrupted(signum: int, frame: object) -> None:
    """An exception in the middle of an import may become another; and there is nothing to save."""
    os.write(2, b"interrupted\n")
    os._exit(128 + signum)


def open_streams() -> None:
    """Where one was closed, the next file to be opened would take its number, and its lines."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def check_packages() -> None:
    """End where one of the requirements is missing, with what installs or finds it."""
    requirements, venv = ROOT / "requirements.txt", ROOT / ".venv"
    names = re.findall(r"^\w+", requirements.read_text(), re.MULTILINE)
    missing = [name for name in names if find_spec(name) is None]
    if not missing:
        return
    install = ["-m", "pip", "install", "-r", path_argument(relative_path(requirements))]
    there = venv / "bin" / "python"
    again = shlex.join([path_argument(relative_path(there)), *sys.orig_argv[1:]])
    if sys.prefix != sys.base_prefix:  # an environment is active
        advice = shlex.join([python_command(), *install])
    elif there.exists() and any(venv.glob("lib/python*/site-packages/torch")):
        advice = again
    else:
        made = shlex.join([python_command(), "-m", "venv", path_argument(relative_path(venv))])
        advice = (
            f"{made} && {shlex.join([path_argument(relative_path(there)), *install])} && {again}"
        )
    exit_with_error(f"{python_command()} has no {', '.join(missing)}: type {advice}")


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupted)  # until utils.console.run
open_streams()
if sys.version_info < (3, 11):  # noqa: UP036
    exit_with_error(
        f"{python_command()} is Python {sys.version.split()[0]}, and this takes 3.11 or newer"
    )
check_packages()
