"""The table of models with pruned weights, and its recipe."""

import shlex

import main
from runs import rows, train
from utils import console
from utils.experiments import recipes
from utils.experiments.jobs import Experiment
from utils.flags.config import Config
from utils.reports import tables

SAS = "-sr --method sas-admm --arch resnet-basic --depth 8 --batch-size 8 --inner 2".split()


def test_retrained_models_are_beside_the_published_factors(tmp_path, pictures, capsys):
    for seed in (1, 2):
        flags = ["--seed", seed, "--name", f"s{seed}", "--outer", 2]
        assert train(tmp_path, pictures, *SAS, *flags) == 0
        path = tmp_path / f"s{seed}_resnet-basic_8_folder/checkpoint.pth.tar"
        assert train(tmp_path, pictures, "--refine", path, "--prune-ratio", 0.85) == 0
    capsys.readouterr()
    assert console.run(tables.main, ["--save", str(tmp_path), "--csv", str(tmp_path)]) == 0
    assert "left out" not in capsys.readouterr().err
    lines = {row["Network"]: row for row in rows(tmp_path / "compressed.csv")}
    factors = [lines[f"ResNet-basic-{depth}"]["Compression Factor"] for depth in (32, 56)]
    assert factors == ["6.61", "9.93"] and not lines["ResNet-basic-32"]["Retrained"]
    ours, record = lines["ResNet-basic-8 on folder"], rows(tmp_path / "refine_record.csv")
    assert (ours["n"], ours["Weights Kept"]) == ("2", "11255")
    for heading, column in (("Retrained", "test_accuracy"), ("Post Pruned", "accuracy_cut")):
        mean = sum(float(row[column]) for row in record) / 2
        assert ours[heading].startswith(f"{mean:.2f}")
    assert float(ours["Test Accuracy (%) Before Pruning"].split()[0]) > 0


def test_commands_of_a_recipe_complete_it(tmp_path, monkeypatch, capsys):
    settings = {"arch": "resnet-basic", "depth": 8, "method": "sas-admm", "batch_size": 8,
                "outer": 2, "inner": 1, "dataset": "shapes", "subset": 16,
                "test_subset": 8}  # fmt: skip
    tiny = Experiment(Config.from_dict(settings), False, 1, prune_ratio=0.85)
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [tiny])
    argv = ["sas32", "--save", str(tmp_path), "--no-cuda", "--dry-run"]
    for _ in range(2):
        capsys.readouterr()
        assert console.run(recipes.main, argv) == 0
        commands = [line for line in capsys.readouterr().out.splitlines() if " main.py " in line]
        assert console.run(main.main, shlex.split(commands[0])[2:]) == 0
    (row,) = rows(tmp_path / "refine_record.csv")
    assert row["weights_kept"] == "11767"
    capsys.readouterr()
    assert console.run(recipes.main, argv) == 0
    assert "all is done" in capsys.readouterr().out
