"""Tables as text: aligned columns, Markdown, means over runs."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

DASH = "—"
Lines = list[list[str]]  # cells of a table, the column heads first


class Table(NamedTuple):
    """A table to print: its lines, the notes below it, and whether any of our runs are in it."""

    title: str
    lines: Lines
    notes: Sequence[str]
    has_runs: bool


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation, the single value, or a dash for none."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}" if values else DASH


def format_columns(lines: Lines, markdown: bool = False) -> str:
    """Text with aligned columns, or an aligned Markdown table; the first line are the heads."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    if markdown:
        lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    padded = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
    if markdown:
        return "".join(f"| {' | '.join(line)} |\n" for line in padded)
    return "\n".join("  ".join(line).rstrip() for line in padded)
