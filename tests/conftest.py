import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Tests compare results, not speeds, and run beside others: spinning threads only get in the way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is started in the background of a script inherits that Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Fixtures that several files of tests share.
pytest_plugins = ("own_pictures", "workshop")


def pytest_report_header() -> str:
    import no_gpu

    why = no_gpu.lacks()
    return f"the GPU path is not tested: {why}" if why else "the GPU path is tested"


@pytest.fixture(autouse=True)
def subnormals():
    """Commands flush them for the whole process; what tests assert must hold without that."""
    import torch  # not before OMP_NUM_THREADS is set

    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of two easily told classes, 16 training and 8 test pictures each."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


def draw_pictures(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 8)):
        for name, colour in (("blue", (30, 60, 200)), ("red", (200, 60, 30))):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                noise = random.integers(-25, 25, (32, 32, 3))
                picture = Image.fromarray((np.array(colour) + noise).astype(np.uint8))
                picture.save(folder / part / name / f"{i}.png")
    return folder
