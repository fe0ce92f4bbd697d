"""What a command does before its imports: missing packages, Ctrl-C, closed streams."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = [
    ["main.py"],
    *([f"{arch}_prune.py"] for arch in ("vgg", "resnet", "densenet")),
    *(["-m", f"utils.{name}"] for name in ("export", "bench", "experiments.recipes")),
    *(["-m", f"utils.reports.{name}"] for name in ("tables", "plots")),
]
BARE = [getattr(sys, "_base_executable", sys.executable), "-S"]  # a python without packages


def run(*words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    command, env = list(map(str, words)), {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1])
def test_without_packages_a_command_says_what_to_type(words):
    done = run(*BARE, *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "has no torch, torchvision, numpy, tqdm: type " in done.stderr


@pytest.fixture
def house(tmp_path):
    """As much of this program as is there before its imports."""
    folder = tmp_path / "my house"
    (folder / "utils").mkdir(parents=True)
    for name in ("main.py", "requirements.txt", *(f"utils/{n}.py" for n in ("early", "shell"))):
        shutil.copy(ROOT / name, folder / name)
    return folder


def advised(done: subprocess.CompletedProcess) -> str:
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    return done.stderr.rstrip("\n").partition(": type ")[2]


def test_what_is_missing_is_installed_or_found(house, tmp_path):
    """Into an environment of its own, unless one is active or has been made."""
    again = ".venv/bin/python -S main.py -sr"
    install = "-m pip install -r requirements.txt"
    made = advised(run(*BARE, "main.py", "-sr", cwd=house))
    python = made.partition(" -m venv ")[0]
    assert made == f"{python} -m venv .venv && .venv/bin/python {install} && {again}"
    there = house / ".venv" / "bin" / "python"
    there.parent.mkdir(parents=True)
    (house / ".venv" / "lib" / "python3.12" / "site-packages" / "torch").mkdir(parents=True)
    there.symlink_to(house / "gone")
    assert advised(run(*BARE, "main.py", "-sr", cwd=house)) == made  # a link to nothing is none
    there.unlink()
    there.symlink_to(sys.executable)
    assert advised(run(*BARE, "main.py", "-sr", cwd=house)) == again
    far = advised(run(*BARE, house / "main.py", "-sr", cwd=tmp_path))
    assert far == f"'my house/.venv/bin/python' -S '{house}/main.py' -sr"

    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    active = tmp_path / "env" / "bin"
    done = run(active / "python", "main.py", cwd=house, PATH=f"{active}{os.pathsep}{os.defpath}")
    assert advised(done) == f"python {install}"


def test_ctrl_c_during_the_imports_is_one_word(tmp_path):
    """Also where the import that it comes into would make another error of it."""
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "except BaseException as error:\n    raise ImportError('torch is broken') from error\n"
    )
    done = run(sys.executable, "main.py", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_closed_stream_is_no_file(tmp_path):
    """What was printed would be written into the next file that is opened."""
    code = (
        "import sys\nfrom utils import startup\nfile = open(sys.argv[1], 'w')\n"
        "print('out'); print('err', file=sys.stderr)\n"
        "assert file.fileno() > 2"
    )
    for closed, out, err in ((">&-", "", "err\n"), ("2>&-", "out\n", ""), (">&- 2>&-", "", "")):
        shown = f'"$0" -c "$1" "$2" {closed}'
        done = run("sh", "-c", shown, sys.executable, code, tmp_path / "file")
        assert (done.returncode, done.stdout, done.stderr) == (0, out, err)
        assert (tmp_path / "file").read_text() == ""


def test_a_real_command_with_a_closed_stream_and_a_reader_that_leaves():
    done = run("bash", "-c", 'set -o pipefail; "$0" main.py -h 2>&- | head -n 1', sys.executable)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: main.py")
