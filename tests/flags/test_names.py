"""Default names of runs and pruned models differ, so that nothing is overwritten."""

import shutil
from pathlib import Path

import pytest

import main
import resnet_prune
from runs import QUICK, command, rows, train
from utils.files.paths import BEST, CHECKPOINT, LOG, PRUNED, REFINED
from utils.flags.config import Config
from utils.reports import results

RESNET = ["--arch", "resnet", "--depth", 11, "--epochs", 1]


def prune(path: Path, *flags: object) -> int:
    return command(resnet_prune, "--model", path, "--no-cuda", *flags)


def refine(path: Path, *flags: object) -> int:
    return command(main, "--refine", path, *QUICK, "--epochs", 1, *flags)


def test_the_default_name_has_method_and_seed():
    settings = {"arch": "vgg", "depth": 11}
    assert Config.from_dict(settings).name == "baseline_seed1"
    assert Config.from_dict({**settings, "method": "proximal", "seed": 7}).name == "proximal_seed7"
    config = Config.from_dict({**settings, "seed": 7, "name": "mine"})
    assert config.run_name == "mine_vgg_11_cifar10"


def test_prunings_of_one_run_and_their_fine_tunings_have_names_of_their_own(
    tmp_path, pictures, capsys
):
    assert train(tmp_path, pictures, *RESNET, "-sr", "--method", "subgradient") == 0
    (path,) = tmp_path.glob("*/checkpoint.pth.tar")
    run = "subgradient_seed1_resnet_11_folder"
    assert prune(path, "--percent", 0.3) == 0
    assert prune(path, "--percent", 0.5, "--name", "half") == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    assert prune(path, "--percent", 0.6) == 2  # only an equal file is overwritten
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before
    assert prune(path, "--percent", 0.3) == 0
    for name in (f"{run}/pruned.pth.tar", f"{run}/half.pth.tar"):
        assert refine(tmp_path / name) == 0
    half = "subgradient_seed1_half_resnet_11_folder_refine"
    assert [row["run"] for row in rows(tmp_path / REFINED)] == [f"{run}_refine", half]
    (result,) = results.load(tmp_path)
    tuned = [result.finetuning(pruning).row["run"] for pruning in rows(tmp_path / PRUNED)[:2]]
    assert tuned == [f"{run}_refine", half]
    # A fine-tuning of another model with the same name is not resumed.
    (tmp_path / f"{run}/pruned.pth.tar").unlink()
    assert prune(path, "--percent", 0.6) == 0
    capsys.readouterr()
    assert refine(tmp_path / f"{run}/pruned.pth.tar", "--resume", "auto") == 2
    assert f"{run}_refine" in (err := capsys.readouterr().err) and "of another model" in err


def test_a_fine_tuning_is_named_after_its_file_or_by_a_flag(tmp_path, monkeypatch, shop, capsys):
    assert refine(shop.slim, "--save", tmp_path, "--name", "mine") == 0
    assert (tmp_path / "mine_resnet_11_folder_refine/checkpoint.pth.tar").exists()
    long = tmp_path / f"{'a' * 200}pruned.pth.tar"
    long.write_bytes(shop.slim.read_bytes())
    assert refine(long) == 2
    assert "--name" in capsys.readouterr().err
    released = tmp_path / "pruned.pth.tar"
    released.write_bytes(shop.slim.read_bytes())
    assert refine(released) == 0
    assert (tmp_path / "baseline_seed1_resnet_11_folder_refine/checkpoint.pth.tar").exists()


def test_files_of_a_twice_pruned_model_and_of_the_best_epoch_have_other_names(tmp_path, shop):
    run = shutil.copytree(shop.slim.parent, tmp_path / shop.slim.parent.name)
    assert prune(run / "pruned.pth.tar", "--percent", 0.2) == 0
    shutil.copy(run / "checkpoint.pth.tar", run / "model_best.pth.tar")
    assert prune(run / "model_best.pth.tar", "--percent", 0.2) == 0
    found = {path.name for path in run.glob("*pruned.pth.tar")}
    assert found == {f"{name}pruned.pth.tar" for name in ("", "pruned_", "model_best_")}
    assert len(rows(tmp_path / PRUNED)) == 2


@pytest.mark.parametrize("name", ["checkpoint", "model_best"])
def test_a_pruned_model_does_not_take_the_place_of_a_checkpoint(name, shop, refused):
    flags = ("--model", shop.trained["resnet"], "--no-cuda", "--name", name)
    assert "choose another --name" in refused(resnet_prune, *flags)


def test_a_run_may_be_moved_and_read_from_its_directory(tmp_path, shop, monkeypatch):
    moved = shutil.copytree(shop.slim.parent, tmp_path / "logs" / "moved")
    monkeypatch.chdir(moved)
    assert prune(Path("checkpoint.pth.tar"), "--percent", 0.2, "--name", "half") == 0
    assert (moved / "half.pth.tar").exists()
    assert rows(tmp_path / "logs" / PRUNED)[0]["model"] == "moved/half.pth.tar"
    assert refine(Path("half.pth.tar")) == 0
    assert [row["run"] for row in rows(tmp_path / "logs" / REFINED)] == [
        "moved_half_resnet_11_folder_refine"
    ]


def test_files_of_the_earlier_layout_are_read_and_new_ones_are_in_directories(tmp_path, shop):
    """Their names began with the run's."""
    run = shop.slim.parent.name
    old = tmp_path / f"{run}checkpoint.pth.tar", tmp_path / f"{run}_pruned.pth.tar"
    for source, path in zip((shop.trained["resnet"], shop.slim), old, strict=True):
        shutil.copy(source, path)
    assert command(main, "--evaluate", old[0], "--no-cuda") == 0
    assert command(main, "--resume", old[0], "--no-cuda") == 0
    assert prune(old[0], "--percent", 0.2) == 0
    assert refine(old[1]) == 0
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")} - {p.name for p in old}
    assert files == {
        *(f"{run}/{name}" for name in (CHECKPOINT, "pruned.pth.tar")),
        *(f"{run}_refine/{name}" for name in (CHECKPOINT, BEST, LOG)),
        *(PRUNED, REFINED),
    }
