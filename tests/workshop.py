"""Everything good that bad commands are made from, and what it takes to see them refused."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import densenet_prune
import main
import resnet_prune
import vgg_prune
from runs import command

ROOT = Path(main.__file__).parent
PRUNE = {"vgg": vgg_prune, "resnet": resnet_prune, "densenet": densenet_prune}
# The ways to hand over a checkpoint: a program and a flag.
READERS = {
    "resume": (main, "--resume"),
    "refine": (main, "--refine"),
    "evaluate": (main, "--evaluate"),
    "prune": (resnet_prune, "--model"),
}
# Whatever is not refused ends soon, with or without a GPU.
QUICK = "--epochs 1 --precision fp32 --no-cuda".split()


class Workshop(NamedTuple):
    """A folder with everything good that bad commands are made from."""

    folder: Path
    pictures: Path  # of two classes
    others: Path  # of three classes
    trained: Path  # a checkpoint of a ResNet
    slim: Path

    def train(self) -> list[object]:
        """Arguments of a training run that works."""
        network = ("--arch", "resnet", "--depth", 11)
        return ["--dataset", "folder", "--data", self.pictures, *network, *QUICK]


@pytest.fixture(scope="session")
def shop(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder, others = tmp_path_factory.mktemp("workshop"), tmp_path_factory.mktemp("others")
    for part in ("train", "test"):
        for name in ("blue", "green", "red"):
            (others / part / name).mkdir(parents=True)
            source = pictures / part / name.replace("green", "red") / "0.png"
            (others / part / name / "0.png").write_bytes(source.read_bytes())
    run = folder / "proximal_seed1_resnet_11_folder"
    trained, slim = run / "checkpoint.pth.tar", run / "pruned.pth.tar"
    shop = Workshop(folder, pictures, others, trained, slim)
    assert command(main, "-sr", *shop.train(), "--save", folder) == 0
    (run / "model_best.pth.tar").unlink()
    assert command(resnet_prune, "--model", trained, "--percent", 0.3, "--no-cuda") == 0
    # decoded and cached, so that no later command has a reason to write there
    assert command(main, "--evaluate", trained, "--no-cuda", "--data", others) == 2
    return shop


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below ``folder``; contents of all but large files, whose times must do."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        what = f"{stat.st_mode:o}"
        if not path.is_dir():  # a lock comes and goes in a folder
            what += f" {stat.st_size} {stat.st_mtime_ns}"
        if path.is_file() and stat.st_size < 2_000_000:
            what += hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = what
    return found


Refused = Callable[..., str]


@pytest.fixture
def refused(
    shop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refused:
    """Run a command that must be refused; return the line that says why.

    It runs in an empty folder, where it would also leave what has a default place.
    """
    monkeypatch.chdir(tmp_path)

    def run(program: ModuleType, *args: object) -> str:
        capsys.readouterr()
        places = (tmp_path, shop.folder, shop.pictures)
        before = [snapshot(place) for place in places]
        status = command(program, *args)
        out, err = capsys.readouterr()
        assert status == 2, err
        assert [snapshot(place) for place in places] == before
        assert not out
        return error_line(err)

    return run


def error_line(err: str) -> str:
    """The message of the only line of ``err``."""
    assert err.startswith("error: ") and "\n" not in err.removesuffix("\n"), err
    return err.removeprefix("error: ").removesuffix("\n")


class Payload:
    """Unpickling this makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def dump(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value))


def read_with(reader: str, path: Path) -> list[object]:
    """A command that reads the checkpoint at ``path``."""
    program, flag = READERS[reader]
    more = ["--no-cuda", "--name", "again"] if program is resnet_prune else QUICK
    return [program, flag, path, *more]
