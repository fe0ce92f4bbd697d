"""Lp slimming: what its authors report, and what our runs gave, network by network."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from utils.files.records import Row
from utils.paper import lp
from utils.reports.results import Result, format_options, pruning_flags
from utils.reports.sparsity_table import mean

TITLE = "Lp slimming"
COLUMNS = [
    "Network", "Run", "Before Pruning (%)", "Post Pruned", "Fine Tuned", "% FLOPs Pruned",
    "% Param. Pruned", "Fine-tuning",
]  # fmt: skip
NOTE = """\
Published runs began with a trained network; its accuracy stands before pruning where it is said.
Networks are CIFAR-10's, the ResNet-50 ImageNet's (published: top-1, and top-5 in brackets).
Ours: mean ± standard deviation over n seeds, FLOPs and parameters in the paper's accounting.
"""
# What a line has of a pruning, by column of its record; the fine-tuning stands behind the second.
SHOWN = ("accuracy_before", "accuracy_slim", "", "paper_flops_pruned_percent",
         "paper_parameters_pruned_percent")  # fmt: skip
PUBLISHED = {network: name for name, network in lp.NETWORKS.items()}


class Line(NamedTuple):
    """What the runs of a line share."""

    network: str
    told: str  # how they were trained and pruned
    tuned: str  # and fine-tuned


def table(found: Iterable[Result]) -> tuple[str, list[list[str]]]:
    """Title and note, and lines: every published row, below a network's all that we pruned of it,
    and what we pruned of other networks."""
    ours: dict[Line, dict[int, list[str]]] = defaultdict(dict)  # by seed; of repetitions the last
    for run in found:
        if run.config.method == lp.METHOD:
            for pruning in run.prunings:
                line, values = _line(run, pruning)
                ours[line][run.config.seed] = values
    lines = [COLUMNS]
    for name in dict.fromkeys([*lp.NETWORKS, *(line.network for line in ours)]):
        for claim in lp.CLAIMS.get(name, ()):
            top5 = "" if claim.top5 is None else f" ({claim.top5:.2f})"
            parameters = "—" if claim.parameters is None else f"{claim.parameters:.1f}"
            sizes = f"{claim.accuracy:.2f}{top5}", f"{claim.flops:.1f}", parameters
            how = "—" if claim.epochs is None else f"{claim.schedule}, {claim.epochs} epochs"
            lines.append([name, "published", f"{lp.BASE.get(name, '—')}", "—", *sizes, how])
        for line, runs in ours.items():
            if line.network == name:
                cells = [mean(list(column)) for column in zip(*runs.values(), strict=True)]
                lines.append([name, f"ours, n = {len(runs)}: {line.told}", *cells, line.tuned])
    return f"## {TITLE}\n\n{NOTE}", lines


def _line(run: Result, pruning: Row) -> tuple[Line, list[str]]:
    """Where a pruning stands, and its cells; with its last fine-tuning."""
    group, variant = run.experiment
    network = PUBLISHED.get(group[:3], f"{group.network} on {group.dataset}")
    told = ", ".join(
        [
            *group.terms,
            *format_options(variant.options),
            run.config.precision,
            *pruning_flags(pruning),
        ]
    )
    refine = next(reversed(run.refined(pruning)), None)
    tuned = "—"
    if refine:
        tuned = ", ".join([*refine.experiment[0].terms, refine.config.precision])
    accuracy = refine.row["test_accuracy"] if refine else ""
    cells = [pruning[name] if name else accuracy for name in SHOWN]
    cells = [f"{float(cell):.2f}" if cell else "" for cell in cells]
    return Line(network, told, tuned), cells
