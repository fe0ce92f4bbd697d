"""The paper's tables from the record files, ours beside the published numbers.

    python -m utils.reports.tables --save logs

prints those that have runs as Markdown, and after them, in the shape of Table 2, all runs that
stand in none of them. Nothing but the record files is read.
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from utils import arguments, console
from utils.atomic import check_writable
from utils.files.paths import DEFAULT_FOLDER, REFINED
from utils.files.records import Row
from utils.methods import METHODS
from utils.paper import lp
from utils.paper.published import TABLES, Column, Table, numbers
from utils.reports import lp_table, results, sparsity_table
from utils.reports.results import (
    QUANTITIES,
    ExperimentKey,
    Groups,
    MethodVariant,
    Result,
    format_options,
    pruning_flags,
)

DASH = "—"
LEGEND = """\
"Ours" are runs with the paper's settings (160 epochs): mean ± standard deviation over n seeds.
Compression is counted as the paper's program counts it. A difference is "within" the spread if it
is no more than two of our standard deviations, else "outside"; a single run has no spread. Seconds
per epoch depend on the machine and are not compared, nor is original NS's share of channels, which
is chosen. Accuracies of pruned networks, before and after, were measured in float32, those of
baselines and after fine-tuning in the precision of the training; where runs are of several
precisions, each has a line of its own. A run on picture files, where the record says so, is no run
on the data set they were made of: it stands among the others.
"""
# How the differences are called; what is not here is not compared.
COMPARED = {"zeros": "zeros", "channels": "channels", "parameters": "param.", "flops": "FLOPs"}
COMPARED |= {"trained": "accuracy", "pruned": "post pruned", "tuned": "fine tuned"}
COMPRESSED = "compressed"  # the table of networks whose weights were cut
LP = "lp"  # of Lp slimming's authors
RUNS = "runs"  # the table of what the paper's tables have not
RUNS_COLUMNS = {
    "Time per Epoch (s) Pre-Pruned/Fine Tuned": ("train_seconds", "tune_seconds"),
    "% Channels Pruned": ("channels",),
    "% Param. Pruned": ("parameters",),
    "% FLOPs Pruned": ("flops",),
    "Test Accuracy (%) Before Pruning": ("trained",),
    "Post Pruned": ("pruned",),
    "Fine Tuned": ("tuned",),
}
# Of the machine and the program, where the record has it.
CIRCUMSTANCES = ("precision", "device", "threads", "torch", "commit")
CSV_COLUMNS = (
    "table,network,dataset,method,settings,quantity,published,ours,standard_deviation,seeds,"
    "difference,within_spread"
).split(",")


@dataclass(frozen=True)
class Cell:
    """A quantity of some ``runs``, and its published value if there is one."""

    quantity: str
    dataset: str
    runs: Sequence[Result]
    published: float | None = None
    share: float | None = None  # of the channels, in percent: which pruning is meant
    exactly: bool = True  # whether only a fine-tuning counts that went as the training did

    @cached_property
    def values(self) -> list[float]:
        """Of all runs that came so far."""
        found = (run.value(self.quantity, self.share, self.exactly) for run in self.runs)
        return [value for value in found if value is not None]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds, None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours − the paper's, None where that means nothing."""
        if self.published is None or self.mean is None or self.quantity not in COMPARED:
            return None
        if self.quantity == "channels" and METHODS[self.runs[0].config.method].prune_flags:
            return None  # chosen, not found
        return self.mean - self.published

    @property
    def within(self) -> str:
        """Whether the difference is within two standard deviations of ours, '' if unknown."""
        if self.difference is None or self.spread is None:
            return ""
        return "within" if abs(self.difference) <= 2 * self.spread else "outside"

    def format(self, value: float | None, sign: str = "") -> str:
        digits = 1 if self.quantity == "zeros" else 2
        return "" if value is None else f"{value:{sign}.{digits}f}"

    def text(self, n: int) -> str:
        """Mean and spread, and over how many runs where these are not the line's ``n``."""
        if not self.values:
            return DASH
        spread = f" ± {self.format(self.spread)}" if self.spread is not None else ""
        count = f" (n = {len(self.values)})" if len(self.values) != n else ""
        return self.format(self.mean) + spread + count

    def verdict(self) -> str:
        """How much ours differs, and whether within the spread, '' where nothing is compared."""
        if self.difference is None:
            return ""
        where = f" on {self.dataset}" if self.quantity == "zeros" else ""
        text = f"{COMPARED[self.quantity]}{where} {self.format(self.difference, '+')}"
        return f"{text} {self.within}".rstrip()

    def csv(self) -> dict[str, object]:
        """Its part of a line in a CSV file."""
        return {
            "dataset": self.dataset,
            "quantity": self.quantity,
            "published": self.format(self.published),
            "ours": self.format(self.mean),
            "standard_deviation": self.format(self.spread),
            "seeds": len(self.values),
            "difference": self.format(self.difference),
            "within_spread": {"within": "yes", "outside": "no"}.get(self.within, ""),
        }


def compare(
    table: Table, row: Sequence[str], groups: Groups, precision: str = ""
) -> list[list[Cell]]:
    """Every number in a row of the paper's beside ours of a ``precision``, column by column."""
    # Original network slimming is pruned at a share that is chosen: the same one is meant.
    share = table.share(row)
    columns = []
    for column, printed in zip(table.columns, row, strict=True):
        key = key_of(table, row, column)
        runs = groups.get(key[0], {}).get(key[1]._replace(precision=precision), []) if key else []
        # The baseline is not pruned, and the paper writes its accuracy in that place.
        whole = key is not None and not METHODS[key[1].method].prunes()
        published = zip(column.quantities, [*numbers(printed), None], strict=False)
        cells = []
        for q, number in published:
            q = "trained" if whole and q == "pruned" else q
            own = runs if not whole or QUANTITIES[q][0] == "train" else []
            cells.append(Cell(q, column.dataset, own, number, share))
        columns.append(cells)
    return columns


def key_of(
    table: Table, row: Sequence[str], column: Column
) -> tuple[ExperimentKey, MethodVariant] | None:
    """Which runs of ours a cell of the paper's is about."""
    settings = results.paper_config(table, row, column.dataset)
    return None if settings is None else results.experiment_of(settings)


def paper_table(name: str, groups: Groups) -> tuple[str, list[dict[str, object]]]:
    """A table of the paper's as Markdown, and as lines of a CSV file."""
    table = TABLES[name]
    headings = [column.heading for column in table.columns]
    lines = [[*headings[:2], "", *headings[2:], "Ours − paper's"]]
    rows, made = [], list[Row]()
    variants = (variant for known in groups.values() for variant in known)
    precisions = sorted({variant.precision for variant in variants}) or [""]
    for printed in table.rows:
        lines.append([*printed[:2], "paper", *printed[2:], ""])
        found = [(p, compare(table, printed, groups, p)) for p in precisions]
        # Without any run there is a line all the same.
        ours_by = [(p, c) for p, c in found if any(cell.runs for cells in c for cell in cells)]
        for precision, columns in ours_by or [("", found[0][1])]:
            cells = [cell for column in columns for cell in column]
            n = max(len(cell.runs) for cell in cells)
            made += [row for cell in cells for row in rows_of(cell.runs, cell.share)]
            if table.method(printed):
                ours = [joined(column, n) for column in columns[2:]]
                verdicts = ", ".join(filter(None, (cell.verdict() for cell in cells)))
                who = ", ".join(filter(None, ("ours", f"n = {n}" if n else "", precision)))
                lines.append(["", "", who, *ours, verdicts or DASH])
            settings = ", ".join(filter(None, ("the paper's", precision)))
            what = {"table": name, "network": printed[0], "settings": settings}
            what["method"] = table.method_as_printed(printed)
            rows += [what | cell.csv() for cell in cells]
    notes = [*([table.note] if table.note else []), *([circumstances(made)] if made else [])]
    return "\n".join([f"## {table.title}\n\n{markdown(lines)}", *(f"{n}\n" for n in notes)]), rows


def joined(cells: Sequence[Cell], n: int) -> str:
    return " / ".join(cell.text(n) for cell in cells) if any(c.values for c in cells) else DASH


def shares_of_paper() -> dict[object, float | None]:
    """At what share the runs of the paper's tables are pruned, in percent."""
    return {
        key_of(table, row, column): table.share(row)
        for table in TABLES.values()
        for row in table.rows
        for column in table.columns
    }


def unshown(result: Result, share: float | None) -> list[str]:
    """How else it was pruned than a table shows; ``share`` is that of a table of the paper's."""
    shown = result.pruning(share) or result.pruning()
    ways = dict.fromkeys(" ".join(pruning_flags(row)) for row in result.prunings)
    return [way for way in ways if shown is None or way != " ".join(pruning_flags(shown))]


def is_papers(run: Result, shares: Mapping[object, float | None]) -> bool:
    """Whether it stands in the paper's tables, which miss those that are pruned at other shares."""
    share = shares.get(run.experiment)
    return run.experiment in shares and not (run.pruning() and not run.pruning(share))


def runs_table(groups: Groups) -> tuple[str, list[dict[str, object]]]:
    """All runs that the paper's tables have not, as Markdown and as lines of a CSV file."""
    shares = shares_of_paper()
    text, rows = "## Other runs, in the shape of Table 2\n", []
    for group, variants in groups.items():
        listed = list[Result]()
        lines = [["Method", "Settings", "n", *RUNS_COLUMNS]]
        for variant, runs in variants.items():
            runs = [run for run in runs if not is_papers(run, shares)]
            if not runs:
                continue
            listed += runs
            method, options = METHODS[variant.method].title, format_options(variant.options)
            options += [variant.precision] if variant.precision else []
            for tuned, alike in by_tuning(runs).items():
                n, said = len(alike), [" ".join(options), f"fine-tuned {tuned}" * bool(tuned)]
                columns = [
                    [Cell(q, group.dataset, alike, exactly=False) for q in qs]
                    for qs in RUNS_COLUMNS.values()
                ]
                ours = [joined(column, n) for column in columns]
                lines.append([method, ", ".join(filter(None, said)) or DASH, str(n), *ours])
                what = {"table": RUNS, "network": group.network, "method": method}
                what["settings"] = ", ".join(filter(None, [*options, said[1], *group.terms]))
                rows += [what | cell.csv() for column in columns for cell in column]
        if listed:
            title = ", ".join([f"{group.network} on {group.dataset}", *group.terms])
            made = circumstances(rows_of(listed, exactly=False))
            text += f"\n### {title}\n\n{markdown(lines)}\n{made}\n"
    return text, rows


def by_tuning(runs: Sequence[Result]) -> dict[str, list[Result]]:
    """The ``runs`` by what their fine-tunings have otherwise than they, "" where that is nothing.

    What was not fine-tuned stands with the first of them.
    """
    tunings = [run.tuning(run.pruning(), exactly=False) for run in runs]
    said = [", ".join(r.otherwise(t)) if t else None for r, t in zip(runs, tunings, strict=True)]
    first = next((text for text in said if text is not None), "")
    found: dict[str, list[Result]] = {}
    for run, text in zip(runs, said, strict=True):
        found.setdefault(first if text is None else text, []).append(run)
    return found


def rows_of(runs: Sequence[Result], share: float | None = None, exactly: bool = True) -> list[Row]:
    """Their rows in the records of trainings and, where one is shown, of fine-tunings."""
    tuned = (run.tuned(run.pruning(share), exactly) for run in runs)
    return [*(run.row for run in runs), *filter(None, tuned)]


def left_out(result: Result, exactly: bool) -> list[str]:
    """Which fine-tunings of a run no table has, and why: see :meth:`Result.tuning`."""
    shown = [result.tuning(pruning, exactly) for pruning in result.prunings]
    found, run = [], result.row["run"]
    for refine in result.finetunings:
        if refine in shown or refine.config.prune_ratio is not None:
            continue
        why = f"it began with no network that a pruning on record left of {run}"
        if any(refine in result.refined(pruning) for pruning in result.prunings):
            other = ", ".join(result.otherwise(refine))
            why = f"it did not train as {run} did but for the penalty: {other}"
            why = why if other else "a later one is shown, which trained the same network alike"
        found.append(f"{refine.row['run']} is left out: {why}")
    return found


def circumstances(rows: Sequence[Row]) -> str:
    """Seeds, and on what trainings were made as far as their ``rows`` say."""
    seeds = sorted({int(row["seed"]) for row in rows})
    said = [f"Seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"]
    for column in CIRCUMSTANCES:
        if told := dict.fromkeys(filter(None, (row.get(column) for row in rows))):
            said.append(f"{column} {', '.join(told)}")
    return "; ".join(said) + "."


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first of ``lines`` being its head, aligned to be read as it is."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rows = [lines[0], ["-" * width for width in widths], *lines[1:]]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in padded)


def with_runs(folder: Path, found: Sequence[Result], groups: Groups) -> list[str]:
    """The tables in which there is a run of ours."""
    papers = [name for name in TABLES if any(row["seeds"] for row in paper_table(name, groups)[1])]
    tuned = results.trainings(folder / REFINED)
    others = {
        COMPRESSED: any(tuning.config.prune_ratio is not None for tuning in tuned),
        LP: any(run.config.method == lp.METHOD and run.prunings for run in found),
        RUNS: bool(runs_table(groups)[1]),
    }
    return [*papers, *(name for name, some in others.items() if some)]


def parser() -> argparse.ArgumentParser:
    p = arguments.Parser(
        prog="python -m utils.reports.tables",
        description="The paper's tables from the record files, ours beside the published numbers.",
    )
    p.add_argument(
        "--save", default=DEFAULT_FOLDER, metavar="DIR", help="where the records are (logs)"
    )
    names = [*TABLES, COMPRESSED, LP, RUNS]
    whole = f"{', '.join(names)} (default: all that have runs)"
    p.add_argument("--only", nargs="+", choices=names, metavar="TABLE", help=whole)
    p.add_argument("--csv", metavar="DIR", help="write DIR/<table>.csv, a line for each number")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    found = results.load(Path(args.save))
    groups = results.grouped(found)
    shown = [run for variants in groups.values() for runs in variants.values() for run in runs]
    shares = shares_of_paper()
    for result in found:
        run = result.row["run"]
        if result not in shown:
            console.note(f"note: {run} is left out: a later run has its settings and its seed")
        if result not in shown or result.config.method == lp.METHOD:
            continue  # the table of the latter has all prunings, and how each was fine-tuned
        for pruned in unshown(result, shares.get(result.experiment)):
            console.note(f"note: {run} pruned with {pruned} is left out: tables show one pruning")
        for said in left_out(result, exactly=is_papers(result, shares)):
            console.note(f"note: {said}")
    if args.csv is not None:
        check_writable(Path(args.csv))
        Path(args.csv).mkdir(parents=True, exist_ok=True)
    only = args.only or with_runs(Path(args.save), found, groups)
    if not only:
        console.note(f"note: no run is on record in {args.save}; --only prints the paper's tables")
    if set(only) & TABLES.keys():
        print(LEGEND)
    for name in only:
        if name in (COMPRESSED, LP):
            cut = name == COMPRESSED
            title, lines = (
                sparsity_table.table(Path(args.save), found) if cut else lp_table.table(found)
            )
            print(f"{title}\n{markdown(lines)}")
            if args.csv is not None:
                path = Path(args.csv) / f"{name}.csv"
                with path.open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows(lines)
            continue
        text, rows = runs_table(groups) if name == RUNS else paper_table(name, groups)
        print(text)
        if args.csv is not None:
            with (Path(args.csv) / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, CSV_COLUMNS)
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(console.run(main))
