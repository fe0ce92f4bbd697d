"""Folders that cannot be written to, and files of others, are refused before any work."""

import os

import pytest

import main
import resnet_prune
from runs import command

UNWRITABLE = ["a file", "below a file", "dangling link", "read-only folder", "/proc"]


@pytest.mark.parametrize("kind", UNWRITABLE)
def test_an_unwritable_folder_is_refused(shop, refused, tmp_path, kind):
    folder = place = tmp_path / "place"
    if kind == "dangling link":
        place.symlink_to("nowhere/at/all")
    elif kind == "read-only folder":
        if os.geteuid() == 0:
            pytest.skip("root can write everywhere")
        place.mkdir(mode=0o500)
        folder = place / "below"
    elif kind == "/proc":
        folder = place = "/proc/nowhere"
    else:
        place.write_text("in the way")
        folder = place / "far" / "below" if kind == "below a file" else place
    prune = (resnet_prune, "--model", shop.trained, "--no-cuda")
    for program in ((main, *shop.train()), prune):
        assert str(place) in refused(*program, "--save", folder)


RECORD, LOG, PRUNED = (
    "train_record.csv", "proximal_seed1_resnet_11_folder/log.csv", "pruned_record.csv"
)  # fmt: skip
FOREIGN = [
    (RECORD, b"a,b\n1,2\n", "other columns"),
    (LOG, b"a,b\n1,2\n", "other columns"),
    (PRUNED, b"a,b\n1,2\n", "other columns"),
    (RECORD, b"\xff\xfe\0\n", "other columns"),
    (LOG, None, "cannot be read"),
    (PRUNED, None, "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "reason"), FOREIGN)
def test_records_of_other_programs_are_not_changed(shop, refused, tmp_path, name, content, reason):
    table = tmp_path / name
    table.parent.mkdir(exist_ok=True)
    table.mkdir() if content is None else table.write_bytes(content)
    args: tuple[object, ...] = (main, "-sr", *shop.train())
    if name == PRUNED:
        args = (resnet_prune, "--model", shop.trained, "--no-cuda")
    line = refused(*args, "--save", tmp_path)
    assert str(table) in line and reason in line


def test_a_new_run_does_not_overwrite_another(shop, refused):
    line = refused(main, *shop.train(), "-sr", "--lr", "0.05", "--save", shop.folder)
    assert all(x in line for x in (str(shop.trained), "--resume", "--name"))


def test_a_resumed_run_does_not_overwrite_another(shop, refused, tmp_path):
    """Another run of the same name is in the folder of --save."""
    flags = ("--seed", 2, "--name", "proximal_seed1", "--save", tmp_path / "logs")
    assert command(main, "-sr", *shop.train(), *flags) == 0
    argv = ["--resume", shop.trained, "--save", tmp_path / "logs", "--no-cuda"]
    assert "logs" in refused(main, *argv)
