"""The paper's tables, the published numbers beside those of the runs on record.

    python -m utils.reports.tables --save logs

prints the tables that have runs as Markdown, followed by a table of all other runs.
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import csv
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils import console
from utils.files.locks import check_writable
from utils.files.paths import DEFAULT_FOLDER
from utils.methods import METHODS
from utils.paper import admm, published
from utils.paper.published import NETWORKS, TABLES, numbers
from utils.reports import admm_tables, results
from utils.reports.results import QUANTITIES, Groups, PaperKey, Result, quantities_of
from utils.reports.text import DASH, Table, format_columns, mean_and_spread

LEGEND = """\
"Ours" are runs with the paper's settings (160 epochs): mean ± standard deviation over n seeds.
Compression is in the paper's accounting. A difference is "within" if it is at most two of our
standard deviations, else "outside"; a single run has no standard deviation. Seconds per epoch
depend on the machine and are not compared, nor is original NS's share of channels, which is
chosen. Accuracies before and after pruning are in float32, those of baselines and after
fine-tuning in the precision of the training. Runs of different precisions have separate lines.
Runs on image files that are not the public data set's are among the other runs.
"""
# Names of the compared quantities.
COMPARED = {"zeros": "zeros", "channels": "channels", "parameters": "param.", "flops": "FLOPs"}
COMPARED |= {"trained": "accuracy", "pruned": "post pruned", "tuned": "fine tuned"}
SAS, LP, RUNS = "compressed", "lp", "runs"  # names of the tables that are not the paper's
RUNS_COLUMNS = {
    "Time per Epoch (s) Pre-Pruned/Fine Tuned": ("train_seconds", "tune_seconds"),
    "% Channels Pruned": ("channels",),
    "% Param. Pruned": ("parameters",),
    "% FLOPs Pruned": ("flops",),
    "Test Accuracy (%) Before Pruning": ("trained",),
    "Post Pruned": ("pruned",),
    "Fine Tuned": ("tuned",),
}
ENVIRONMENT = ("device", "threads", "torch", "commit")  # columns of the records


def _keys(table: published.Table, row: Sequence[str]) -> list[PaperKey]:
    """The runs that each column of a row is about."""
    method = table.method(row) or ""
    return [(*NETWORKS[row[0]], column.dataset, method) for column in table.columns]


# The runs of the paper's tables, and the percentage of channels at which they are pruned.
PAPER_SHARES = {
    key: table.share(row)
    for table in TABLES.values()
    for row in table.rows
    for key in _keys(table, row)
    if all(key)
}


def cell_text(quantities: Mapping[str, Sequence[float]], n: int) -> str:
    """Mean ± standard deviation of each, with the number of values if it is not ``n``."""
    texts = []
    for quantity, values in quantities.items():
        mean = mean_and_spread(values, 1 if quantity == "zeros" else 2)
        texts.append(mean + f" (n = {len(values)})" * (0 < len(values) < n))
    return " / ".join(texts) if any(quantities.values()) else DASH


def difference_text(quantity: str, values: Sequence[float], published: float | None) -> str:
    """Ours − the paper's, and whether it is within two standard deviations; '' if unknown."""
    if not values or published is None or quantity not in COMPARED:
        return ""
    difference, within = statistics.fmean(values) - published, ""
    if len(values) > 1:
        small = abs(difference) <= 2 * statistics.stdev(values)
        within = " within" if small else " outside"
    return f"{COMPARED[quantity]} {difference:+.{1 if quantity == 'zeros' else 2}f}{within}"


def paper_table(table: published.Table, ours: Sequence[Result]) -> Table:
    """A table of the paper, with a row of our runs below each of its rows.

    ``ours`` are the runs that are :func:`in_paper_tables`.
    """
    shown = list[Result]()
    headings = [column.heading for column in table.columns]
    lines = [[*headings[:2], "", *headings[2:], "Ours − paper's"]]
    for row in table.rows:
        lines.append([*row[:2], "paper", *row[2:], ""])
        if not table.method(row):
            continue
        keys = _keys(table, row)
        precisions = {run.config.precision for run in ours if run.paper_key in keys}
        for precision in sorted(precisions) or [""]:
            alike = [run for run in ours if run.config.precision == precision]
            runs = [[run for run in alike if run.paper_key == key] for key in keys]
            who = f"ours, n = {max(map(len, runs))}, {precision}" if precision else "ours"
            lines.append(["", "", who, *_cells(table, row, runs)])
            shown += [run for column in runs for run in column]
    return Table(table.title, lines, [table.note, environment(shown)], bool(shown))


def _cells(
    table: published.Table, row: Sequence[str], runs: Sequence[Sequence[Result]]
) -> list[str]:
    """Our numbers below those of a row, and the differences; ``runs`` are those of each column."""
    method, n = METHODS[table.method(row) or ""], max(map(len, runs))
    # Original network slimming is pruned at a chosen share: ours must have the same.
    share, cells, differences = table.share(row), [], []
    for column, printed, own in list(zip(table.columns, row, runs, strict=True))[2:]:
        found, cell = quantities_of(own, share), {}
        for quantity, number in zip(column.quantities, [*numbers(printed), None], strict=False):
            if not method.prunes() and quantity == "pruned":  # the paper has the accuracy there
                quantity = "trained"
            shown = QUANTITIES[quantity][0] == "train" or method.prunes()
            cell[quantity] = found[quantity] if shown else []
            text = difference_text(quantity, cell[quantity], number)
            if quantity == "zeros":
                text = text.replace("zeros", f"zeros on {column.dataset}")
            if quantity != "channels" or not method.prune_flags:  # else the share is chosen
                differences.append(text)
        cells.append(cell_text(cell, n))
    return [*cells, ", ".join(filter(None, differences)) or DASH]


def in_paper_tables(run: Result) -> bool:
    """Whether a run is in the paper's tables, which leave out runs pruned at other shares."""
    if run.paper_key not in PAPER_SHARES or not run.has_paper_settings:
        return False
    return run.pruning() is None or run.pruning(PAPER_SHARES[run.paper_key]) is not None


def runs_table(groups: Groups) -> Table:
    """All runs that are not in the paper's tables."""
    lines, shown = [["Runs", "Method", "Settings", "n", *RUNS_COLUMNS]], list[Result]()
    for (key, variant), all_runs in groups.items():
        title, method = ", ".join([key.task, *key.terms]), METHODS[variant.method].title
        for tuning, runs in by_finetuning(all_runs).items():
            settings = variant.settings + f", fine-tuned {tuning}" * bool(tuning)
            found = quantities_of(runs, exact=False)
            means = [
                cell_text({quantity: found[quantity] for quantity in quantities}, len(runs))
                for quantities in RUNS_COLUMNS.values()
            ]
            lines.append([title, method, settings, str(len(runs)), *means])
            shown += runs
    title = "Other runs, in the shape of Table 2"
    return Table(title, lines, [environment(shown)], bool(shown))


def by_finetuning(runs: Sequence[Result]) -> dict[str, list[Result]]:
    """The ``runs`` that the paper's tables lack, by the different settings of their fine-tuning.

    Runs without a fine-tuning are with the first of the others.
    """
    groups, rest = dict[str, list[Result]](), list[Result]()
    for run in runs:
        if not in_paper_tables(run):
            tuning = run.finetuning(run.pruning(), exact=False)
            text = ", ".join(run.differences(tuning)) if tuning else ""
            (groups.setdefault(text, []) if tuning else rest).append(run)
    if rest:
        groups.setdefault(next(iter(groups), ""), []).extend(rest)
    return groups


def environment(runs: Iterable[Result]) -> str:
    """Seeds and environments of trainings and fine-tunings as recorded; '' without runs."""
    rows = [row for run in runs for row in (run.row, *(t.row for t in run.finetunings))]
    if not rows:
        return ""
    seeds = sorted({int(row["seed"]) for row in rows})
    parts = [f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"]
    for column in ENVIRONMENT:
        if values := dict.fromkeys(filter(None, (row.get(column) for row in rows))):
            parts.append(f"{column} {', '.join(values)}")
    return "; ".join(parts) + "."


def omissions(result: Result) -> list[str]:
    """Prunings and fine-tunings of a run that the tables leave out, with the reasons."""
    run, in_paper = result.row["run"], in_paper_tables(result)
    share = PAPER_SHARES.get(result.paper_key) if result.has_paper_settings else None
    shown = results.pruning_flags(result.pruning(share) or result.pruning() or {})
    notes = [
        f"{run} pruned with {flags} is left out: tables show one pruning of a run"
        for flags in dict.fromkeys(map(results.pruning_flags, result.prunings))
        if flags != shown
    ]
    tuned = [result.finetuning(pruning, exact=in_paper) for pruning in result.prunings]
    for finetuning in result.finetunings:
        if finetuning in tuned or finetuning.config.prune_ratio is not None:
            continue
        reason = f"it did not start from a recorded pruning of {run}"
        if any(finetuning in result.finetunings_of(pruning) for pruning in result.prunings):
            different = ", ".join(result.differences(finetuning))
            reason = f"its settings differ from those of {run}: {different}"
            reason = reason if different else "a later one of the same pruning is shown"
        notes.append(f"{finetuning.row['run']} is left out: {reason}")
    return notes


def parser() -> argparse.ArgumentParser:
    text = "The paper's tables, the published numbers beside those of the runs on record."
    p = console.Parser(prog="python -m utils.reports.tables", description=text)
    add, names = p.add_argument, [*TABLES, SAS, LP, RUNS]
    folder = "folder of the records (default logs)"
    add("--save", type=Path, default=Path(DEFAULT_FOLDER), metavar="DIR", help=folder)
    text = f"tables to print: {', '.join(names)} (default: all that have runs)"
    add("--only", nargs="+", choices=names, metavar="TABLE", help=text)
    add("--csv", type=Path, metavar="DIR", help="folder for the tables as <table>.csv")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    found, finetunings = results.read_records(args.save)
    groups = results.group_runs(found)
    shown = [run for runs in groups.values() for run in runs]
    for result in found:
        if result not in shown:
            run = result.row["run"]
            console.note(f"note: {run} is left out: a later run has the same settings and seed")
        elif result.config.method != admm.LP:  # whose table has all prunings
            for text in omissions(result):
                console.note(f"note: {text}")
    ours = list(filter(in_paper_tables, shown))
    tables = {name: paper_table(table, ours) for name, table in TABLES.items()}
    tables[SAS] = admm_tables.sas_table(found, finetunings)
    tables[LP], tables[RUNS] = admm_tables.lp_table(found), runs_table(groups)
    only = args.only or [name for name, table in tables.items() if table.has_runs]
    if not only:
        console.note(f"note: {args.save} has no records of runs; --only prints the published rows")
    if args.csv is not None:
        check_writable(args.csv)
        args.csv.mkdir(parents=True, exist_ok=True)
    if set(only) & TABLES.keys():
        print(LEGEND)
    for name in only:
        title, lines, notes, _ = tables[name]
        print(f"## {title}\n\n{format_columns(lines, markdown=True)}")
        print("".join(f"{note}\n\n" for note in notes if note))
        if args.csv is not None:
            with (args.csv / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(lines)


if __name__ == "__main__":
    sys.exit(console.run(main))
