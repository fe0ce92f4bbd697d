"""Records that are damaged, missing or from other programs, and what belongs to a run."""

import shutil
from pathlib import Path

import pytest

import recorded
import resnet_prune
from runs import rows, train
from utils import console
from utils.files import checkpoint
from utils.files.paths import PRUNED, REFINED, TRAINED, RunPaths
from utils.methods import METHODS
from utils.reports import results, tables

VGG = {"s": 0.0045, "beta": 100.0}


def damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the tables command refuses the records; nothing is written."""
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    argv = ["--save", str(tmp_path), "--csv", str(tmp_path / "csv")]
    assert console.run(tables.main, argv) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    return err


TEXTS = {
    "other columns": (lambda text: "a,b\n1,2\n", "no column"),
    "a short line": (lambda text: text + "a,b,c\n", "line 3"),
    "a word for a number": (lambda text: text.replace("90.0", "ninety"), "test_accuracy"),
    "no text": (lambda text: "run\udcff\n", "has other columns"),
}


@pytest.mark.parametrize(("damage", "message"), TEXTS.values(), ids=TEXTS)
def test_damaged_files_are_rejected(damage, message, tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG)
    path = tmp_path / TRAINED
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    err = damaged(tmp_path, capsys)
    assert str(path) in err and message in err


@pytest.mark.parametrize(
    ("name", "column", "cell"),
    [
        (TRAINED, "seed", ""),
        (TRAINED, "method", "magnitude"),
        (TRAINED, "momentum", "nan"),
        (TRAINED, "xi-init", "0.5 0.1"),
        (TRAINED, "beta", None),
        (PRUNED, "accuracy_slim", "many"),
        (PRUNED, "percent", None),
        (REFINED, "lr", None),
    ],
)
def test_damaged_cells_are_rejected(name, column, cell, tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0, tuned=91)
    recorded.set_cells(tmp_path / name, **{column.replace("-", "_"): cell})
    err = damaged(tmp_path, capsys)
    assert str(tmp_path / name) in err and column in err


def test_cells_of_optional_flags_may_be_empty(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0)
    empty = dict.fromkeys(("s", "beta", "xi_init", "prox_every", "data"), "")
    recorded.set_cells(tmp_path / TRAINED, **empty)
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


LATER_COLUMNS = {
    "of a method": [flag.name for flag in METHODS["lp-admm"].flags if flag.name != "s"],
    "of all runs": ["size", "normalise", "stream"],
}


@pytest.mark.parametrize("columns", LATER_COLUMNS.values(), ids=LATER_COLUMNS)
def test_older_records_without_later_columns_are_read(columns, tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG)
    path = tmp_path / TRAINED
    assert set(columns) <= set(path.read_text().partition("\n")[0].split(","))
    recorded.set_cells(path, **dict.fromkeys(columns))
    recorded.run(tmp_path, "vgg", 19, "proximal", 2, **VGG)  # which appends the columns
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "ours, n = 2" in out and "--size" not in out


# The prunings of a run are those of its final checkpoint, evaluated on its own test images.


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    folder = tmp_path_factory.mktemp("trained")
    network = ["--arch", "resnet", "--depth", 11, "-sr", "--method", "subgradient"]
    assert train(folder, pictures, *network, "--epochs", 1, "--name", "net") == 0
    return RunPaths(folder, "net_resnet_11_folder")


@pytest.fixture
def run(trained: RunPaths, tmp_path: Path) -> RunPaths:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    return RunPaths(tmp_path, trained.run)


def prune(path: Path, *flags: object) -> dict[str, str]:
    argv = ["--model", path, "--no-cuda", "--percent", 0.3, *flags]
    assert console.run(resnet_prune.main, list(map(str, argv))) == 0
    return rows(path.parents[1] / PRUNED)[-1]


def models_of(run: RunPaths) -> list[str]:
    (result,) = results.load(run.folder)
    return [row["model"] for row in result.prunings]


def test_a_pruning_names_its_checkpoint_and_test_images(run):
    (row,), pruning = rows(run.record), prune(run.checkpoint)
    for column in ("checkpoint", "checksum", "test_pictures"):
        assert pruning[column] == row[column] != ""
    assert pruning["epoch"] == row["epochs"] == "1"
    assert pruning["checksum"] == checkpoint.checksum(run.checkpoint)
    (result,) = results.load(run.folder)
    assert result.pruning()["accuracy_slim"] == pruning["accuracy_slim"]


def test_pruning_a_pruned_model_is_not_a_pruning_of_the_run(run):
    first = prune(run.checkpoint, "--name", "first")
    again = prune(run.folder / first["model"], "--name", "again")
    assert models_of(run) == [first["model"]]
    # Both have the shares of the original model.
    assert again["channels_pruned_percent"] != first["channels_pruned_percent"]
    assert first["original_channels_pruned_percent"] == first["channels_pruned_percent"]
    kept = int(again["channels_kept"]) / int(first["channels"])
    share = float(again["original_channels_pruned_percent"])
    assert share == pytest.approx(100 * (1 - kept), abs=0.005)
    for name in ("parameters", "flops"):
        shares = [float(row[f"original_{name}_pruned_percent"]) for row in (first, again)]
        assert shares[0] == float(first[f"{name}_pruned_percent"]) < shares[1]


def test_prunings_of_other_epochs_or_on_other_test_images_do_not_count(run):
    content = checkpoint.load(run.checkpoint)
    content.epoch = 0
    checkpoint.save(run.best, content.to_dict())
    prune(run.best, "--name", "best")
    prune(run.checkpoint, "--name", "few", "--test-subset", 4)
    assert models_of(run) == []
    prune(run.checkpoint, "--name", "all")
    assert models_of(run) == [f"{run.run}/all.pth.tar"]
