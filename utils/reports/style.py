"""What all figures share: matplotlib where it is installed, colours, files."""

from pathlib import Path
from typing import Any

from utils.console import InputError

# Okabe and Ito's colours, which colour-blind readers tell apart; dashes, markers and shades differ
# as well, for prints in grey.
BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#E69F00", "#009E73"
RED, SKY, PURPLE, GREY = "#D55E00", "#56B4E9", "#CC79A7", "#D9D9D9"
WIDTH = 10  # inches, which a README shows 830 pixels wide
STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.edgecolor": "none",
    "legend.fontsize": 9.5,
    "svg.hashsalt": "utils.reports.plots",  # the same figure gives the same file
    "figure.constrained_layout.use": True,
}


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into files. Raises InputError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("figures need matplotlib: pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.style.use(STYLE)
    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write ``path``.png and ``path``.svg, and say so."""
    for suffix, metadata in ((".png", None), (".svg", {"Date": None})):
        figure.savefig(f"{path}{suffix}", dpi=166, metadata=metadata)
        print(f"{path}{suffix}")
