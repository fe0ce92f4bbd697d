"""Prints the requirements that are not installed; exit status 0 if there are none, else 1.

    python -P utils/installed.py requirements.txt

script.sh runs it before anything is installed, so it imports the standard library only.
"""

import re
import sys
from importlib import metadata
from pathlib import Path


def missing_requirements(path: Path) -> list[str]:
    """Returns the lines ``NAME>=VERSION`` of a requirements file that are not met.

    Lines ``-r FILE`` are followed. Lines of another form count as not met.
    """
    missing = []
    for line in path.read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement.startswith("-r "):
            missing += missing_requirements(path.parent / requirement[3:].strip())
        elif requirement and not is_met(requirement):
            missing.append(requirement)
    return missing


def is_met(requirement: str) -> bool:
    name, _, version = requirement.partition(">=")
    try:
        return release(metadata.version(name)) >= release(version)
    except metadata.PackageNotFoundError:
        return False


def release(version: str) -> tuple[int, ...]:
    """Returns the release numbers: (2, 11, 0) for 2.11.0a0+cu130."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", version)[0])))


if __name__ == "__main__":
    missing = missing_requirements(Path(sys.argv[1]))
    print("\n".join(missing))
    sys.exit(bool(missing))
