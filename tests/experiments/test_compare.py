"""The comparison at equal FLOPs: a tiny one from end to end, and lines of another machine."""

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
TINY = {"dataset": "folder", "epochs": 2, "batch_size": 16}
IMAGES = 32
METHODS = ["Baseline", "Random channels"]
METHODS += [f"Torch-Pruning, {name}" for name in ("bn-scale", "group-norm", "magnitude")]
METHODS += ["Original NS", "Proximal NS, λ", "Proximal NS, budget"]


@pytest.fixture
def tiny(monkeypatch, tmp_path, pictures):
    """A function that runs the comparison of a ResNet-basic-8 at 50 %; its exit status."""
    monkeypatch.setattr(scheduler, "start", runs.InThisProcess)
    monkeypatch.setattr(recipes, "SMALL_DATA", TINY)
    monkeypatch.setattr(compare, "IMAGES", IMAGES)
    monkeypatch.setattr(compare, "BATCH", 1)
    monkeypatch.setattr(torch_pruning, "STEPS", 40)
    monkeypatch.setitem(compare.LAMBDAS, ("resnet-basic", 8), {"s": 0.01, "beta": 10.0})
    argv = ["--networks", "resnet-basic-8", "--shares", 50, "--save", tmp_path, "--data", pictures]
    return lambda *more: command(*argv, "--no-cuda", *more)


def test_a_comparison_is_completed_and_resumed(tiny, tmp_path, capsys):
    pytest.importorskip("torch_pruning")
    csv = tmp_path / "compare.csv"
    assert tiny() == 0
    lines = {row["method"]: row for row in runs.rows(csv)}
    assert list(lines) == METHODS
    baseline = lines.pop("Baseline")
    full = float(baseline["train_pflops"])
    for row in lines.values():
        assert 50 <= float(row["flops_pruned_percent"]) < 70
        kept = 1 - float(row["flops_pruned_percent"]) / 100
        assert float(row["finetune_pflops"]) == pytest.approx(full * kept, rel=1e-3)
        assert float(row["accuracy_finetuned"]) >= 0
    assert full == pytest.approx(2 * 3 * IMAGES * 24.4e6 / 1e15, rel=0.01)  # of a ResNet-8
    random, bn_scale = lines["Random channels"], lines["Torch-Pruning, bn-scale"]
    assert random["accuracy_before"] == bn_scale["accuracy_before"]  # of one baseline
    table = csv.with_suffix(".md").read_text()
    assert all(f"| {method} " in table for method in METHODS)
    assert csv.with_suffix(".png").exists()

    before, whole = csv.read_bytes(), runs.rows(csv)
    capsys.readouterr()
    assert tiny() == 0
    assert "8 of 8 results already" in (err := capsys.readouterr()).err and "all is done" in err.out
    assert csv.read_bytes() == before
    # As if killed before these were written: one fine-tuning is repeated, nothing else.
    csv.unlink()
    refined = runs.rows(tmp_path / REFINED)
    (tmp_path / REFINED).unlink()
    for row in refined[1:]:
        records.append(tmp_path / REFINED, row)
    assert tiny() == 0
    assert "left: 0 trainings, 0 prunings, 1 fine-tunings" in capsys.readouterr().out
    assert comparison.complete(runs.rows(csv)) == comparison.complete(whole)
    assert len(runs.rows(tmp_path / REFINED)) == len(refined)


def test_lines_of_another_machine_are_kept(tiny, tmp_path, capsys):
    csv = tmp_path / "committed" / "compare.csv"
    csv.parent.mkdir()
    network = compare.experiments("resnet-basic", 8, [50], None)
    for seed in (1, 2):
        for name, e in network.items():
            results = dict.fromkeys(comparison.COLUMNS, "")
            results |= {"accuracy_before": 70 + seed, "commit": "abc", "images": "0a"}
            if name[1] != "Baseline":
                results |= {"accuracy_pruned": 60, "accuracy_finetuned": 65 + seed}
            if (name[1], seed) != ("Random channels", 2):
                records.append(csv, compare.key_of(name, e, seed) | results)
    before = runs.rows(csv)
    flags = "--seeds", 1, 2, "--csv", csv
    assert tiny(*flags, "--dry-run") == 0
    shown = capsys.readouterr()
    assert "15 of 16 results" in shown.err and "left: 1 trainings, 1 prunings" in shown.out
    assert tiny(*flags) == 0
    *kept, new = runs.rows(csv)
    assert [{name: row[name] for name in before[0]} for row in kept] == before
    assert (new["method"], new["seed"]) == ("Random channels", "2") and new["accuracy_finetuned"]
    capsys.readouterr()
    assert tiny(*flags, "--report") == 0
    assert re.search(r"\| Original NS +\| 2 +\| .* 66.50 ± 0.71 ", capsys.readouterr().out)


def lines_of(**accuracies: list[float]) -> dict[str, list[dict[str, str]]]:
    return {
        name: [{"seed": str(i), "accuracy_pruned": str(x)} for i, x in enumerate(values)]
        for name, values in accuracies.items()
    }


def test_differences_are_paired_by_seed():
    # A is 1 above B for every seed, although both vary by more; C varies on its own.
    found = lines_of(A=[70, 75, 80], B=[69, 73.9, 79.1], C=[74, 70, 79], D=[71])
    text = comparison.verdicts(found, "accuracy_pruned")
    assert text.startswith("highest pruned: A.")
    assert "different: B." in text and "not different: C." in text
    assert "undecided (fewer than two common seeds): D." in text


def test_bad_input_is_rejected_with_one_line(tmp_path, monkeypatch, capsys):
    damaged = tmp_path / "damaged.csv"
    row = dict.fromkeys([*comparison.KEY, *comparison.COLUMNS], "1")
    records.append(damaged, row | {"accuracy_before": "x"})
    for arguments, message in (
        (["--networks", "vgg-19"], "--networks vgg-19 needs --scale; without it: vgg-11"),
        (["--networks", "vgg"], "'vgg' is not ARCH-DEPTH"),
        (["--shares", 100], "100 is not a percentage below 100"),
        (["--report"], "has no results yet"),
        (["--report", "--csv", damaged], "line 2: accuracy_before is 'x'"),
    ):
        assert command(*arguments, "--save", tmp_path) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    assert command("--save", tmp_path) == 2
    assert "needs torch_pruning: " in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [damaged]
