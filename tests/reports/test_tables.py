"""The tables: published numbers, numbers of recorded runs, and which runs are compared."""

import csv
import re
from itertools import groupby

import pytest

import recorded
from recorded import VGG19
from utils import console
from utils.experiments.recipes import SMALL
from utils.files.paths import PRUNED, TRAINED
from utils.paper.published import TABLES, numbers
from utils.paper.settings import recipe
from utils.reports import tables

# Rows of each of the paper's tables, and the sum of all numbers in them, and one row, as printed.
PRINTED = {
    "table1": (3, 63027.4, "VGG-19 5504 4105.2 3057.0"),
    "table2a": (11, 4314.83, "ResNet-164 Baseline 146.41/— N/A N/A N/A 94.75/—"),
    "table2b": (11, 3609.13, "DenseNet-40 VCP [40] Not Reported 37.00 37.73 22.67 72.19/—"),
    "table3": (7, 1724.2, "ResNet-110 Proximal NS (Ours) 50.70/48.54 93.25/93.27"),
}
SUBGRADIENT = {"arch": "vgg", "depth": 19, "method": "subgradient", "seed": 1}
SMALL_RUN = {"arch": "vgg", "depth": 11, "method": "proximal", "epochs": 5, "percent": 0.0}


@pytest.fixture
def show(tmp_path, capsys):
    """A function that prints the tables of tmp_path with flags and returns stdout and stderr."""

    def show(*flags: object) -> tuple[str, str]:
        capsys.readouterr()
        assert console.run(tables.main, ["--save", str(tmp_path), *map(str, flags)]) == 0
        return capsys.readouterr()

    return show


@pytest.fixture
def record(tmp_path):
    """A function that records a run in tmp_path, of seed 1 if no other is given."""
    return lambda seed=1, **settings: recorded.run(tmp_path, seed=seed, **settings)


def cells(text: str) -> list[list[str]]:
    """The rows of all Markdown tables in ``text``."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-2].split(" | ")] for line in lines]


def ours_below(text: str, method: str = "Proximal NS (ours)") -> list[str]:
    """The first line of our runs below the paper's for VGG-19 by ``method`` in Table 2."""
    rows = cells(text)
    return rows[next(i for i, row in enumerate(rows) if row[:2] == ["VGG-19", method]) + 1]


def others(text: str, *columns: str) -> list[list[str]]:
    """These cells, or all, of the rows in the table of other runs."""
    heads, _, *rows = cells(text.partition("## Other runs")[2])
    return [[row[heads.index(name)] for name in columns or heads] for row in rows]


def test_published_rows_are_those_of_the_paper_with_dashes_for_missing_runs(show, tmp_path):
    text, _ = show("--csv", tmp_path / "csv", "--only", *TABLES)
    shown = cells(text)
    for name, table in TABLES.items():
        count, total, printed = PRINTED[name]
        found = [n for row in table.rows for cell in row[1 + (name != "table1"):]
                 for n in numbers(cell) if n is not None]  # fmt: skip
        assert (len(table.rows), sum(found)) == (count, pytest.approx(total, abs=1e-6))
        assert printed in map(" ".join, table.rows)
        ours = ["", "", "ours", *["—"] * (len(table.columns) - 1)]
        assert shown.count(ours) >= sum(table.method(row) is not None for row in table.rows)
        with (tmp_path / "csv" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        for row in table.rows:
            line = [*row[:2], "paper", *row[2:], ""]
            assert line in shown and line in lines
    assert [path.name for path in tmp_path.iterdir()] == ["csv"]
    assert text.count("57.35") >= 2 and text.count("57.54") >= 3  # both, each with a note


def test_only_tables_with_runs_are_printed_by_default(show, record):
    out, err = show()
    assert out == "" and "--only" in err
    record(**SMALL_RUN)
    assert re.findall(r"^## (.*)", show()[0], re.M) == ["Other runs, in the shape of Table 2"]
    record(**VGG19, percent=0.0, tuned=79, tuning={"commit": "def5678"})
    titles = re.findall(r"^## (Table \w+|\w+)", show()[0], re.M)
    assert titles == ["Table 1", "Table 2a", "Other"]
    environment = "Seed 1; device GPU X; commit abc1234, def5678."
    assert environment in show("--only", "table2a")[0]
    assert "device" not in show("--only", "table2b")[0]


def test_mean_spread_and_difference(show, record):
    for seed, channels, pruned in ((1, 74.0, 93.0), (2, 75.0, 93.2), (3, 76.0, 93.1)):
        record(seed, **VGG19, zeros=4000 + seed, percent=0.0, removed=(channels, 91.0, 50.0),
               pruned=pruned, tuned=93 if seed == 1 else None)  # fmt: skip
    text, _ = show()
    assert ours_below(text)[2:] == [
        "ours, n = 3, bf16",
        "32.00 ± 1.00 / 20.00 (n = 1)",
        "75.00 ± 1.00",
        "91.00 ± 0.00",  # the paper's accounting
        "50.00 ± 0.00",
        "93.10 ± 0.10 / 93.00 (n = 1)",
        "channels +0.41 within, param. -0.17 outside, FLOPs -7.54 outside,"
        " post pruned -0.61 outside, fine tuned -0.38",
    ]
    assert "4002.0 ± 1.0" in text and "zeros on cifar10 -103.2 outside" in text


def test_baseline_accuracy_is_in_the_post_pruned_column(show, record, tmp_path):
    """Also of one that was pruned and fine-tuned: that before pruning, in float32."""
    baseline = {"arch": "vgg", "depth": 19, "method": "baseline", "accuracy": 93.5}
    record(1, **baseline)
    record(2, **baseline, percent=0.5, tuned=92)
    recorded.set_cells(tmp_path / PRUNED, accuracy_before=93.7)
    spread = ["93.60 ± 0.14 / —", "accuracy -0.23 within"]
    ours = ours_below(show()[0], "Baseline")
    assert ours[3:] == ["31.50 ± 0.71 / —", "—", "—", "—", *spread]


# Settings or columns of a run, and their text in the table of other runs, if it is one.
SETTINGS = {
    "the defaults": (
        {"lr": 0.1, "batch_size": 64, "weight_decay": 1e-4, "xi_init": (0.47, 0.5)},
        "",
    ),
    "flags without effect": ({"data": "DIR", "keep_dead": True, "deterministic": True}, ""),
    "one process": ({"processes": "1"}, ""),
    "an older record": ({"processes": ""}, ""),
    "four processes": ({"processes": "4"}, ", 4 processes"),  # its fine-tuning may have fewer
    "lambda": ({"s": 0.009}, "--lambda 0.009"),
    "epochs": ({"epochs": 20}, "20 epochs"),
    "nesterov": ({"nesterov": False}, "--no-nesterov"),
    "xi_init": ({"xi_init": (0.47, 0.53)}, "--xi-init 0.47 0.53"),
    "image files": ({"source": "picture files"}, "160 epochs, picture files"),
}


@pytest.mark.parametrize(("settings", "text"), SETTINGS.values(), ids=SETTINGS)
def test_only_runs_with_the_papers_settings_are_in_its_tables(
    settings, text, show, record, tmp_path
):
    columns = {name: cell for name, cell in settings.items() if name == "processes"}
    flags = {name: x for name, x in settings.items() if name not in columns}
    record(**VGG19 | flags, percent=0.0, pruned=77, tuned=79)
    recorded.set_cells(tmp_path / TRAINED, **columns)
    out, err = show()
    assert not err and ("## Table" not in out) == ("## Other" in out) == bool(text)
    if text:
        ((runs, options, *cells),) = others(out, "Runs", "Settings", "Post Pruned", "Fine Tuned")
        assert runs.startswith("VGG-19 on cifar10") and text in f"{runs}, {options}"
        assert cells == ["77.00", "79.00"]
    else:
        assert ours_below(out)[7] == "77.00 / 79.00"


def test_recipes_are_in_the_paper_tables(show, record):
    for arch, depth in (("densenet", 40), ("resnet", 164), ("resnet", 110)):
        r = recipe(arch, depth)
        settings = {"method": "proximal", "s": r.lambda_, "beta": r.beta, "percent": 0.0}
        record(arch=arch, depth=depth, **settings)
    text, _ = show()
    assert text.count("ours, n = 1") == 2 + 2 + 2  # Tables 1, 2a and 3
    assert "Other runs" not in text


def test_repeated_runs_count_once(show, record):
    """Of runs with the same settings and seed, the last counts, with its own pruning."""
    for channels, pruned in ((70.0, 90.0), (75.0, 93.0)):
        record(**VGG19, percent=0.0, pruned=pruned, removed=(channels, 1, 1),
               tuned=92 if pruned == 90 else None)  # fmt: skip
    ours = ours_below(show()[0])
    assert (ours[2], ours[4], ours[7]) == ("ours, n = 1, bf16", "75.00", "93.00 / —")
    baseline = {"arch": "vgg", "depth": 19, "method": "baseline"}
    first = record(**baseline, accuracy=91.23)
    record(**baseline, accuracy=92.34, name="again")
    out, err = show()
    assert "91.23" not in out and "92.34" in out and f"{first} is left out" in err
    record(**baseline, accuracy=93.45)  # the first one again
    out, err = show()
    assert "92.34" not in out and "93.45" in out and f"{first} is left out" not in err


def test_runs_of_different_precisions_have_separate_lines(show, record):
    for seed, precision, pruned in ((1, "fp32", 94), (1, "bf16", 90), (2, "bf16", 92)):
        for epochs in (160, 20):
            settings = {"percent": 0.0, "pruned": pruned, "precision": precision, "epochs": epochs}
            record(seed, **VGG19, **settings, name=f"{precision}{seed}-{epochs}")
    out, err = show()
    rows = cells(out.partition("Table 2")[2].partition("## Other")[0])
    lines = [(row[2], row[7]) for row in rows if row[2].startswith("ours, n")]
    assert not err and lines == [
        ("ours, n = 2, bf16", "91.00 ± 1.41 / —"),
        ("ours, n = 1, fp32", "94.00 / —"),
    ]
    assert others(out, "Settings", "n", "Post Pruned") == [
        ["--lambda 0.0045 --beta 100.0 bf16", "2", "91.00 ± 1.41"],
        ["--lambda 0.0045 --beta 100.0 fp32", "1", "94.00"],
    ]


@pytest.mark.parametrize(
    ("seed", "column"), [(1, "pictures"), (1, "test_pictures"), (2, "pictures")]
)
def test_runs_on_different_images_have_separate_lines(seed, column, show, record, tmp_path):
    """Also of the same name and seed: none replaces the other."""
    settings = {**VGG19, "dataset": "folder", "source": ""}
    record(**settings, accuracy=91.25)
    record(seed, **settings, accuracy=82.5)
    recorded.set_cells(tmp_path / TRAINED, **{column: "0000cccc"})
    out, err = show()
    rows = others(out, "n", "Test Accuracy (%) Before Pruning")
    assert rows == [["1", "91.25"], ["1", "82.50"]] and not err
    assert "images 0000aaaa" in out and "0000cccc" in out


def test_other_runs_are_grouped_by_network_and_settings(show, record, tmp_path):
    for (arch, depth), proximal in SMALL.items():
        small = {"arch": arch, "depth": depth, "epochs": 20, "subset": 10000}
        for seed in (3, 1, 2):
            record(seed, **small, **proximal, method="proximal", percent=0.0)
            record(seed, **small, method="baseline", accuracy=70 + seed)
            record(seed, **small, method="subgradient", percent=0.5, accuracy=69, pruned=12,
                   tuned=67)  # fmt: skip
    text, _ = show("--csv", tmp_path)
    assert "## Table" not in text and "Seeds 1, 2, 3; device GPU X" in text
    rows = others(text)
    names = [f"{n} on cifar10, 20 epochs, --subset 10000" for n in ("VGG-11", "ResNet-20")]
    assert [row[:2] for row in rows] == [
        [name, method] for name in names for method in ("Baseline", "Original NS", "Proximal NS")
    ]
    assert rows[0][2:] == ["bf16", "3", "32.00 ± 1.00 / —", "—", "—", "—", "72.00 ± 1.00", "—", "—"]
    assert rows[1][2] == "--lambda 0.0001 bf16"
    assert rows[1][8:] == ["69.00 ± 0.00", "12.00 ± 0.00", "67.00 ± 0.00"]
    assert rows[2][2] == "--lambda 0.015 --beta 10.0 bf16"
    assert rows[2][5:8] == ["50.00 ± 0.00", "60.00 ± 0.00", "70.00 ± 0.00"]
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1:] == rows
    assert not (tmp_path / "table1.csv").exists()


# Which prunings are shown.


def test_original_slimming_is_shown_at_the_published_share(show, record):
    other = SUBGRADIENT | {"s": 1e-4, "percent": 0.3, "pruned": 88}
    record(**other)
    out, _ = show()
    assert "## Table" not in out and others(out, "Post Pruned") == [["88.00"]]
    record(**SUBGRADIENT, s=1e-4, percent=0.74, pruned=10.5, tuned=93.0)
    record(**other, tuned=93.0)
    out, err = show()
    ours = ours_below(out, "Original NS [23]")
    assert ours[7] == "10.50 / 93.00" and "channels" not in ours[8]  # the share was chosen
    assert "88.00" not in out and "--percent 0.3 is left out" in err


def test_prunings_by_other_masks_and_criteria_are_left_out(show, record, tmp_path):
    """One pruning of a run is shown, by |γ|; the others are named."""
    record(**SUBGRADIENT, s=1e-4, percent=0.74, pruned=10.5)
    for column, cell in (("criterion", "filters"), ("adjust", "0.1"), ("mask", "xi")):
        record(**SUBGRADIENT, s=1e-4, percent=0.74, pruned=55)
        recorded.set_cells(tmp_path / PRUNED, **{column: cell})
    out, err = show()
    assert ours_below(out, "Original NS [23]")[7] == "10.50 / —"
    for flags in ("--criterion filters", "--adjust 0.1", "--mask xi --percent 0.74"):
        assert f"{flags} is left out" in err
    assert err.count("one pruning of a run") == 3


def test_a_pruning_that_was_fine_tuned_is_preferred(show, record, tmp_path):
    settings = SUBGRADIENT | {"s": 0.009, "epochs": 20}
    for share, pruned in ((74.0, 10.5), (30.0, 88.0)):
        record(**settings, percent=share / 100, removed=(share, 1, 1), pruned=pruned, tuned=93)
    record(**settings, percent=0.5, pruned=50)
    columns = "% Channels Pruned", "Post Pruned", "Fine Tuned"
    assert others(show()[0], *columns) == [["30.00", "88.00", "93.00"]]
    (tmp_path / PRUNED).unlink()  # the record of the prunings that were fine-tuned
    record(**settings, percent=0.5, pruned=50)
    assert others(show()[0], *columns) == [["50.00", "50.00", "—"]]


# Which fine-tunings are shown.


# Changes of a fine-tuning, their text in the table or in the note, and whether it is shown.
CHANGES = {
    "none": ({}, "", True),
    "shorter": ({"epochs": 1}, "--epochs 1", True),
    "other precision": ({"precision": "fp32"}, "--precision fp32", True),
    "fewer test images": ({"test_subset": 100}, "--test-subset 100", False),
    "other test images": ({"test_pictures": "0000cccc"}, "other images", False),
    "penalty": ({"method": "proximal"}, "with a penalty, --method proximal", False),
}


@pytest.mark.parametrize(("change", "text", "shown"), CHANGES.values(), ids=CHANGES)
def test_fine_tunings_with_other_settings_are_named_or_left_out(change, text, shown, show, record):
    """The paper's tables have those with the training's settings only."""
    paper = record(**VGG19, percent=0.0, tuned=91.23, tuning=change)
    run = record(**SMALL_RUN, s=0.1, beta=80.0, source="", tuned=92.5, tuning=change)
    out, err = show()
    assert ("91.23" in out) == (f"{paper}_refine is left out" not in err) == (not change)
    ((tuned, settings),) = others(out, "Fine Tuned", "Settings")
    assert settings == "--lambda 0.1 --beta 80.0 bf16" + f", fine-tuned {text}" * (
        shown and text != ""
    )
    assert tuned == ("92.50" if shown else "—")
    left_out = f"{run}_refine is left out: its settings differ from those of {run}: "
    assert (left_out in err) == (f"{run}_refine" in err) == (not shown)
    assert shown or text in err


def test_different_fine_tunings_have_separate_lines(show, record):
    for seed, change in ((1, {"epochs": 1}), (2, {}), (3, {}), (4, None)):
        tuned = {} if change is None else {"tuned": 90 + seed, "tuning": change}
        record(seed, **SMALL_RUN, **tuned)
    rows = others(show()[0], "n", "Fine Tuned")
    assert rows == [["2", "91.00 (n = 1)"], ["2", "92.50 ± 0.71"]]


def test_left_out_fine_tunings_are_named_with_the_reason(show, record):
    run = record(**SMALL_RUN, tuned=91, tuning={"channels": 501})
    record(2, **SMALL_RUN, tuned=92)
    record(2, **SMALL_RUN, tuned=93, tuning={"name": "again"})
    out, err = show()
    assert f"{run}_refine is left out: it did not start from a recorded pruning" in err
    assert "proximal_seed2_vgg_11_cifar10_refine is left out: a later one" in err
    assert "93.00 (n = 1)" in out


@pytest.mark.parametrize("checksums", [["aa"], ["bb"], [""], ["aa", "bb"]], ids="-".join)
def test_a_fine_tuning_belongs_to_the_file_it_started_from(checksums, show, record, tmp_path):
    """A pruning may be repeated, with a different checksum."""
    for checksum in checksums:
        run = record(**VGG19, percent=0.0, pruned=77, tuned=79, tuning={"init_checksum": "aa"})
        recorded.set_cells(tmp_path / PRUNED, slim_checksum=checksum)
    out, err = show()
    shown = checksums != ["bb"]
    assert ours_below(out)[7] == f"77.00 / {'79.00' if shown else '—'}"
    assert (f"{run}_refine is left out" in err) != shown


# Lp slimming.


def test_lp_slimming_has_published_rows_and_a_line_per_setting_below(show, record, tmp_path):
    lp = {"method": "lp-admm", "removed": (40.0, 80.0, 66.0)}
    vgg = {**lp, "arch": "vgg", "depth": 16, "percent": 0.0, "mask": "z"}
    record(1, **vgg, pruned=60.0, tuned=93.0, tuning={"schedule": "cosine", "epochs": 350})
    record(2, **vgg, pruned=62.0)
    lines = ("z", "bf16"), ("gamma", "bf16"), ("z", "fp32")
    for mask, precision in (*lines, lines[-1]):  # one is repeated
        record(**lp, arch="resnet-basic", depth=20, percent=0.5, mask=mask, precision=precision,
               name=f"{mask}{precision}")  # fmt: skip
    text, _ = show("--only", "lp", "--csv", tmp_path)
    published = [(row[0], *row[4:]) for row in cells(text) if row[1] == "published"]
    assert len(published) == 7 + 8 + 7 + 5
    assert ("VGG-16", "93.91", "66.9", "83.7", "cosine, 350 epochs") in published
    assert ("ResNet-56", "91.85", "81.3", "80.6", "cosine, 300 epochs") in published
    networks = [name for name, _ in groupby(row[0] for row in cells(text)[2:])]
    assert networks == [
        "VGG-16",
        "ResNet-56",
        "ResNet-110",
        "ResNet-50",
        "ResNet-basic-20 on cifar10",
    ]
    ours = [row for row in cells(text) if row[1].startswith("ours, n = 1: ")]
    assert [row[0] for row in ours] == ["VGG-16"] * 2 + ["ResNet-basic-20 on cifar10"] * 3
    assert ours[0][2:7] == ["90.00", "60.00", "93.00", "66.00", "80.00"]
    assert "350 epochs" in ours[0][7] and "--schedule cosine" in ours[0][7]
    for (mask, precision), row in zip(lines, ours[2:], strict=True):
        assert f"{precision}, --mask {mask} --percent 0.5" in row[1]
    with (tmp_path / "lp.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == len(cells(text)) - 1
