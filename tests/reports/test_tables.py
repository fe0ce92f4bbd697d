"""The tables: every published number, ours beside them, and which runs count."""

import csv
import os
import re
from pathlib import Path

import pytest

import recorded
from utils import console
from utils.experiments.recipes import SMALL
from utils.files.paths import PRUNED, TRAINED
from utils.paper.published import TABLES, numbers
from utils.paper.settings import recipe
from utils.reports import tables

ROOT = Path(__file__).parents[2]
PAPERS = [os.environ.get("PAPER_TEXT"), *(ROOT / "../shared/seeds").glob("004_*.txt")]
PAPER = next((Path(path) for path in PAPERS if path), None)
VGG = {"s": 0.0045, "beta": 100.0}


def show(capsys: pytest.CaptureFixture[str], folder: Path, *more: object) -> str:
    capsys.readouterr()
    assert console.run(tables.main, ["--save", str(folder), *map(str, more)]) == 0
    return capsys.readouterr().out


def cells(text: str) -> list[list[str]]:
    """The rows of all Markdown tables in ``text``."""
    return [
        [c.strip() for c in line[1:-2].split(" | ")] for line in text.splitlines() if "| " in line
    ]


def lines_of(text: str, method: str) -> list[list[str]]:
    """The paper's line about VGG-19 by ``method`` in Table 2a, and ours below it."""
    rows = cells(text)
    at = next(i for i, row in enumerate(rows) if row[:2] == ["VGG-19", method])
    return rows[at : at + 2]


@pytest.mark.skipif(PAPER is None, reason="PAPER_TEXT names no file with the paper's text")
def test_every_published_number_stands_in_the_paper():
    printed: dict[str, list[list[str]]] = {name: [] for name in TABLES}
    name = network = ""
    for line in PAPER.read_text(encoding="utf-8").splitlines():
        if caption := re.match(r"\*\*Table (\d)\.\*\*|\((a|b)\) CIFAR|\*\*Table (\d)\.", line):
            name = f"table{caption[1] or caption[3] or 2}{caption[2] or ''}"
        row = [re.sub(r"</?b>", "", cell).strip() for cell in line.split("\t")]
        network = row[0] or network
        if len(row) > 2 and network.partition("-")[0] in ("VGG", "DenseNet", "ResNet"):
            printed[name].append([network, *row[1:]])
    assert {name: table.rows for name, table in TABLES.items()} == printed


def test_every_published_number_is_printed_and_a_dash_where_there_is_no_run(tmp_path, capsys):
    text = show(capsys, tmp_path, "--csv", tmp_path / "csv", "--only", *TABLES)
    shown = cells(text)
    for name, table in TABLES.items():
        width = len(table.columns)
        for row in table.rows:
            assert [*row[:2], "paper", *row[2:], ""] in shown
        mine = ["", "", "ours", *["—"] * (width - 2), "—"]
        assert shown.count(mine) >= sum(table.method(row) is not None for row in table.rows)
        with (tmp_path / "csv" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            found = [row["published"] for row in csv.DictReader(file) if row["published"]]
        values = [n for row in table.rows for cell in row[2:] for n in numbers(cell)]
        assert [float(n) for n in found] == [n for n in values if n is not None]
        assert not [p for p in tmp_path.iterdir() if p.name != "csv"]
    assert text.count("57.35") >= 2 and text.count("57.54") >= 3  # both, each with a note


def test_tables_without_runs_are_left_out_unless_asked_for(tmp_path, capsys):
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "--only" in err
    recorded.run(tmp_path, "vgg", 11, "proximal", 1, epochs=5)
    text = show(capsys, tmp_path)
    assert text.startswith("## Other runs") and "VGG-11" in text
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0, tuned=93)
    text = show(capsys, tmp_path)
    shown = [name for name, table in TABLES.items() if table.title in text]
    assert shown == ["table1", "table2a"]
    assert "## Other runs" in text and "Lp slimming" not in text


def test_numbers_of_a_cell():
    assert numbers("93.83/—") == [93.83, None]
    assert numbers("74.00*") == [74.0]
    assert numbers("Not Reported") == [None]
    assert not any(numbers("N/A"))


def test_mean_spread_and_difference(tmp_path, capsys):
    for seed, channels, slim in ((1, 74.0, 93.0), (2, 75.0, 93.2), (3, 76.0, 93.1)):
        pruned, tuned = (channels, 91.0, 50.0), 93 if seed == 1 else None
        recorded.run(tmp_path, "vgg", 19, "proximal", seed, **VGG, zeros=4000 + seed, percent=0.0,
                     pruned=pruned, slim=slim, tuned=tuned)  # fmt: skip
    text = show(capsys, tmp_path, "--csv", tmp_path)
    _, ours = lines_of(text, "Proximal NS (ours)")
    assert ours[2:8] == [
        "ours, n = 3",
        "32.00 ± 1.00 / 20.00 (n = 1)",
        "75.00 ± 1.00",
        "91.00 ± 0.00",  # the paper's accounting, not torch's
        "50.00 ± 0.00",
        "93.10 ± 0.10 / 93.00 (n = 1)",
    ]
    assert ours[8] == (
        "channels +0.41 within, param. -0.17 outside, FLOPs -7.54 outside,"
        " post pruned -0.61 outside, fine tuned -0.38"
    )
    assert "4002.0 ± 1.0" in text
    assert "zeros on cifar10 -103.2 outside" in text
    with (tmp_path / "table2a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (row,) = [r for r in rows if r["quantity"] == "channels" and r["seeds"] == "3"]
    assert (row["network"], row["method"]) == ("VGG-19", "Proximal NS (ours)")
    assert (row["published"], row["ours"], row["standard_deviation"]) == ("74.59", "75.00", "1.00")
    assert (row["difference"], row["within_spread"]) == ("0.41", "yes")


def test_the_baselines_accuracy_stands_where_the_papers_does(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "baseline", 1, accuracy=93.5)
    _, ours = lines_of(show(capsys, tmp_path), "Baseline")
    assert ours[2:] == ["ours, n = 1", "31.00 / —", "—", "—", "—", "93.50 / —", "accuracy -0.33"]


OTHERS = {
    "other λ": ({"s": 0.009}, "--s 0.009"),
    "fewer epochs": ({"epochs": 20}, "20 epochs"),
    "some of the pictures": ({"subset": 10000}, "--subset 10000"),
    "some of the test pictures": ({"test_subset": 2000}, "--test-subset 2000"),
    "other batches": ({"batch_size": 128}, "--batch-size 128"),
    "other learning rate": ({"lr": 0.05}, "--lr=0.05"),
    "other momentum": ({"momentum": 0.5}, "--momentum 0.5"),
    "other weight decay": ({"weight_decay": 0.01}, "--weight-decay 0.01"),
    "plain momentum": ({"nesterov": False}, "--no-nesterov"),
    "another start of ξ": ({"xi_init": (0.47, 0.53)}, "--xi-init 0.47 0.53"),
    "ξ once an epoch": ({"prox_every": "epoch"}, "--prox-every epoch"),
    "copy": ({"source": "picture files"}, "160 epochs, picture files"),
}


@pytest.mark.parametrize(("other", "said"), OTHERS.values(), ids=OTHERS)
def test_runs_with_other_settings_are_not_the_papers(other, said, tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **{**VGG, **other}, percent=0.0, slim=77)
    text = show(capsys, tmp_path)
    papers, _, others = text.partition("## Other runs")
    assert "77.00" not in papers
    assert "77.00" in others
    assert "VGG-19 on cifar10" in others
    assert said.replace("=", " ") in others


SAME = {
    "no flag": {},
    "the defaults": {"lr": 0.1, "batch_size": 64, "weight_decay": 1e-4, "xi_init": (0.47, 0.5)},
    "what changes no result": {"data": "DIR", "keep_dead": True, "deterministic": True},
}


@pytest.mark.parametrize("told", SAME.values(), ids=SAME)
def test_runs_with_the_papers_settings_are_the_papers(told, tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, **told, percent=0.0, slim=77, tuned=79)
    _, ours = lines_of(show(capsys, tmp_path), "Proximal NS (ours)")
    assert ours[7] == "77.00 / 79.00"


def test_the_start_of_xi_is_nothing_that_a_fine_tuning_has(tmp_path, capsys):
    told = {**VGG, "xi_init": (0.1, 0.2)}
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **told, percent=0.0, tuned=79)
    text = show(capsys, tmp_path)
    assert "--xi-init 0.1 0.2" in text and "79.00" in text


def test_a_run_that_another_replaces_is_named(tmp_path, capsys):
    name = recorded.run(tmp_path, "vgg", 19, "baseline", 1, accuracy=91.23)
    path = tmp_path / TRAINED
    line = path.read_text().splitlines()[1]
    with path.open("a") as file:
        file.write(line.replace(name, "again").replace("91.23", "92.34") + "\n")
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "91.23" not in out and "92.34" in out
    assert f"{name} is left out" in err


def test_a_run_done_again_has_its_own_pruning(tmp_path, capsys):
    for channels, slim in ((70.0, 90.0), (75.0, 93.0)):
        recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0,
                     pruned=(channels, 1, 1), slim=slim,
                     tuned=92 if slim == 90 else None)  # fmt: skip
    _, ours = lines_of(show(capsys, tmp_path), "Proximal NS (ours)")
    assert (ours[4], ours[7]) == ("75.00", "93.00 / —")


def test_a_cell_of_fewer_seeds_than_its_line_says_so(tmp_path, capsys):
    for seed in (1, 2, 3):
        recorded.run(tmp_path, "vgg", 19, "proximal", seed, **VGG, zeros=4100)
    for seed in (1, 2):
        recorded.run(tmp_path, "vgg", 19, "proximal", seed, **VGG, zeros=3000, dataset="cifar100")
    rows = cells(show(capsys, tmp_path, "--only", "table1"))
    (ours,) = [row for row in rows if row[2] == "ours, n = 3"]
    assert ours[3:5] == ["4100.0 ± 0.0", "3000.0 ± 0.0 (n = 2)"]


def test_original_slimming_counts_at_the_share_that_the_table_has(tmp_path, capsys):
    run = {"s": 1e-4, "tuned": 93.0}
    recorded.run(tmp_path, "vgg", 19, "subgradient", 1, **run, percent=0.74, slim=10.5)
    recorded.run(tmp_path, "vgg", 19, "subgradient", 1, **run, percent=0.3, slim=88)
    text = show(capsys, tmp_path)
    _, ours = lines_of(text, "Original NS [23]")
    assert ours[7] == "10.50 / 93.00"
    assert "channels" not in ours[8]  # the share was chosen
    assert "88.00" not in text


def test_original_slimming_at_another_share_stands_among_the_others(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "subgradient", 1, s=1e-4, percent=0.3, slim=88)
    papers, _, others = show(capsys, tmp_path).partition("## Other runs")
    assert "88.00" not in papers
    assert "88.00" in others


def test_a_fine_tuning_stands_with_the_pruning_that_it_followed(tmp_path, capsys):
    run = {"s": 0.009, "epochs": 20}
    for pruned, slim in ((74.0, 10.5), (30.0, 88.0)):
        recorded.run(tmp_path, "vgg", 19, "subgradient", 1, **run, percent=pruned / 100,
                     pruned=(pruned, 1, 1), slim=slim, tuned=93)  # fmt: skip
    text = show(capsys, tmp_path, "--only", "runs")
    (row,) = [row for row in cells(text) if row[0] == "Original NS"]
    assert (row[4], *row[8:]) == ("30.00", "88.00", "93.00")
    recorded.run(tmp_path, "vgg", 19, "subgradient", 1, **run, percent=0.5, slim=50)
    text = show(capsys, tmp_path, "--only", "runs")
    assert "50.00" not in text  # the one that was fine-tuned stays
    # Nothing says of what it is a fine-tuning.
    (tmp_path / PRUNED).unlink()
    recorded.run(tmp_path, "vgg", 19, "subgradient", 1, **run, percent=0.5, slim=50)
    text = show(capsys, tmp_path, "--only", "runs")
    (row,) = [row for row in cells(text) if row[0] == "Original NS"]
    assert row[8:] == ["50.00", "—"]


def test_masks_by_xi_and_repeated_runs(tmp_path, capsys):
    """The table has prunings by γ, and of a run recorded twice the last."""
    for accuracy, mask in ((50, "gamma"), (60, "gamma"), (70, "xi")):
        recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0, slim=accuracy,
                     mask=mask, zeros=accuracy)  # fmt: skip
    text = show(capsys, tmp_path)
    _, ours = lines_of(text, "Proximal NS (ours)")
    assert ours[2] == "ours, n = 1"
    assert ours[7] == "60.00 / —"
    assert "70.0" in cells(text)[3][3]


@pytest.mark.parametrize(
    "other",
    [
        {"epochs": 40},
        {"lr": 0.01},
        {"subset": 5000},
        {"method": "proximal", "xi_init": None},
        {"source": "picture files"},
        {"channels": 501},
    ],
)
def test_another_fine_tuning_is_left_out_and_said(other, tmp_path, capsys):
    name = recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0, tuned=91.23,
                        tuned_more=other)  # fmt: skip
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "91.23" not in out
    assert f"{name}_refine" in err


def test_small_runs_in_the_shape_of_table_2(tmp_path, capsys):
    small = {"epochs": 20, "subset": 10000}
    for (arch, depth), proximal in SMALL.items():
        for seed in (3, 1, 2):
            recorded.run(tmp_path, arch, depth, "proximal", seed, **small, **proximal,
                         percent=0.0, accuracy=65, slim=65, tuned=68)  # fmt: skip
            recorded.run(tmp_path, arch, depth, "baseline", seed, **small, accuracy=70 + seed)
            recorded.run(tmp_path, arch, depth, "subgradient", seed, **small, percent=0.5,
                         accuracy=69, slim=12, tuned=67)  # fmt: skip
    text = show(capsys, tmp_path, "--only", "runs", "--csv", tmp_path)
    assert "## Table" not in text
    titles = [
        "VGG-11 on cifar10, 20 epochs, --subset 10000",
        "ResNet-20 on cifar10, 20 epochs, --subset 10000",
    ]
    assert re.findall(r"^### (.*)", text, re.M) == titles
    assert text.count("Seeds 1, 2, 3; ") == 2
    assert "device GPU X" in text and "commit abc1234" in text
    rows = [row for row in cells(text) if row[0] in ("Baseline", "Original NS", "Proximal NS")]
    assert [row[0] for row in rows] == ["Baseline", "Original NS", "Proximal NS"] * 2
    assert rows[0] == ["Baseline", "—", "3", "32.00 ± 1.00 / —", "—", "—", "—",
                       "72.00 ± 1.00", "—", "—"]  # fmt: skip
    assert rows[1][1:3] == ["--s 0.0001", "3"]
    assert rows[1][7:] == ["69.00 ± 0.00", "12.00 ± 0.00", "67.00 ± 0.00"]
    assert rows[2][1:3] == ["--s 0.015 --beta 10.0", "3"]
    assert rows[2][4:] == ["50.00 ± 0.00", "60.00 ± 0.00", "70.00 ± 0.00", "65.00 ± 0.00",
                           "65.00 ± 0.00", "68.00 ± 0.00"]  # fmt: skip
    assert (tmp_path / "runs.csv").exists()
    assert not (tmp_path / "table1.csv").exists()


def test_the_recipes_settings_are_those_that_count(tmp_path, capsys):
    for arch, depth in (("densenet", 40), ("resnet", 164), ("resnet", 110)):
        r = recipe(arch, depth)
        recorded.run(tmp_path, arch, depth, "proximal", 1, s=r.lambda_, beta=r.beta, percent=0.0)
    text = show(capsys, tmp_path)
    assert text.count("ours, n = 1") == 2 + 2 + 2  # Tables 1, 2a and 3
    assert "###" not in text


def test_a_line_cut_off_by_a_kill_is_not_there(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "baseline", 1, accuracy=93.5)
    with (tmp_path / TRAINED).open("a") as file:
        file.write("baseline_seed2,base")
    _, ours = lines_of(show(capsys, tmp_path), "Baseline")
    assert ours[2] == "ours, n = 1"


def test_lp_slimmings_published_rows_and_ours_below_their_network(tmp_path, capsys):
    for seed, slim in ((1, 60.0), (2, 62.0)):
        run = {"percent": 0.0, "mask": "z", "pruned": (40.0, 80.0, 66.0), "slim": slim}
        recorded.run(tmp_path, "vgg", 16, "lp-admm", seed, **run, tuned=93.0 if seed == 1 else None,
                     tuned_more={"schedule": "cosine", "epochs": 350})  # fmt: skip
    text = show(capsys, tmp_path, "--only", "lp", "--csv", tmp_path)
    rows = cells(text)
    assert rows[2][:2] == ["VGG-16", "published"]
    published = [(r[0], r[4], r[5], r[6], r[7]) for r in rows[1:] if r[1] == "published"]
    assert len(published) == 7 + 8 + 7 + 5
    assert ("VGG-16", "93.91", "66.9", "83.7", "cosine, 350 epochs") in published
    assert ("ResNet-56", "91.85", "81.3", "80.6", "cosine, 300 epochs") in published
    assert ("ResNet-110", "93.37", "78.7", "79.8", "cosine, 350 epochs") in published
    ours = [row for row in rows if row[1].startswith("ours")]
    assert [row[0] for row in ours] == ["VGG-16"] * 2
    tuned = next(row for row in ours if row[4] == "93.00")
    assert "350 epochs" in tuned[7] and "--schedule cosine" in tuned[7]
    assert tuned[2:7] == ["90.00", "60.00", "93.00", "66.00", "80.00"]
    with (tmp_path / "lp.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == len(rows) - 1


def test_lp_slimming_of_other_networks_stands_below_by_mask(tmp_path, capsys):
    for mask in ("z", "gamma"):
        run = {"percent": 0.5, "mask": mask, "slim": 60.0}
        recorded.run(tmp_path, "resnet-basic", 20, "lp-admm", 1, **run)
    rows = [row for row in cells(show(capsys, tmp_path, "--only", "lp")) if "basic-20" in row[0]]
    assert [row[0] for row in rows] == ["ResNet-basic-20 on cifar10"] * 2
    assert ["--mask z, --percent 0.5" in row[1] for row in rows] == [True, False]
    assert "--mask gamma, --percent 0.5" in rows[1][1]


def test_other_criteria_and_floors_are_not_the_papers_prunings(tmp_path, capsys):
    run = {"s": 1e-4, "percent": 0.74}
    recorded.run(tmp_path, "vgg", 19, "subgradient", 1, **run, slim=10.5)
    for column, cell in (("criterion", "filters"), ("adjust", "0.1")):
        name = recorded.run(tmp_path, "vgg", 19, "subgradient", 1, **run, slim=55)
        rows = (tmp_path / PRUNED).read_text().splitlines()
        if column not in rows[0]:
            rows = [f"{rows[0]},{column}", *(f"{row}," for row in rows[1:])]
        at = rows[0].split(",").index(column)
        last = rows[-1].split(",")
        last[at] = cell
        (tmp_path / PRUNED).write_text("\n".join([*rows[:-1], ",".join(last)]) + "\n")
    assert name
    _, ours = lines_of(show(capsys, tmp_path), "Original NS [23]")
    assert ours[7] == "10.50 / —"


def test_repeated_prunings_of_a_seed_count_once(tmp_path, capsys):
    """In the table of Lp slimming, where the last one stands; and of two names of a seed."""
    run = {"percent": 0.5, "mask": "z"}
    for slim, name in ((60.0, "a"), (62.0, "a"), (64.0, "b")):
        recorded.run(tmp_path, "vgg", 16, "lp-admm", 1, **run, slim=slim, name=name)
    rows = [r for r in cells(show(capsys, tmp_path, "--only", "lp")) if r[1].startswith("ours")]
    assert len(rows) == 1 and rows[0][1].startswith("ours, n = 1: ") and rows[0][3] == "64.00"


def test_a_fine_tuning_of_another_file_of_that_name_is_not_the_prunings(tmp_path, capsys):
    run = recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0, slim=77, tuned=79,
                       tuned_more={"init_checksum": "aa"})  # fmt: skip
    path = tmp_path / PRUNED
    head, line = path.read_text().splitlines()
    for checksum, shown in (("aa", "79.00"), ("bb", "—"), ("", "79.00")):
        path.write_text(f"{head},slim_checksum\n{line},{checksum}\n")
        assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert lines_of(out, "Proximal NS (ours)")[1][7] == f"77.00 / {shown}"
        assert (f"{run}_refine is left out" in err) == (shown == "—")


def test_runs_of_several_processes_are_not_the_papers(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "baseline", 1, accuracy=77)
    path = tmp_path / TRAINED
    head, line = path.read_text().splitlines()
    for processes, papers in (("1", True), ("", True), ("4", False)):
        path.write_text(f"{head},processes\n{line},{processes}\n")
        text = show(capsys, tmp_path)
        assert ("## Table" in text) == papers
        assert ("4 processes" in text) != papers


def test_what_several_processes_trained_may_be_fine_tuned_by_one(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0, tuned=79)
    path = tmp_path / TRAINED
    head, line = path.read_text().splitlines()
    path.write_text(f"{head},processes\n{line},4\n")
    assert "79.00" in show(capsys, tmp_path)


def test_a_pruning_repeated_with_other_bytes_keeps_its_fine_tuning(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0, slim=77, tuned=79,
                 tuned_more={"init_checksum": "aa"})  # fmt: skip
    path = tmp_path / PRUNED
    head, line = path.read_text().splitlines()
    for checksums in (("aa", "bb"), ("", "bb")):
        lines = (f"{line},{checksum}" for checksum in checksums)
        path.write_text("\n".join([f"{head},slim_checksum", *lines]) + "\n")
        assert lines_of(show(capsys, tmp_path), "Proximal NS (ours)")[1][7] == "77.00 / 79.00"


def test_a_pruned_baseline_is_no_baseline_of_the_papers(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "baseline", 1, accuracy=93.5, percent=0.5, tuned=92)
    _, ours = lines_of(show(capsys, tmp_path), "Baseline")
    assert ours[2:] == ["ours, n = 1", "31.00 / —", "—", "—", "—", "93.50 / —", "accuracy -0.33"]


def test_a_papers_table_says_on_what_its_runs_were_made(tmp_path, capsys):
    recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=0.0, tuned=79,
                 tuned_more={"commit": "def5678"})  # fmt: skip
    text = show(capsys, tmp_path, "--only", "table2a")
    assert "Seed 1; precision bf16; device GPU X; commit abc1234, def5678." in text
    assert "precision" not in show(capsys, tmp_path, "--only", "table2b").split("## ")[1]


def test_prunings_that_no_table_has_are_named(tmp_path, capsys):
    for mask, percent in (("gamma", 0.0), ("gamma", 0.0), ("xi", 0.0), ("gamma", 0.5)):
        run = recorded.run(tmp_path, "vgg", 19, "proximal", 1, **VGG, percent=percent, mask=mask)
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "one pruning" in line]
    assert [line.split("with ")[1] for line in said] == [
        "--mask xi --percent 0.0 is left out: tables show one pruning",
        "--mask gamma --percent 0.5 is left out: tables show one pruning",
    ]
    assert all(f"note: {run} pruned" in line for line in said)


def test_a_share_that_the_papers_table_has_not_is_named(tmp_path, capsys):
    for percent in (0.74, 0.5):
        run = {"s": 1e-4, "percent": percent, "tuned": 93.0}
        recorded.run(tmp_path, "vgg", 19, "subgradient", 1, **run)
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "one pruning" in line]
    assert len(said) == 1 and "--percent 0.5 is left out" in said[0]


def test_runs_of_different_precision_are_never_averaged_nor_take_a_seeds_place(tmp_path, capsys):
    """In the paper's tables and among the others, where each line says which it is."""
    for told in ({}, {"epochs": 20}):
        for seed, precision, slim in ((1, "bf16", 90), (2, "bf16", 92), (1, "fp32", 94)):
            run = {**VGG, **told, "percent": 0.0, "slim": slim, "precision": precision}
            recorded.run(
                tmp_path, "vgg", 19, "proximal", seed, **run, name=f"{precision}{seed}{told}"
            )
    assert console.run(tables.main, ["--save", str(tmp_path), "--csv", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert not err
    papers, _, others = out.partition("## Other runs")
    ours = [
        (row[2], row[7]) for row in cells(papers.partition("Table 2")[2]) if "ours, n" in row[2]
    ]
    assert ours[:2] == [
        ("ours, n = 2, bf16", "91.00 ± 1.41 / —"),
        ("ours, n = 1, fp32", "94.00 / —"),
    ]
    rows = [row for row in cells(others) if row[0] == "Proximal NS"]
    assert [(row[1], row[2], row[8]) for row in rows] == [
        ("--s 0.0045 --beta 100.0 bf16", "2", "91.00 ± 1.41"),
        ("--s 0.0045 --beta 100.0 fp32", "1", "94.00"),
    ]
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        found = {row["settings"]: row["seeds"] for row in csv.DictReader(file) if row["ours"]}
    assert [(("bf16" in s, "fp32" in s), n) for s, n in found.items()] == [
        ((True, False), "2"),
        ((False, True), "1"),
    ]


def test_nor_are_they_in_the_table_of_lp_slimming(tmp_path, capsys):
    for seed, precision in ((1, "bf16"), (1, "fp32"), (2, "fp32")):
        recorded.run(tmp_path, "vgg", 16, "lp-admm", seed, percent=0.5, mask="z",
                     precision=precision, name=f"{precision}{seed}")  # fmt: skip
    rows = [r[1] for r in cells(show(capsys, tmp_path, "--only", "lp")) if r[1].startswith("ours")]
    assert [("n = 1" in row, "bf16" in row, "fp32" in row) for row in rows] == [
        (True, True, False),
        (False, False, True),
    ]


def test_runs_tested_on_other_pictures_are_never_averaged(tmp_path, capsys):
    own = {**VGG, "dataset": "folder", "source": ""}
    for seed in (1, 2):
        recorded.run(tmp_path, "vgg", 19, "proximal", seed, **own, zeros=3000)
    path = tmp_path / TRAINED
    before, last = path.read_text().rstrip().rsplit("\n", 1)
    path.write_text(f"{before}\n{last.replace('0000bbbb', '0000cccc')}\n")
    rows = [row for row in cells(show(capsys, tmp_path)) if row[0] == "Proximal NS"]
    assert [row[2] for row in rows] == ["1", "1"]


# What fine-tunings have otherwise, and what the table of other runs says of them; "" where it
# says nothing, for they are left out.
TUNINGS = {
    "as long": ({}, "—", "92.50"),
    "shorter": ({"epochs": 1}, "fine-tuned 1 epoch", "92.50"),
    "at another rate": ({"lr": 0.01}, "fine-tuned --lr 0.01", "92.50"),
    "in another precision": ({"precision": "fp32"}, "fine-tuned fp32", "92.50"),
    "on fewer pictures": ({"subset": 100}, "--subset 100", "—"),
    "tested on fewer": ({"test_subset": 100}, "--test-subset 100", "—"),
    "tested on others": ({"test_pictures": "0000cccc"}, "tested on 0000cccc", "—"),
    "with a penalty": ({"method": "proximal"}, "with a penalty, --method proximal", "—"),
}


@pytest.mark.parametrize(("other", "said", "shown"), TUNINGS.values(), ids=TUNINGS)
def test_a_fine_tuning_among_the_other_runs_says_what_it_has_otherwise(
    other, said, shown, tmp_path, capsys
):
    run = recorded.run(tmp_path, "vgg", 11, "proximal", 1, s=0.1, beta=80.0, epochs=5, percent=0.0,
                       source="", precision="bf16", tuned=92.5, tuned_more=other)  # fmt: skip
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    (row,) = [row for row in cells(out) if row[0] == "Proximal NS"]
    assert row[9] == shown
    if shown == "—":
        assert f"{run}_refine is left out: it did not train as {run} did" in err
        assert said in err and "fine-tuned" not in row[1]
    else:
        settings = "--s 0.1 --beta 80.0"
        assert not err and row[1] == (settings if said == "—" else f"{settings}, {said}")


def test_fine_tunings_that_went_differently_are_never_averaged(tmp_path, capsys):
    for seed, more in ((1, {"epochs": 1}), (2, {}), (3, {}), (4, None)):
        tuned = {} if more is None else {"tuned": 90 + seed, "tuned_more": more}
        recorded.run(tmp_path, "vgg", 11, "proximal", seed, epochs=5, percent=0.0, **tuned)
    rows = [row for row in cells(show(capsys, tmp_path)) if row[0] == "Proximal NS"]
    assert [(row[2], row[9]) for row in rows] == [
        ("2", "91.00 (n = 1)"),
        ("2", "92.50 ± 0.71"),
    ]


def test_the_reason_is_told_why_a_fine_tuning_is_left_out(tmp_path, capsys):
    told = {"percent": 0.0, "epochs": 5}
    run = recorded.run(tmp_path, "vgg", 11, "proximal", 1, **told, tuned=91,
                       tuned_more={"channels": 501})  # fmt: skip
    recorded.run(tmp_path, "vgg", 11, "proximal", 2, **told, tuned=92)
    recorded.run(tmp_path, "vgg", 11, "proximal", 2, **told, tuned=93,
                 tuned_more={"name": "again"})  # fmt: skip
    assert console.run(tables.main, ["--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert f"{run}_refine is left out: it began with no network that a pruning on record" in err
    assert "proximal_seed2_vgg_11_cifar10_refine is left out: a later one is shown" in err
    assert "93.00 (n = 1)" in out
