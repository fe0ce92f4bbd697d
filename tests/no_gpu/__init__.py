"""A CUDA runtime that does nothing: it shows all that the host does for a GPU, without one.

PYTHONPATH=tests python -m no_gpu        says whether it can be built here
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


def includes() -> list[Path]:
    """The folders of CUDA's headers, in torch's own packages or where CUDA is installed."""
    packages = Path(torch.__file__).parents[1]
    found = [*packages.glob("nvidia/cu*/include"), *Path("/usr/local").glob("cuda*/include")]
    found += packages.glob("triton/backends/nvidia/include")
    headers = "driver_types.h", "crt/host_defines.h"
    return found if all(any((x / h).exists() for x in found) for h in headers) else []


def lacks() -> str:
    """What is not here to build it; "" where nothing is lacking."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if sys.platform != "linux" or shutil.which("gcc") is None:
        return "there is no gcc"
    return "" if includes() else "there are no CUDA headers"


def build(folder: Path) -> dict[str, str]:
    """Compile it into ``folder``; the environment in which a process runs over it."""
    runtime, driver = folder / "libruntime.so", folder / "libcuda.so.1"
    compile_ = ["gcc", "-shared", "-fPIC", "-w", *(f"-I{path}" for path in includes())]
    subprocess.run([*compile_, "-o", runtime, HERE / "runtime.c"], check=True)
    subprocess.run([*compile_, f"-Wl,-soname,{driver.name}", "-o", driver, HERE / "driver.c"])
    path = os.pathsep.join(map(str, (HERE.parents[1], HERE)))
    there = {"LD_PRELOAD": str(runtime), "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path}
    return {**os.environ, **there, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}
