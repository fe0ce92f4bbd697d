"""Files that are no good checkpoints are refused by every flag that takes one."""

import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from workshop import READERS, ROOT, Payload, Refused, Workshop, dump, read_with


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
    "pickle": lambda path, good: dump(path, {"state_dict": {"weight": 1}}),
    "pickled object": lambda path, good: dump(path, Path("/")),
    "pickled payload": lambda path, good: dump(path, Payload()),
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
    assert str(path) in refused(*read_with(reader, path))


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
    assert str(tmp_path / "given.pth.tar") in refused(
        *read_with(reader, tmp_path / "given.pth.tar")
    )


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
    "short ξ": _set("method", {"xi": torch.ones(3)}),
    "ξ is a number": _set("method", {"xi": 5}),
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
    line = refused(*read_with("resume", tmp_path / "given.pth.tar"))
    assert f"{tmp_path / 'given.pth.tar'} cannot be resumed" in line


@pytest.mark.parametrize(
    "write", [dump, lambda path, x: torch.save(x, path)], ids="pickle torch".split()
)
def test_the_payload_would_do_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, object], None]
) -> None:
    """Else the tests above would show nothing."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "given", Payload())
    if write is dump:
        pickle.loads((tmp_path / "given").read_bytes())
    else:
        torch.load(tmp_path / "given", weights_only=False)
    assert (tmp_path / "owned").is_dir()
