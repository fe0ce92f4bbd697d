"""Default names of runs and pruned models differ, so that nothing is overwritten."""

import shutil
from pathlib import Path

import pytest

import main
import resnet_prune
from runs import command, rows
from utils.files.paths import BEST, CHECKPOINT, LOG, PRUNED, REFINED
from utils.flags.config import Config
from utils.reports import results
from workshop import QUICK

RUN = "proximal_seed1_resnet_11_folder"


def prune(path: Path, *flags: object) -> int:
    return command(resnet_prune, "--model", path, "--no-cuda", *flags)


def refine(path: Path, *flags: object) -> int:
    return command(main, "--refine", path, *QUICK, *flags)


@pytest.fixture
def logs(tmp_path, shop):
    """A copy of a run that was pruned by 30 % of its channels, and of its records."""
    return shutil.copytree(shop.folder, tmp_path / "logs")


def test_the_default_name_has_method_and_seed():
    settings = {"arch": "vgg", "depth": 11}
    assert Config.from_dict(settings).name == "baseline_seed1"
    assert Config.from_dict({**settings, "method": "proximal", "seed": 7}).name == "proximal_seed7"
    config = Config.from_dict({**settings, "seed": 7, "name": "mine"})
    assert config.run_name == "mine_vgg_11_cifar10"


def test_prunings_of_one_run_and_their_fine_tunings_have_names_of_their_own(logs, capsys):
    path = logs / RUN / CHECKPOINT
    assert prune(path, "--percent", 0.5, "--name", "half") == 0
    before = {p: p.read_bytes() for p in logs.rglob("*.*")}
    assert prune(path, "--percent", 0.6) == 2  # only an equal file is overwritten
    assert {p: p.read_bytes() for p in logs.rglob("*.*")} == before
    assert prune(path, "--percent", 0.3) == 0
    for name in ("pruned", "half"):
        assert refine(logs / RUN / f"{name}.pth.tar") == 0
    half = "proximal_seed1_half_resnet_11_folder_refine"
    assert [row["run"] for row in rows(logs / REFINED)] == [f"{RUN}_refine", half]
    (result,) = results.load(logs)
    tuned = [result.finetuning(pruning).row["run"] for pruning in rows(logs / PRUNED)[:2]]
    assert tuned == [f"{RUN}_refine", half]
    # A fine-tuning of another model with the same name is not resumed.
    (logs / RUN / "pruned.pth.tar").unlink()
    assert prune(path, "--percent", 0.6) == 0
    capsys.readouterr()
    assert refine(logs / RUN / "pruned.pth.tar", "--resume", "auto") == 2
    assert f"{RUN}_refine" in (err := capsys.readouterr().err) and "of another model" in err


def test_a_fine_tuning_is_named_after_its_file_or_by_a_flag(tmp_path, shop, capsys):
    assert refine(shop.slim, "--save", tmp_path, "--name", "mine") == 0
    long = shutil.copy(shop.slim, tmp_path / f"{'a' * 200}pruned.pth.tar")
    assert refine(long) == 2
    assert "--name" in capsys.readouterr().err
    assert refine(shutil.copy(shop.slim, tmp_path / "pruned.pth.tar")) == 0
    found = {path.parent.name for path in tmp_path.glob("*/checkpoint.pth.tar")}
    assert found == {f"{name}_resnet_11_folder_refine" for name in ("mine", "baseline_seed1")}


def test_a_moved_run_is_read_from_its_directory_and_every_pruning_has_another_name(
    logs, monkeypatch
):
    moved = (logs / RUN).rename(logs / "moved")
    shutil.copy(moved / CHECKPOINT, moved / BEST)
    monkeypatch.chdir(moved)
    for path in (CHECKPOINT, BEST, "pruned.pth.tar"):
        flags = ("--name", "half") if path == CHECKPOINT else ()
        assert prune(Path(path), "--percent", 0.2, *flags) == 0
    names = ("half", "model_best_pruned", "pruned_pruned")
    found = {path.name for path in moved.glob("*.pth.tar")} - {CHECKPOINT, BEST, "pruned.pth.tar"}
    assert found == {f"{name}.pth.tar" for name in names}
    pruned = [row["model"] for row in rows(logs / PRUNED)[1:]]
    assert pruned == [f"moved/{name}.pth.tar" for name in names]
    assert refine(Path("half.pth.tar")) == 0
    assert [row["run"] for row in rows(logs / REFINED)] == ["moved_half_resnet_11_folder_refine"]


def test_files_of_the_earlier_layout_are_read_and_new_ones_are_in_directories(tmp_path, shop):
    """Their names began with the run's."""
    old = tmp_path / f"{RUN}checkpoint.pth.tar", tmp_path / f"{RUN}_pruned.pth.tar"
    for source, path in zip((shop.trained, shop.slim), old, strict=True):
        shutil.copy(source, path)
    assert command(main, "--evaluate", old[0], "--no-cuda") == 0
    assert command(main, "--resume", old[0], "--no-cuda") == 0
    assert prune(old[0], "--percent", 0.2) == 0
    assert refine(old[1]) == 0
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")} - {p.name for p in old}
    assert files == {
        *(f"{RUN}/{name}" for name in (CHECKPOINT, "pruned.pth.tar")),
        *(f"{RUN}_refine/{name}" for name in (CHECKPOINT, BEST, LOG)),
        *(PRUNED, REFINED),
    }
