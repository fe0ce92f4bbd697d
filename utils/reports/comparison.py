"""Table and figure of the comparison of methods at equal FLOPs, from its raw results."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.console import InputError
from utils.files import records
from utils.files.records import Row
from utils.reports import style
from utils.reports.text import DASH, format_columns, mean_and_spread

KEY = ("network", "dataset", "settings", "method", "share", "seed")
TIMES = ("milliseconds_full", "milliseconds")
BASELINE = "Baseline"
ACCURACIES = {"accuracy_pruned": "pruned", "accuracy_finetuned": "fine-tuned"}
COLUMNS = {
    "flops_pruned_percent": ("FLOPs removed, %", 2),
    "accuracy_before": ("accuracy before, %", 2),
    **{column: (label, 2) for column, label in ACCURACIES.items()},
    "milliseconds": ("ms", 1),
    "milliseconds_full": ("ms of the full model", 1),
    "train_pflops": ("training, PFLOPs", 4),
    "finetune_pflops": ("fine-tuning", 4),
}
# Student's t for a two-sided test at 5 %, by degrees of freedom from 1 on.
T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
LEGEND = """\
Mean ± standard deviation over n seeds. A method is *different* from the best one of its share if a
paired t-test over their common seeds finds it lower (two-sided, 5 %, not corrected for several
comparisons). ms: median for 64 images in onnxruntime, one thread. PFLOPs are counted: 3 × FLOPs of
the model × images, epoch by epoch; a training that several rows share is counted in each.
"""


Methods = dict[str, list[Row]]  # rows of each seed by method, in the order of the file


def read(csv: Path) -> list[Row]:
    """Returns the raw results in ``csv``, none if there is no such file.

    Raises InputError: the file is damaged, or another program's.
    """
    return records.read(csv, KEY, COLUMNS)


def key(row: Row) -> tuple[str, ...]:
    """Returns what identifies a result."""
    return tuple(row[name] for name in KEY)


def complete(rows: Iterable[Row]) -> set[tuple[str, ...]]:
    """Returns the keys of the results that have all accuracies."""
    last = {True: "accuracy_before", False: "accuracy_finetuned"}
    return {key(row) for row in rows if row.get(last[row["method"] == BASELINE])}


def values(rows: Sequence[Row], column: str) -> dict[str, float]:
    """Returns the numbers in a column by seed."""
    return {row["seed"]: float(row[column]) for row in rows if row.get(column)}


def verdicts(methods: Methods, column: str) -> str:
    """Says which method is the best by its mean, and which ones differ from it."""
    found = {name: x for name, rows in methods.items() if (x := values(rows, column))}
    if len(found) < 2:
        return ""
    best = max(found, key=lambda name: statistics.fmean(found[name].values()))
    groups = defaultdict[str, list[str]](list)
    for name in found.keys() - {best}:
        seeds = found[best].keys() & found[name]
        differences = [found[best][seed] - found[name][seed] for seed in seeds]
        word, n = "undecided (fewer than two common seeds)", len(seeds)
        if n > 1:
            error = T[min(n - 1, len(T)) - 1] * statistics.stdev(differences) / n**0.5
            word = "different" if statistics.fmean(differences) > error else "not different"
        groups[word].append(name)
    texts = [f"{word}: {'; '.join(sorted(names))}" for word, names in sorted(groups.items())]
    return f"highest {ACCURACIES[column]}: {best}. From it {'. '.join(texts)}."


def tables(rows: Sequence[Row]) -> str:
    """Returns a Markdown table for each network, data set and settings, and what differs."""
    texts = []
    for title, shares in grouped(rows).items():
        lines, notes = [["share", "method", "n", *(name for name, _ in COLUMNS.values())]], ""
        for share, methods in shares.items():
            for name, own in methods.items():
                lines.append([f"{share} %" if share else DASH, name, str(len(own))])
                for column, (_, digits) in COLUMNS.items():
                    lines[-1].append(mean_and_spread([*values(own, column).values()], digits))
            verdict = (verdicts(methods, column) for column in ACCURACIES)
            notes += "".join(f"* {share} %, {text}\n" for text in verdict if text)
        texts.append(f"### {title}\n\n{format_columns(lines, markdown=True)}\n{notes}")
    return "\n".join([*texts, LEGEND])


def grouped(rows: Sequence[Row]) -> dict[str, dict[int, Methods]]:
    """Returns the rows by comparable settings, share and method, the methods in their order."""
    order = list(dict.fromkeys(row["method"] for row in rows))
    found: dict[str, dict[int, Methods]] = {}
    for row in sorted(rows, key=lambda r: (int(r["share"]), order.index(r["method"]))):
        title = ", ".join([f"{row['network']} on {row['dataset']}", row["settings"]])
        title += f", images {row['images']}" if row.get("images") else ""
        shares = found.setdefault(title, {}).setdefault(int(row["share"]), {})
        shares.setdefault(row["method"], []).append(row)
    return found


def draw(rows: Sequence[Row]) -> Any:
    """Returns a figure: accuracy after pruning and after fine-tuning, against FLOPs removed."""
    groups, legend = grouped(rows), dict[str, Any]()
    figure, axes = style.subplots(len(groups), 1 + 3.2 * len(groups))
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != BASELINE)
    markers = ("o-", "s--", "D-", "^--", "v-", "P--", "X-")
    panels = itertools.product(groups.items(), ACCURACIES.items())
    for axis, ((title, shares), (column, label)) in zip(axes.flat, panels, strict=True):
        for i, (name, look) in enumerate(zip(methods, itertools.cycle(markers), strict=False)):
            points = []
            for found in shares.values():
                own = found.get(name, [])
                x, y = (values(own, c).values() for c in ("flops_pruned_percent", column))
                if x and y:
                    spread = statistics.stdev(y) if len(y) > 1 else 0.0
                    points.append((statistics.fmean(x), statistics.fmean(y), spread))
            if points:
                options = {"fmt": look, "color": f"C{i}", "capsize": 2, "linewidth": 1}
                legend[name] = axis.errorbar(*zip(*points, strict=True), **options)
        if baseline := values(shares.get(0, {}).get(BASELINE, []), "accuracy_before"):
            level = statistics.fmean(baseline.values())
            legend[BASELINE] = axis.axhline(level, color="black", linestyle=":")
        axis.set_visible(bool(axis.containers))  # not before anything is fine-tuned
        axis.set_title(f"{title.partition(',')[0]}: {label}")
        axis.set_xlabel("FLOPs removed, %")
        axis.set_ylabel("test accuracy, %")
    figure.legend(legend.values(), legend, ncols=4, loc="outside upper center", fontsize=8)
    return figure


def write(csv: Path) -> None:
    """Prints the table of the raw results in ``csv``; writes it, and the figure, beside them.

    Raises InputError: there are no results.
    """
    rows, table, figure = read(csv), csv.with_suffix(".md"), csv.with_suffix(".png")
    if not rows:
        raise InputError(f"{csv} has no results yet")
    text = tables(rows)
    table.write_text(text, encoding="utf-8")
    print(text)
    if style.can_draw():
        draw(rows).savefig(figure)
        print(f"{table}, {figure}")
