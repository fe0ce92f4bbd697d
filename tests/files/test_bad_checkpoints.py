"""Damaged checkpoints are refused with one line, by every flag that takes one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from utils.console import InputError
from utils.files import checkpoint
from workshop import READERS, Refused, Workshop, dump, read_with

Content = dict[str, Any]
# Writers of other files, from the bytes of a good checkpoint.
OTHER_FILES: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, good: None,
    "folder": lambda path, good: path.mkdir(),
    "empty": lambda path, good: path.write_bytes(b""),
    "text": lambda path, good: path.write_text("# a readme\n"),
    "pickle": lambda path, good: dump(path, {"state_dict": {"weight": 1}}),
    "NumPy arrays": lambda path, good: np.savez(path.open("wb"), a=np.ones(3)),
    "first half": lambda path, good: path.write_bytes(good[: len(good) // 2]),
    "last byte missing": lambda path, good: path.write_bytes(good[:-1]),
    "zeros at the end": lambda path, good: path.write_bytes(good[:-5000] + b"\0" * 5000),
    "module": lambda path, good: torch.save(nn.Linear(2, 2), path),
    "list": lambda path, good: torch.save([1, 2, 3], path),
    "no state_dict": lambda path, good: torch.save({"epoch": 1, "cfg": [3]}, path),
}


def set_entry(key: str, value: object) -> Callable[[Content], None]:
    return lambda content: content.__setitem__(key, value)


def set_weight(key: str | int, value: object) -> Callable[[Content], None]:
    return lambda content: content["state_dict"].__setitem__(key, value)


def change(shop: Workshop, folder: Path, edit: Callable[[Content], object]) -> Path:
    """Writes a copy of a good checkpoint with one change."""
    content = torch.load(shop.trained, weights_only=True)
    edit(content)
    torch.save(content, folder / "given.pth.tar")
    return folder / "given.pth.tar"


DAMAGED: dict[str, Callable[[Content], object]] = {
    "state_dict is a list": set_entry("state_dict", [torch.ones(2)]),
    "state_dict is empty": set_entry("state_dict", {}),
    "state_dict of lists": set_weight("fc.bias", [0.0, 0.0]),
    "numbered weights": set_weight(7, torch.ones(2)),
    "another model": set_entry("state_dict", nn.Linear(2, 2).state_dict()),
    "unknown weight": set_weight("layer4.0.conv1.weight", torch.ones(2, 2, 1, 1)),
    "missing weight": lambda content: content["state_dict"].pop("layer2.0.conv2.weight"),
    "missing classifier": lambda content: content["state_dict"].pop("fc.weight"),
    "other shape": set_weight("layer1.0.conv2.weight", torch.ones(16, 16, 1, 1)),
    "wider than the model": set_weight("bn.weight", torch.ones(999)),
    "no classes": set_weight("fc.weight", torch.ones(0, 256)),
    "ten billion classes": set_weight("fc.weight", torch.ones(10**10, 0)),
    "two thousand blocks": lambda content: content["state_dict"].update(
        {f"layer1.{i}.conv1.weight": torch.ones(1) for i in range(2000)}
    ),
    "not finite": set_weight("bn.weight", torch.full((256,), torch.nan)),
    "integers": set_weight("conv1.weight", torch.ones(16, 3, 3, 3, dtype=torch.int32)),
    "fractional selection": set_weight("select.indexes", torch.full((256,), 0.5)),
    "short selection": set_weight("select.indexes", torch.tensor([1.0, 0.0, 1.0])),
    "negative selection": set_weight("select.index", torch.arange(-1, 255)),
    "classes is a number": set_entry("classes", 2),
    "mean of two channels": set_entry("mean", [0.5, 0.5]),
    "std is zero": set_entry("std", [0.2, 0.0, 0.2]),
    "unknown precision": set_entry("precision", "fp8"),
    "cut of other channels": set_entry("cut", torch.ones(7, dtype=torch.bool)),
    "settings is a number": set_entry("settings", 5),
    "settings in settings": lambda content: content["settings"].update(name={"a": 1}),
    "a tensor in settings": lambda content: content["settings"].update(seed=torch.ones(2)),
}


@pytest.mark.parametrize("kind", [*OTHER_FILES, *DAMAGED])
def test_other_files_and_damaged_checkpoints_are_refused(shop, tmp_path, kind):
    path = tmp_path / "given.pth.tar"
    if kind in DAMAGED:
        change(shop, tmp_path, DAMAGED[kind])
    else:
        OTHER_FILES[kind](path, shop.trained.read_bytes())
    with pytest.raises(InputError, match=str(path)):
        checkpoint.load(path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["incomplete", "other classes"])
def test_every_flag_refuses_a_bad_checkpoint(shop, refused, tmp_path, reader, kind):
    path = change(shop, tmp_path, set_entry("classes", ["blue", "green"]))
    if kind == "incomplete":
        path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in refused(*read_with(reader, path))


def first_state(content: Content) -> Content:
    return content["optimizer"]["state"][0]


NOT_RESUMABLE = {
    "no epoch": lambda content: content.pop("epoch"),
    "epoch is a word": set_entry("epoch", "three"),
    "epoch is negative": set_entry("epoch", -1),
    "no best_prec1": lambda content: content.pop("best_prec1"),
    "optimizer is a number": set_entry("optimizer", 5),
    "optimizer of another": lambda content: content["optimizer"]["param_groups"][0]["params"].pop(),
    "momentum of another shape": lambda content: first_state(content).update(
        momentum_buffer=torch.ones(3)
    ),
    "short ξ": set_entry("method", {"xi": torch.ones(3)}),
    "ξ is a number": set_entry("method", {"xi": 5}),
    "seed is a word": lambda content: content["settings"].update(seed="x"),
}


@pytest.mark.parametrize("kind", NOT_RESUMABLE)
def test_damaged_training_states_are_not_resumed(shop, refused: Refused, tmp_path, kind):
    path = change(shop, tmp_path, NOT_RESUMABLE[kind])
    assert f"{path} cannot be resumed" in refused(*read_with("resume", path))
