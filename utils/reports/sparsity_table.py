"""Networks whose weights were cut and retrained, beside what the SAS-ADMM paper claims."""

import statistics
from collections.abc import Mapping
from pathlib import Path

from utils.files import paths
from utils.methods import METHODS
from utils.paper.sas_admm import PUBLISHED
from utils.reports import results
from utils.reports.results import ExperimentKey, MethodVariant, Result, Training, format_options

COLUMNS = {
    "Weights left": "weights_kept",
    "Times fewer": "compression",
    "Of all parameters": "compression_all",
    "Bytes, dense": "bytes",
    "sparse": "bytes_sparse",
    "Test Accuracy (%) Before Cutting": "before",
    "Cut": "accuracy_cut",
    "Retrained": "test_accuracy",
}
HEADINGS = ("Network", "Trained by", "Retrained by", "n")
NOTE = (
    "The paper's factor counts the weights of convolutions and linear layers. It gives no accuracy."
    " Here accuracies are of the last epoch, not the best one."
)


def table(folder: Path, trained: list[Result]) -> tuple[str, list[list[str]]]:
    """Title and note, and lines: the retrainings in the record, seeds together, by network."""
    before = {result.row["run"]: result for result in trained}
    # By seed; of repetitions the last.
    groups: dict[tuple[str, ExperimentKey, MethodVariant], dict[int, Mapping[str, str]]] = {}
    for found in results.trainings(folder / paths.REFINED):
        if found.config.prune_ratio is None or not found.row.get("compression"):
            continue
        start = before.get(paths.run_name_of(Path(found.config.refine or "")))
        row = {**found.row, "before": start.row["test_accuracy"] if start else ""}
        group, variant = found.experiment
        key = told_of(start), group, variant._replace(precision=found.config.precision)
        groups.setdefault(key, {})[found.config.seed] = row
    lines = [[*HEADINGS, *COLUMNS]]
    for network, factor in PUBLISHED.items():
        name = ExperimentKey(*network, ()).network
        blank = [""] * (len(COLUMNS) - 2)
        lines.append([name, "SAS-ADMM", "the paper's", "", "", f"{factor:.2f}", *blank])
    for (start_by, group, variant), rows in groups.items():
        options = " ".join([*format_options(variant.options), *group.terms, variant.precision])
        retrained = f"{METHODS[variant.method].title}, {options}"
        where = f"{group.network} on {group.dataset}"
        cells = [
            mean([row.get(column, "") for row in rows.values()]) for column in COLUMNS.values()
        ]
        lines.append([where, start_by, retrained, str(len(rows)), *cells])
    return f"## Networks whose weights were cut\n\n{NOTE}\n", lines


def told_of(start: Training | None) -> str:
    """How a network was trained before it was cut."""
    if start is None:
        return "another run"
    group, variant = start.experiment
    options = [*format_options(variant.options), *group.terms, start.config.precision]
    return f"{METHODS[variant.method].title}, {' '.join(options)}"


def mean(cells: list[str]) -> str:
    """Mean ± standard deviation of what is a number; one number, or many that agree, as it is."""
    if len(set(cells)) == 1:
        return cells[0] or "—"
    values = [float(cell) for cell in cells if cell]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"
