"""Measure the memory of a training on streamed images. By hand, on Linux:

    python tests/memory_of_stream.py FOLDER [--in-memory]

saves images of 2.48 GB decoded size in FOLDER (150 MB of files), trains an epoch on them and prints
the peak growth of the resident memory of all processes. The exit status is 1 if that is a quarter
of the decoded size or more, as it must be with ``--in-memory``.
"""

import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import main
from models import ARCHITECTURES
from models.resnet_basic import ResNetBasic
from utils import console

COUNT, TESTS, SIZE = 16_000, 500, 224


class Coarse(ResNetBasic):
    """A small model for large images."""

    def forward(self, x):
        return super().forward(F.avg_pool2d(x, SIZE // 32))


def save_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", COUNT), ("test", TESTS)):
        for i in range(count):
            path = folder / part / str(i % 4) / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if i < 40:
                coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8))
                coarse.resize((SIZE, SIZE)).save(path)
                content = path.read_bytes()
            path.write_bytes(content)


def resident() -> int:
    """Return the bytes of this process and its workers, shared memory counted once."""
    pids = [os.getpid()]
    for task in Path("/proc/self/task").iterdir():
        pids += map(int, (task / "children").read_text().split())
    total = 0
    for pid in pids:
        with suppress(OSError):  # the process has ended
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def watch(peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], resident())
        time.sleep(0.05)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not folder.exists():
        save_images(folder)
    ARCHITECTURES["resnet-basic"] = replace(ARCHITECTURES["resnet-basic"], build=Coarse)
    flags = "--arch resnet-basic --depth 8 --dataset folder --epochs 1 --no-cuda -sr".split()
    flags += ["--size", str(SIZE), "--data", str(folder), "--save", tempfile.mkdtemp(dir=folder)]
    flags += [] if "--in-memory" in sys.argv else ["--stream", "--workers", "2"]
    before = resident()
    peak = [before]
    threading.Thread(target=watch, args=(peak,), daemon=True).start()
    if console.run(main.main, flags):
        sys.exit(2)
    decoded, grown = (COUNT + TESTS) * SIZE**2 * 3, peak[0] - before
    ratio = f"a ratio of {grown / decoded:.3f}"
    print(f"decoded {decoded / 1e9:.2f} GB; memory grew by {grown / 1e9:.2f} GB, {ratio}")
    sys.exit(grown >= decoded / 4)
