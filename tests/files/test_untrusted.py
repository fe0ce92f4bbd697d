"""A checkpoint from a stranger runs no code and takes no memory on its word."""

import collections
import pickle
import random
import resource
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import densenet_prune
import main
import resnet_prune
import vgg_prune
from models import build_model
from utils import console, export
from utils.bench import __main__ as bench
from utils.console import InputError
from utils.files import checkpoint, safe_load
from utils.network import fresh, restore
from workshop import Payload, Refused, Workshop, dump

Write = Callable[[Path, Any], object]
# Every flag that takes a checkpoint; bench takes two.
FLAGS: dict[str, tuple[ModuleType, list[object]]] = {
    "main --resume": (main, ["--resume", "given"]),
    "main --refine": (main, ["--refine", "given"]),
    "main --evaluate": (main, ["--evaluate", "given"]),
    "vgg_prune --model": (vgg_prune, ["--model", "given"]),
    "resnet_prune --model": (resnet_prune, ["--model", "given"]),
    "densenet_prune --model": (densenet_prune, ["--model", "given"]),
    "export --model": (export, ["--model", "given", "--normalised"]),
    "bench --compare, first": (bench, ["--compare", "given", "good"]),
    "bench --compare, second": (bench, ["--compare", "good", "given"]),
}
FORMATS: dict[str, Write] = {
    "zip": lambda path, x: torch.save(x, path),
    "before torch 1.6": lambda path, x: torch.save(x, path, _use_new_zipfile_serialization=False),
    "pickle": lambda path, x: dump(path, {"epoch": x["epoch"]}),
    "pickle of old": lambda path, x: path.write_bytes(pickle.dumps(x["epoch"], protocol=0)),
}


@pytest.mark.parametrize(
    ("flag", "kind"),
    [*((flag, "zip") for flag in FLAGS), *(("main --resume", kind) for kind in [*FORMATS][1:])],
)
def test_no_flag_runs_a_files_code(
    shop: Workshop, refused: Refused, tmp_path: Path, flag: str, kind: str
) -> None:
    content = torch.load(shop.trained["resnet"], weights_only=True)
    FORMATS[kind](tmp_path / "given", {**content, "epoch": Payload()})
    program, args = FLAGS[flag]
    places = {"given": tmp_path / "given", "good": shop.trained["resnet"]}
    line = refused(program, *(places.get(str(arg), arg) for arg in args))
    assert "posix.mkdir" in line and "Nothing of it was run" in line
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_the_payload_would_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    """Else the test above would show nothing."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "given", {"epoch": Payload()})
    if write in (FORMATS["zip"], FORMATS["before torch 1.6"]):
        torch.load(tmp_path / "given", weights_only=False)
    else:
        pickle.loads((tmp_path / "given").read_bytes())
    assert (tmp_path / "owned").is_dir()


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Taking what a file claims fails here, instead of bringing the machine down."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if (status := Path("/proc/self/status")).exists():
        (size,) = (int(x.split()[1]) for x in status.open() if x.startswith("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (1024 * size + 2**31, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


CONTENT = {"state_dict": {"a": torch.arange(100.0), "b": torch.ones(2, 3)}, "epoch": 3}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("write", [FORMATS["zip"], FORMATS["before torch 1.6"]])
def test_what_is_saved_is_read(tmp_path: Path, write: Write) -> None:
    content = {
        **CONTENT,
        "ordered": collections.OrderedDict(a=1),
        "parameter": nn.Parameter(torch.ones(2)),
        "double": np.float64(0.25),
        "pair": (0.5, None, True, "ξ"),
    }
    write(tmp_path / "x", content)
    read = safe_load.read(tmp_path / "x")
    assert read["double"] == 0.25 and read["pair"] == content["pair"]
    assert type(read["ordered"]) is dict and type(read["parameter"]) is torch.Tensor
    assert same(read["state_dict"], content["state_dict"]) and read["epoch"] == 3


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Wherever it is, the file is refused or what it holds is the same."""
    torch.save(CONTENT, tmp_path / "x")
    good = (tmp_path / "x").read_bytes()
    chance, refused = random.Random(0), 0
    for position in range(0, len(good), 3):
        bad = bytearray(good)
        bad[position] ^= 1 << chance.randrange(8)
        (tmp_path / "x").write_bytes(bad)
        try:
            assert same(safe_load.read(tmp_path / "x"), CONTENT)
        except InputError:
            refused += 1
    assert refused > len(good) / 3 / 4  # the rest is padding


def repack(path: Path, how: int = zipfile.ZIP_STORED, **changed: bytes) -> None:
    """Write the zip again, with other contents of some files."""
    with zipfile.ZipFile(path) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in files.items():
            archive.writestr(name, changed.get(name.rpartition("/")[2].replace(".", "_"), data))


def _claim(path: Path, places: slice) -> None:
    """Say 2**44 where the pickle says how many numbers there are."""
    torch.save({"state_dict": {"a": torch.arange(1000.0)}}, path)
    with zipfile.ZipFile(path) as archive:
        parts = archive.read(f"{path.name}/data.pkl").split(b"M\xe8\x03")
    says = [b"\x8a\x06\0\0\0\0\0\x10" if i in range(2)[places] else b"M\xe8\x03" for i in (0, 1)]
    repack(path, data_pkl=parts[0] + says[0] + parts[1] + says[1] + parts[2])


def _claim_of_old(path: Path) -> None:
    torch.save({"a": torch.arange(1000.0)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"M\xe8\x03", b"\x8a\x05\0\0\0\0\x10"))


def _twice(path: Path) -> None:
    torch.save(CONTENT, path)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(f"{path.name}/data.pkl", b"")


def _compressed(path: Path) -> None:
    torch.save(CONTENT, path)
    repack(path, zipfile.ZIP_DEFLATED)


def _laughs() -> list[Any]:
    """Ten lists of ten lists of ten lists, ...: as text, more than there is memory for."""
    value: list[Any] = [1.0]
    for _ in range(9):
        value = [value] * 10
    return value


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Call:
    """Unpickling this calls a function that torch trusts."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.called = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


TRAPS: dict[str, Callable[[Path], object] | Any] = {
    "more numbers than stored": lambda path: _claim(path, slice(1, 2)),
    "a larger record": lambda path: _claim(path, slice(0, 1)),
    "a larger record, old format": _claim_of_old,
    "compressed": _compressed,
    "two pickles": _twice,
    "one number, a million million times": {"state_dict": {"a": torch.ones(1).expand(10**12)}},
    "no memory behind it": {"state_dict": {"a": torch.empty(10**12, device="meta")}},
    "a gigabyte array": {"a": Call(bytearray, 10**10)},
    "a gigabyte tensor": {"a": Call(torch.FloatTensor, 10**10)},
    "sparse": {"a": torch.ones(3).to_sparse()},
    "complex": {"a": torch.ones(3, dtype=torch.complex64)},
    "a gigabyte scalar": {"a": Call(np.float64(1).__reduce__()[0], np.dtype("V2000000000"))},
    "a scalar of words": {"a": np.str_("word")},
    "lists of lists of lists": {"a": _laughs()},
    "deeply nested": {"a": _nested(100)},
    "in itself": {"a": _endless()},
    "a large number": {"a": 2**500},
    "a long text": {"a": "a" * 10**6},
    "bytes": {"a": b"abc"},
    "a key that is a tuple": {(1, 2): 3},
}


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_traps_are_refused(tmp_path: Path, trap: Any) -> None:
    path = tmp_path / "trap"
    trap(path) if callable(trap) else torch.save(trap, path)
    with pytest.raises(InputError) as error:
        safe_load.read(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 1000


def _network(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    state = build_model("resnet", 11, 2).state_dict()
    return state | {key.replace("__", "."): value for key, value in changed.items()}


def _deep(count: int) -> dict[str, torch.Tensor]:
    return {f"layer1.{i}.conv1.weight": torch.ones(1) for i in range(count)}


STATES = {
    "ten billion classes": _network(fc__weight=torch.ones(10**10, 0)),
    "classes beyond counting": _network(fc__weight=torch.ones(2**62, 0)),
    "ten billion channels": _network(bn__weight=torch.ones(10**10, 0)),
    "two thousand blocks": _deep(2_000),
    "not a number": _network(bn__weight=torch.full((256,), torch.nan)),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_weights_of_no_network_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"state_dict": state}, tmp_path / "x")
    with pytest.raises(InputError, match="x"):
        checkpoint.load(tmp_path / "x")


def test_a_selection_that_wraps_around_is_refused() -> None:
    """Differences of far apart 64-bit numbers look positive."""
    network = fresh("resnet", 11, 2, 32)
    masks = [torch.ones(width, dtype=torch.bool) for width in network.widths]
    masks[-1][4:] = False
    small = network.remove(network.plan(masks, streams=False))
    state = small.model.state_dict()
    state["bn.select.index"] = torch.tensor([0, 2**62, -(2**62) - 1, 5])
    assert (state["bn.select.index"].diff() > 0).all()
    with pytest.raises(ValueError, match="select"):
        restore(state)


ENTRIES = {
    "ten billion channels": {"cfg": [10**10] * 10},
    "tensors for cfg": {"cfg": [torch.ones(2)] * 10},
    "two numbers for a mean": {"mean": [0.5, 0.5]},
    "no spread": {"std": [0.0, 0.1, 0.1]},
    "a mean of words": {"mean": ["a", "b", "c"]},
    "settings within settings": {"settings": {"name": {"a": 1}}},
    "a tensor for a setting": {"settings": {"seed": torch.ones(2)}},
    "half an execution": {"precision": "fp32"},
    "another precision": {"precision": "fp8", "channels_last": False},
    "a tensor for a precision": {"precision": torch.ones(2), "channels_last": False},
}


@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
def test_entries_that_are_not_what_they_should_be(tmp_path: Path, entries: Any) -> None:
    torch.save({"state_dict": _network(), **entries}, tmp_path / "x")
    with pytest.raises(InputError, match=next(iter(entries))):
        checkpoint.load(tmp_path / "x")


def test_a_message_cannot_steer_the_terminal(refused: Refused, tmp_path: Path) -> None:
    state = {"layer1.0.conv1.weight": torch.ones(1), "\x1b[2J\nworse": torch.ones(1)}
    torch.save({"state_dict": _network() | state}, tmp_path / "x")
    line = refused(main, "--evaluate", tmp_path / "x")
    assert "\x1b" not in line and "\\x1b[2J\\x0aworse" in line


def test_neither_can_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("passed over: \x1b[2J\nγ")
    assert capsys.readouterr().err == "passed over: \\x1b[2J\\x0aγ\n"
