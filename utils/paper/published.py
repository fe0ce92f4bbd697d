"""Tables 1, 2a, 2b and 3 of the paper, cell by cell as printed (without bold type)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

# The paper's names of models and methods, and this program's.
NETWORKS = {
    "VGG-19": ("vgg", 19),
    "DenseNet-40": ("densenet", 40),
    "ResNet-110": ("resnet", 110),
    "ResNet-164": ("resnet", 164),
}
METHODS = {
    "Baseline": "baseline",
    "Original NS [23]": "subgradient",
    "Proximal NS (ours)": "proximal",
    "Proximal NS (Ours)": "proximal",
}


class Column(NamedTuple):
    """A column: heading, quantities of its numbers (two if separated by /), and data set.

    ``quantities`` are keys of :data:`utils.reports.results.QUANTITIES`, none in a text column.
    """

    heading: str
    quantities: tuple[str, ...] = ()
    dataset: str = ""


class Table(NamedTuple):
    """A table as printed. The first cell of each row in ``rows`` is the architecture."""

    title: str
    columns: tuple[Column, ...]
    rows: list[list[str]]
    note: str = ""

    def method(self, row: Sequence[str]) -> str | None:
        """Returns the name of the ``row``'s method here, None if this program lacks it."""
        return METHODS.get(row[1]) if self.columns[1].heading == "Method" else "proximal"

    def share(self, row: Sequence[str]) -> float | None:
        """Returns the percent of channels to prune, None if none is published.

        0, for zeros only, with proximal slimming.
        """
        if self.method(row) == "proximal":
            return 0.0
        cells = zip(self.columns, row, strict=True)
        return next((numbers(cell)[0] for c, cell in cells if "channels" in c.quantities), None)


def numbers(cell: str) -> list[float | None]:
    """Returns the numbers of a cell such as ``93.83/—``, ``74.00*`` or ``N/A``, None for none."""
    parts = [part.rstrip("*") for part in cell.split("/")]
    return [float(part) if re.fullmatch(r"[\d.]+", part) else None for part in parts]


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


WHAT = (Column("Architecture"), Column("Method"))
SECONDS = "Avg. Training Time per Epoch (s) Pre-Pruned/Fine Tuned"
ACCURACY = "Test Accuracy (%) Post Pruned/Fine Tuned"


def _table_2(dataset: str) -> tuple[Column, ...]:
    return (
        *WHAT,
        Column(SECONDS, ("train_seconds", "tune_seconds"), dataset),
        Column("% Channels Pruned", ("channels",), dataset),
        Column("% Param. Pruned", ("parameters",), dataset),
        Column("% FLOPS Pruned", ("flops",), dataset),
        Column(ACCURACY, ("pruned", "tuned"), dataset),
    )


TABLES = {
    "table1": Table(
        "Table 1. Scaling factors equal to zero at the end of training",
        (
            Column("Architecture"),
            Column("Total Channels/γ_i"),
            Column("CIFAR 10: Avg. Number of γ_i = 0", ("zeros",), "cifar10"),
            Column("CIFAR 100: Avg. Number of γ_i = 0", ("zeros",), "cifar100"),
        ),
        _rows("""
            VGG-19      |  5504 | 4105.2 | 3057.0
            DenseNet-40 |  9360 | 6936.4 | 6071.6
            ResNet-164  | 12112 | 8765.4 | 7115.8
        """),
    ),
    "table2a": Table(
        "Table 2a. The different NS methods on CIFAR 10",
        _table_2("cifar10"),
        _rows("""
            VGG-19      | Baseline           | 38.10/—       | N/A    | N/A   | N/A   | 93.83/—
            VGG-19      | Original NS [23]   | 40.39/29.40   | 74.00* | 90.22 | 54.67 | 10.00/93.81
            VGG-19      | Proximal NS (ours) | 42.71/30.39   | 74.59  | 91.17 | 57.54 | 93.71/93.38
            DenseNet-40 | Baseline           | 117.45/—      | N/A    | N/A   | N/A   | 94.25/—
            DenseNet-40 | Original NS [23]   | 119.49/74.45  | 74.01  | 67.13 | 60.46 | 41.46/93.94
            DenseNet-40 | VCP [40]           | Not Reported  | 60.00  | 59.67 | 44.78 | 93.16/—
            DenseNet-40 | Proximal NS (ours) | 118.86/76.10  | 74.11  | 67.75 | 57.35 | 93.58/93.64
            ResNet-164  | Baseline           | 146.41/—      | N/A    | N/A   | N/A   | 94.75/—
            ResNet-164  | Original NS [23]   | 151.62/112.80 | 71.98  | 52.95 | 59.27 | 16.61/93.21
            ResNet-164  | VCP [40]           | Not Reported  | 74.00  | 56.70 | 49.08 | 93.16/—
            ResNet-164  | Proximal NS (ours) | 150.13/114.26 | 72.37  | 65.84 | 63.54 | 93.19/93.41
        """),
        "\\* This is the maximum possible for all five networks to remain functional for"
        " inference (the paper's note). DenseNet-40's FLOPs are 57.35 here and 57.54 in Table 3;"
        " 57.54 is also VGG-19's here.",
    ),
    "table2b": Table(
        "Table 2b. The different NS methods on CIFAR 100",
        _table_2("cifar100"),
        _rows("""
            VGG-19      | Baseline           | 37.83         | N/A   | N/A   | N/A   | 72.73/—
            VGG-19      | Original NS [23]   | 39.98/30.74   | 55.00 | 78.53 | 38.66 | 1.00/72.91
            VGG-19      | Proximal NS (ours) | 42.31/30.04   | 55.54 | 79.62 | 41.17 | 72.81/72.70
            DenseNet-40 | Baseline           | 117.17        | N/A   | N/A   | N/A   | 74.55/—
            DenseNet-40 | Original NS [23]   | 119.32/77.95  | 65.01 | 59.29 | 52.61 | 25.96/74.50
            DenseNet-40 | VCP [40]           | Not Reported  | 37.00 | 37.73 | 22.67 | 72.19/—
            DenseNet-40 | Proximal NS (ours) | 120.89/82.92  | 64.87 | 59.15 | 45.00 | 73.70/73.98
            ResNet-164  | Baseline           | 145.37        | N/A   | N/A   | N/A   | 76.79/—
            ResNet-164  | Original NS [23]   | 150.65/115.95 | 59.00 | 26.66 | 45.17 | 2.39/76.68
            ResNet-164  | VCP [40]           | Not Reported  | 47.00 | 17.59 | 27.16 | 73.76/—
            ResNet-164  | Proximal NS (ours) | 149.15/117.88 | 58.75 | 42.28 | 47.93 | 75.26/75.68
        """),
    ),
    "table3": Table(
        "Table 3. Proximal NS and other pruning methods on CIFAR 10",
        (
            *WHAT,
            Column("% Param./FLOPs Pruned", ("parameters", "flops"), "cifar10"),
            Column(ACCURACY, ("pruned", "tuned"), "cifar10"),
        ),
        _rows("""
            DenseNet-40 | Hrank [21]         | 53.80/61.00 | —/93.68
            DenseNet-40 | GAL-0.05 [22]      | 56.70/54.70 | 93.53/94.50
            DenseNet-40 | Proximal NS (Ours) | 67.75/57.54 | 93.58/93.64
            ResNet-110  | L1 [19]            | 32.60/38.70 | —/93.30
            ResNet-110  | GAL-0.5 [22]       | 44.80/48.50 | 92.55/92.74
            ResNet-110  | Hrank [21]         | 39.40/41.20 | —/94.23
            ResNet-110  | Proximal NS (Ours) | 50.70/48.54 | 93.25/93.27
        """),
        "DenseNet-40's FLOPs are 57.54 here and 57.35 in Table 2a, as printed.",
    ),
}
