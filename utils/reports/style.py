"""Style of the figures."""

from typing import Any

from utils.console import missing_packages, note, require_packages

# Okabe and Ito's colours, which colour-blind readers can tell apart: C0 is blue, C1 red.
COLOURS = "'#0072B2', '#D55E00', '#009E73', '#E69F00', '#CC79A7', '#56B4E9', '#000000'"
STYLE = {
    "axes.prop_cycle": f"cycler('color', [{COLOURS}])",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 166,
    "svg.hashsalt": "utils.reports.plots",  # the same figure gives the same file
}


def can_draw() -> bool:
    """Returns whether matplotlib is installed, and says so if it is not."""
    if missing := missing_packages(["matplotlib"]):
        note("note: no figure is drawn without matplotlib")
    return not missing


def subplots(rows: int, height: float, **options: Any) -> Any:
    """A figure of ``height`` inches for files, and its axes [``rows``, 2].

    Raises InputError: matplotlib is not installed.
    """
    require_packages("a figure", "matplotlib")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.style.use(STYLE)
    return pyplot.subplots(rows, 2, figsize=(10, height), squeeze=False, **options)
