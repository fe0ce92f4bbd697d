"""Figures of a run, or of all runs beside the paper's, as PNG and SVG.

    python -m utils.reports.plots --save logs --run RUN     # the log and the checkpoint of one run
    python -m utils.reports.plots --save logs               # accuracy against compression, all runs

Needs matplotlib: pip install matplotlib
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netslim.methods import is_zero
from utils import arguments, console
from utils.atomic import check_writable
from utils.console import InputError
from utils.files import checkpoint, records
from utils.files.paths import CHECKPOINT, PRUNED, RunPaths, run_name_of
from utils.files.records import Row
from utils.methods import METHODS
from utils.pruning.plan import plan
from utils.reports import results, style, tradeoff

LOG = ("epoch", "lr", "train_loss", "test_loss", "test_accuracy", "gamma_zeros")
LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}
# What the methods' own columns of the log are called; others by their names.
OBJECTIVES = {"objective": "F, eq. (5)", "ns_objective": "objective, eq. (2)"}
TRAINS = {"channels": "channels", "flops": "FLOPs"}  # columns of what cutting makes smaller
ZEROS = {f"{name}_zeros": f"{s} = 0" for m in METHODS.values() for name, s in m.factors.items()}
LEAST = -6  # log10 of the |γ| below which the histogram does not tell sizes apart


def column(log: Sequence[Row], name: str) -> list[float]:
    """A column of the log, [] where it is missing or has empty cells."""
    cells = [row.get(name, "") for row in log]
    try:
        return list(map(float, cells)) if all(cells) else []
    except ValueError:
        raise InputError(f"the log's column {name} holds other than numbers") from None


def draw_run(folder: Path, run: str) -> Any:
    """Loss, change, zeros, accuracy, and what trained, by epoch; channels by layer; sizes of γ."""
    files = RunPaths(folder, run)
    log = records.read(files.log, LOG, LOG)
    if not log or not files.checkpoint.is_file():
        known = ", ".join(sorted(map(run_name_of, folder.glob(f"*{CHECKPOINT}")))) or "none"
        raise InputError(
            f"{folder} has no log and checkpoint of a run {run!r}; runs there: {known}"
        )
    loaded = checkpoint.load(files.checkpoint)
    norms = list(loaded.network.norms.values())
    if not norms:
        raise InputError(f"{run} has no batch norm, so there are no channels to draw")
    gammas = [bn.weight.detach() for bn in norms]
    pruned = {row["model"]: row for row in records.read(folder / PRUNED, ("model",))}  # the last
    source = pruned.get(files.pruned().name, {}).get("checksum")
    if files.pruned().is_file() and source == checkpoint.checksum(files.checkpoint):
        slim = checkpoint.load(files.pruned()).network
        kept, how = [len(bn.weight) for bn in slim.norms.values()], "As pruned"
    else:
        masks = plan(norms, is_zero(loaded.scaling_factors[loaded.default_mask]))
        kept, how = [int(mask.sum()) for mask in masks], "At percent 0"
    figure, axes = style.subplots(4, 12)
    figure.suptitle(run)
    losses, change, zeros, accuracy, trains, seconds, layers, sizes = axes.flat
    columns = [name for m in METHODS.values() for name in m.columns if column(log, name)]
    objective = {name: OBJECTIVES.get(name, name) for name in columns[:1]}
    draw_epochs(losses, log, "Loss and objective", LOSSES | objective)
    draw_epochs(change, log, r"$\|Z^{t+1}-Z^t\|^2$, change", {"change": ""})
    draw_epochs(zeros, log, "Factors that are zero", ZEROS)
    draw_epochs(accuracy, log, "Test accuracy, %", {"test_accuracy": ""})
    draw_epochs(trains, shares(log), "What trained, %", {**TRAINS, "flops": saved(log)})
    draw_epochs(seconds, log, "Seconds an epoch", {"train_seconds": ""})
    trains.set_ylim(0, 105)
    seconds.set_ylim(bottom=0)
    losses.set_yscale("log")
    change.set_yscale("log")
    zeros.set_ylim(0, max(1, zeros.get_ylim()[1]))
    draw_layers(layers, [len(gamma) for gamma in gammas], kept, how)
    draw_gamma(sizes, torch.cat(gammas))
    return figure


def shares(log: Sequence[Row]) -> list[Row]:
    """``log`` with the columns of TRAINS in percent of the first epoch's, which cuts nothing."""
    whole = {name: column(log, name) for name in TRAINS}
    percent = {name: [100 * x / values[0] for x in values] for name, values in whole.items()}
    return [
        {**row, **{name: str(values[i]) for name, values in percent.items() if values}}
        for i, row in enumerate(log)
    ]


def saved(log: Sequence[Row]) -> str:
    """How the curve of FLOPs is called: with what cutting saved of them, over all epochs."""
    flops = column(log, "flops")
    part = f", {1 - sum(flops) / len(flops) / flops[0]:.0%} saved" if flops else ""
    return TRAINS["flops"] + part


def draw_epochs(axis: Any, log: Sequence[Row], title: str, curves: Mapping[str, str]) -> None:
    """Columns of the log by epoch, as far as it has them, with the drops of the learning rate.

    ``curves`` are what the columns are called.
    """
    epochs, rates = column(log, "epoch"), column(log, "lr")
    for (name, label), dashes in zip(curves.items(), cycle(("-", "--", "-.")), strict=False):
        if values := column(log, name):
            axis.plot(epochs, values, dashes, label=label, marker="" if len(log) > 1 else "o")
    for i in range(1, len(log)):
        if rates[i] < rates[i - 1] / 2:
            axis.axvline(epochs[i] - 0.5, color="black", linestyle=":", linewidth=1)
            above = axis.get_xaxis_transform()
            axis.text(epochs[i] - 0.5, 1.02, f"lr {rates[i]:g}", transform=above, fontsize=9)
    axis.set_title(title)
    axis.set_xlabel("epoch")
    axis.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axis.locator_params("x", integer=True)
    if len(curves) > 1:
        axis.legend()


def draw_layers(axis: Any, widths: Sequence[int], kept: Sequence[int], how: str) -> None:
    places = range(1, len(widths) + 1)
    axis.bar(places, widths, color="lightgrey", label="removed")
    axis.bar(places, kept, label="kept")
    axis.set_title(f"{how}: {sum(kept):,} of {sum(widths):,} channels kept")
    axis.set_xlabel("batch norm, from input to output")
    axis.margins(0.01, 0.25)  # room for the legend
    axis.locator_params("x", integer=True)
    axis.legend(ncols=2, loc="upper left")


def draw_gamma(axis: Any, gamma: Tensor) -> None:
    """How many |γ| of every size; zeros and what is next to nothing in bars of their own."""
    zero = is_zero(gamma)
    logs = gamma[~zero].abs().log10()
    less = logs < LEAST
    high = math.ceil(max([1, *logs.tolist()]))
    axis.hist(logs[~less], 4 * (high - LEAST), range=(LEAST, high))  # four bars to a decade
    for place, there in ((LEAST - 2.8, zero), (LEAST - 1.3, less)):
        if count := int(there.sum()):
            axis.bar_label(axis.bar(place, count, color="C1"), fmt="{:,.0f}")
    powers = range(LEAST, high + 1, 2)
    ticks = {LEAST - 2.8: "0", LEAST - 1.3: "less"} | {p: f"$10^{{{p}}}$" for p in powers}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_yscale("log")
    axis.set_ylim(0.7, 3 * len(gamma))
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
    if args.run is None:
        figure, path = tradeoff.draw(results.load(folder)), folder / "tradeoff"
    else:
        figure, path = draw_run(folder, args.run), RunPaths(folder, args.run).plot
    check_writable(folder)
    for suffix, metadata in ((".png", None), (".svg", {"Date": None})):
        figure.savefig(f"{path}{suffix}", metadata=metadata)
        print(f"{path}{suffix}")


if __name__ == "__main__":
    sys.exit(console.run(main))
