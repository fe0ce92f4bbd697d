"""Places that cannot be written to, or hold something else, are refused before any work."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import main
import resnet_prune
from runs import command
from workshop import PRUNE, Refused, Workshop


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
    [
        (b"a,b\n1,2\n", "other columns"),
        (b"a note", "other columns"),
        (b"\xff\xfe\0\n", "cannot be read"),
        (None, "cannot be read"),
    ],
    ids=["other columns", "no line", "not text", "folder"],
)
@pytest.mark.parametrize(
    "name", ["train_record.csv", "proximal_seed1_resnet_11_folderlog.csv", "pruned_record.csv"]
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


@pytest.mark.parametrize("flags", [["-sr"], ["-sr", "--lr", "0.05"]])
def test_a_new_run_does_not_overwrite_another(
    shop: Workshop, refused: Refused, flags: list[str]
) -> None:
    line = refused(main, *shop.train(), *flags, "--save", shop.folder)
    assert all(x in line for x in (str(shop.trained["resnet"]), "--resume", "--name"))


def test_a_resumed_run_does_not_overwrite_another(
    shop: Workshop, refused: Refused, tmp_path: Path
) -> None:
    """The other one has the same name, and lies where this one is to be kept."""
    named = ("--name", "proximal_seed1")
    assert (
        command(main, "-sr", *shop.train(), "--seed", 2, *named, "--save", tmp_path / "logs") == 0
    )
    argv = ["--resume", shop.trained["resnet"], "--save", tmp_path / "logs", "--no-cuda"]
    assert "logs" in refused(main, *argv)
