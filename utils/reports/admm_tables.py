"""Tables of Lp network slimming and of SAS-ADMM: the published rows, and this program's runs."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from utils.files.paths import run_name_of
from utils.files.records import Row
from utils.methods import METHODS
from utils.paper import lp, sas_admm
from utils.reports.results import ExperimentKey, Result, Training, pruning_flags
from utils.reports.text import Table, mean_and_spread

LP_NOTE = """\
Published runs started from a trained model; its accuracy is given before pruning where published.
VGG-16, ResNet-56 and ResNet-110 are for CIFAR-10, ResNet-50 for ImageNet (top-5 in brackets).
Ours: mean ± standard deviation over n seeds, FLOPs and parameters in the paper's accounting."""
LP_COLUMNS = [
    "Network", "Run", "Before Pruning (%)", "Post Pruned", "Fine Tuned", "% FLOPs Pruned",
    "% Param. Pruned", "Fine-tuning",
]  # fmt: skip
SAS_NOTE = """\
The published factor counts the weights of convolutions and linear layers; no accuracy is published.
Accuracies here are those of the last epoch, not of the best one."""
SAS_COLUMNS = {
    "Weights Kept": "weights_kept",
    "Compression Factor": "compression",
    "of All Parameters": "compression_all",
    "Dense Bytes": "bytes",
    "Sparse Bytes": "bytes_sparse",
    "Test Accuracy (%) Before Pruning": "before",
    "Post Pruned": "accuracy_cut",
    "Retrained": "test_accuracy",
}


def lp_table(results: Iterable[Result]) -> Table:
    """All prunings of Lp-ADMM runs, below the published rows of their network."""
    names = {key: name for name, key in lp.NETWORKS.items()}
    ours: dict[tuple[str, str, str], dict[int, list[str]]] = defaultdict(dict)  # cells by seed
    for run in results:
        for pruning in run.prunings if run.config.method == lp.METHOD else ():
            key, variant = run.experiment
            settings = ", ".join([*key.terms, variant.settings, pruning_flags(pruning)])
            latest = next(reversed(run.finetunings_of(pruning)), None)
            terms = [*latest.experiment[0].terms, latest.config.precision] if latest else ["—"]
            network = names.get(key[:3], f"{key.network} on {key.dataset}")
            ours[network, settings, ", ".join(terms)][run.config.seed] = [
                pruning["accuracy_before"],
                pruning["accuracy_slim"],
                latest.row["test_accuracy"] if latest else "",
                pruning["paper_flops_pruned_percent"],
                pruning["paper_parameters_pruned_percent"],
            ]
    lines = [LP_COLUMNS]
    for name in dict.fromkeys([*lp.NETWORKS, *(network for network, *_ in ours)]):
        for claim in lp.CLAIMS.get(name, ()):
            top5 = "" if claim.top5 is None else f" ({claim.top5:.2f})"
            parameters = "—" if claim.parameters is None else f"{claim.parameters:.1f}"
            cells = [f"{claim.accuracy:.2f}{top5}", f"{claim.flops:.1f}", parameters]
            tuning = "—" if claim.epochs is None else f"{claim.schedule}, {claim.epochs} epochs"
            lines.append([name, "published", f"{lp.BASE.get(name, '—')}", "—", *cells, tuning])
        for (network, settings, finetuning), seeds in ours.items():
            if network == name:
                run_text = f"ours, n = {len(seeds)}: {settings}"
                lines.append([name, run_text, *_means(seeds.values()), finetuning])
    return Table("Lp slimming", lines, [LP_NOTE], bool(ours))


def sas_table(results: Iterable[Result], finetunings: Iterable[Training]) -> Table:
    """The runs whose weights were pruned with --prune-ratio and retrained."""
    trained = {result.row["run"]: result for result in results}
    ours: dict[tuple[str, str, str], dict[int, Row]] = defaultdict(dict)  # by seed
    for run in finetunings:
        if run.config.prune_ratio is None or not run.row.get("compression"):
            continue
        start = trained.get(run_name_of(Path(run.config.refine or "")))
        key = run.experiment[0]
        network = f"{key.network} on {key.dataset}"
        row = {**run.row, "before": start.row["test_accuracy"] if start else ""}
        trained_by = _describe(start) if start else "another run"
        ours[network, trained_by, _describe(run)][run.config.seed] = row
    lines = [["Network", "Trained by", "Retrained by", "n", *SAS_COLUMNS]]
    for published, factor in sas_admm.PUBLISHED.items():
        name, blank = ExperimentKey(*published, ()).network, [""] * (len(SAS_COLUMNS) - 2)
        lines.append([name, "SAS-ADMM", "the paper's", "", "", f"{factor:.2f}", *blank])
    for names, seeds in ours.items():
        rows = [[row.get(column, "") for column in SAS_COLUMNS.values()] for row in seeds.values()]
        lines.append([*names, str(len(rows)), *_means(rows)])
    return Table("Weight pruning by SAS-ADMM", lines, [SAS_NOTE], bool(ours))


def _describe(run: Training) -> str:
    key, variant = run.experiment
    return ", ".join([METHODS[variant.method].title, *key.terms, variant.settings])


def _means(rows: Iterable[list[str]]) -> list[str]:
    """Mean ± standard deviation of every column of cells; whole numbers that agree as they are."""
    means = []
    for column in zip(*rows, strict=True):
        values = [float(cell) for cell in column if cell]
        whole = len({*column}) == 1 and "." not in column[0]
        means.append((column[0] if whole else mean_and_spread(values) if values else "") or "—")
    return means
