"""What files are called: by default nothing takes another's place, and nothing is overwritten."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import main
import resnet_prune
from runs import QUICK, rows, train
from utils import console, launch
from utils.files.paths import PRUNED, REFINED
from utils.flags.config import Config
from utils.flags.parser import parser, resolve
from utils.reports import results

RESNET = ["--arch", "resnet", "--depth", 11, "--epochs", 1]


def prune(path: Path, *flags: object) -> int:
    argv = ["--model", path, "--no-cuda", *flags]
    return console.run(resnet_prune.main, list(map(str, argv)))


def test_the_default_name_has_the_seed_and_a_given_one_is_left_alone():
    told = {"arch": "vgg", "depth": 11}
    assert Config.from_dict(told).name == "baseline_seed1"
    assert Config.from_dict({**told, "method": "proximal", "seed": 7}).name == "proximal_seed7"
    assert Config.from_dict({**told, "seed": 7, "name": "mine"}).run_name == "mine_vgg_11_cifar10"


@pytest.mark.parametrize(
    ("flags", "names"),
    [([], ["proximal_seed4", "proximal_seed5"]), (["--name", "x"], ["x_seed4", "x_seed5"])],
    ids=["default", "given"],
)
def test_seeds_do_not_double_it(flags, names, monkeypatch):
    started = []

    def start(words: list[str], output: int, environment: None) -> SimpleNamespace:
        started.append(vars(parser().parse_args(words[1:])))
        return SimpleNamespace(stdout=())

    def run(seeds, slots, needs, begin):
        for seed in seeds:
            begin(seed, "")
            yield seed, 0, 0.0

    monkeypatch.setattr(launch, "start_process", start)
    monkeypatch.setattr(launch, "run_tasks", run)
    monkeypatch.setattr(main, "load", lambda *known: None)
    argv = ["--arch", "resnet", "--depth", "11", "-sr", *flags, "--seeds", "4", "5"]
    assert console.run(main.main, argv) == 0
    assert [given["seed"] for given in started] == [4, 5]
    assert [resolve(given, None, {}).name for given in started] == names


def test_several_prunings_of_a_run_are_fine_tuned_and_stand_each_with_its_own(
    tmp_path, pictures, capsys
):
    assert train(tmp_path, pictures, *RESNET, "-sr", "--method", "subgradient") == 0
    (path,) = tmp_path.glob("*checkpoint.pth.tar")
    run = "subgradient_seed1_resnet_11_folder"
    assert path.name.startswith(run)
    assert prune(path, "--percent", 0.3) == 0
    assert prune(path, "--percent", 0.5, "--name", f"{run}_half_") == 0
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    capsys.readouterr()
    assert prune(path, "--percent", 0.6) == 2  # nothing is overwritten, but by the same
    assert "is there already" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert prune(path, "--percent", 0.3) == 0
    for slim in (f"{run}_pruned.pth.tar", f"{run}_half_pruned.pth.tar"):
        argv = [*QUICK, "--refine", tmp_path / slim, "--epochs", 1]
        assert console.run(main.main, list(map(str, argv))) == 0
    assert [row["run"] for row in rows(tmp_path / REFINED)] == [
        f"{run}_refine",
        "subgradient_seed1_half_resnet_11_folder_refine",
    ]
    (result,) = results.load(tmp_path)
    assert len(result.finetunings) == 2
    tuned = [result.tuned(pruning)["run"] for pruning in rows(tmp_path / PRUNED)[:2]]
    assert tuned == [row["run"] for row in rows(tmp_path / REFINED)]
    # The same name for another slim network: its fine-tuning is no way on.
    (tmp_path / f"{run}_pruned.pth.tar").unlink()
    assert prune(path, "--percent", 0.6) == 0
    argv = [*QUICK, "--refine", tmp_path / f"{run}_pruned.pth.tar", "--epochs", 1]
    capsys.readouterr()
    assert console.run(main.main, [*map(str, argv), "--resume", "auto"]) == 2
    err = capsys.readouterr().err
    assert f"{run}_refine" in err and "is the fine-tuning of another network" in err


def test_a_fine_tunings_name_can_be_given_and_its_seeds_differ(tmp_path, monkeypatch, shop):
    argv = ["--refine", shop.slim, *QUICK, "--epochs", 1, "--save", tmp_path]
    assert console.run(main.main, [*map(str, argv), "--name", "mine"]) == 0
    assert (tmp_path / "mine_resnet_11_folder_refinecheckpoint.pth.tar").exists()
    named = []
    monkeypatch.setattr(main, "run_seeds", lambda argv, name, no_cuda: named.append(name))
    assert console.run(main.main, [*map(str, argv), "--seeds", "1", "2"]) == 0
    assert named == ["proximal_seed1"]


def test_slim_files_of_a_slim_network_and_of_the_best_epoch_have_names_of_their_own(tmp_path, shop):
    for source in (shop.slim, shop.trained["resnet"]):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    assert prune(tmp_path / shop.slim.name, "--percent", 0.2) == 0
    stem = shop.slim.name.removesuffix(".pth.tar")
    assert (tmp_path / f"{stem}_pruned.pth.tar").exists()
    best = tmp_path / shop.trained["resnet"].name.replace("checkpoint", "model_best")
    (tmp_path / shop.trained["resnet"].name).rename(best)
    assert prune(best, "--percent", 0.2) == 0
    assert (tmp_path / best.name.replace("best", "best_pruned")).exists()


def test_a_file_that_gives_no_name_asks_for_one(tmp_path, shop, capsys):
    odd = tmp_path / f"{'a' * 200}pruned.pth.tar"
    odd.write_bytes(shop.slim.read_bytes())
    assert console.run(main.main, ["--refine", str(odd), "--no-cuda"]) == 2
    assert "--name" in capsys.readouterr().err
    # As the earlier programs call it: then it is named as any other.
    bare = tmp_path / "pruned.pth.tar"
    bare.write_bytes(shop.slim.read_bytes())
    argv = ["--refine", bare, *QUICK, "--epochs", 1]
    assert console.run(main.main, list(map(str, argv))) == 0
    assert (tmp_path / "baseline_seed1_resnet_11_folder_refinecheckpoint.pth.tar").exists()
