"""Files that are no good checkpoints are refused: each rule of the reader, and every flag once."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from utils.console import InputError
from utils.files import checkpoint
from workshop import READERS, ROOT, Refused, Workshop, dump, read_with


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(ROOT / "main.py", "main.py")


Content = dict[str, Any]
# Not a checkpoint at all: how to write one, given a good one's bytes.
FOREIGN: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, good: None,
    "folder": lambda path, good: path.mkdir(),
    "empty": lambda path, good: path.write_bytes(b""),
    "text": lambda path, good: path.write_text("# a readme\n"),
    "pickle": lambda path, good: dump(path, {"state_dict": {"weight": 1}}),
    "arrays": lambda path, good: np.savez(path.open("wb"), a=np.ones(3)),
    "tar": lambda path, good: _tar(path),
    "first byte": lambda path, good: path.write_bytes(good[:1]),
    "first half": lambda path, good: path.write_bytes(good[: len(good) // 2]),
    "second half": lambda path, good: path.write_bytes(good[len(good) // 2 :]),
    "last byte missing": lambda path, good: path.write_bytes(good[:-1]),
    "zeros at the end": lambda path, good: path.write_bytes(good[:-5000] + b"\0" * 5000),
    "whole network": lambda path, good: torch.save(nn.Linear(2, 2), path),
    "list": lambda path, good: torch.save([1, 2, 3], path),
    "no state_dict": lambda path, good: torch.save({"epoch": 1, "cfg": [3]}, path),
}


def _set(key: str, value: object) -> Callable[[Content], None]:
    return lambda content: content.__setitem__(key, value)


def _state(key: str | int, value: object) -> Callable[[Content], None]:
    return lambda content: content["state_dict"].__setitem__(key, value)


def _pop(key: str) -> Callable[[Content], object]:
    return lambda content: content["state_dict"].pop(key)


def _changed(shop: Workshop, folder: Path, change: Callable[[Content], object]) -> Path:
    """A copy of a good checkpoint, with a change."""
    content = torch.load(shop.trained["resnet"], weights_only=True)
    change(content)
    torch.save(content, folder / "given.pth.tar")
    return folder / "given.pth.tar"


# A good checkpoint in which one thing is wrong.
WRONG: dict[str, Callable[[Content], object]] = {
    "state_dict is a list": _set("state_dict", [torch.ones(2)]),
    "state_dict is empty": _set("state_dict", {}),
    "state_dict of lists": _state("fc.bias", [0.0, 0.0]),
    "numbered weights": _state(7, torch.ones(2)),
    "another network": _set("state_dict", nn.Linear(2, 2).state_dict()),
    "one weight too many": _state("layer4.0.conv1.weight", torch.ones(2, 2, 1, 1)),
    "one weight missing": _pop("layer2.0.conv2.weight"),
    "no classifier": _pop("fc.weight"),
    "no batch norm": _pop("bn.weight"),
    "other shape": _state("layer1.0.conv2.weight", torch.ones(16, 16, 1, 1)),
    "wider than there is": _state("bn.weight", torch.ones(999)),
    "no class": _state("fc.weight", torch.ones(0, 256)),
    "classifier without shape": _state("fc.weight", torch.tensor(1.0)),
    "whole numbers": _state("conv1.weight", torch.ones(16, 3, 3, 3, dtype=torch.int32)),
    "half a selection": _state("select.indexes", torch.full((256,), 0.5)),
    "short selection": _state("select.indexes", torch.tensor([1.0, 0.0, 1.0])),
    "negative selection": _state("select.index", torch.arange(-1, 255)),
    "cfg of another": _set("cfg", [1, 2, 3]),
    "cfg is a number": _set("cfg", 5),
    "classes are numbers": _set("classes", [0, 1]),
    "settings are a number": _set("settings", 5),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_a_whole_checkpoint(
    shop: Workshop, tmp_path: Path, write: Callable[[Path, bytes], object]
) -> None:
    path = tmp_path / "given.pth.tar"
    write(path, shop.trained["resnet"].read_bytes())
    with pytest.raises(InputError, match=str(path)):
        checkpoint.load(path)


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_checkpoint_with_something_wrong_in_it(
    shop: Workshop, tmp_path: Path, change: Callable[[Content], object]
) -> None:
    with pytest.raises(InputError, match=str(tmp_path / "given.pth.tar")):
        checkpoint.load(_changed(shop, tmp_path, change))


# One that cannot be read, one that fits no network, and one that fits no data.
EVERYWHERE = {
    "cut off": lambda path, shop: path.write_bytes(shop.trained["resnet"].read_bytes()[:-1]),
    "no classifier": lambda path, shop: _changed(shop, path.parent, WRONG["no classifier"]),
    "other classes": lambda path, shop: _changed(
        shop, path.parent, _set("classes", ["blue", "green"])
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("write", EVERYWHERE.values(), ids=EVERYWHERE)
def test_every_flag_that_takes_a_checkpoint_refuses_it_in_one_line(
    shop: Workshop,
    refused: Refused,
    tmp_path: Path,
    reader: str,
    write: Callable[[Path, Workshop], object],
) -> None:
    path = tmp_path / "given.pth.tar"
    write(path, shop)
    assert str(path) in refused(*read_with(reader, path))


def _first_state(content: Content) -> Content:
    return content["optimizer"]["state"][0]


UNRESUMABLE = {
    "no epoch": lambda content: content.pop("epoch"),
    "epoch is a word": _set("epoch", "three"),
    "no best_prec1": lambda content: content.pop("best_prec1"),
    "optimizer is a number": _set("optimizer", 5),
    "optimizer has a tensor": _set("optimizer", {"param_groups": [torch.ones(3)]}),
    "optimizer of another": lambda content: content["optimizer"]["param_groups"][0]["params"].pop(),
    "momentum of another shape": lambda content: _first_state(content).update(
        momentum_buffer=torch.ones(3)
    ),
    "short ξ": _set("method", {"xi": torch.ones(3)}),
    "ξ is a number": _set("method", {"xi": 5}),
    "epoch is negative": _set("epoch", -1),
    "seed is a word": lambda content: content["settings"].update(seed="x"),
}


@pytest.mark.parametrize("change", UNRESUMABLE.values(), ids=UNRESUMABLE)
def test_a_run_that_cannot_go_on(
    shop: Workshop, refused: Refused, tmp_path: Path, change: Callable[[Content], object]
) -> None:
    path = _changed(shop, tmp_path, change)
    assert f"{path} cannot be resumed" in refused(*read_with("resume", path))
