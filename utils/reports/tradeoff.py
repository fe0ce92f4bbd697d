"""Accuracy against compression of all recorded runs and of the paper's models."""

import re
from collections.abc import Sequence
from itertools import cycle
from statistics import fmean
from typing import Any, NamedTuple

from utils.methods import METHODS
from utils.paper.published import TABLES, numbers
from utils.paper.settings import EPOCHS
from utils.reports import style
from utils.reports.results import Result, group_runs, quantities_of

# Accuracies that are this much lower than the best, in percent, are drawn at the lower edge.
RANGE = 15
TITLE = (
    "filled: ours; hollow: the paper's; a line ends at the fine-tuned accuracy;"
    " numbers: accuracies below the axis"
)
LABEL: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}


class Point(NamedTuple):
    """A model of the paper, or the mean of our runs. All numbers are percentages."""

    setting: tuple[str, ...]  # data set and training
    network: str
    method: str
    ours: bool
    pruned: tuple[float, float]  # FLOPs and parameters removed
    accuracy: float  # after pruning, or fine-tuned where nothing else is published
    tuned: float | None


def points_of_paper() -> list[Point]:
    """The rows of Tables 2 and 3, once each (one row is in both)."""
    points: dict[object, Point] = {}
    for table in list(TABLES.values())[1:]:
        setting = (table.columns[-1].dataset, f"{EPOCHS} epochs")
        for row in table.rows:
            values = {
                quantity: number
                for column, cell in zip(table.columns, row, strict=True)
                for quantity, number in zip(column.quantities, numbers(cell), strict=False)
            }
            accuracy = values["tuned"] if values["pruned"] is None else values["pruned"]
            assert accuracy is not None
            pruned, method = (values["flops"] or 0, values["parameters"] or 0), table.method(row)
            title = METHODS[method].title if method else re.sub(r"-0.*| \[.*", "", row[1])
            names = setting, row[0], title
            points.setdefault(names, Point(*names, False, pruned, accuracy, values.get("tuned")))
    return list(points.values())


def points_of(results: Sequence[Result]) -> list[Point]:
    """The baselines and the pruned models of ``results``, means over the seeds."""
    points = []
    for (key, variant), runs in group_runs(results).items():
        method, found = METHODS[variant.method], quantities_of(runs)
        mean = {quantity: fmean(values) for quantity, values in found.items() if values}
        pruned = mean.get("flops", 0.0), mean.get("parameters", 0.0)
        pruned = pruned if method.prunes() else (0.0, 0.0)
        accuracy = mean.get("pruned" if method.prunes() else "trained")
        if accuracy is not None:
            names = (key.dataset, *key.terms), key.network, method.title
            points.append(Point(*names, True, pruned, accuracy, mean.get("tuned")))
    return points


def draw(results: Sequence[Result]) -> Any:
    """A figure of accuracy against the FLOPs and parameters removed, in the paper's accounting.

    Runs on the same data with as many epochs share a row of panels, the paper's runs included.
    Rows with the paper's runs only are drawn if ``results`` is empty.
    """
    ours = points_of(results)
    points = points_of_paper() + ours
    settings = list(dict.fromkeys(point.setting for point in ours or points))
    points = [point for point in points if point.setting in settings]
    figure, axes = style.subplots(len(settings), 1 + 3.4 * len(settings), sharey="row")
    from matplotlib.lines import Line2D  # style.subplots reports a missing matplotlib

    markers = dict(zip(dict.fromkeys(p.network for p in points), cycle("osD^vPX*"), strict=False))
    colours = {method: f"C{i}" for i, method in enumerate(dict.fromkeys(p.method for p in points))}
    for row, setting in zip(axes, settings, strict=True):
        shown = [point for point in points if point.setting == setting]
        values = [a for p in shown for a in (p.accuracy, p.tuned) if a is not None]
        in_range = [value for value in values if value > max(values) - RANGE]
        span = max(2, max(in_range) - min(in_range))
        edge = min(in_range) - 0.15 * span
        for i, (axis, name) in enumerate(zip(row, ("FLOPs", "parameters"), strict=True)):
            for p in shown:
                x, y, colour = p.pruned[i], max(p.accuracy, edge), colours[p.method]
                if p.tuned is not None:
                    tuned = max(p.tuned, edge)
                    axis.plot([x, x], [y, tuned], color=colour, linewidth=1)
                    axis.plot(x, tuned, "_", color=colour)
                face, size = (colour, 5) if p.ours else ("none", 8)
                look = {"color": colour, "markerfacecolor": face, "markersize": size}
                axis.plot(x, y, markers[p.network], **look)
            below = sorted((p for p in shown if p.accuracy < edge), key=lambda p: p.pruned[i])
            for j, p in enumerate(below):
                text, offset = f"{p.network}: {p.accuracy:.1f} %", (0, -16 - 10 * (j % 3))
                axis.annotate(text, (p.pruned[i], edge), offset, **LABEL)
            axis.set_xlabel(f"{name} removed, %")
            axis.set_xlim(-4, 104)
        row[0].set_title(", ".join(setting))
        row[0].set_ylabel("test accuracy, %")
        row[0].set_ylim(edge - 0.4 * span, max(in_range) + 0.1 * span)
    keys = [Line2D([], [], color=c, linewidth=5, label=method) for method, c in colours.items()]
    for network, marker in markers.items():
        keys.append(Line2D([], [], color="black", linestyle="", marker=marker, label=network))
    figure.legend(handles=keys, ncols=len(colours), loc="outside upper center", title=TITLE)
    return figure
