"""Records of other programs, damaged or missing ones, as the commands that read them meet them."""

import csv
import io
from collections.abc import Callable

import pytest

import recorded
from utils import console
from utils.files.paths import PRUNED, REFINED, TRAINED
from utils.methods import METHODS
from utils.reports import tables

VGG = {"s": 0.0045, "beta": 100.0}


def with_cells(text: str, **cells: object) -> str:
    """The record with these cells in its row, and without the columns that are None."""
    (row,) = csv.DictReader(io.StringIO(text))
    row = {key: value for key, value in {**row, **cells}.items() if value is not None}
    output = io.StringIO()
    csv.writer(output).writerows([row.keys(), row.values()])
    return output.getvalue()


def other(**cells: object) -> Callable[[str], str]:
    return lambda text: with_cells(text, **cells)


DAMAGES = {
    "other columns": (lambda text: "a,b\n1,2\n", "no column"),
    "a column less": (lambda text: text.replace("gamma_zeros", "zeros"), "no column gamma_zeros"),
    "a short line": (lambda text: text + "a,b,c\n", "line 3"),
    "a long line": (lambda text: text.rstrip() + ",1,2,3\n", "line 2"),
    "a word for a number": (lambda text: text.replace("90.0", "ninety"), "test_accuracy"),
    "not a number": (lambda text: text.replace("90.0", "nan"), "test_accuracy"),
    "no seed": (other(seed=""), "seed"),
    "half a seed": (other(seed=1.5), "seed"),
    "no method": (other(method=""), "method"),
    "another program's method": (other(method="magnitude"), "method"),
    "another architecture": (other(arch="lenet"), "arch"),
    "no depth": (other(depth=""), "depth"),
    "an open quote": (lambda text: text + '"a,b\n', "line 3"),
    "no number for a flag": (other(momentum="nan"), "momentum"),
    "one bound of two": (other(xi_init="0.47"), "xi_init"),
    "bounds the wrong way round": (other(xi_init="0.5 0.1"), "xi-init"),
    "a flag's column less": (other(nesterov=None), "nesterov"),
    "a method's column less": (other(beta=None), "beta"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_ends_in_one_line(damage, said, tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG)
    path = tmp_path / TRAINED
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    argv = ["--save", str(tmp_path), "--csv", str(tmp_path / "csv")]
    assert console.run(tables.main, argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert str(path) in err and said in err
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", [TRAINED, PRUNED, REFINED])
def test_records_that_are_no_text(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"run\xff\xfe\n")
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err


def test_a_missing_folder(tmp_path, capsys):
    assert console.run(tables.main, ["--save", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "column"),
    [(PRUNED, "accuracy_slim"), (PRUNED, "percent"), (REFINED, "channels"), (REFINED, "lr")],
)
def test_prunings_and_fine_tunings_that_are_damaged(name, column, tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0, tuned=91)
    path = tmp_path / name
    whole = path.read_text()
    for cell in ("many", None):
        path.write_text(with_cells(whole, **{column: cell}))
        assert console.run(tables.main, ["--save", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and str(path) in err and column in err


def test_cells_without_a_value_are_no_traceback(tmp_path, capsys):
    """Where a flag may have none, nothing says that the cell was emptied."""
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0)
    path = tmp_path / TRAINED
    path.write_text(with_cells(path.read_text(), s="", beta="", xi_init="", prox_every="", data=""))
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0)
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_records_of_before_a_method_was_added_are_read(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG)
    path = tmp_path / TRAINED
    others = {flag.name: None for flag in METHODS["lp-admm"].flags if flag.name != "s"}
    assert "rho" in others
    path.write_text(with_cells(path.read_text(), **others))
    recorded.run(tmp_path, "vgg", 19, "proximal", 2, **VGG)  # which adds the columns
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "ours, n = 2" in out


def test_records_of_before_pictures_had_sizes_are_read(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG)
    path = tmp_path / TRAINED
    later = dict.fromkeys(("size", "normalise", "stream"))
    assert later.keys() <= set(path.read_text().partition("\n")[0].split(","))
    path.write_text(with_cells(path.read_text(), **later))
    recorded.run(tmp_path, "vgg", 19, "proximal", 2, **VGG)  # which adds the columns
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "ours, n = 2" in out and "--size" not in out
