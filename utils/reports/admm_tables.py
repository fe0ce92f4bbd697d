"""Tables of Lp network slimming and of SAS-ADMM: the published rows, and this program's runs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.files.paths import run_name_of
from utils.methods import METHODS
from utils.paper import admm
from utils.reports.results import ExperimentKey, Result, pruning_flags
from utils.reports.text import DASH, Table, mean_and_spread

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
Runs = dict[tuple[str, str, str], dict[int, list[str]]]  # cells by names of a line and by seed


def lp_table(results: Iterable[Result]) -> Table:
    """All prunings of Lp-ADMM runs, below the published rows of their network."""
    networks = {key: name for name, key in admm.LP_NETWORKS.items()}
    ours: Runs = defaultdict(dict)
    for run in results:
        for pruning in run.prunings if run.config.method == admm.LP else ():
            key, variant = run.experiment
            settings = ", ".join([*key.terms, variant.settings, pruning_flags(pruning)])
            latest = next(reversed(run.finetunings_of(pruning)), None)
            terms = [*latest.experiment[0].terms, latest.config.precision] if latest else [DASH]
            ours[networks.get(key[:3], key.task), settings, ", ".join(terms)][run.config.seed] = [
                pruning["accuracy_before"],
                pruning["accuracy_slim"],
                latest.row["test_accuracy"] if latest else "",
                pruning["paper_flops_pruned_percent"],
                pruning["paper_parameters_pruned_percent"],
            ]
    lines = []
    for name, claims in admm.LP_CLAIMS.items():
        for claim in claims:
            top5 = "" if claim.top5 is None else f" ({claim.top5:.2f})"
            parameters = DASH if claim.parameters is None else f"{claim.parameters:.1f}"
            cells = [f"{claim.accuracy:.2f}{top5}", f"{claim.flops:.1f}", parameters]
            tuning = DASH if claim.epochs is None else f"{claim.schedule}, {claim.epochs} epochs"
            before = f"{admm.LP_BASE.get(name, DASH)}"
            lines.append([name, "published", before, DASH, *cells, tuning])
    for (name, settings, tuning), seeds in ours.items():
        lines.append([name, f"ours, n = {len(seeds)}: {settings}", *_means(seeds), tuning])
    order = [line[0] for line in lines]
    lines.sort(key=lambda line: order.index(line[0]))
    return Table("Lp slimming", [LP_COLUMNS, *lines], [LP_NOTE], bool(ours))


def sas_table(results: Iterable[Result], finetunings: Iterable[Result]) -> Table:
    """The runs whose weights were pruned with --prune-ratio and retrained."""
    trained = {result.row["run"]: result for result in results}
    ours: Runs = defaultdict(dict)
    for run in finetunings:
        if run.config.prune_ratio is not None and run.row.get("compression"):
            start = trained.get(run_name_of(Path(run.config.refine or "")))
            row = run.row | {"before": start.row["test_accuracy"] if start else ""}
            names = run.experiment[0].task, _describe(start) if start else "another run"
            cells = [row.get(column, "") for column in SAS_COLUMNS.values()]
            ours[*names, _describe(run)][run.config.seed] = cells
    lines = [["Network", "Trained by", "Retrained by", "n", *SAS_COLUMNS]]
    for published, factor in admm.SAS_PUBLISHED.items():
        name, blank = ExperimentKey(*published).network, [""] * (len(SAS_COLUMNS) - 2)
        lines.append([name, "SAS-ADMM", "the paper's", "", "", f"{factor:.2f}", *blank])
    lines += [[*names, str(len(seeds)), *_means(seeds)] for names, seeds in ours.items()]
    return Table("Weight pruning by SAS-ADMM", lines, [SAS_NOTE], bool(ours))


def _describe(run: Result) -> str:
    key, variant = run.experiment
    return ", ".join([METHODS[variant.method].title, *key.terms, variant.settings])


def _means(seeds: Mapping[int, list[str]]) -> list[str]:
    """Mean ± standard deviation of every column of cells; whole numbers that agree as they are."""
    means = []
    for column in zip(*seeds.values(), strict=True):
        whole = len({*column}) == 1 and column[0].isdecimal()
        means.append(column[0] if whole else mean_and_spread([float(c) for c in column if c]))
    return means
