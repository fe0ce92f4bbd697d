"""Spoil every kind of file the programs read, and their flags, and see that they take it well.

    python tests/stress_fuzz.py --count 2000 --commands 100 --seed 0

Each case must end with status 0, 2 or 3, without a traceback, within a minute and 4 gigabytes, and
with one line of error. Status 2 must leave everything on disk as it was (but for the cache of
decoded pictures). ``--only N`` runs one case again and says all. Not collected by pytest.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fuzz_cases import KINDS, PROGRAMS, Case, make_goods  # noqa: E402
from utils import console  # noqa: E402

SECONDS = 60


class Hang(BaseException):
    pass


def run(program: str, argv: list[str]) -> tuple[int | str | None, str]:
    """Status and standard error of a program in this process."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        signal.alarm(SECONDS)
        try:
            status: int | str | None = console.run(PROGRAMS[program].main, argv)
        except SystemExit as stop:
            status = stop.code
        except Hang:
            status = "hang"
            traceback.print_exc()
        except BaseException:
            status = "traceback"
            traceback.print_exc()
        finally:
            signal.alarm(0)
    return status, err.getvalue()


def run_command(program: str, argv: list[str]) -> tuple[int | str | None, str]:
    """The same as a real command."""
    where = [str(ROOT / program)] if program.endswith(".py") else program.split()
    try:
        done = subprocess.run(
            [sys.executable, *where, *argv],
            capture_output=True,
            timeout=2 * SECONDS,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    except subprocess.TimeoutExpired:
        return "hang", ""
    return done.returncode, done.stderr.decode(errors="replace")


def snapshot() -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(Path().rglob("*"))
        if path.name != "pictures-32x32.npz"
    }


def trouble(status: int | str | None, err: str, before: dict[str, str]) -> str | None:
    """What is wrong with how a case ended."""
    lines = err.splitlines()
    if status not in (0, 2, 3):
        return f"status {status}"
    if "Traceback" in err:
        return "traceback"
    errors = [line for line in lines if line.startswith("error: ") or ": error: " in line]
    if len(errors) != (status != 0) or errors != lines[len(lines) - len(errors) :]:
        return "not one line of error at the end"
    after = snapshot()
    if status == 2 and after != before:
        changed = sorted({k for k, _ in before.items() ^ after.items()})
        return f"changed {', '.join(changed)}"
    if left := [name for name in after if name.endswith(".tmp")]:
        return f"left {left}"
    return None


def one_case(seed: int, number: int, goods: Path, as_command: bool) -> tuple[str, Any, str, Case]:
    """Kind, status, trouble or "", and the case itself."""
    random = Random(f"{seed}-{number}")
    kind, make = list(KINDS.items())[number % len(KINDS)]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(goods, folder, dirs_exist_ok=True)
        shutil.copyfile(goods / "vgg.pth", Path(folder, "good.pth"))
        os.chdir(folder)
        case = make(random)
        before = snapshot()
        status, err = (run_command if as_command else run)(*case)
        wrong = trouble(status, err, before) or ""
        os.chdir(goods)
    return kind, status, f"{wrong}\n{err[-3000:]}" if wrong else "", case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--commands", type=int, default=100, help="as real commands, of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case again")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(Hang()))
    counts: Counter[tuple[str, Any]] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        os.environ["https_proxy"] = "http://127.0.0.1:9"  # nothing is downloaded
        make_goods(Path(folder), run)
        (pages, *_) = Path("/proc/self/statm").read_text().split()
        resource.setrlimit(resource.RLIMIT_AS, (int(pages) * resource.getpagesize() + 2**32,) * 2)
        numbers = range(args.count) if args.only is None else [args.only]
        every = max(args.count // max(args.commands, 1), 1)
        for number in numbers:
            # Shifted by one kind a time, so that all kinds get their share of real commands.
            as_command = args.commands and number % every == (number // every) % every
            kind, status, wrong, case = one_case(args.seed, number, Path(folder), bool(as_command))
            counts[kind, status] += 1
            if as_command:
                counts["(as real commands)", status] += 1
            if wrong or args.only is not None:
                failures += bool(wrong)
                print(f"case {number} ({kind}): {case.program} {json.dumps(case.argv)}: {status}")
                print(wrong, f"again: --seed {args.seed} --only {number}", "", sep="\n", flush=True)
            if number % 100 == 99:
                print(f"{number + 1}/{args.count}, {failures} failures", file=sys.stderr)
    for kind in [*KINDS, "(as real commands)"]:
        by_status = {status: n for (k, status), n in counts.items() if k == kind}
        total = sum(by_status.values())
        detail = ", ".join(f"{n} with {s}" for s, n in sorted(by_status.items(), key=str))
        print(f"{kind}: {total} cases ({detail})")
    print(f"{failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
