"""Command lines to paste: whatever the names, from wherever, with the python that runs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import recorded
from utils import shell
from utils.shell import ROOT, format_command, path_argument


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder to be in, and a python of an environment: a link to another, as they are."""
    folder = tmp_path / "own"
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(shell.sys, "executable", str(python))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(folder)
    return python


def test_the_python_is_named_as_the_shell_finds_it(own, tmp_path, monkeypatch):
    assert shell.python_command() == ".venv/bin/python"
    monkeypatch.chdir(tmp_path)
    assert shell.python_command() == "own/.venv/bin/python"
    monkeypatch.chdir(own.parent)
    assert shell.python_command() == "./python"
    monkeypatch.setenv("PATH", f"{own.parent}{os.pathsep}{os.defpath}")  # as activated
    assert shell.python_command() == "python"
    own.rename(own.with_name("python3"))
    monkeypatch.setattr(shell.sys, "executable", str(own.with_name("python3")))
    assert shell.python_command() == "python3"


def test_another_environments_python_is_not_the_one(own, tmp_path, monkeypatch):
    """It may be a link to the same file, and has other packages."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(other))
    assert shell.python_command() == ".venv/bin/python"


def test_scripts_are_named_from_here(own, monkeypatch):
    assert shlex.split(format_command("main.py", "-sr"))[1:] == [str(ROOT / "main.py"), "-sr"]
    monkeypatch.chdir(ROOT)
    assert shlex.split(format_command("main.py", "-sr"))[1:] == ["main.py", "-sr"]
    monkeypatch.chdir(ROOT.parent)
    assert shlex.split(format_command("main.py"))[1:] == [f"{ROOT.name}/main.py"]


def test_names_that_could_be_misread(own):
    assert path_argument(Path("-x")) == "./-x" and path_argument(Path("logs/-x")) == "logs/-x"
    typed = format_command("main.py", "--save", path_argument(Path("-my runs")), "--name=it's")
    assert shlex.split(typed)[2:] == ["--save", "./-my runs", "--name=it's"]


def test_modules_are_found_from_another_folder(tmp_path, monkeypatch):
    """Although there are modules of these names."""
    recorded.run(tmp_path / "my logs", "vgg", 11, "baseline", 1, accuracy=12.34)
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    typed = format_command("-m", "utils.reports.tables", "--save", path_argument(Path("my logs")))
    done = subprocess.run(["sh", "-c", typed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12.34" in done.stdout
    monkeypatch.chdir(ROOT)
    assert shlex.split(format_command("-m", "utils.export"))[1:] == ["-m", "utils.export"]
    assert "PYTHONPATH" not in format_command("-m", "pip", "install", "scipy")
