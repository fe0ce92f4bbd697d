"""Figures of one run, or of all runs beside the paper's, as PNG and SVG.

    python -m utils.reports.plots --save logs --run RUN     # log and checkpoint of one run
    python -m utils.reports.plots --save logs               # accuracy against compression, all runs

Needs matplotlib: pip install matplotlib
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netslim.methods import is_zero
from utils import arguments, console
from utils.console import InputError
from utils.files import checkpoint, records
from utils.files.locks import check_writable
from utils.files.paths import CHECKPOINT, DEFAULT_FOLDER, PRUNED, RunPaths
from utils.files.records import Row
from utils.methods import METHODS
from utils.reports import results, style, tradeoff

LOG_COLUMNS = ("epoch", "lr", "train_loss", "test_loss", "test_accuracy", "gamma_zeros")
LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}
OBJECTIVES = {"objective": "F, eq. (5)", "ns_objective": "objective, eq. (2)"}
ZEROS = {f"{name}_zeros": f"{s} = 0" for m in METHODS.values() for name, s in m.factors.items()}
SMALLEST = -6  # log10 of the smallest |γ| that the histogram resolves


def column(log: Sequence[Row], name: str) -> list[float]:
    """A column of the log, [] if it is missing or has empty cells."""
    cells = [row.get(name, "") for row in log]
    try:
        return list(map(float, cells)) if all(cells) else []
    except ValueError:
        raise InputError(f"column {name} of the log has cells that are not numbers") from None


def draw_run(folder: Path, run: str) -> Any:
    """A figure of a run: its log by epoch, channels kept by layer, sizes of the scaling factors.

    Raises InputError: the run has no log, no readable checkpoint or no batch norm.
    """
    files = RunPaths(folder, run)
    log = records.read(files.log, LOG_COLUMNS, LOG_COLUMNS)
    if not log or not files.checkpoint.is_file():
        runs = ", ".join(sorted(p.parent.name for p in folder.glob(f"*/{CHECKPOINT}"))) or "none"
        raise InputError(f"{folder} has no log and checkpoint of a run {run!r}; its runs: {runs}")
    loaded = checkpoint.load(files.checkpoint)
    norms = list(loaded.network.norms.values())
    if not norms:
        raise InputError(f"{run} has no batch norm, so there are no scaling factors to draw")
    prunings = {row["model"]: row for row in records.read(folder / PRUNED, ("model",))}  # latest
    source = prunings.get(files.recorded(files.pruned()), {}).get("checksum")
    if files.pruned().is_file() and source == checkpoint.checksum(files.checkpoint):
        norms_kept = checkpoint.load(files.pruned()).network.norms.values()
        kept, kept_title = [len(bn.weight) for bn in norms_kept], "As pruned"
    else:
        alive = ~is_zero(loaded.scaling_factors[loaded.default_mask])
        parts = alive.split([len(bn.weight) for bn in norms])
        kept, kept_title = [max(1, int(part.sum())) for part in parts], "At percent 0"
    figure, axes = style.subplots(4, 12)
    figure.suptitle(run)
    losses, change, zeros, _, cost, seconds, layers, sizes = axes.flat
    columns = [name for m in METHODS.values() for name in m.columns if column(log, name)]
    objective = {name: OBJECTIVES.get(name, name) for name in columns[:1]}
    flops = column(log, "flops")
    saved = f", {1 - sum(flops) / len(flops) / flops[0]:.0%} saved" if flops else ""
    panels = {
        "Loss and objective": LOSSES | objective,
        r"$\|Z^{t+1}-Z^t\|^2$, change": {"change": ""},
        "Factors equal to zero": ZEROS,
        "Test accuracy, %": {"test_accuracy": ""},
        "Model size, %": {"channels": "channels", "flops": f"FLOPs{saved}"},
        "Seconds per epoch": {"train_seconds": ""},
    }
    for axis, (title, labels) in zip(axes.flat, panels.items(), strict=False):
        draw_epochs(axis, log, title, labels, relative=axis is cost)
    cost.set_ylim(0, 105)
    seconds.set_ylim(bottom=0)
    losses.set_yscale("log")
    change.set_yscale("log")
    zeros.set_ylim(0, max(1, zeros.get_ylim()[1]))
    draw_layers(layers, [len(bn.weight) for bn in norms], kept, kept_title)
    draw_gamma(sizes, torch.cat([bn.weight.detach() for bn in norms]))
    return figure


def draw_epochs(
    axis: Any, log: Sequence[Row], title: str, labels: Mapping[str, str], relative: bool
) -> None:
    """Columns of the log by epoch, and the drops of the learning rate.

    ``labels`` are those of the columns to draw if the log has them, ``relative``: in percent of the
    first epoch's.
    """
    epochs, rates = column(log, "epoch"), column(log, "lr")
    for (name, label), dashes in zip(labels.items(), cycle(("-", "--", "-.")), strict=False):
        if values := column(log, name):
            values = [100 * x / values[0] for x in values] if relative else values
            axis.plot(epochs, values, dashes, label=label, marker="" if len(log) > 1 else "o")
    for (before, rate), epoch in zip(pairwise(rates), epochs[1:], strict=True):
        if rate < before / 2:
            axis.axvline(epoch - 0.5, color="black", linestyle=":", linewidth=1)
            top = axis.get_xaxis_transform()
            axis.text(epoch - 0.5, 1.02, f"lr {rate:g}", transform=top, fontsize=9)
    axis.set_title(title)
    axis.set_xlabel("epoch")
    axis.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axis.locator_params("x", integer=True)
    if len(labels) > 1:
        axis.legend()


def draw_layers(axis: Any, widths: Sequence[int], kept: Sequence[int], title: str) -> None:
    """Channels kept and removed in every batch norm."""
    positions = range(1, len(widths) + 1)
    axis.bar(positions, widths, color="lightgrey", label="removed")
    axis.bar(positions, kept, label="kept")
    axis.set_title(f"{title}: {sum(kept):,} of {sum(widths):,} channels kept")
    axis.set_xlabel("batch norm, from input to output")
    axis.margins(0.01, 0.25)  # room for the legend
    axis.locator_params("x", integer=True)
    axis.legend(ncols=2, loc="upper left")


def draw_gamma(axis: Any, gamma: Tensor) -> None:
    """Histogram of |γ|, with separate bars for zeros and for values below 10^SMALLEST."""
    zero = is_zero(gamma)
    logs = gamma[~zero].abs().log10()
    small = logs < SMALLEST
    high = math.ceil(max([1, *logs.tolist()]))
    axis.hist(logs[~small], 4 * (high - SMALLEST), range=(SMALLEST, high))  # 4 bars per decade
    for position, mask in ((SMALLEST - 2.8, zero), (SMALLEST - 1.3, small)):
        if count := int(mask.sum()):
            axis.bar_label(axis.bar(position, count, color="C1"), fmt="{:,.0f}")
    powers = range(SMALLEST, high + 1, 2)
    ticks = {SMALLEST - 2.8: "0", SMALLEST - 1.3: "less"} | {p: f"$10^{{{p}}}$" for p in powers}
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_yscale("log")
    axis.set_ylim(0.7, 3 * len(gamma))
    axis.set_title("|γ| before pruning")
    axis.set_ylabel("channels")


def parser() -> argparse.ArgumentParser:
    p = console.Parser(prog="python -m utils.reports.plots", description="Figures of runs.")
    folder = "folder of the runs (default logs)"
    p.add_argument("--save", type=Path, default=Path(DEFAULT_FOLDER), metavar="DIR", help=folder)
    run = (
        "name of a run, drawn in DIR/<run>/plot.png and .svg (default: accuracy against"
        " compression of all runs, in DIR/tradeoff.png and .svg)"
    )
    p.add_argument("--run", type=arguments.file_name, help=run)
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.run is None:
        figure, path = tradeoff.draw(results.load(args.save)), args.save / "tradeoff"
    else:
        figure, path = draw_run(args.save, args.run), RunPaths(args.save, args.run).plot
    check_writable(args.save)
    for suffix, metadata in ((".png", None), (".svg", {"Date": None})):
        figure.savefig(f"{path}{suffix}", metadata=metadata)
        print(f"{path}{suffix}")


if __name__ == "__main__":
    sys.exit(console.run(main))
