"""What cannot be used is refused: one line that says why, exit status 2, nothing on disk."""

import hashlib
import itertools
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import densenet_prune
import main
import resnet_prune
import vgg_prune
from utils import cli

ROOT = Path(main.__file__).parent
PRUNE = {"vgg": vgg_prune, "resnet": resnet_prune, "densenet": densenet_prune}
DEPTHS = {"vgg": 11, "resnet": 11, "densenet": 7}
# The ways to hand over a checkpoint: a program and a flag.
READERS = {
    "resume": (main, "--resume"),
    "refine": (main, "--refine"),
    "evaluate": (main, "--evaluate"),
    "prune": (resnet_prune, "--model"),
}
CHECKPOINT = "checkpoint.pth.tar"
# Whatever is not refused ends soon, with or without a GPU.
QUICK = "--epochs 1 --precision fp32 --no-cuda".split()


def command(program: ModuleType, *args: object) -> int | str | None:
    try:
        return cli.run(program.main, list(map(str, args)))
    except SystemExit as stop:  # argparse
        return stop.code


class Workshop(NamedTuple):
    """A folder with everything good that bad commands are made from."""

    folder: Path
    pictures: Path  # of two classes
    others: Path  # of three classes
    trained: dict[str, Path]  # one checkpoint per architecture
    baseline: Path
    slim: Path

    def train(self, arch: str = "resnet") -> list[object]:
        """Arguments of a training run that works."""
        network = ("--arch", arch, "--depth", DEPTHS[arch])
        return ["--dataset", "folder", "--data", self.pictures, *network, *QUICK]


@pytest.fixture(scope="module")
def shop(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("workshop")
    for part in ("train", "test"):
        for name in ("blue", "green", "red"):
            (folder / "others" / part / name).mkdir(parents=True)
            source = pictures / part / name.replace("green", "red") / "0.png"
            (folder / "others" / part / name / "0.png").write_bytes(source.read_bytes())
    shop = Workshop(
        folder,
        pictures,
        folder / "others",
        {a: folder / f"proximal_{a}_{d}_folder{CHECKPOINT}" for a, d in DEPTHS.items()},
        folder / f"baseline_resnet_11_folder{CHECKPOINT}",
        folder / "ResNetpruned.pth.tar",
    )
    for arch, path in shop.trained.items():
        assert command(main, "-sr", *shop.train(arch), "--save", folder) == 0
        path.with_name(path.name.replace("checkpoint", "model_best")).unlink()
    assert command(main, *shop.train(), "--save", folder) == 0
    prune = ("--model", shop.trained["resnet"], "--percent", 0.3, "--no-cuda")
    assert command(resnet_prune, *prune) == 0
    # decoded and cached, so that no later command has a reason to write there
    evaluate = ("--evaluate", shop.trained["resnet"], "--no-cuda")
    assert command(main, *evaluate, "--data", shop.others) == 2
    return shop


def snapshot(folder: Path) -> dict[str, str]:
    """Everything below ``folder``; contents of all but large files, whose times must do."""
    found = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        what = f"{stat.st_mode:o} {stat.st_size} {stat.st_mtime_ns}"
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
    """The only line of ``err`` but for argparse's usage."""
    *before, last = err.splitlines()
    prog, found, message = last.partition("error: ")
    assert found and message and (not prog or prog.endswith(".py: ")), err
    assert all(line.startswith(("usage: ", "  ")) for line in before), err
    assert not before or prog, err
    return message


# Flags

DEPTH = {
    ("vgg", 12): "choose 11, 13, 16 or 19",
    ("vgg", 110): "choose 11, 13, 16 or 19",
    ("resnet", 12): "choose 9n + 2 (11, 20",
    ("resnet", 2): "choose 9n + 2 (11, 20",
    ("densenet", 20): "choose 3n + 4 (7, 10, 22, 40",
    ("densenet", 4): "choose 3n + 4 (7, 10, 22, 40",
}


@pytest.mark.parametrize(("arch", "depth"), DEPTH)
def test_a_depth_that_is_not_there_is_told_those_that_are(
    shop: Workshop, refused: Refused, arch: str, depth: int
) -> None:
    line = refused(main, *shop.train(arch), "--depth", depth)
    assert f"{arch} has no depth {depth}: {DEPTH[arch, depth]}" in line


# What is appended to a good command, and what the error line has to name.
FLAGS = {
    "--arch alexnet": "alexnet",
    "--arch": "--arch",
    "--dataset imagenet": "imagenet",
    "--depth 0": "--depth",
    "--depth eleven": "eleven",
    "-sr --s=-0.001": "--s",
    "-sr --s nan": "--s",
    "-sr --s inf": "--s",
    "-sr --s=-inf": "--s",
    "-sr --s much": "much",
    "--s=-1": "--s",  # not used without -sr, and wrong all the same
    "-sr --beta 0": "--beta",
    "-sr --beta=-1": "--beta",
    "-sr --beta nan": "--beta",
    "-sr --beta inf": "--beta",
    "--lr 0": "--lr",
    "--lr=-0.1": "--lr",
    "--lr nan": "--lr",
    "--lr inf": "--lr",
    "--batch-size 0": "--batch-size",
    "--batch-size=-64": "--batch-size",
    "--batch-size 2.5": "--batch-size",
    "--test-batch-size 0": "--test-batch-size",
    "--epochs 0": "--epochs",
    "--epochs=-1": "--epochs",
    "--epochs 1e3": "--epochs",
    "--start-epoch=-1": "--start-epoch",
    "--momentum 1": "--momentum",
    "--momentum=-0.1": "--momentum",
    "--momentum nan": "--momentum",
    "--weight-decay=-1": "--weight-decay",
    "--wd nan": "--wd",
    "--seed=-1": "--seed",
    "--seed 9223372036854775808": "--seed",
    "--seed 1.5": "--seed",
    "--log-interval 0": "--log-interval",
    "-sr --xi-init 0.5 0.47": "--xi-init",
    "-sr --xi-init 0.5": "--xi-init",
    "-sr --xi-init nan 0.5": "--xi-init",
    "-sr --xi-init 0.4 inf": "--xi-init",
    "-sr --method ista": "ista",
    "--method proximal": "-sr",
    "--method subgradient": "-sr",
    "-sr --prox-every never": "never",
    "--precision fp64": "fp64",
    "--name a/b": "--name",
    "--name ../up": "--name",
    "--name .hidden": "--name",
    "--name=": "--name",
    "--subset 0": "--subset",
    "--subset 33": "--subset 33",
    "--test-subset 17": "--test-subset 17",
    "--data nowhere": "nowhere",
    "--data=": "has neither",
    "--dataset shapes": "--data",
    "--dataset cifar10": "2 classes",
    "--dataset cifar100": "2 classes",
    "--dataset cifar10 --data nowhere": "nowhere",
    "--fast": "--fast",
    "vgg": "vgg",
    "--xi-init 0.5 0.47": "--xi-init",
    "--start-epoch 1": "--start-epoch",
    f"--name {'x' * 300}": "name",
    f"--batch-size {10**30}": "--batch-size",
    f"--test-batch-size {10**30}": "--test-batch-size",
    "--lr 1e-323": "--lr",
    "-sr --beta 1e39": "--beta",
    "-sr --xi-init 0 1e39": "--xi-init",
}


@pytest.mark.parametrize(("flags", "named"), FLAGS.items(), ids=lambda text: text[:40])
def test_flags_that_make_no_sense(shop: Workshop, refused: Refused, flags: str, named: str) -> None:
    assert named in refused(main, *shop.train(), *flags.split())


def test_folder_without_data_is_told_what_it_needs(shop: Workshop, refused: Refused) -> None:
    assert "--data DIR" in refused(main, "--dataset", "folder", "--arch", "vgg", *QUICK)


PRUNE_FLAGS = {
    "--percent 1.01": "--percent",
    "--percent=-0.01": "--percent",
    "--percent nan": "--percent",
    "--percent inf": "--percent",
    "--percent half": "half",
    "--dataset imagenet": "imagenet",
    "--dataset cifar10": "cifar10",
    "--dataset shapes": "shapes",
    "--data nowhere": "nowhere",
    "--test-subset 0": "--test-subset",
    "--test-subset 17": "--test-subset 17",
    "--test-batch-size 0": "--test-batch-size",
    "--depth 0": "--depth",
    "--depth 20": "depth 11, not 20",
    "--name a/b": "--name",
    "--epochs 3": "--epochs",
    "--model": "--model",
}


@pytest.mark.parametrize("flags", PRUNE_FLAGS)
def test_prune_flags_that_make_no_sense(
    shop: Workshop, refused: Refused, tmp_path: Path, flags: str
) -> None:
    save = ("--save", tmp_path / "new")  # must not be made either
    args = ("--model", shop.trained["resnet"], "--no-cuda", *save, *flags.split())
    assert PRUNE_FLAGS[flags] in refused(resnet_prune, *args)


@pytest.mark.parametrize("arch", PRUNE)
@pytest.mark.parametrize("percent", ["1.5", "nan"])
def test_every_prune_command_wants_a_fraction_and_a_model(
    shop: Workshop, refused: Refused, arch: str, percent: str
) -> None:
    model = ("--model", shop.trained[arch])
    assert percent in refused(PRUNE[arch], *model, "--percent", percent)
    assert "--model" in refused(PRUNE[arch])


# Where files go


def _a_file(place: Path) -> str:
    place.write_text("in the way")
    return str(place)


def _dangling(place: Path) -> str:
    place.symlink_to("nowhere/at/all")
    return str(place)


def _readonly(place: Path) -> str:
    place.mkdir(mode=0o500)
    return str(place / "below")


UNWRITABLE: dict[str, Any] = {
    "file": _a_file,
    "below a file": lambda place: f"{_a_file(place)}/below",
    "far below a file": lambda place: f"{_a_file(place)}/far/below",
    "dangling link": _dangling,
    "read-only folder": pytest.param(
        _readonly,
        marks=pytest.mark.skipif(os.geteuid() == 0, reason="nothing stops root"),
    ),
    "not a real folder": pytest.param(
        lambda place: "/proc/nowhere",
        marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc"),
    ),
}


@pytest.mark.parametrize("make", UNWRITABLE.values(), ids=UNWRITABLE)
def test_an_unwritable_save(
    shop: Workshop, refused: Refused, tmp_path: Path, make: Callable[[Path], str]
) -> None:
    save = ("--save", make(tmp_path / "place"))
    assert save[1].removesuffix("/below") in refused(main, *shop.train(), *save)


@pytest.mark.parametrize("arch", PRUNE)
def test_an_unwritable_save_of_a_slim_network(
    shop: Workshop, refused: Refused, tmp_path: Path, arch: str
) -> None:
    save = _a_file(tmp_path / "place")
    model = ("--model", shop.trained[arch], "--no-cuda")
    assert save in refused(PRUNE[arch], *model, "--save", f"{save}/below")


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"a,b\n1,2\n", "other columns"), (b"\xff\xfe\0", "cannot be read"), (None, "cannot be read")],
    ids=["other columns", "not text", "folder"],
)
@pytest.mark.parametrize(
    "name", ["train_record.csv", "proximal_resnet_11_folderlog.csv", "pruned_record.csv"]
)
def test_somebody_elses_table_is_not_written_to(
    shop: Workshop, refused: Refused, tmp_path: Path, name: str, content: bytes | None, why: str
) -> None:
    table = tmp_path / name
    table.mkdir() if content is None else table.write_bytes(content)
    args: tuple[object, ...] = (main, "-sr", *shop.train())
    if name.startswith("pruned"):
        args = (resnet_prune, "--model", shop.trained["resnet"], "--no-cuda")
    line = refused(*args, "--save", tmp_path)
    assert str(table) in line and why in line


@pytest.mark.parametrize("flags", [["-sr"], ["-sr", "--lr", "0.05"], ["-sr", "--seed", "2"]])
def test_a_new_run_does_not_overwrite_another(
    shop: Workshop, refused: Refused, flags: list[str]
) -> None:
    line = refused(main, *shop.train(), *flags, "--save", shop.folder)
    assert all(x in line for x in (str(shop.trained["resnet"]), "--resume", "--name"))


def test_a_resumed_run_does_not_overwrite_another(
    shop: Workshop, refused: Refused, tmp_path: Path
) -> None:
    """The other one has the same name, and lies where this one is to be kept."""
    assert command(main, "-sr", *shop.train(), "--seed", 2, "--save", tmp_path / "logs") == 0
    argv = ["--resume", shop.trained["resnet"], "--save", tmp_path / "logs", "--no-cuda"]
    assert "logs" in refused(main, *argv)


# Checkpoints


class Payload:
    """Unpickling this makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def _dump(path: Path, value: object) -> None:
    path.write_bytes(pickle.dumps(value))


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(ROOT / "main.py", "main.py")


def _noise(count: int) -> bytes:
    return np.random.default_rng(0).bytes(count)


Content = dict[str, Any]
# Not a checkpoint at all: how to write one, given a good one's bytes.
FOREIGN: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, good: None,
    "folder": lambda path, good: path.mkdir(),
    "empty": lambda path, good: path.write_bytes(b""),
    "noise": lambda path, good: path.write_bytes(_noise(5000)),
    "text": lambda path, good: path.write_text("# a readme\n"),
    "web page": lambda path, good: path.write_text("<html>\n404\n</html>\n"),
    "pickle": lambda path, good: _dump(path, {"state_dict": {"weight": 1}}),
    "pickled object": lambda path, good: _dump(path, Path("/")),
    "pickled payload": lambda path, good: _dump(path, Payload()),
    "arrays": lambda path, good: np.savez(path.open("wb"), a=np.ones(3)),
    "tar": lambda path, good: _tar(path),
    "first byte": lambda path, good: path.write_bytes(good[:1]),
    "first half": lambda path, good: path.write_bytes(good[: len(good) // 2]),
    "last byte missing": lambda path, good: path.write_bytes(good[:-1]),
    "second half": lambda path, good: path.write_bytes(good[len(good) // 2 :]),
    "zeros at the end": lambda path, good: path.write_bytes(good[:-5000] + b"\0" * 5000),
    "whole network": lambda path, good: torch.save(nn.Linear(2, 2), path),
    "payload": lambda path, good: torch.save(Payload(), path),
    "payload, old format": lambda path, good: torch.save(
        Payload(), path, _use_new_zipfile_serialization=False
    ),
    "list": lambda path, good: torch.save([1, 2, 3], path),
    "tensor": lambda path, good: torch.save(torch.ones(3), path),
    "no state_dict": lambda path, good: torch.save({"epoch": 1, "cfg": [3]}, path),
    "bare state_dict": lambda path, good: torch.save(nn.Linear(2, 2).state_dict(), path),
}


def _set(key: str, value: object) -> Callable[[Content], None]:
    return lambda content: content.__setitem__(key, value)


def _state(key: str, value: object) -> Callable[[Content], None]:
    return lambda content: content["state_dict"].__setitem__(key, value)


def _pop(key: str) -> Callable[[Content], object]:
    return lambda content: content["state_dict"].pop(key)


# A good checkpoint in which one thing is wrong.
WRONG: dict[str, Callable[[Content], object]] = {
    "payload beside the weights": _set("note", Payload()),
    "state_dict is a list": _set("state_dict", [torch.ones(2)]),
    "state_dict is empty": _set("state_dict", {}),
    "state_dict of arrays": _state("fc.bias", [0.0, 0.0]),
    "numbered weights": _state(7, torch.ones(2)),  # type: ignore[arg-type]
    "another network": _set("state_dict", nn.Linear(2, 2).state_dict()),
    "one weight too many": _state("layer4.0.conv1.weight", torch.ones(2, 2, 1, 1)),
    "one weight missing": _pop("layer2.0.conv2.weight"),
    "no classifier": _pop("fc.weight"),
    "no batch norm": _pop("bn.weight"),
    "other shape": _state("layer1.0.conv2.weight", torch.ones(16, 16, 1, 1)),
    "wider than there is": _state("bn.weight", torch.ones(999)),
    "no class": _state("fc.weight", torch.ones(0, 256)),
    "whole numbers": _state("conv1.weight", torch.ones(16, 3, 3, 3, dtype=torch.int32)),
    "half a selection": _state("select.indexes", torch.full((256,), 0.5)),
    "short selection": _state("select.indexes", torch.tensor([1.0, 0.0, 1.0])),
    "negative selection": _state("select.index", torch.arange(-1, 255)),
    "cfg of another": _set("cfg", [1, 2, 3]),
    "other classes": _set("classes", ["blue", "green"]),
    "more classes": _set("classes", ["blue", "green", "red"]),
    "settings are a number": _set("settings", 5),
    "cfg is a number": _set("cfg", 5),
    "cfg is a tensor": _set("cfg", torch.ones(2)),
    "classes are a number": _set("classes", 5),
    "classes are numbers": _set("classes", [0, 1]),
    "data is a number": lambda content: content["settings"].update(data=5),
    "classifier without shape": _state("fc.weight", torch.tensor(1.0)),
    "batch norm without shape": _state("bn.weight", torch.tensor(1.0)),
    "short selection of all": _state("select.indexes", torch.ones(3)),
    "sparse weights": _state("conv1.weight", torch.ones(16, 3, 3, 3).to_sparse()),
}


def _read(reader: str, path: Path) -> list[object]:
    """A command that reads the checkpoint at ``path``."""
    program, flag = READERS[reader]
    more = ["--no-cuda", "--name", "again"] if program is resnet_prune else QUICK
    return [program, flag, path, *more]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_a_whole_checkpoint(
    shop: Workshop,
    refused: Refused,
    tmp_path: Path,
    reader: str,
    write: Callable[[Path, bytes], object],
) -> None:
    path = tmp_path / "given.pth.tar"
    write(path, shop.trained["resnet"].read_bytes())
    assert str(path) in refused(*_read(reader, path))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_checkpoint_with_something_wrong_in_it(
    shop: Workshop,
    refused: Refused,
    tmp_path: Path,
    reader: str,
    change: Callable[[Content], object],
) -> None:
    content = torch.load(shop.trained["resnet"], weights_only=True)
    change(content)
    torch.save(content, tmp_path / "given.pth.tar")
    assert str(tmp_path / "given.pth.tar") in refused(*_read(reader, tmp_path / "given.pth.tar"))


def _first_state(content: Content) -> Content:
    return content["optimizer"]["state"][0]


UNRESUMABLE = {
    "no epoch": lambda content: content.pop("epoch"),
    "epoch is a word": _set("epoch", "three"),
    "no best_prec1": lambda content: content.pop("best_prec1"),
    "optimizer is a number": _set("optimizer", 5),
    "optimizer is empty": _set("optimizer", {}),
    "optimizer of another": lambda content: content["optimizer"]["param_groups"][0]["params"].pop(),
    "momentum of another shape": lambda content: _first_state(content).update(
        momentum_buffer=torch.ones(3)
    ),
    "short ξ": _set("xi", torch.ones(3)),
    "ξ is a number": _set("xi", 5),
    "epoch is negative": _set("epoch", -1),
    "seed is a word": lambda content: content["settings"].update(seed="x"),
    "no batch": lambda content: content["settings"].update(batch_size=0),
    "no such architecture": lambda content: content["settings"].update(arch="x"),
}


@pytest.mark.parametrize("change", UNRESUMABLE.values(), ids=UNRESUMABLE)
def test_a_run_that_cannot_go_on(
    shop: Workshop, refused: Refused, tmp_path: Path, change: Callable[[Content], object]
) -> None:
    content = torch.load(shop.trained["resnet"], weights_only=True)
    change(content)
    torch.save(content, tmp_path / "given.pth.tar")
    line = refused(*_read("resume", tmp_path / "given.pth.tar"))
    assert f"{tmp_path / 'given.pth.tar'} cannot be resumed" in line


@pytest.mark.parametrize(
    "write", [_dump, lambda path, x: torch.save(x, path)], ids="pickle torch".split()
)
def test_the_payload_would_do_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, object], None]
) -> None:
    """Else the tests above would show nothing."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "given", Payload())
    if write is _dump:
        pickle.loads((tmp_path / "given").read_bytes())
    else:
        torch.load(tmp_path / "given", weights_only=False)
    assert (tmp_path / "owned").is_dir()


# A good checkpoint, and something else


@pytest.mark.parametrize(("arch", "other"), [*itertools.permutations(PRUNE, 2)])
def test_a_checkpoint_of_another_architecture(
    shop: Workshop, refused: Refused, arch: str, other: str
) -> None:
    path = shop.trained[arch]
    assert f"{path} has arch {arch}, not {other}" in refused(PRUNE[other], "--model", path)
    for mode in ("--resume", "--refine", "--evaluate"):
        line = refused(main, mode, path, "--arch", other)
        assert f"{path} has arch {arch}, not {other}" in line


CONTRADICTIONS = {
    "--depth 20": "depth 11, not 20",
    "--dataset shapes": "dataset folder, not shapes",
    "--dataset cifar10": "dataset folder, not cifar10",
    "--data {others}": "2 classes",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("flags", CONTRADICTIONS)
@pytest.mark.parametrize("slim", [False, True])
def test_flags_that_contradict_the_network(
    shop: Workshop, refused: Refused, reader: str, flags: str, slim: bool
) -> None:
    path = shop.slim if slim and reader != "resume" else shop.trained["resnet"]
    line = refused(*_read(reader, path), *flags.format(others=shop.others).split())
    assert str(path) in line and CONTRADICTIONS[flags] in line


RESUMED = {
    "--lr 0.2": "lr 0.1",
    "--epochs 2": "epochs 1",
    "--batch-size 8": "batch_size 64",
    "--seed 2": "seed 1",
    "--momentum 0.8": "momentum 0.9",
    "--wd 0.1": "weight_decay 0.0001",
    "--no-nesterov": "nesterov True",
    "--s 0.5": "s 0.002",
    "--beta 2": "beta 1.0",
    "--xi-init 0.1 0.2": "xi_init (0.47, 0.5)",
    "--prox-every epoch": "prox_every step",
    "-sr --method subgradient": "method proximal",
    "--method subgradient": "method proximal",
    "--precision bf16": "fp32",
    "--subset 8": "subset None",
    "--name other": "name proximal",
}


@pytest.mark.parametrize("flags", RESUMED)
def test_flags_that_contradict_the_run(shop: Workshop, refused: Refused, flags: str) -> None:
    line = refused(main, "--resume", shop.trained["resnet"], "--no-cuda", *flags.split())
    assert f"this run was started with {'--precision ' * ('bf16' in flags)}{RESUMED[flags]}" in line


def test_a_baseline_cannot_go_on_with_a_penalty(shop: Workshop, refused: Refused) -> None:
    line = refused(main, "--resume", shop.baseline, "-sr", "--no-cuda")
    assert "method baseline, not proximal" in line


def test_a_slim_network_has_no_run_to_go_on_with(shop: Workshop, refused: Refused) -> None:
    line = refused(main, "--resume", shop.slim, "--no-cuda")
    assert f"{shop.slim} cannot be resumed" in line


@pytest.mark.parametrize(
    "modes", [("--resume", "--refine"), ("--refine", "--evaluate"), ("--resume", "--evaluate")]
)
def test_modes_exclude_one_another(
    shop: Workshop, refused: Refused, modes: tuple[str, str]
) -> None:
    path = shop.trained["resnet"]
    line = refused(main, modes[0], path, modes[1], path)
    assert all(mode in line for mode in modes)


# The programs themselves

SCRIPTS = {
    "main.py --arch resnet --depth 12": "choose 9n + 2 (11, 20",
    "main.py --resume {pickle} --no-cuda": "{pickle}",
    "vgg_prune.py --model {resnet}": "has arch resnet, not vgg",
    "densenet_prune.py --model {resnet} --percent 2": "argument --percent",
}


@pytest.mark.parametrize("line", SCRIPTS)
def test_the_programs_end_with_status_2_and_one_line(
    shop: Workshop, tmp_path: Path, line: str
) -> None:
    places = {"resnet": shop.trained["resnet"], "pickle": tmp_path / "pickle"}
    _dump(places["pickle"], {"state_dict": {}})
    before = snapshot(tmp_path), snapshot(shop.folder)
    script, *args = line.format(**places).split()
    done = subprocess.run(
        [sys.executable, ROOT / script, *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    assert SCRIPTS[line].format(**places) in error_line(done.stderr)
    assert (snapshot(tmp_path), snapshot(shop.folder)) == before
