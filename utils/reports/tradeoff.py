"""Accuracy against compression: the runs on record, and the paper's."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from utils.methods import METHODS
from utils.paper.published import TABLES, numbers
from utils.paper.settings import EPOCHS
from utils.reports import results, style
from utils.reports.results import Terms
from utils.reports.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY

# Markers and colours of the methods, in their order in the paper's tables.
STYLES = list(zip("s^oDXPv", (BLACK, RED, BLUE, GREEN, PURPLE, SKY, ORANGE), strict=True))
OTHER = ("*", PURPLE)  # of a method that is not the paper's
# Accuracies so many percent below the best are not drawn to scale, but at the lower edge.
REACH = 15
LEGEND = {
    "loc": "outside upper center",
    "title": "filled: ours; hollow: the paper's; a line leads to the fine-tuned accuracy;"
    " numbers: accuracies below the scale",
}
# Places of a label beside its point, in the order of preference.
BESIDE = -3
PLACES = [
    (dx, dy, side)
    for dy in (BESIDE, 5, -11, 13, -19, 21, 29)
    for dx, side in ((7, "left"), (-7, "right"), (0, "center"))
    if (dx, abs(dy)) != (0, 3)
]


class Point(NamedTuple):
    """A pruned network: the paper's, or one of ours. Percent throughout."""

    where: Terms
    network: str
    method: str
    pruned: tuple[float, float]  # of the FLOPs and of the parameters
    accuracy: float  # fine-tuned where the paper gives no other
    tuned: float | None
    ours: bool


def points_of_paper() -> list[Point]:
    """The rows of Tables 2 and 3; DenseNet-40 by proximal NS is in both, and taken from 2a."""
    found: dict[tuple[str, str, str], Point] = {}
    for table in list(TABLES.values())[1:]:
        dataset = table.columns[-1].dataset
        for row in table.rows:
            known = {
                quantity: number
                for column, cell in zip(table.columns, row, strict=True)
                for quantity, number in zip(column.quantities, numbers(cell), strict=False)
            }
            pruned = (known["flops"] or 0, known["parameters"] or 0)
            tuned = known.get("tuned")
            accuracy = next(a for a in (known["pruned"], tuned) if a is not None)
            ours = table.method(row)
            method = METHODS[ours].title if ours else re.sub(r"-0.*| \[.*", "", row[1])
            where = Terms(dataset, EPOCHS)
            point = Point(where, row[0], method, pruned, accuracy, tuned, False)
            found.setdefault((dataset, row[0], method), point)
    return list(found.values())


def points_of(found: Sequence[results.Result]) -> list[Point]:
    """Every baseline and every pruned network among ``found``: means over the seeds."""
    points = []
    for group, variants in results.grouped(found).items():
        for variant, runs in variants.items():
            method = METHODS[variant.method]
            accuracy = _mean(runs, "pruned" if method.prunes() else "trained")
            if accuracy is None:
                continue
            flops, parameters = (
                (_mean(runs, kind) or 0.0) if method.prunes() else 0.0
                for kind in ("flops", "parameters")
            )
            tuned, what = _mean(runs, "tuned"), (group.terms, group.network, method.title)
            points.append(Point(*what, (flops, parameters), accuracy, tuned, True))
    return points


def _mean(runs: Sequence[results.Result], quantity: str) -> float | None:
    values = results.values(runs, quantity)
    return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Panel:
    """Accuracy of ``points`` against one kind of compression."""

    axis: Any
    kind: int  # what is pruned: 0 FLOPs, 1 parameters
    points: Sequence[Point]
    edge: float  # accuracies below it are drawn here
    styles: Mapping[str, tuple[str, str]]  # marker and colour of the paper's methods

    def place(self, point: Point) -> tuple[float, float]:
        return point.pruned[self.kind], max(point.accuracy, self.edge)

    def draw(self, point: Point) -> Any:
        """Draw it, and return the marker."""
        marker, colour = self.styles.get(point.method, OTHER)
        x, y = self.place(point)
        if point.tuned is not None:
            tuned = max(point.tuned, self.edge)
            self.axis.plot([x, x], [y, tuned], color=colour, linewidth=1)
            self.axis.plot(x, tuned, "_", color=colour, markersize=8)
        size, face = (5.5, colour) if point.ours else (8.5, "none")
        (drawn,) = self.axis.plot(
            x, y, marker, color=colour, markerfacecolor=face, markersize=size, linestyle="none"
        )
        return drawn

    def label(self) -> None:
        """Write letter and depth of each network beside its points, where there is room."""
        from matplotlib.transforms import Bbox

        inside = self.axis.get_window_extent()
        centres = [self._on_page(point) for point in self.points]
        taken = [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
        # Where the paper's and ours are at hand they lie side by side: one label does.
        chosen = {(point.network, point.method): point for point in reversed(self.points)}
        for point in chosen.values():
            text, own = re.sub(r"([A-Z])\D*(\d+)", r"\1\2", point.network), self._on_page(point)
            if point.accuracy < self.edge:  # not drawn to scale
                text += f": {point.accuracy:.1f} %"
            label = self.axis.annotate(
                text, self.place(point), PLACES[0][:2], textcoords="offset points", fontsize=8
            )
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5})
            label.set_in_layout(False)

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
                colour = self.styles.get(point.method, OTHER)[1]
                line = {"arrowstyle": "-", "linewidth": 0.6, "color": colour, "shrinkB": 4}
                ends = self.place(point), best[:2]
                self.axis.annotate("", *ends, textcoords="offset points", arrowprops=line, zorder=1)

    def _on_page(self, point: Point) -> tuple[float, float]:
        """Where it is, in pixels."""
        x, y = self.axis.transData.transform(self.place(point))
        return x, y


def draw(found: Sequence[results.Result]) -> Any:
    """Accuracy against the share of FLOPs and of parameters pruned, in the paper's accounting.

    What trained on the same data as long shares a row, with all the paper's in two of them.
    """
    points = points_of_paper() + points_of(found)
    styles = dict(zip(dict.fromkeys(point.method for point in points), STYLES, strict=False))
    rows = list(dict.fromkeys(point.where for point in points))
    figure, axes = style.pyplot().subplots(
        len(rows), 2, figsize=(style.WIDTH, 1 + 3.4 * len(rows)), squeeze=False, sharey="row"
    )
    drawn: dict[str, Any] = {}
    panels = []
    for line, where in zip(axes, rows, strict=True):
        own = [point for point in points if point.where == where]
        values = [a for p in own for a in (p.accuracy, p.tuned) if a is not None]
        good = [value for value in values if value > max(values) - REACH]
        span = max(2, max(good) - min(good))
        edge = min(good) - 0.15 * span
        for kind, title in enumerate(("FLOPs", "parameters")):
            panel = Panel(line[kind], kind, own, edge, styles)
            panels.append(panel)
            for point in own:
                drawn[point.method] = panel.draw(point)
            panel.axis.set_xlabel(f"{title} pruned, %")
            panel.axis.set_xlim(-4, 104)
        line[0].set_title(", ".join([where.dataset, *where.words()]))
        line[0].set_ylabel("test accuracy, %")
        line[0].set_ylim(edge - 0.1 * span, max(good) + 0.1 * span)
    figure.legend(drawn.values(), drawn.keys(), ncols=len(drawn), **LEGEND)
    figure.draw_without_rendering()  # now the points' places on the page are known
    for panel in panels:
        panel.label()
    return figure
