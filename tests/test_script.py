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
OLD = f"""#!/bin/sh
case $* in
"-c "*) {sys.executable} -c "import sys; sys.version_info = (3, 10, 1); $2" ;;
--version) echo Python 3.10.1 ;;
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
    usage, done = script("--help", shell=shell), script(*words, shell=shell)
    assert (usage.returncode, usage.stderr) == (0, "") and "quickstart" in usage.stdout
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{usage.stdout}error: {message}\n"


def test_paths_are_relative_to_the_caller(tmp_path):
    """Modules are not: the caller's folder may have some of the same names."""
    for name in ("utils", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("raise SystemExit('the wrong one')")
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
    assert resolve(given, None, {}).run_name == "proximal_seed3_resnet_110_cifar100"


@pytest.fixture
def clone(tmp_path):
    """Arguments of :func:`script` for a copy whose python3 is FAKE."""
    root, path = tmp_path / "my clone", tmp_path / "bin"
    for folder in (root, path):
        folder.mkdir()
    shutil.copy(ROOT / "script.sh", root)
    for name in ("dirname", "env", "sh", "bash", "mkdir", "cp", "touch"):
        (path / name).symlink_to(shutil.which(name))
    (path / "python3").write_text(FAKE)
    (path / "python3").chmod(0o755)
    return {"root": root, "cwd": tmp_path, "PATH": str(path), "CALLS": str(tmp_path / "calls")}


def test_packages_are_installed_once(clone, tmp_path):
    done = script("bench", **clone)
    assert done.returncode == 0, done.stderr
    creating, installing = done.stderr.splitlines()
    venv = clone["root"] / ".venv"
    assert creating == f"creating {venv}"
    assert installing.startswith(f"installing requirements.txt into {venv}: ")
    assert "GB" in installing
    assert done.stdout == f"in {tmp_path}: -P -m utils.bench\n"
    Path(clone["CALLS"]).unlink()
    again = script("bench", **clone)
    assert (again.returncode, again.stderr) == (0, "")
    assert "pip install" not in Path(clone["CALLS"]).read_text()


BROKEN = "error: {venv} is broken, its python does not run pip: rm -r '{venv}', then try again\n"
BAD = {  # what is done in the clone, and the error
    "mkdir -p {venv}/bin": BROKEN,
    "ln -s gone {venv}": BROKEN,
    "mkdir -p {venv}/bin; ln -s /gone/python3 {venv}/bin/python": BROKEN,
    "mkdir -p {venv}/bin; cp /bin/false {venv}/bin/python": BROKEN,
    "rm bin/python3": "error: there is no python3: install Python 3.11 or newer\n",
    "cp old bin/python3": "error: Python 3.10.1 is too old: install Python 3.11 or newer\n",
}


@pytest.mark.parametrize("command", BAD)
def test_a_bad_python_is_named(command, clone, tmp_path):
    venv = clone["root"] / ".venv"
    (tmp_path / "old").write_text(OLD)
    subprocess.run(command.format(venv=f"'{venv}'"), cwd=tmp_path, shell=True, check=True)
    done = script("quickstart", **clone)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == BAD[command].format(venv=venv)
    assert not Path(f"{clone['CALLS']}.installed").exists()


HAS = {"torch": "2.11.0+cu130", "torchvision": "0.26", "numpy": "1.26.0rc1", "tqdm": "4.70.1"}


def test_an_active_environment_with_the_packages_is_used(clone, tmp_path):
    """It has no pip and is managed by the system, and its packages lack their own requirements."""
    root, active = clone["root"], tmp_path / "active"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", active], check=True)
    (packages,) = active.glob("lib/python*/site-packages")
    (packages.parent / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=no\n")
    for name, version in HAS.items():
        (packages / f"{name}-{version}.dist-info").mkdir()
        (packages / f"{name}-{version}.dist-info/METADATA").write_text(
            f"Name: {name}\nVersion: {version}\nRequires-Dist: no-such-package>=99\n"
        )
    (root / "utils").mkdir()
    (root / "utils" / "bench.py").write_text("import sys; print(sys.argv[1:])")
    for name in ("utils/installed.py", "requirements.txt"):
        shutil.copy(ROOT / name, root / name)
    path = f"{active / 'bin'}{os.pathsep}{os.defpath}"
    done = script("bench", "--dry-run", shell="bash", **{**clone, "PATH": path})
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
