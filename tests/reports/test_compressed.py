"""The table of models with pruned weights, filled by the commands of its recipe."""

import shlex

import main
import runs
from utils.experiments import recipes
from utils.experiments.jobs import Experiment
from utils.flags.config import Config
from utils.reports import tables


def test_a_recipe_fills_the_table_beside_the_published_factors(
    tmp_path, pictures, monkeypatch, capsys
):
    settings = {"arch": "resnet-basic", "depth": 8, "method": "sas-admm", "batch_size": 8,
                "outer": 1, "inner": 1, "dataset": "folder"}  # fmt: skip
    settings |= {"growth_from": 1, "average_from": 1}
    tiny = Experiment(Config.from_dict(settings), False, 1, prune_ratio=0.85)
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [tiny])
    argv = ["sas32", "--save", tmp_path, "--data", pictures, "--no-cuda", "--dry-run"]

    def commands() -> list[str]:
        capsys.readouterr()
        assert runs.command(recipes, *argv, "--seeds", 1, 2) == 0
        return [line for line in capsys.readouterr().out.splitlines() if " main.py " in line]

    for line in commands():
        assert runs.command(main, *shlex.split(line)[2:]) == 0
    assert commands() == []
    assert runs.command(tables, "--save", tmp_path, "--csv", tmp_path) == 0
    assert "left out" not in capsys.readouterr().err
    lines = {row["Network"]: row for row in runs.rows(tmp_path / "compressed.csv")}
    factors = [lines[f"ResNet-basic-{depth}"]["Compression Factor"] for depth in (32, 56)]
    assert factors == ["6.61", "9.93"] and not lines["ResNet-basic-32"]["Retrained"]
    ours, record = lines["ResNet-basic-8 on folder"], runs.rows(tmp_path / "refine_record.csv")
    assert (ours["n"], ours["Weights Kept"]) == ("2", "11255")
    for heading, column in (("Retrained", "test_accuracy"), ("Post Pruned", "accuracy_cut")):
        mean = sum(float(row[column]) for row in record) / 2
        assert ours[heading].startswith(f"{mean:.2f}")
    assert float(ours["Test Accuracy (%) Before Pruning"].split()[0]) > 0
