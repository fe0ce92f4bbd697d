"""script.sh: what it says to what was typed, where it makes files, what it installs."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils.flags.parser import parser, resolve
from utils.installed import lacks

ROOT = Path(__file__).parents[1]
# A python3 that only notes how it was called, makes environments of its like, and has no packages
# until they are installed.
FAKE = """#!/bin/sh
echo "$0 $*" >> "$CALLS"
case $* in
*"/utils/installed.py "*) test -e "$CALLS.installed" ;;
*"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*"-m pip install "*) touch "$CALLS.installed" ;;
*"-m utils."*) echo "in $PWD: $*" ;;
esac
"""


def script(
    *words: object, shell: str = "sh", at: Path = ROOT, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    command = [shell, str(at / "script.sh"), *map(str, words)]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which of these commands?"),
        (["tabel1"], "there is no command 'tabel1'"),
        (["vgg"], "vgg takes cifar10 or cifar100, not ''"),
        (["resnet110", "shapes"], "resnet110 takes cifar10 or cifar100, not 'shapes'"),
    ],
)
def test_a_mistyped_command_is_named(shell, words, said):
    done = script(*words, shell=shell)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    assert done.stderr.splitlines()[-1] == f"error: {said}"


def test_help_is_no_error():
    done = script("--help")
    assert (done.returncode, done.stderr) == (0, "") and "quickstart" in done.stdout


def test_files_are_the_callers(tmp_path):
    """Although there are modules of these names where it is called from."""
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    flags = ["--save", "my runs", "--data", "pictures", "--dry-run"]
    done = script("resnet110", "cifar100", 3, *flags, cwd=tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr
    train, prune, _ = (shlex.split(line) for line in done.stdout.splitlines()[-3:])
    assert train[1] == str(ROOT / "main.py") and prune[1] == str(ROOT / "resnet_prune.py")
    given = vars(parser().parse_args(train[2:]))
    assert (given["save"], given["data"]) == ("my runs", "pictures")
    assert prune[3].startswith("my runs/")
    settings = resolve(given, None, {})
    assert settings.run_name == "proximal_seed3_resnet_110_cifar100" and settings.seed == 3


@pytest.fixture
def house(tmp_path):
    """Flags of :func:`script` for a copy with FAKE as python3, and what that notes."""
    at, path = tmp_path / "my house", tmp_path / "bin"
    at.mkdir()
    path.mkdir()
    shutil.copy(ROOT / "script.sh", at)
    (path / "python3").write_text(FAKE)
    (path / "python3").chmod(0o755)
    calls = tmp_path / "calls"
    flags = {"at": at, "cwd": tmp_path, "PATH": f"{path}{os.pathsep}{os.defpath}"}
    return {**flags, "CALLS": str(calls)}, calls


def test_the_first_installation_says_what_it_does_and_how_much_it_loads(house, tmp_path):
    flags, calls = house
    done = script("bench", **flags)
    assert done.returncode == 0, done.stderr
    making, installing = done.stderr.splitlines()
    venv = flags["at"] / ".venv"
    assert making == f"making {venv}"
    assert (
        installing.startswith(f"installing requirements.txt into {venv}: ") and "GB" in installing
    )
    assert done.stdout == f"in {tmp_path}: -P -m utils.bench\n"
    calls.unlink()
    again = script("bench", **flags)
    assert (again.returncode, again.stderr) == (0, "")
    assert "--disable-pip-version-check" not in calls.read_text()


@pytest.mark.parametrize("how", ["empty", "dangling python", "dangling folder", "no pip"])
def test_a_broken_environment_is_named(how, house, tmp_path):
    flags, calls = house
    venv = flags["at"] / ".venv"
    if how == "dangling folder":
        venv.symlink_to("gone")
    else:
        (venv / "bin").mkdir(parents=True)
    if how == "dangling python":
        (venv / "bin" / "python").symlink_to("/gone/python3")
    elif how == "no pip":
        (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
        (venv / "bin" / "python").chmod(0o755)
    done = script("quickstart", **flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {venv} is broken") and done.stderr.count("\n") == 1
    assert f"rm -r '{venv}'" in done.stderr
    assert not Path(f"{calls}.installed").exists()


def environment(folder: Path, *, managed: bool, **versions: str) -> Path:
    """A python without pip that has so named packages of these versions, and no others."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, version in versions.items():
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        told = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        # What else one asks for may be missing, as of an environment that was put together by hand.
        (info / "METADATA").write_text(f"{told}Requires-Dist: no-such-package>=99\n")
    if managed:
        for stdlib in folder.glob("lib/python*"):
            (stdlib / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=no\n")
    return folder / "bin"


HAS = {"torch": "2.11.0+cu130", "torchvision": "0.26", "numpy": "1.26.0rc1", "tqdm": "4.70.1"}


@pytest.mark.parametrize("managed", [False, True])
@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_nothing_is_installed_where_python_has_all(shell, managed, house, tmp_path):
    """Whatever its pip says, or if it has none."""
    flags, _ = house
    at, here = flags["at"], environment(tmp_path / "active", managed=managed, **HAS)
    (at / "utils").mkdir()
    shutil.copy(ROOT / "utils" / "installed.py", at / "utils")
    (at / "utils" / "bench.py").write_text("import sys; print(sys.argv[1:])")
    shutil.copy(ROOT / "requirements.txt", at)
    path = f"{here}{os.pathsep}{os.defpath}"
    done = script("bench", "--dry-run", shell=shell, **{**flags, "PATH": path})
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "['--dry-run']\n")
    assert not (at / ".venv").exists()


@pytest.mark.parametrize(
    ("versions", "missing"),
    [
        (HAS, []),
        ({**HAS, "torch": "2.11"}, []),
        ({**HAS, "torch": "2.9.1"}, ["torch>=2.11"]),
        ({**HAS, "tqdm": "4"}, ["tqdm>=4.66"]),
        ({"torch": "3", "numpy": "2"}, ["torchvision>=0.26", "tqdm>=4.66"]),
    ],
)
def test_python_is_asked_for_what_it_lacks(versions, missing, tmp_path):
    here = environment(tmp_path / "active", managed=False, **versions)
    file = tmp_path / "some.txt"
    file.write_text(f"# what it takes\n\n-r {ROOT / 'requirements.txt'}\n")
    argv = [here / "python", "-P", ROOT / "utils" / "installed.py", file]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (bool(missing), missing), done.stderr


def test_this_python_has_what_the_tests_ask_for():
    """So every line of both files is written as it is read."""
    assert lacks(ROOT / "requirements-dev.txt") == []


def test_a_python_that_is_too_old_is_not_taken_although_it_has_the_packages(house):
    flags, calls = house
    python = flags["cwd"] / "bin" / "python3"
    old = 'case $* in\n"-c "*) exit 1 ;;\n--version) echo Python 3.10.1 ;;'
    python.write_text(FAKE.replace("case $* in", old))
    Path(f"{calls}.installed").touch()
    done = script("bench", **flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Python 3.10.1 is too old: install Python 3.11 or newer\n"


def test_without_python_it_says_so(house):
    flags, _ = house
    (flags["cwd"] / "bin" / "python3").unlink()
    for name in ("dirname", "sh"):
        (flags["cwd"] / "bin" / name).symlink_to(shutil.which(name))
    done = script("quickstart", **{**flags, "PATH": str(flags["cwd"] / "bin")})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is no python3" in done.stderr
