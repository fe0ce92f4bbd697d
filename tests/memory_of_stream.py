"""How much memory a training takes whose pictures are streamed. By hand, on Linux:

    python tests/memory_of_stream.py FOLDER [--in-memory]

draws 2.48 GB of decoded pictures into FOLDER (150 MB of files), trains an epoch on them and prints
by how much the resident memory of all its processes grew at most. Exit status 1 where that is a
quarter of the decoded pictures or more, as with ``--in-memory`` it must be.
"""

import os
import sys
import tempfile
import threading
import time
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
    """A small network for large pictures."""

    def forward(self, x):
        return super().forward(F.avg_pool2d(x, SIZE // 32))


def draw(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", COUNT), ("test", TESTS)):
        for label in range(4):
            (folder / part / str(label)).mkdir(parents=True)
        for i in range(count):
            path = folder / part / str(i % 4) / f"{i}.jpg"
            if i < 40:
                coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8))
                coarse.resize((SIZE, SIZE)).save(path)
                content = path.read_bytes()
            else:
                path.write_bytes(content)


def resident() -> int:
    """Bytes of this process and its workers, what they share counted once."""
    pids = [os.getpid()]
    for task in Path("/proc/self/task").iterdir():
        pids += map(int, (task / "children").read_text().split())
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def watch(peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], resident())
        time.sleep(0.05)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not folder.exists():
        draw(folder)
    small = ARCHITECTURES["resnet-basic"]
    ARCHITECTURES["resnet-basic"] = replace(small, build=Coarse)
    flags = "--arch resnet-basic --depth 8 --dataset folder --epochs 1 --no-cuda -sr".split()
    flags += ["--size", str(SIZE), "--data", str(folder), "--save", tempfile.mkdtemp(dir=folder)]
    flags += [] if "--in-memory" in sys.argv else ["--stream", "--workers", "2"]
    before = resident()
    peak = [before]
    threading.Thread(target=watch, args=(peak,), daemon=True).start()
    if console.run(main.main, flags):
        sys.exit(2)
    decoded, grown = (COUNT + TESTS) * SIZE**2 * 3, peak[0] - before
    print(f"decoded {decoded / 1e9:.2f} GB; grown by {grown / 1e9:.2f} GB, {grown / decoded:.3f}")
    sys.exit(grown >= decoded / 4)
