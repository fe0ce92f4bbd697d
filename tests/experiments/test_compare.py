"""The comparison at equal FLOPs: a tiny one from end to end, beside lines of another machine."""

import re
from functools import partial

import pytest

import runs
from utils import console
from utils.experiments import compare, recipes, scheduler, torch_pruning
from utils.files import records
from utils.files.paths import REFINED
from utils.reports import comparison

command = partial(runs.command, compare)
IMAGES = 32
METHODS = ["Baseline", "Random channels"]
METHODS += [f"Torch-Pruning, {name}" for name in ("bn-scale", "group-norm", "magnitude")]
METHODS += ["Original NS", "Proximal NS, λ", "Proximal NS, budget"]


@pytest.fixture
def tiny(monkeypatch, tmp_path, pictures):
    """A function that runs the comparison of a ResNet-basic-8 at 50 %; its exit status."""
    data = {"dataset": "folder", "epochs": 1, "batch_size": 16}
    monkeypatch.setattr(scheduler, "start", runs.InThisProcess)
    monkeypatch.setattr(recipes, "SMALL_DATA", data)
    monkeypatch.setattr(compare, "IMAGES", IMAGES)
    monkeypatch.setattr(torch_pruning, "STEPS", 20)
    monkeypatch.setitem(compare.LAMBDAS, ("resnet-basic", 8), {"s": 0.01, "beta": 10.0})
    argv = ["--networks", "resnet-basic-8", "--shares", 50, "--save", tmp_path, "--data", pictures]
    return lambda *more: command(*argv, "--no-cuda", "--seeds", 1, 2, *more)


def test_a_comparison_is_completed_and_resumed(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch_pruning")
    csv = tmp_path / "compare.csv"
    for name, e in compare.experiments("resnet-basic", 8, [50], None).items():
        results = dict.fromkeys(comparison.COLUMNS, "") | {"accuracy_before": 71, "images": "0a"}
        if name[1] != "Baseline":
            results |= {"accuracy_pruned": 60, "accuracy_finetuned": 66}
        records.append(csv, compare.key_of(name, e, 2) | results)
    kept, written = runs.rows(csv), csv.read_bytes()  # of another machine
    assert tiny("--dry-run") == 0
    shown = capsys.readouterr()
    assert "8 of 16 results already" in shown.err
    assert "left: 4 trainings, 7 prunings, 7 fine-tunings" in shown.out

    measure, measured = compare.measure, []
    monkeypatch.setattr(compare, "BATCH", 1)
    monkeypatch.setattr(compare, "measure", lambda paths: measured.append(paths) or ("2", "1"))
    monkeypatch.setattr(compare, "missing_packages", lambda packages: [])
    assert tiny() == 0
    whole = runs.rows(csv)
    assert [{name: row[name] for name in kept[0]} for row in whole[:8]] == kept
    lines = {row["method"]: row for row in whole[8:]}
    assert lines.keys() == set(METHODS) and {row["seed"] for row in whole[8:]} == {"1"}
    assert {(row["milliseconds_full"], row["milliseconds"]) for row in lines.values()} == {
        ("2", "1")
    }
    assert len(measured) == 8  # not again after the fine-tuning
    full = float(lines.pop("Baseline")["train_pflops"])
    assert full == pytest.approx(3 * IMAGES * 24.4e6 / 1e15, rel=0.01)  # of a ResNet-8
    for row in lines.values():
        assert 50 <= float(row["flops_pruned_percent"]) < 70
        share = 1 - float(row["flops_pruned_percent"]) / 100
        assert float(row["finetune_pflops"]) == pytest.approx(full * share, rel=1e-3)
        assert float(row["accuracy_finetuned"]) >= 0
    random, bn_scale = lines["Random channels"], lines["Torch-Pruning, bn-scale"]
    assert random["accuracy_before"] == bn_scale["accuracy_before"]  # of one baseline
    table = csv.with_suffix(".md").read_text()
    assert all(f"| {method} " in table for method in METHODS) and "| Original NS" in table
    assert csv.with_suffix(".png").exists()
    pytest.importorskip("onnxruntime")
    assert all(float(ms) > 0 for ms in measure(measured[-1]))

    records.append(csv, whole[-1] | {"train_pflops": ""}, comparison.KEY)  # stays as it is
    before = csv.read_bytes()
    monkeypatch.setattr(comparison.style, "can_draw", lambda: False)
    capsys.readouterr()
    assert tiny() == 0
    shown = capsys.readouterr()
    assert "16 of 16 results already" in shown.err and "all is done" in shown.out
    assert csv.read_bytes() == before
    # As if killed before these were written: one fine-tuning is repeated, nothing else.
    csv.write_bytes(written)
    refined = runs.rows(tmp_path / REFINED)
    (tmp_path / REFINED).unlink()
    for row in refined[1:]:
        records.append(tmp_path / REFINED, row)
    assert tiny() == 0
    assert "left: 0 trainings, 0 prunings, 1 fine-tunings" in capsys.readouterr().out
    assert comparison.complete(runs.rows(csv)) == comparison.complete(whole)
    assert len(runs.rows(tmp_path / REFINED)) == len(refined)


def test_rows_are_averaged_and_differences_are_paired_by_seed(tmp_path, capsys):
    # A is 1 above B for every seed, although both vary by more; C varies on its own.
    found = {"A": [70, 75, 80], "B": [69, 73.9, 79.1], "C": [74, 70, 79], "D": [71]}
    key = dict.fromkeys(comparison.KEY, "x") | dict.fromkeys(comparison.COLUMNS, "")
    for method, accuracies in found.items():
        for seed, accuracy in enumerate(accuracies):
            row = {"method": method, "share": 50, "seed": seed, "accuracy_pruned": accuracy}
            records.append(tmp_path / "a.csv", key | row)
    assert command("--report", "--csv", tmp_path / "a.csv") == 0
    text = capsys.readouterr().out
    assert re.search(r"\| 50 % +\| A +\| 3 +\| .* 75.00 ± 5.00 ", text)
    differences = r"pruned: A\. From it different: B\. not different: C\. undecided .*: D\."
    assert re.search(differences, text)


def test_bad_input_is_rejected_with_one_line(tmp_path, monkeypatch, capsys):
    damaged = tmp_path / "damaged.csv"
    row = dict.fromkeys([*comparison.KEY, *comparison.COLUMNS], "1")
    records.append(damaged, row | {"accuracy_before": "x"})

    def rejected(message: str, *arguments: object) -> None:
        assert command(*arguments, "--save", tmp_path) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]

    rejected("--networks vgg-19 needs --scale; without it: vgg-11", "--networks", "vgg-19")
    rejected("'vgg' is not ARCH-DEPTH", "--networks", "vgg")
    rejected("100 is not a percentage below 100", "--shares", 100)
    rejected("has no results yet", "--report")
    rejected("line 2: accuracy_before is 'x'", "--report", "--csv", damaged)
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    rejected("needs torch_pruning: ")
    assert list(tmp_path.iterdir()) == [damaged]
