"""A CUDA runtime that computes nothing and counts what the host asks of a GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


def includes() -> list[Path]:
    """Returns the folders of CUDA's headers, of torch's packages or in /usr/local, or []."""
    packages = Path(torch.__file__).parents[1]
    folders = [*packages.glob("nvidia/cu*/include"), *Path("/usr/local").glob("cuda*/include")]
    folders += packages.glob("triton/backends/nvidia/include")
    headers = "driver_types.h", "crt/host_defines.h"
    return folders if all(any((x / h).exists() for x in folders) for h in headers) else []


def lacks() -> str:
    """Returns what is missing to build the runtime, "" if nothing is."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if sys.platform != "linux" or shutil.which("gcc") is None:
        return "there is no gcc"
    return "" if includes() else "there are no CUDA headers"


def build(folder: Path) -> dict[str, str]:
    """Compiles the runtime into ``folder``; returns the environment of a process that uses it."""
    runtime, driver = folder / "libruntime.so", folder / "libcuda.so.1"
    compile_ = ["gcc", "-shared", "-fPIC", "-w", *(f"-I{path}" for path in includes())]
    subprocess.run([*compile_, "-o", runtime, HERE / "runtime.c"], check=True)
    subprocess.run([*compile_, f"-Wl,-soname,{driver.name}", "-o", driver, HERE / "driver.c"])
    path = os.pathsep.join(map(str, (HERE.parents[1], HERE)))
    variables = {"LD_PRELOAD": str(runtime), "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": path}
    return {**os.environ, **variables, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}
