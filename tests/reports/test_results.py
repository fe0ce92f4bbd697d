"""Records that are damaged, missing or from other programs, and what belongs to a run."""

import pytest

import recorded
import resnet_prune
import runs
from recorded import VGG19
from utils import console
from utils.files import checkpoint
from utils.files.paths import PRUNED, REFINED, TRAINED, RunPaths
from utils.methods import METHODS
from utils.reports import results, tables

TEXTS = {
    "other columns": (lambda text: "a,b\n1,2\n", "no column"),
    "a short line": (lambda text: text + "a,b,c\n", "line 3"),
    "a word for a number": (lambda text: text.replace("90.0", "ninety"), "test_accuracy"),
    "no text": (lambda text: "run\udcff\n", "has other columns"),
}
CELLS = {
    f"{column} {cell}": (name, column, cell)
    for name, column, cell in (
        (TRAINED, "seed", ""),
        (TRAINED, "method", "magnitude"),
        (TRAINED, "momentum", "nan"),
        (TRAINED, "xi_init", "0.5 0.1"),
        (TRAINED, "beta", None),
        (PRUNED, "accuracy_slim", "many"),
        (PRUNED, "percent", None),
        (REFINED, "lr", None),
    )
}


@pytest.mark.parametrize("damage", [*TEXTS, *CELLS])
def test_damaged_records_are_rejected(damage, tmp_path, capsys):
    """In one line; nothing is written."""
    recorded.run(tmp_path, seed=1, **VGG19, percent=0.0, tuned=91)
    name, column, cell = CELLS.get(damage, (TRAINED, "", ""))
    if damage in CELLS:
        recorded.set_cells(tmp_path / name, **{column: cell})
        message = column.replace("xi_init", "xi-init")
    else:
        change, message = TEXTS[damage]
        text = change((tmp_path / name).read_text())
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    argv = ["--save", str(tmp_path), "--csv", str(tmp_path / "csv")]
    assert console.run(tables.main, argv) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert str(tmp_path / name) in err and message in err


def test_older_records_without_later_columns_are_read(tmp_path, capsys):
    """Cells of optional flags may be empty."""
    path, later = tmp_path / TRAINED, ["size", "normalise", "stream"]
    later += [flag.name for flag in METHODS["lp-admm"].flags if flag.name != "s"]
    recorded.run(tmp_path, seed=1, **VGG19, percent=0.0)
    assert set(later) <= set(path.read_text().partition("\n")[0].split(","))
    recorded.set_cells(path, **dict.fromkeys(later))
    recorded.run(tmp_path, seed=2, **VGG19)  # which appends the columns
    empty = dict.fromkeys(("s", "beta", "xi_init", "prox_every", "data"), "")
    recorded.set_cells(path, **empty)
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "ours, n = 2" in out and "--size" not in out


def test_prunings_of_a_run_are_those_of_its_final_checkpoint_on_its_test_images(pictures, tmp_path):
    network = ["--arch", "resnet-basic", "--depth", 8, "-sr", "--method", "subgradient"]
    assert runs.train(tmp_path, pictures, *network, "--epochs", 1, "--name", "net") == 0
    run = RunPaths(tmp_path, "net_resnet-basic_8_folder")

    def prune(path, *flags):
        assert (
            runs.command(resnet_prune, "--model", path, "--percent", 0.3, "--no-cuda", *flags) == 0
        )
        return runs.rows(tmp_path / PRUNED)[-1]

    content = checkpoint.load(run.checkpoint)
    content.epoch = 0
    checkpoint.save(run.best, content.to_dict())
    prune(run.best, "--name", "best")
    prune(run.checkpoint, "--name", "few", "--test-subset", 4)
    assert [result.prunings for result in results.load(tmp_path)] == [[]]

    (row,), first = runs.rows(run.record), prune(run.checkpoint, "--name", "first")
    again = prune(tmp_path / first["model"], "--name", "again")
    (result,) = results.load(tmp_path)
    assert result.prunings == [first] and result.pruning() == first
    for column in ("checkpoint", "checksum", "test_pictures"):
        assert first[column] == row[column] != ""
    assert first["epoch"] == row["epochs"] == "1"
    assert first["checksum"] == checkpoint.checksum(run.checkpoint)
    # Both have the shares of the original model.
    assert again["channels_pruned_percent"] != first["channels_pruned_percent"]
    assert first["original_channels_pruned_percent"] == first["channels_pruned_percent"]
    kept = int(again["channels_kept"]) / int(first["channels"])
    share = float(again["original_channels_pruned_percent"])
    assert share == pytest.approx(100 * (1 - kept), abs=0.005)
    for name in ("parameters", "flops"):
        shares = [float(row[f"original_{name}_pruned_percent"]) for row in (first, again)]
        assert shares[0] == float(first[f"{name}_pruned_percent"]) < shares[1]
