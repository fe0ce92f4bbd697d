"""Kill training again and again, and compare: ``python tests/stress_kill.py --kills 200``.

Run by hand: it takes a few seconds a kill.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from conftest import draw_pictures  # noqa: E402
from runs import DYING, QUICK, assert_same_run, dies_at, rows, start, train  # noqa: E402


def kill_and_resume(
    folder: Path, pictures: Path, flags: list[str], kills: int, moments: random.Random
) -> None:
    """Kills a run ``kills`` times, resumes it each time, and compares it with an uninterrupted one.

    A run that finishes before it is killed is compared, and another is begun.
    """
    whole = folder / "whole"
    assert train(whole, pictures, *flags) == 0
    done, finished = 0, 0
    while done < kills or finished == 0:
        parts = folder / f"parts{finished}"
        process = start(parts, pictures, *flags, "--resume", "auto")
        if done < kills and process.stdout and process.stdout.readline():
            time.sleep(moments.uniform(0, 0.8))
            process.kill()
        process.communicate()
        if process.returncode == 0:
            assert_same_run(whole, parts)
            assert len(rows(parts / "train_record.csv")) == 1
            finished += 1
        else:
            assert process.returncode == -signal.SIGKILL
            done += 1


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    text = "three quarters of them at random moments"
    p.add_argument("--kills", type=int, default=200, help=text)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, at_random = draw_pictures(folder / "pictures"), args.kills * 3 // 4
        for part in range(0, at_random, 10):
            count = min(10, at_random - part)
            kill_and_resume(folder / str(part), pictures, DYING, count, moments)
            print(f"{part + count} kills at random moments", flush=True)
        whole, killed, call = folder / "whole", 0, 0
        flags = [*DYING, "--epochs", "3"]
        assert train(whole, pictures, *flags) == 0
        while killed < args.kills - at_random:
            call += 1
            parts = folder / f"{killed} kills, call {call}"
            data = ["--dataset", "folder", "--data", pictures, "--save", parts]
            status = dies_at(call, [*QUICK, *data, *flags])
            assert status in (-signal.SIGKILL, 0), status
            killed += status != 0
            assert train(parts, pictures, *flags, "--resume", "auto") == 0
            assert_same_run(whole, parts)
            call = call if status else 0  # beyond the last call: begin again
            print(f"{killed} kills at file operations, this one at number {call}", flush=True)
    print(f"{args.kills} kills, every run the uninterrupted one bit by bit")


if __name__ == "__main__":
    main()
