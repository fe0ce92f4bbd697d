"""The table of networks whose weights were cut, and the recipes behind it."""

import shlex

import pytest

import main
from runs import rows, train
from utils import console
from utils.experiments import recipes
from utils.experiments.jobs import Experiment
from utils.flags.config import Config
from utils.flags.parser import parser, resolve
from utils.reports import tables

SAS = "-sr --method sas-admm --arch resnet-basic --depth 8 --batch-size 8 --inner 2".split()
NAME = "resnet-basic_8_folder"


def test_retrainings_stand_beside_what_the_paper_claims(tmp_path, pictures, capsys):
    for seed in (1, 2):
        flags = ["--seed", seed, "--name", f"s{seed}"]
        assert train(tmp_path, pictures, *SAS, "--outer", 2, *flags) == 0
        path = tmp_path / f"s{seed}_{NAME}checkpoint.pth.tar"
        assert train(tmp_path, pictures, "--refine", path, "--prune-ratio", 0.85) == 0
    capsys.readouterr()
    assert console.run(tables.main, ["--save", str(tmp_path), "--csv", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "left out" not in printed.err
    lines = {row["Network"]: row for row in rows(tmp_path / "compressed.csv")}
    assert lines["ResNet-basic-32"]["Times fewer"] == "6.61"
    assert lines["ResNet-basic-56"]["Times fewer"] == "9.93"
    assert not lines["ResNet-basic-32"]["Retrained"]
    ours = lines["ResNet-basic-8 on folder"]
    assert (ours["n"], ours["Weights left"]) == ("2", "11255")
    record = rows(tmp_path / "refine_record.csv")
    mean = sum(float(row["test_accuracy"]) for row in record) / 2
    assert ours["Retrained"].startswith(f"{mean:.2f}")
    assert ours["Test Accuracy (%) Before Cutting"]
    cut = [float(row["accuracy_cut"]) for row in record]
    assert ours["Cut"].startswith(f"{sum(cut) / 2:.2f}")


def told(words: list[str]):
    return resolve(vars(parser().parse_args(words)), None, {})


@pytest.mark.parametrize(("part", "depth", "share"), [("sas32", 32, 0.85), ("sas56", 56, 0.9)])
def test_the_recipes_are_the_programs_settings(part, depth, share, tmp_path, capsys):
    argv = [part, "--save", str(tmp_path), "--dry-run"]
    assert console.run(recipes.main, argv) == 0
    lines = [shlex.split(x)[2:] for x in capsys.readouterr().out.splitlines() if "main.py" in x]
    training, retraining = map(told, lines)
    assert (training.arch, training.depth, training.method) == ("resnet-basic", depth, "sas-admm")
    assert (training.epochs, training.batch_size) == (190, 256)
    assert (retraining.prune_ratio, retraining.epochs, retraining.batch_size) == (share, 200, 128)
    assert (retraining.lr, retraining.nesterov, retraining.method) == (0.1, False, "baseline")
    assert retraining.refine.endswith(f"{training.run_name}checkpoint.pth.tar")

    assert console.run(recipes.main, [*argv, "--scale", "19"]) == 0
    lines = [shlex.split(x)[2:] for x in capsys.readouterr().out.splitlines() if "main.py" in x]
    training, retraining = map(told, lines)
    assert training.options["outer"] == 19
    assert (training.options["growth_from"], training.options["average_from"]) == (5, 17)
    assert retraining.epochs == 19


def test_an_alexnet_is_told_what_a_resnet_is_not(tmp_path, capsys):
    argv = ["sasalex", "--save", str(tmp_path), "--dry-run", "--data", "pictures"]
    for more, outer, inner, epochs in (([], 190, 1000, 90), (["--scale", "2"], 2, 10, 2)):
        assert console.run(recipes.main, [*argv, *more]) == 0
        lines = [x for x in capsys.readouterr().out.splitlines() if "main.py" in x]
        training, retraining = (told(shlex.split(line)[2:]) for line in lines)
        assert (training.arch, training.dataset, training.size) == ("alexnet", "imagenet", 224)
        assert (training.options["outer"], training.options["inner"]) == (outer, inner)
        assert (retraining.lr, retraining.prune_ratio, retraining.epochs) == (0.01, 0.9522, epochs)


def test_what_they_are_made_of_is_found_done(tmp_path, monkeypatch, capsys):
    short = {"outer": 2, "inner": 1, "dataset": "shapes", "subset": 16, "test_subset": 8}
    known = {"arch": "resnet-basic", "depth": 8, "method": "sas-admm", "batch_size": 8}
    tiny = Experiment(Config.from_dict(known | short), False, 1, prune_ratio=0.85)
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [tiny])
    argv = ["sas32", "--save", str(tmp_path), "--no-cuda", "--precision", "fp32", "--dry-run"]
    for _ in range(2):
        capsys.readouterr()
        assert console.run(recipes.main, argv) == 0
        commands = [x for x in capsys.readouterr().out.splitlines() if " main.py " in x]
        words = shlex.split(commands[0])
        assert console.run(main.main, words[words.index("main.py") + 1 :]) == 0
    (row,) = rows(tmp_path / "refine_record.csv")
    assert row["weights_kept"] == "11767"
    capsys.readouterr()
    assert console.run(recipes.main, argv) == 0
    assert "all is done" in capsys.readouterr().out
