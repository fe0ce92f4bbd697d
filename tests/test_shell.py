"""Commands to paste work in any folder, for any file names and with the running Python."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from utils import shell
from utils.shell import ROOT, format_command, path_argument


@pytest.fixture
def python(tmp_path, monkeypatch):
    """The Python of a virtual environment in the current folder, a link to another Python."""
    folder = tmp_path / "own"
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(shell.sys, "executable", str(python))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(folder)
    return python


def test_python_is_called_as_the_shell_finds_it(python, tmp_path, monkeypatch):
    assert shell.python_command() == ".venv/bin/python"
    monkeypatch.chdir(tmp_path)
    assert shell.python_command() == "own/.venv/bin/python"
    monkeypatch.chdir(python.parent)
    assert shell.python_command() == "./python"
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.defpath}")
    assert shell.python_command() == "python"
    other = tmp_path / "other"  # another environment links to the same file
    other.mkdir()
    (other / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(other))
    assert shell.python_command() == "./python"
    monkeypatch.setenv("PATH", str(python.parent))
    monkeypatch.setattr(shell.sys, "executable", str(python.rename(python.with_name("python3.11"))))
    python.symlink_to("/bin/sh")  # python is another program of the same folder
    assert shell.python_command() == "./python3.11"


def test_scripts_have_paths_from_the_current_folder(python, monkeypatch):
    assert shlex.split(format_command("main.py", "-sr"))[1:] == [str(ROOT / "main.py"), "-sr"]
    monkeypatch.chdir(ROOT)
    assert shlex.split(format_command("main.py", "-sr"))[1:] == ["main.py", "-sr"]
    monkeypatch.chdir(ROOT.parent)
    assert shlex.split(format_command("main.py"))[1:] == [f"{ROOT.name}/main.py"]


def test_names_are_quoted_and_are_no_flags(python):
    assert path_argument(Path("-x")) == "./-x" and path_argument(Path("logs/-x")) == "logs/-x"
    command = format_command("main.py", "--save", path_argument(Path("-my runs")), "--name=it's")
    assert shlex.split(command)[2:] == ["--save", "./-my runs", "--name=it's"]


def test_modules_are_found_from_another_folder(tmp_path, monkeypatch):
    """The folder has a package of the same name."""
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    command = format_command("-m", "utils.installed", str(ROOT / "requirements.txt"))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
    monkeypatch.chdir(ROOT)
    assert shlex.split(format_command("-m", "utils.export"))[1:] == ["-m", "utils.export"]
    assert "PYTHONPATH" not in format_command("-m", "pip", "install", "scipy")
