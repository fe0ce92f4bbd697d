"""Commands without the required packages print what to type."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = """main.py, vgg_prune.py, resnet_prune.py, densenet_prune.py, -m utils.prune,
    -m utils.export, -m utils.bench, -m utils.experiments.recipes, -m utils.experiments.compare,
    -m utils.reports.tables, -m utils.reports.plots"""
BARE = [getattr(sys, "_base_executable", sys.executable), "-S"]  # Python without packages


def error_of(*words: object, cwd: Path = ROOT, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr.rstrip("\n")


@pytest.mark.parametrize("command", COMMANDS.split(","))
def test_missing_packages_are_named(command):
    assert "has no torch, torchvision, numpy, tqdm: type " in error_of(*BARE, *command.split())


def test_the_advice_installs_the_packages_into_an_environment(tmp_path):
    folder = tmp_path / "my program"
    (folder / "utils").mkdir(parents=True)
    for name in ("main.py", "requirements.txt", "utils/startup.py", "utils/shell.py"):
        shutil.copy(ROOT / name, folder / name)

    def advice(*words: object, **options: object) -> str:
        return error_of(*words, **{"cwd": folder, **options}).partition(": type ")[2]

    again = ".venv/bin/python -S main.py -sr"
    install = "-m pip install -r requirements.txt"
    create = advice(*BARE, "main.py", "-sr")
    python = create.partition(" -m venv ")[0]
    assert create == f"{python} -m venv .venv && .venv/bin/python {install} && {again}"

    far = advice(*BARE, folder / "main.py", "-sr", cwd=tmp_path)
    assert far.endswith(f" && 'my program/.venv/bin/python' -S '{folder}/main.py' -sr")

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    active = tmp_path / "env" / "bin"
    path = f"{active}{os.pathsep}{os.defpath}"
    assert advice(active / "python", "main.py", PATH=path) == f"python {install}"
