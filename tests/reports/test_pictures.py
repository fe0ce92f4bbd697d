"""Runs on different pictures: never averaged, and none takes another's place."""

import recorded
from utils import console
from utils.reports import results, tables

VGG = {"s": 0.0045, "beta": 100.0}


def test_runs_on_different_pictures_are_never_averaged(tmp_path, capsys):
    own = {**VGG, "dataset": "folder", "source": ""}
    for seed, pictures in ((1, "0000000a"), (2, "0000000b")):
        recorded.run(tmp_path, "vgg", 19, "proximal", seed, **own, pictures=pictures, zeros=3000)
    groups = results.group_runs(results.load(tmp_path))
    assert [len(runs) for variants in groups.values() for runs in variants.values()] == [1, 1]
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "pictures 0000000a" in out and "pictures 0000000b" in out


def test_nor_does_one_replace_another(tmp_path, capsys):
    """Two runs of one name and seed: the first was moved away, its line stays in the record."""
    own = {**VGG, "dataset": "folder", "source": ""}
    for pictures, accuracy in (("0000000a", 91.25), ("0000000b", 82.5)):
        recorded.run(tmp_path, "vgg", 19, "proximal", 1, **own, pictures=pictures,
                     accuracy=accuracy)  # fmt: skip
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "91.25" in out and "82.50" in out and not err
