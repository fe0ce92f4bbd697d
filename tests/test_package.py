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

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
LEFT_OUT = shutil.ignore_patterns(".*", "data.*", "logs", "build", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where the package was installed, from a copy: building writes into its source."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert len(needed) == 1 and needed[0].startswith("setuptools>=")
    try:
        version = metadata.version("setuptools")
    except metadata.PackageNotFoundError:
        pytest.skip("setuptools, which builds the package, is not installed")
    if int(version.split(".")[0]) < int(needed[0].partition("=")[2].split(".")[0]):
        pytest.skip(f"building the package takes {needed[0]}, and {version} is installed")
    source, target = (tmp_path_factory.mktemp(name) / name for name in ("source", "target"))
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    command = [*PIP, *offline, "--target", target, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_netslim_and_nothing_else_is_installed(installed):
    import netslim

    package = f"netslim-{netslim.__version__}.dist-info"
    assert {path.name for path in installed.iterdir()} == {"netslim", package}
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "netslim").rglob("*.py")}
    found = {path for path in (installed / "netslim").rglob("*.*") if path.suffix != ".pyc"}
    assert {str(path.relative_to(installed)) for path in found} == written | {"netslim/py.typed"}
    assert (installed / package / "licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_its_metadata(installed):
    import netslim

    package = metadata.Distribution.at(next(installed.glob("*.dist-info")))
    assert package.version == netslim.__version__
    assert package.metadata["License-Expression"] == "MIT"
    assert package.metadata["Requires-Python"] == ">=3.11"
    assert [line for line in package.requires if "extra ==" not in line] == ["torch>=2.11"]
    assert package.metadata.get_all("Provides-Extra") == ["onnx", "plots", "tensorboard", "dev"]


def test_the_extras_are_the_requirements(installed):
    package = metadata.Distribution.at(next(installed.glob("*.dist-info")))
    extras = {line.partition(";")[0].strip() for line in package.requires}
    names = ("requirements.txt", "requirements-dev.txt")
    lines = [line for name in names for line in (ROOT / name).read_text().splitlines()]
    listed = {line for line in lines if not line.startswith("-r ")}
    assert extras - {"netslim[onnx,plots,tensorboard]"} == listed


@pytest.fixture
def elsewhere(installed, tmp_path):
    """Runs python in a folder whose modules have the names of this repository's."""
    for name in ("models/__init__.py", "utils/__init__.py", "main.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('imported by netslim')\n")

    def run(*arguments: str) -> str:
        command, env = [sys.executable, *arguments], {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


def test_no_module_needs_the_rest_of_the_repository(elsewhere, installed):
    files = [path.relative_to(installed) for path in (installed / "netslim").rglob("*.py")]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    elsewhere("-c", f"import {', '.join(names)}")


def test_the_readmes_example_runs_beside_modules_of_ones_own(elsewhere, tmp_path):
    """It prints what the README shows, as far as that does not depend on the CPU."""
    section = (ROOT / "README.md").read_text().partition("\n## Your own network\n")[2]
    example, printed = re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)[:2]
    (tmp_path / "example.py").write_text(example)
    output = elsewhere("example.py")
    assert (tmp_path / "small.pt").exists()

    number = re.compile(r"\d[\d,.]*(?:e-\d+)?")
    assert number.sub("N", output) == number.sub("N", printed)
    for text in (output, printed):
        zeros, channels, parameters, removed, outputs = (
            [float(x.replace(",", "")) for x in number.findall(line)] for line in text.splitlines()
        )
        gone = zeros[1] + zeros[3]
        assert min(zeros[1], zeros[3]) >= 5 and gone >= 20, text
        assert channels == [48, 48 - gone] and parameters[1] < parameters[0] / 3
        assert sum(removed[:2]) == gone and removed[2:] == [0, 0]
        assert outputs[0] < 1e-5 * outputs[1]
