"""Accuracy against compression: the runs on record, and the paper's."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from utils.paper.published import TABLES, numbers
from utils.reports import results, style
from utils.reports.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY

MARKERS = {
    "Baseline": ("s", BLACK),
    "Original NS": ("^", RED),
    "Proximal NS": ("o", BLUE),
    "VCP": ("D", GREEN),
    "L1": ("v", ORANGE),
    "GAL": ("P", SKY),
    "Hrank": ("X", PURPLE),
}
OTHER = ("*", PURPLE)  # of a method that is not the paper's
# Accuracies so many percent below the best are not drawn to scale, but at the lower edge.
REACH = 15
# Places of a label beside its point, in the order of preference.
BESIDE = -3
PLACES = [
    (dx, dy, side)
    for dy in (BESIDE, 5, -11, 13, -19, 21, 29)
    for dx, side in ((7, "left"), (-7, "right"), (0, "center"))
    if (dx, abs(dy)) != (0, 3)
]


class Point(NamedTuple):
    """A pruned network: the paper's, or one of ours. Percent throughout, None where not known."""

    where: tuple[str, int, tuple[str, ...]]  # data set, epochs and further flags
    network: str
    method: str
    pruned: tuple[float, float]  # of the FLOPs and of the parameters
    accuracy: float | None
    tuned: float | None
    ours: bool


def points_of_paper() -> list[Point]:
    """The rows of Tables 2 and 3; DenseNet-40 by proximal NS is in both, and taken from 2a."""
    found: dict[tuple, Point] = {}
    for table in list(TABLES.values())[1:]:
        dataset = table.columns[-1].dataset
        for row in table.rows:
            known = {
                quantity: number
                for column, cell in zip(table.columns, row, strict=True)
                for quantity, number in zip(column.quantities, numbers(cell), strict=False)
            }
            pruned = (known["flops"] or 0, known["parameters"] or 0)
            accuracies = known["pruned"], known.get("tuned")
            method = re.sub(r"-0.*| \[.*| \(.*", "", row[1])
            point = Point((dataset, 160, ()), row[0], method, pruned, *accuracies, False)
            found.setdefault((dataset, row[0], method), point)
    return list(found.values())


def points_of(found: Sequence[results.Result]) -> list[Point]:
    """Every baseline and every pruned network among ``found``: means over the seeds."""
    points = []
    for group, settings in results.grouped(found).items():
        *_, dataset, epochs, flags = group
        for (method, *_), runs in settings.items():

            def mean(quantity: str, runs: Sequence[results.Result] = runs) -> float | None:
                values = [v for run in runs if (v := run.value(quantity)) is not None]
                return statistics.fmean(values) if values else None

            whole = method == "baseline"
            pruned = (0.0, 0.0) if whole else (mean("flops"), mean("parameters"))
            accuracy = mean("trained" if whole else "pruned")
            if accuracy is not None:
                name, where = results.METHODS.get(method, method), (dataset, epochs, flags)
                network, tuned = runs[0].network, mean("tuned")
                points.append(Point(where, network, name, pruned, accuracy, tuned, True))
    return points


def draw(found: Sequence[results.Result]) -> Any:
    """Accuracy against the share of FLOPs and of parameters pruned, in the paper's accounting.

    What trained on the same data as long shares a row, with all the paper's in two of them.
    """
    points = points_of_paper() + points_of(found)
    rows = list(dict.fromkeys(point.where for point in points))
    figure, axes = style.pyplot().subplots(
        len(rows), 2, figsize=(style.WIDTH, 1 + 3.4 * len(rows)), squeeze=False, sharey="row"
    )
    drawn: dict[str, Any] = {}
    labels = []
    for line, where in zip(axes, rows, strict=True):
        own = [point for point in points if point.where == where]
        values = [a for p in own for a in (p.accuracy, p.tuned) if a is not None]
        good = [value for value in values if value > max(values) - REACH]
        span = max(2, max(good) - min(good))
        edge = min(good) - 0.15 * span
        for axis, kind, title in zip(line, (0, 1), ("FLOPs", "parameters"), strict=True):
            for point in own:
                drawn[point.method] = draw_point(axis, point, kind, edge)
            axis.set_xlabel(f"{title} pruned, %")
            axis.set_xlim(-4, 104)
            # Where the paper's and ours are at hand they lie side by side: one label does.
            first = {(p.network, p.method): p for p in reversed(own)}
            labels.append((axis, own, first.values(), kind, edge))
        dataset, epochs, flags = where
        line[0].set_title(", ".join([dataset, f"{epochs} epochs", *flags]))
        line[0].set_ylabel("test accuracy, %")
        line[0].set_ylim(edge - 0.1 * span, max(good) + 0.1 * span)
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside upper center", ncols=len(drawn),
        title="filled: ours; hollow: the paper's; a line leads to the fine-tuned accuracy;"
        " numbers: accuracies below the scale",
    )  # fmt: skip
    figure.draw_without_rendering()  # now the points' places on the page are known
    for axis, own, chosen, kind, edge in labels:
        label_points(axis, own, chosen, kind, edge)
    return figure


def accuracy_of(point: Point) -> float:
    """That of the pruned network; fine-tuned where the paper gives no other."""
    return point.tuned if point.accuracy is None else point.accuracy


def draw_point(axis: Any, point: Point, kind: int, edge: float) -> Any:
    """Draw a point, at the lower ``edge`` if its accuracy is below that; return the marker."""
    marker, colour = MARKERS.get(point.method, OTHER)
    x, y = point.pruned[kind], max(accuracy_of(point), edge)
    if point.tuned is not None:
        tuned = max(point.tuned, edge)
        axis.plot([x, x], [y, tuned], color=colour, linewidth=1)
        axis.plot(x, tuned, "_", color=colour, markersize=8)
    size, face = (5.5, colour) if point.ours else (8.5, "none")
    (drawn,) = axis.plot(
        x, y, marker, color=colour, markerfacecolor=face, markersize=size, linestyle="none"
    )
    return drawn


def label_points(
    axis: Any, points: Sequence[Point], chosen: Iterable[Point], kind: int, edge: float
) -> None:
    """Write letter and depth of the network beside the ``chosen`` points, where there is room."""
    from matplotlib.transforms import Bbox

    def place(point: Point) -> tuple[float, float]:
        return point.pruned[kind], max(accuracy_of(point), edge)

    inside = axis.get_window_extent()
    centres = [tuple(axis.transData.transform(place(point))) for point in points]
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    for point in chosen:
        text = re.sub(r"([A-Z])\D*(\d+)", r"\1\2", point.network)
        if accuracy_of(point) < edge:  # not drawn to scale
            text += f": {accuracy_of(point):.1f} %"
        label = axis.annotate(
            text, place(point), PLACES[0][:2], textcoords="offset points", fontsize=8
        )
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5})
        label.set_in_layout(False)

        own = tuple(axis.transData.transform(place(point)))

        def crowding(where: tuple[int, int, str], label: Any = label, own: Any = own) -> int:
            label.set(position=where[:2], horizontalalignment=where[2])
            box = label.get_window_extent()
            leaves = not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0)
            middle = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            taken_for_anothers = min(centres, key=lambda c: math.dist(c, middle)) != own
            return box.count_overlaps(taken) + 10 * leaves + taken_for_anothers

        best = min(PLACES, key=crowding)
        label.set(position=best[:2], horizontalalignment=best[2])
        taken.append(label.get_window_extent())
        if best[1] != BESIDE:  # a line leads to the point
            colour = MARKERS.get(point.method, OTHER)[1]
            line = {"arrowstyle": "-", "linewidth": 0.6, "color": colour, "shrinkB": 4}
            axis.annotate(
                "", place(point), best[:2], textcoords="offset points", arrowprops=line, zorder=1
            )
