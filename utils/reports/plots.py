"""Figures of a run, or of all runs beside the paper's, as PNG and SVG.

    python -m utils.reports.plots --save logs --run RUN     # the log and the checkpoint of one run
    python -m utils.reports.plots --save logs               # accuracy against compression, all runs

Needs matplotlib: pip install matplotlib
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import arguments, console
from utils.atomic import check_writable
from utils.console import InputError
from utils.files import checkpoint, records
from utils.files.names import CHECKPOINT, Files, run_of
from utils.files.records import Row
from utils.methods import METHODS
from utils.methods.base import batch_norms, is_zero
from utils.pruning.plan import plan, zero_channels
from utils.reports import results, style, tradeoff
from utils.reports.style import BLACK, BLUE, GREY, ORANGE, RED, SKY

LOG = ("epoch", "lr", "train_loss", "test_loss", "test_accuracy", "gamma_zeros")
# What the methods' own columns of the log are called; others by their names.
OBJECTIVES = {"objective": "F, eq. (5)", "ns_objective": "objective, eq. (2)"}
SYMBOLS = {name: symbol for m in METHODS.values() for name, symbol in m.factors.items()}
# Of a text: above the panel, at a place on its x axis.
ABOVE = {"fontsize": 9, "xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
LEAST = -6  # log10 of the |γ| below which the histogram does not tell sizes apart


def column(log: Sequence[Row], name: str) -> list[float]:
    """A column of the log, [] where it is missing or has empty cells."""
    cells = [row.get(name, "") for row in log]
    try:
        return list(map(float, cells)) if all(cells) else []
    except ValueError:
        raise InputError(f"the log's column {name} holds other than numbers") from None


def draw_run(folder: Path, run: str) -> Any:
    """Loss, accuracy, zeros and change by epoch; kept channels by layer; sizes of γ."""
    files = Files(folder, run)
    log = records.read(files.log, LOG, LOG)
    if not log or not files.checkpoint.is_file():
        known = sorted(map(run_of, folder.glob(f"*{CHECKPOINT}")))
        raise InputError(
            f"{folder} has no log and checkpoint of a run {run!r}; runs there:"
            f" {', '.join(known) or 'none'}"
        )
    network = checkpoint.load(files.checkpoint).network
    norms = batch_norms(network.model)
    gammas = [bn.weight.detach() for bn in norms]
    changes = column(log, "change")
    figure, axes = style.pyplot().subplot_mosaic(
        [
            ["loss", "change" if changes else "accuracy"],
            ["zeros", "accuracy" if changes else "zeros"],
            ["layers", "gamma"],
        ],
        figsize=(style.WIDTH, 9),
    )
    figure.suptitle(run, x=0.01, ha="left", fontsize=12, fontweight="bold")
    draw_epochs(axes, log)
    if files.slim().is_file():
        slim = checkpoint.load(files.slim()).network
        kept, how = [len(bn.weight) for bn in batch_norms(slim.model)], "As pruned"
    else:
        masks = plan(gammas, [bn.bias.detach() for bn in norms], zero_channels(gammas)).masks
        kept, how = [int(mask.sum()) for mask in masks], "At percent 0"
    draw_layers(axes["layers"], [len(gamma) for gamma in gammas], kept, how)
    draw_gamma(axes["gamma"], torch.cat(gammas))
    return figure


def draw_epochs(axes: Mapping[str, Any], log: Sequence[Row]) -> None:
    """What the log has, by epoch, with the drops of the learning rate."""
    from matplotlib.ticker import LogLocator, NullLocator

    columns = dict.fromkeys(name for m in METHODS.values() for name in m.columns)
    objective = next((name for name in columns if column(log, name)), "")
    loss = [
        (objective, OBJECTIVES.get(objective, objective), RED, "-."),
        ("test_loss", "test loss", ORANGE, "--"),
        ("train_loss", "training loss", BLUE, "-"),
    ]
    looks = zip(SYMBOLS.items(), cycle([(BLUE, "-"), (ORANGE, "--"), (RED, ":")]), strict=False)
    zeros = [(f"{name}_zeros", f"{symbol} = 0", *look) for (name, symbol), look in looks]
    panels = {
        "loss": ("Loss and objective", loss),
        "accuracy": ("Test accuracy, %", [("test_accuracy", "", BLUE, "-")]),
        "zeros": ("Scaling factors that are zero", zeros[::-1]),
        "change": (r"$\|Z^{t+1}-Z^t\|^2$, change in an epoch", [("change", "", BLUE, "-")]),
    }
    epochs = [int(float(row["epoch"])) for row in log]
    drops = [i for i in range(1, len(log)) if float(log[i]["lr"]) < float(log[i - 1]["lr"])]
    for name in panels.keys() & axes.keys():
        axis, (title, curves) = axes[name], panels[name]
        for key, label, colour, dashes in curves:
            if values := column(log, key):
                marker = "o" if len(values) == 1 else None
                axis.plot(epochs, values, dashes, color=colour, label=label, marker=marker)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
        for i in drops:
            axis.axvline(epochs[i] - 0.5, color=BLACK, linestyle=":", linewidth=1)
            if name in ("loss", "accuracy"):
                axis.annotate(f"lr {float(log[i]['lr']):g}", (epochs[i] - 0.5, 1), (2, 2), **ABOVE)
        if name in ("loss", "zeros"):
            axis.legend()
        if name == "zeros":
            axis.set_ylim(0, max(1, axis.get_ylim()[1]))
            axis.yaxis.get_major_locator().set_params(integer=True)
        if name in ("loss", "change"):
            axis.set_yscale("log")
            low, high = axis.get_ylim()
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())


def draw_layers(axis: Any, widths: Sequence[int], kept: Sequence[int], how: str) -> None:
    places, width = range(1, len(widths) + 1), 0.85 if len(widths) < 60 else 1
    axis.bar(places, widths, width, color=GREY, label="removed")
    axis.bar(places, kept, width, color=BLUE, label="kept")
    axis.set_title(f"{how}: {sum(kept):,} of {sum(widths):,} channels kept")
    axis.set_xlabel("batch norm, from input to output")
    axis.set_xlim(0.3, len(widths) + 0.7)
    axis.set_ylim(0, 1.25 * max(widths))  # room for the legend
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(ncols=2, loc="upper left")


def draw_gamma(axis: Any, gamma: Tensor) -> None:
    """How many |γ| of every size; zeros and what is next to nothing in bars of their own."""
    zero = is_zero(gamma)
    logs = gamma[~zero].abs().double().log10()
    low, high = LEAST, math.ceil(max([1, *logs.tolist()]))
    edges = torch.arange(4 * low, 4 * high + 1) / 4  # four bars to a decade
    counts = [int(((logs >= a) & (logs < a + 0.25)).sum()) for a in edges[:-1]]
    axis.bar(edges[:-1] + 0.125, counts, 0.25, color=BLUE)
    apart = {low - 2.8: ("0", zero, RED), low - 1.3: ("less", logs < low, SKY)}
    for place, (_, there, colour) in apart.items():
        if count := int(there.sum()):
            axis.bar_label(axis.bar(place, count, color=colour), fmt="{:,.0f}", fontsize=9)
    ticks = {place: label for place, (label, *_) in apart.items()}
    ticks |= {power: f"$10^{{{power}}}$" for power in range(low, high + 1, 2)}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_yscale("log")
    axis.set_ylim(0.7, 3 * len(gamma))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_title("|γ| before pruning")
    axis.set_ylabel("channels")


def parser() -> argparse.ArgumentParser:
    p = arguments.Parser(
        prog="python -m utils.reports.plots",
        description="Draw a run, or all runs beside the paper's.",
    )
    p.add_argument("--save", default="logs", metavar="DIR", help="where the runs are (logs)")
    p.add_argument(
        "--run",
        type=arguments.file_name,
        help="draw this one into DIR/<run>plot.png and .svg; without it, accuracy against"
        " compression of all into DIR/tradeoff.png and .svg",
    )
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    folder = Path(args.save)
    style.pyplot()
    if args.run is None:
        found = results.load(folder)
        figure, path = tradeoff.draw(found), folder / "tradeoff"
    else:
        figure, path = draw_run(folder, args.run), Files(folder, args.run).plot
    check_writable(folder)
    style.save(figure, path)


if __name__ == "__main__":
    sys.exit(console.run(main))
