"""Which prunings count as a run's: those of its final checkpoint, on its own test pictures."""

import shutil
from pathlib import Path

import pytest

import resnet_prune
from runs import rows, train
from utils import console
from utils.files import checkpoint
from utils.files.paths import PRUNED, RunPaths
from utils.reports import results

NETWORK = ["--arch", "resnet", "--depth", 11, "-sr", "--method", "subgradient", "--epochs", 1]


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    folder = tmp_path_factory.mktemp("trained")
    assert train(folder, pictures, *NETWORK, "--name", "net") == 0
    return RunPaths(folder, "net_resnet_11_folder")


@pytest.fixture
def run(trained: RunPaths, tmp_path: Path) -> RunPaths:
    shutil.copytree(trained.folder, tmp_path, dirs_exist_ok=True)
    return RunPaths(tmp_path, trained.run)


def prune(path: Path, *flags: object) -> dict[str, str]:
    argv = ["--model", path, "--no-cuda", "--percent", 0.3, *flags]
    assert console.run(resnet_prune.main, list(map(str, argv))) == 0
    return rows(path.parent / PRUNED)[-1]


def test_a_prunings_row_says_which_file_it_pruned_and_on_which_pictures(run):
    (row,), pruning = rows(run.record), prune(run.checkpoint)
    for column in ("checkpoint", "checksum", "test_pictures"):
        assert pruning[column] == row[column] != ""
    assert pruning["epoch"] == row["epochs"] == "1"
    assert pruning["checksum"] == checkpoint.checksum(run.checkpoint)
    assert results.load(run.folder)[0].pruning()["accuracy_slim"] == pruning["accuracy_slim"]


def test_a_slim_networks_pruning_is_not_its_runs(run):
    first = prune(run.checkpoint, "--name", "first_")
    again = prune(run.folder / first["model"], "--name", "again_")
    assert again["channels_pruned_percent"] != first["channels_pruned_percent"]
    (result,) = results.load(run.folder)
    assert [row["model"] for row in result.prunings] == [first["model"]]
    # What is gone of the network that all began with is said of both.
    assert first["original_channels_pruned_percent"] == first["channels_pruned_percent"]
    kept, channels = int(again["channels_kept"]), int(first["channels"])
    assert float(again["original_channels_pruned_percent"]) == pytest.approx(
        100 * (1 - kept / channels), abs=0.005
    )
    for what in ("parameters", "flops"):
        shares = [float(row[f"original_{what}_pruned_percent"]) for row in (first, again)]
        assert shares[0] == float(first[f"{what}_pruned_percent"]) < shares[1]


def test_a_pruning_on_other_test_pictures_is_not_the_runs(run):
    prune(run.checkpoint, "--name", "few_", "--test-subset", 4)
    (result,) = results.load(run.folder)
    assert result.pruning() is None
    prune(run.checkpoint, "--name", "all_")
    (result,) = results.load(run.folder)
    assert result.pruning()["model"] == "all_pruned.pth.tar"


def test_a_pruning_of_another_epoch_is_not_the_runs(run):
    """As of model_best, which is chosen on test accuracy, or of the run before it was done anew."""
    content = checkpoint.load(run.checkpoint)
    content.epoch = 0
    checkpoint.save(run.best, content.to_dict())
    prune(run.best, "--name", "best_")
    (result,) = results.load(run.folder)
    assert result.prunings == []


def test_a_figure_shows_the_pruning_of_the_runs_own_checkpoint(run, monkeypatch):
    from utils.reports import plots

    titles: list[str] = []
    monkeypatch.setattr(plots, "draw_layers", lambda *args: titles.append(args[-1]))
    first = prune(run.checkpoint, "--name", f"{run.run}_")
    plots.draw_run(run.folder, run.run)
    assert first["model"] == run.pruned().name
    moved = run.pruned().rename(run.folder / "moved.pth.tar")
    prune(moved, "--name", f"{run.run}_")
    plots.draw_run(run.folder, run.run)
    assert titles == ["As pruned", "At percent 0"]
