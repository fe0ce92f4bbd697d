"""Checkpoints from strangers run no code and allocate no more memory than their size."""

import collections
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import main
import resnet_prune
from utils import export
from utils.bench import __main__ as bench
from utils.console import InputError, note
from utils.files import safe_load
from workshop import Payload, dump

Write = Callable[[Path, Any], object]
FLAGS: dict[str, tuple[ModuleType, list[object]]] = {
    "main --resume": (main, ["--resume", "untrusted"]),
    "main --refine": (main, ["--refine", "untrusted"]),
    "main --evaluate": (main, ["--evaluate", "untrusted"]),
    "resnet_prune --model": (resnet_prune, ["--model", "untrusted"]),
    "export --model": (export, ["--model", "untrusted", "--normalised"]),
    "bench --compare": (bench, ["--compare", "good", "untrusted"]),
}
FORMATS: dict[str, Write] = {
    "zip": lambda path, x: torch.save(x, path),
    "torch 1.5": lambda path, x: torch.save(x, path, _use_new_zipfile_serialization=False),
    "pickle": lambda path, x: dump(path, x),
}


@pytest.mark.parametrize(
    ("flag", "kind"),
    [*((flag, "zip") for flag in FLAGS), *(("main --resume", kind) for kind in [*FORMATS][1:])],
)
def test_no_flag_runs_code_of_a_file(shop, refused, tmp_path, flag, kind):
    FORMATS[kind](tmp_path / "untrusted", {"epoch": Payload()})
    program, args = FLAGS[flag]
    paths = {"untrusted": tmp_path / "untrusted", "good": shop.trained}
    line = refused(program, *(paths.get(str(arg), arg) for arg in args))
    assert kind == "pickle" or ("posix.mkdir" in line and "Nothing of it was run" in line)
    assert not (tmp_path / "owned").exists()


CONTENT = {"state_dict": {"a": torch.arange(100.0), "b": torch.ones(2, 3)}, "epoch": 3}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("kind", ["zip", "torch 1.5"])
def test_saved_content_is_loaded(tmp_path, kind):
    content = {
        **CONTENT,
        "ordered": collections.OrderedDict(a=1),
        "parameter": nn.Parameter(torch.ones(2)),
        "double": np.float64(0.25),
        "tuple": (0.5, None, True, "ξ"),
    }
    FORMATS[kind](tmp_path / "x", content)
    loaded = safe_load.read(tmp_path / "x")
    assert loaded["double"] == 0.25
    assert loaded["tuple"] == content["tuple"]
    assert loaded["ordered"] == {"a": 1} and torch.equal(loaded["parameter"], torch.ones(2))
    assert same(loaded["state_dict"], content["state_dict"]) and loaded["epoch"] == 3


@pytest.mark.filterwarnings("ignore")  # torch's, about TorchScript
def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "x")
    with pytest.raises(InputError, match="it is a TorchScript program"):
        safe_load.read(tmp_path / "x")


def test_a_flipped_bit_is_detected(tmp_path):
    """Wherever it is, the file is refused or has the same content."""
    torch.save(CONTENT, tmp_path / "x")
    good = (tmp_path / "x").read_bytes()
    generator, refused = random.Random(0), 0
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1 << generator.randrange(8)
        (tmp_path / "x").write_bytes(bad)
        try:
            assert same(safe_load.read(tmp_path / "x"), CONTENT)
        except InputError:
            refused += 1
    assert refused > len(good) / 7 / 4  # the rest is padding


def compress(path: Path) -> None:
    torch.save(CONTENT, path)
    with zipfile.ZipFile(path) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def nested(depth: int, width: int) -> list[Any]:
    value: list[Any] = [1.0]
    for _ in range(depth):
        value = [value] * width
    return value


TRAPS: dict[str, Callable[[Path], object] | Any] = {
    "compressed": compress,
    "expanded": {"state_dict": {"a": torch.ones(1).expand(10**12)}},
    "meta": {"state_dict": {"a": torch.empty(10**12, device="meta")}},
    "sparse": {"a": torch.ones(3).to_sparse()},
    "complex": {"a": torch.ones(3, dtype=torch.complex64)},
    "billions of lists": {"a": nested(9, 10)},
    "deeply nested": {"a": nested(100, 1)},
}


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_false_sizes_and_endless_containers_are_refused(tmp_path, trap):
    path = tmp_path / "trap"
    trap(path) if callable(trap) else torch.save(trap, path)
    with pytest.raises(InputError) as error:
        safe_load.read(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 1000


def test_messages_cannot_control_the_terminal(refused, tmp_path, capsys):
    torch.save({"state_dict": {"\x1b[2J\nworse": torch.ones(1)}}, tmp_path / "x")
    line = refused(main, "--evaluate", tmp_path / "x")
    assert "\x1b" not in line and "\\x1b[2J\\x0aworse" in line
    note("passed over: \x1b[2J\nγ")
    assert capsys.readouterr().err == "passed over: \\x1b[2J\\x0aγ\n"
