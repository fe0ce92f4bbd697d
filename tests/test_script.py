"""script.sh: errors, working directory and installation."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import warm
from utils import installed
from utils.flags.parser import parser, resolve

ROOT = Path(__file__).parents[1]
# A python3 that records its calls, creates environments of its kind, and has the packages once
# they are installed.
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
    *words: object, shell: str = "sh", root: Path = ROOT, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    command = [shell, str(root / "script.sh"), *map(str, words)]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("shell", "words", "message"),
    [
        ("sh", [], "a command is missing"),
        ("bash", ["tabel1"], "there is no command 'tabel1'"),
        ("sh", ["vgg"], "vgg takes cifar10 or cifar100, not ''"),
        ("bash", ["resnet110", "shapes"], "resnet110 takes cifar10 or cifar100, not 'shapes'"),
    ],
)
def test_mistyped_commands_are_named(shell, words, message):
    done = script(*words, shell=shell)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    assert done.stderr.splitlines()[-1] == f"error: {message}"
    usage = script("--help", shell=shell)
    assert (usage.returncode, usage.stderr) == (0, "") and done.stderr.startswith(usage.stdout)


def test_paths_are_relative_to_the_caller(tmp_path):
    """Modules are not: the caller's folder may have some of the same names."""
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(warm.PYTHON)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    flags = ["--save", "my runs", "--data", "images", "--dry-run"]
    done = script("resnet110", "cifar100", 3, *flags, cwd=tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr
    train, prune, *_ = (shlex.split(line) for line in done.stdout.splitlines())
    assert train[1] == str(ROOT / "main.py") and prune[1] == str(ROOT / "resnet_prune.py")
    given = vars(parser().parse_args(train[2:]))
    assert (given["save"], given["data"]) == ("my runs", "images")
    assert prune[3].startswith("my runs/")
    config = resolve(given, None, {})
    assert config.run_name == "proximal_seed3_resnet_110_cifar100" and config.seed == 3


@pytest.fixture
def clone(tmp_path):
    """Arguments of :func:`script` for a copy with FAKE as python3, and the file of its calls."""
    root, path = tmp_path / "my clone", tmp_path / "bin"
    root.mkdir()
    path.mkdir()
    shutil.copy(ROOT / "script.sh", root)
    (path / "python3").write_text(FAKE)
    (path / "python3").chmod(0o755)
    calls = tmp_path / "calls"
    arguments = {"root": root, "cwd": tmp_path, "PATH": f"{path}{os.pathsep}{os.defpath}"}
    return {**arguments, "CALLS": str(calls)}, calls


def test_packages_are_installed_once(clone, tmp_path):
    arguments, calls = clone
    done = script("bench", **arguments)
    assert done.returncode == 0, done.stderr
    creating, installing = done.stderr.splitlines()
    venv = arguments["root"] / ".venv"
    assert creating == f"creating {venv}"
    assert installing.startswith(f"installing requirements.txt into {venv}: ")
    assert "GB" in installing
    assert done.stdout == f"in {tmp_path}: -P -m utils.bench\n"
    calls.unlink()
    again = script("bench", **arguments)
    assert (again.returncode, again.stderr) == (0, "")
    assert "pip install" not in calls.read_text()


@pytest.mark.parametrize("kind", ["empty", "dangling python", "dangling folder", "no pip"])
def test_a_broken_environment_is_named(kind, clone):
    arguments, calls = clone
    venv = arguments["root"] / ".venv"
    if kind == "dangling folder":
        venv.symlink_to("gone")
    else:
        (venv / "bin").mkdir(parents=True)
    if kind == "dangling python":
        (venv / "bin" / "python").symlink_to("/gone/python3")
    elif kind == "no pip":
        (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
        (venv / "bin" / "python").chmod(0o755)
    done = script("quickstart", **arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {venv} is broken") and done.stderr.count("\n") == 1
    assert f"rm -r '{venv}'" in done.stderr
    assert not Path(f"{calls}.installed").exists()


HAS = {"torch": "2.11.0+cu130", "torchvision": "0.26", "numpy": "1.26.0rc1", "tqdm": "4.70.1"}


def test_an_active_environment_with_the_packages_is_used(clone, tmp_path):
    """It has no pip and is managed by the system, and one package lacks its own requirement."""
    arguments, _ = clone
    root, active = arguments["root"], tmp_path / "active"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", active], check=True)
    (packages,) = active.glob("lib/python*/site-packages")
    (packages.parent / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=no\n")
    for name, version in HAS.items():
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (packages / f"{name}-{version}.dist-info").mkdir()
        (packages / f"{name}-{version}.dist-info/METADATA").write_text(
            f"{metadata}Requires-Dist: no-such-package>=99\n"
        )
    (root / "utils").mkdir()
    shutil.copy(ROOT / "utils" / "installed.py", root / "utils")
    (root / "utils" / "bench.py").write_text("import sys; print(sys.argv[1:])")
    shutil.copy(ROOT / "requirements.txt", root)
    arguments["PATH"] = f"{active / 'bin'}{os.pathsep}{os.defpath}"
    done = script("bench", "--dry-run", shell="bash", **arguments)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "['--dry-run']\n")
    assert not (root / ".venv").exists()


@pytest.mark.parametrize(
    ("versions", "missing"),
    [
        (HAS, []),
        ({**HAS, "torch": "2.11"}, []),
        ({**HAS, "torch": "2.9.1", "tqdm": "4"}, ["torch>=2.11", "tqdm>=4.66"]),
        ({"torch": "3", "numpy": "2"}, ["torchvision>=0.26", "tqdm>=4.66"]),
    ],
)
def test_missing_packages_are_found(versions, missing, tmp_path, monkeypatch):
    def version(name: str) -> str:
        if name not in versions:
            raise installed.metadata.PackageNotFoundError
        return versions[name]

    monkeypatch.setattr(installed.metadata, "version", version)
    file = tmp_path / "some.txt"
    file.write_text(f"# a comment\n\n-r {ROOT / 'requirements.txt'}\n")
    assert installed.missing_requirements(file) == missing


def test_this_environment_has_the_development_packages():
    """Every line of both requirements files can be parsed."""
    assert installed.missing_requirements(ROOT / "requirements-dev.txt") == []


def test_an_old_python_is_rejected(clone):
    arguments, calls = clone
    python = arguments["cwd"] / "bin" / "python3"
    old = 'case $* in\n"-c "*) exit 1 ;;\n--version) echo Python 3.10.1 ;;'
    python.write_text(FAKE.replace("case $* in", old))
    Path(f"{calls}.installed").touch()
    done = script("bench", **arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Python 3.10.1 is too old: install Python 3.11 or newer\n"


def test_a_missing_python_is_named(clone):
    arguments, _ = clone
    path = arguments["cwd"] / "bin"
    (path / "python3").unlink()
    for name in ("dirname", "sh"):
        (path / name).symlink_to(shutil.which(name))
    done = script("quickstart", **{**arguments, "PATH": str(path)})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is no python3" in done.stderr
