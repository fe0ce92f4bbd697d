"""``pip install .``: netslim and nothing else, and it works beside modules of one's own."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import netslim
import warm

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "data.*", "logs", "build", "*.egg-info", "__pycache__")
PIP = "-m pip --disable-pip-version-check install --quiet --no-deps --no-index --no-build-isolation"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where the package was installed, from a copy: building writes into its source."""
    (needed,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    try:
        version = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < int(re.fullmatch(r"setuptools>=(\d+).*", needed)[1]):
        pytest.skip(f"building the package takes {needed}, and {version} is installed")
    source, target = (tmp_path_factory.mktemp(name) / name for name in ("source", "target"))
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    command = [sys.executable, *PIP.split(), "--target", target, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_netslim_and_nothing_else_is_installed_with_its_metadata(installed):
    info = f"netslim-{netslim.__version__}.dist-info"
    assert {path.name for path in installed.iterdir()} == {"netslim", info}
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "netslim").rglob("*.py")}
    found = {path for path in (installed / "netslim").rglob("*.*") if path.suffix != ".pyc"}
    assert {str(path.relative_to(installed)) for path in found} == written | {"netslim/py.typed"}
    assert (installed / info / "licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    package = metadata.Distribution.at(installed / info)
    assert package.version == netslim.__version__
    assert package.metadata["License-Expression"] == "MIT"
    assert package.metadata["Requires-Python"] == ">=3.11"
    assert [line for line in package.requires if "extra ==" not in line] == ["torch>=2.11"]
    assert package.metadata.get_all("Provides-Extra") == ["onnx", "plots", "tensorboard", "dev"]
    extras = {line.partition(";")[0].strip() for line in package.requires}
    names = ("requirements.txt", "requirements-dev.txt")
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    listed = {line for line in lines if not line.startswith("-r ")}
    assert extras - {"netslim[onnx,plots,tensorboard]"} == listed


def test_the_readmes_example_runs_beside_modules_of_ones_own(installed, tmp_path):
    """It prints what the README shows, as far as that does not depend on the CPU. No module of the
    package needs the rest of the repository: the folder has others of the same names."""
    for name in ("models/__init__.py", "utils/__init__.py", "main.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('imported by netslim')\n")
    files = [path.relative_to(installed) for path in (installed / "netslim").rglob("*.py")]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    section = (ROOT / "README.md").read_text().partition("\n## Your own network\n")[2]
    example, printed = re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)[:2]
    command = [warm.PYTHON, "-c", f"import {', '.join(names)}\n{example}"]
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "small.pt").exists()

    number = re.compile(r"\d[\d,.]*(?:e-\d+)?")
    assert number.sub("N", done.stdout) == number.sub("N", printed)
    for text in (done.stdout, printed):
        zeros, channels, parameters, removed, outputs = (
            [float(x.replace(",", "")) for x in number.findall(line)] for line in text.splitlines()
        )
        gone = zeros[1] + zeros[3]
        assert min(zeros[1], zeros[3]) >= 5 and gone >= 20, text
        assert channels == [48, 48 - gone] and parameters[1] < parameters[0] / 3
        assert sum(removed[:2]) == gone and removed[2:] == [0, 0]
        assert outputs[0] < 1e-5 * outputs[1]
