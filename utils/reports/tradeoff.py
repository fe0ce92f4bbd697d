"""Accuracy against compression: the runs on record, and the paper's."""

import re
from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

from utils.methods import METHODS
from utils.paper.published import TABLES
from utils.paper.settings import EPOCHS
from utils.reports import style
from utils.reports.results import QUANTITIES, Result, grouped
from utils.reports.tables import Cell, compare

# Accuracies so many percent below the best are not drawn to scale, but at the lower edge.
REACH = 15
TITLE = (
    "filled: ours; hollow: the paper's; a line leads to the fine-tuned accuracy;"
    " numbers: accuracies below the scale"
)
LABEL: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}


class Point(NamedTuple):
    """A pruned network: the paper's, or one of ours. Percent throughout."""

    where: tuple[str, ...]  # the data, and how it trained
    network: str
    method: str
    pruned: tuple[float, float]  # of the FLOPs and of the parameters
    accuracy: float  # fine-tuned where the paper gives no other
    tuned: float | None
    ours: bool


def points_of_paper() -> list[Point]:
    """The rows of Tables 2 and 3; DenseNet-40 by proximal NS is in both, and taken from 2a."""
    found: dict[object, Point] = {}
    for table in list(TABLES.values())[1:]:
        for row in table.rows:
            cells = [cell for column in compare(table, row, {}) for cell in column]
            known = {cell.quantity: cell.published for cell in cells}
            accuracies = (known.get(quantity) for quantity in ("trained", "pruned", "tuned"))
            accuracy = next(a for a in accuracies if a is not None)
            pruned = known["flops"] or 0, known["parameters"] or 0
            ours, where = table.method(row), (cells[-1].dataset, f"{EPOCHS} epochs")
            method = METHODS[ours].title if ours else re.sub(r"-0.*| \[.*", "", row[1])
            point = Point(where, row[0], method, pruned, accuracy, known.get("tuned"), False)
            found.setdefault(point[:3], point)
    return list(found.values())


def points_of(found: Sequence[Result]) -> list[Point]:
    """Every baseline and every pruned network among ``found``: means over the seeds."""
    points = []
    for group, variants in grouped(found).items():
        for variant, runs in variants.items():
            method = METHODS[variant.method]
            mean = {q: Cell(q, group.dataset, runs).mean for q in QUANTITIES}
            accuracy = mean["pruned" if method.prunes() else "trained"]
            if accuracy is not None:
                pruned = (
                    (mean["flops"] or 0, mean["parameters"] or 0) if method.prunes() else (0, 0)
                )
                what = (group.dataset, *group.terms), group.network, method.title
                points.append(Point(*what, pruned, accuracy, mean["tuned"], True))
    return points


def draw(found: Sequence[Result]) -> Any:
    """Accuracy against the share of FLOPs and of parameters pruned, in the paper's accounting.

    What trained on the same data as long shares a row, with the paper's where that trained so.
    Rows that only the paper has are drawn where there is no other.
    """
    own = points_of(found)
    points = points_of_paper() + own
    rows = list(dict.fromkeys(point.where for point in own or points))
    points = [point for point in points if point.where in rows]
    figure, axes = style.subplots(len(rows), 1 + 3.4 * len(rows), sharey="row")
    from matplotlib.lines import Line2D  # here, for :func:`style.subplots` says if it is missing

    markers = dict(zip(dict.fromkeys(p.network for p in points), cycle("osD^vPX*"), strict=False))
    colours = {method: f"C{i}" for i, method in enumerate(dict.fromkeys(p.method for p in points))}
    for line, where in zip(axes, rows, strict=True):
        here = [point for point in points if point.where == where]
        values = [a for p in here for a in (p.accuracy, p.tuned) if a is not None]
        good = [value for value in values if value > max(values) - REACH]
        span = max(2, max(good) - min(good))
        edge = min(good) - 0.15 * span
        for kind, what in enumerate(("FLOPs", "parameters")):
            axis = line[kind]
            for p in here:
                x, y, colour = p.pruned[kind], max(p.accuracy, edge), colours[p.method]
                if p.tuned is not None:
                    tuned = max(p.tuned, edge)
                    axis.plot([x, x], [y, tuned], color=colour, linewidth=1)
                    axis.plot(x, tuned, "_", color=colour)
                face, size = (colour, 5) if p.ours else ("none", 8)
                look = {"color": colour, "markerfacecolor": face, "markersize": size}
                axis.plot(x, y, markers[p.network], **look)
            lost = [p for p in here if p.accuracy < edge]
            for i, p in enumerate(sorted(lost, key=lambda p: p.pruned[kind])):
                text, place = f"{p.network}: {p.accuracy:.1f} %", (0, -16 - 10 * (i % 3))
                axis.annotate(text, (p.pruned[kind], edge), place, **LABEL)
            axis.set_xlabel(f"{what} pruned, %")
            axis.set_xlim(-4, 104)
        line[0].set_title(", ".join(where))
        line[0].set_ylabel("test accuracy, %")
        line[0].set_ylim(edge - 0.4 * span, max(good) + 0.1 * span)
    keys = [Line2D([], [], color=c, linewidth=5, label=method) for method, c in colours.items()]
    for network, marker in markers.items():
        keys.append(Line2D([], [], color="black", linestyle="", marker=marker, label=network))
    figure.legend(handles=keys, ncols=len(colours), loc="outside upper center", title=TITLE)
    return figure
