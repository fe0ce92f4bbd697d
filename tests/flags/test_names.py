"""Default names of runs and pruned models differ, so that nothing is overwritten."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import main
import resnet_prune
from runs import QUICK, command, rows, train
from utils import launch
from utils.files.paths import PRUNED, REFINED
from utils.flags.config import Config
from utils.flags.parser import parser, resolve
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


@pytest.mark.parametrize(
    ("flags", "names"),
    [([], ["proximal_seed4", "proximal_seed5"]), (["--name", "x"], ["x_seed4", "x_seed5"])],
)
def test_each_seed_has_a_name(flags, names, monkeypatch):
    started = []

    def start(words: list[str], output: int, environment: None) -> SimpleNamespace:
        started.append(vars(parser().parse_args(words[1:])))
        return SimpleNamespace(stdout=())

    def run(seeds, slots, needs, start_task):
        for seed in seeds:
            start_task(seed, "")
            yield seed, 0, 0.0

    monkeypatch.setattr(launch, "start_process", start)
    monkeypatch.setattr(launch, "run_tasks", run)
    monkeypatch.setattr(main, "load", lambda *args: None)
    argv = ["--arch", "resnet", "--depth", "11", "-sr", *flags, "--seeds", "4", "5"]
    assert command(main, *argv) == 0
    assert [values["seed"] for values in started] == [4, 5]
    assert [resolve(values, None, {}).name for values in started] == names


def test_prunings_of_one_run_and_their_fine_tunings_have_names_of_their_own(
    tmp_path, pictures, capsys
):
    assert train(tmp_path, pictures, *RESNET, "-sr", "--method", "subgradient") == 0
    (path,) = tmp_path.glob("*checkpoint.pth.tar")
    run = "subgradient_seed1_resnet_11_folder"
    assert prune(path, "--percent", 0.3) == 0
    assert prune(path, "--percent", 0.5, "--name", f"{run}_half_") == 0
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert prune(path, "--percent", 0.6) == 2  # only an equal file is overwritten
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert prune(path, "--percent", 0.3) == 0
    for name in (f"{run}_pruned.pth.tar", f"{run}_half_pruned.pth.tar"):
        assert refine(tmp_path / name) == 0
    half = "subgradient_seed1_half_resnet_11_folder_refine"
    assert [row["run"] for row in rows(tmp_path / REFINED)] == [f"{run}_refine", half]
    (result,) = results.load(tmp_path)
    tuned = [result.tuned(pruning)["run"] for pruning in rows(tmp_path / PRUNED)[:2]]
    assert tuned == [f"{run}_refine", half]
    # A fine-tuning of another model with the same name is not resumed.
    (tmp_path / f"{run}_pruned.pth.tar").unlink()
    assert prune(path, "--percent", 0.6) == 0
    capsys.readouterr()
    assert refine(tmp_path / f"{run}_pruned.pth.tar", "--resume", "auto") == 2
    assert f"{run}_refine" in (err := capsys.readouterr().err) and "of another model" in err


def test_a_fine_tuning_is_named_after_its_file_or_by_a_flag(tmp_path, monkeypatch, shop, capsys):
    assert refine(shop.slim, "--save", tmp_path, "--name", "mine") == 0
    assert (tmp_path / "mine_resnet_11_folder_refinecheckpoint.pth.tar").exists()
    names = []
    monkeypatch.setattr(main, "run_seeds", lambda argv, name, no_cuda: names.append(name))
    assert refine(shop.slim, "--save", tmp_path, "--seeds", "1", "2") == 0
    assert names == ["proximal_seed1"]

    long = tmp_path / f"{'a' * 200}pruned.pth.tar"
    long.write_bytes(shop.slim.read_bytes())
    assert refine(long) == 2
    assert "--name" in capsys.readouterr().err
    released = tmp_path / "pruned.pth.tar"
    released.write_bytes(shop.slim.read_bytes())
    assert refine(released) == 0
    assert (tmp_path / "baseline_seed1_resnet_11_folder_refinecheckpoint.pth.tar").exists()


def test_files_of_a_twice_pruned_model_and_of_the_best_epoch_have_other_names(tmp_path, shop):
    twice = tmp_path / shop.slim.name
    twice.write_bytes(shop.slim.read_bytes())
    assert prune(twice, "--percent", 0.2) == 0
    assert (tmp_path / twice.name.replace("pruned", "pruned_pruned")).exists()
    best = tmp_path / shop.trained["resnet"].name.replace("checkpoint", "model_best")
    best.write_bytes(shop.trained["resnet"].read_bytes())
    assert prune(best, "--percent", 0.2) == 0
    assert (tmp_path / best.name.replace("best", "best_pruned")).exists()
