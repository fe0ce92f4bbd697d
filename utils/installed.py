"""Whether this python has what a requirements file asks for: status 0 or 1, and what it lacks.

    python -P utils/installed.py requirements.txt

For script.sh, before anything is installed: it imports nothing that may be missing, pip neither.
"""

import re
import sys
from importlib import metadata
from pathlib import Path


def lacks(path: Path) -> list[str]:
    """The lines of a requirements file, ``NAME>=VERSION`` or ``-r FILE``, that are not met."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        requirement = line.partition("#")[0].strip()
        if requirement.startswith("-r "):
            found += lacks(path.parent / requirement[3:].strip())
        elif requirement and not is_met(requirement):
            found.append(requirement)
    return found


def is_met(requirement: str) -> bool:
    """Whether what it names is installed, and as new; False where it is written in another way."""
    asked = re.fullmatch(r"([\w.-]+)(?:>=([\d.]+))?", requirement)
    if asked is None:
        return False
    try:
        there = metadata.version(asked[1])
    except metadata.PackageNotFoundError:
        return False
    return release(there or "") >= release(asked[2] or "")


def release(version: str) -> tuple[int, ...]:
    """2.11.0a0+cu130 as (2, 11): zeros at the end mean nothing."""
    numbers = re.match(r"[\d.]*", version.rpartition("!")[2])
    found = [int(number) for number in (numbers[0] if numbers else "").split(".") if number]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


if __name__ == "__main__":
    missing = lacks(Path(sys.argv[1]))
    print("\n".join(missing))
    sys.exit(bool(missing))
