"""Records of other programs, damaged or missing ones, as the commands that read them meet them."""

import csv
import io

import pytest

import recorded
from utils import console
from utils.files import records
from utils.reports import results, tables

VGG = {"s": 0.0045, "beta": 100.0}


def with_cells(text: str, **cells: object) -> str:
    """The record with these cells in its row, and without the columns that are None."""
    (row,) = csv.DictReader(io.StringIO(text))
    row = {key: value for key, value in {**row, **cells}.items() if value is not None}
    output = io.StringIO()
    csv.writer(output).writerows([row.keys(), row.values()])
    return output.getvalue()


DAMAGES = {
    "other columns": (lambda text: "a,b\n1,2\n", "no column run"),
    "a column less": (lambda text: text.replace("gamma_zeros", "zeros"), "no column gamma_zeros"),
    "a short line": (lambda text: text + "a,b,c\n", "line 3"),
    "a long line": (lambda text: text.rstrip() + ",1,2,3\n", "line 2"),
    "a word for a number": (lambda text: text.replace("90.0", "ninety"), "test_accuracy"),
    "not a number": (lambda text: text.replace("90.0", "nan"), "test_accuracy"),
    "no seed": (lambda text: text.replace("cifar10,1,", "cifar10,,"), "seed"),
    "half a seed": (lambda text: text.replace("cifar10,1,", "cifar10,1.5,"), "seed"),
    "an open quote": (lambda text: text + '"a,b\n', "cannot be read"),
    "a damaged command": (lambda text: text.replace("--arch", "'--arch"), "command"),
    "no number for a flag": (lambda text: with_cells(text, lr=0.1, momentum="nan"), "flags"),
    "one bound of two": (lambda text: with_cells(text, lr=0.1, xi_init="0.47"), "flags"),
    "a flag's column less": (lambda text: with_cells(text, lr=0.1, nesterov=None), "flags"),
    "a flag without a number": (lambda text: text.replace("vgg ,", "vgg --lr,"), "command"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_ends_in_one_line(damage, said, tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG)
    path = tmp_path / "train_record.csv"
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


@pytest.mark.parametrize("name", ["train_record.csv", "pruned_record.csv", "refine_record.csv"])
def test_records_that_are_no_text(name, tmp_path, capsys):
    (tmp_path / name).write_bytes(b"run\xff\xfe\n")
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err


def test_a_missing_folder(tmp_path, capsys):
    assert console.run(tables.main, ["--save", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_todays_records_are_read(tmp_path):
    """All columns that are read are among those that runs write."""
    assert set(results.TRAINED) <= set(records.TRAINED)
    assert set(results.PRUNED) <= set(records.PRUNED)
    assert set(results.LOG) <= set(records.LOG)
