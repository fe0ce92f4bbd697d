"""The experiments behind the paper's tables, and the command that runs them.

    python -m utils.experiments.recipes table2a --seeds 1 2 3

trains, prunes and fine-tunes what that table lacks; --dry-run prints the commands only.
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from utils import arguments, console
from utils.console import InputError
from utils.data.datasets import load
from utils.device import PRECISIONS
from utils.experiments import scheduler
from utils.experiments.jobs import UNKNOWN, Experiment, Plan, Runs
from utils.files.locks import check_writable
from utils.files.paths import DEFAULT_FOLDER, RunPaths
from utils.flags.config import Config
from utils.methods import METHODS
from utils.methods.slimming import shrinkage
from utils.paper import admm
from utils.paper.published import NETWORKS, TABLES
from utils.paper.settings import RETRAINING, SAS, Recipe, recipe, schedule
from utils.reports import plots, style
from utils.reports.listing import listing
from utils.shell import format_command, path_argument

# `small`: Table 2 for a CPU, on a part of CIFAR-10. Original slimming has its own paper's λ, as in
# Table 2: with ten times that, half of VGG-11's factors get close to zero, and 41 % of the channels
# are pruned without loss.
SMALL_DATA = {"dataset": "cifar10", "epochs": 20, "subset": 10000, "test_subset": 2000}
SMALL = {("vgg", 11): {"s": 0.015, "beta": 10.0}, ("resnet", 20): {"s": 0.018, "beta": 10.0}}
# `small-basic`: other methods and penalties on the same images, pruned at ℓ1's share. tl1 and mcp
# have the λ that brings a γ of 0.47 to zero in as many steps as ℓ1: ∫dξ/φ'(ξ) is 0.77 and 1.35
# times 0.47. SAS-ADMM's ten iterations take as many images as 23 epochs.
BASIC: dict[str, Any] = {**SMALL_DATA, "arch": "resnet-basic", "depth": 20}
BASIC_L1: dict[str, Any] = {"method": "proximal", "s": 0.035, "beta": 10.0}
BASIC_OTHERS: tuple[dict[str, Any], ...] = (
    {**BASIC_L1, "penalty": "tl1", "s": 0.027},
    {**BASIC_L1, "penalty": "mcp", "s": 0.047},
    {"method": "subgradient"},
    {"method": "lp-admm", "s": 0.012, "rho": 0.05},
)
BASIC_SAS, BASIC_RATIO = 10, 0.85
# `quickstart`: proximal slimming with a budget on the built-in images. The epoch of fine-tuning has
# the training's last learning rate; at the first one the accuracy would fall.
QUICKSTART = {"arch": "resnet-basic", "depth": 20, "dataset": "shapes", "epochs": 5}
QUICKSTART |= {"batch_size": 32, "method": "proximal", "budget_flops": 0.5}
# One network by proximal slimming, by its name in script.sh and the data set.
SINGLE_NAMES = ("vgg", "densenet", "resnet110", "resnet164")
SINGLE = {
    f"{name}-{dataset}": {"arch": arch, "depth": depth, "dataset": dataset}
    for name, (arch, depth) in zip(SINGLE_NAMES, NETWORKS.values(), strict=True)
    for dataset in ("cifar10", "cifar100")
}
SHORT = ("small", "small-basic", "quickstart")
PARTS = (*TABLES, *SHORT, *SINGLE, *admm.SAS_RECIPES, *admm.LP_RECIPES)


def experiments(part: str, scale: int | None = None) -> list[Experiment]:
    """The experiments of ``part``, one of PARTS, in ``scale`` epochs instead of 160.

    Raises InputError: ``part`` cannot be scaled.
    """
    if part in SHORT and scale is not None:
        raise InputError(f"{part} has few epochs already: leave out --scale")
    if part == "quickstart":
        return [replace(_stages(QUICKSTART), refine_epochs=1, tuning={"lr": 1e-3})]
    if part == "small":
        return [
            _stages({**SMALL_DATA, "arch": arch, "depth": depth, **options})
            for (arch, depth), proximal in SMALL.items()
            for options in ({}, {"method": "proximal", **proximal}, {"method": "subgradient"})
        ]
    if part == "small-basic":
        retrained = {"prune_ratio": BASIC_RATIO, "refine_epochs": BASIC["epochs"], "label": ""}
        others = [
            replace(_stages(BASIC | options), share=None, kind=options.get("penalty", ""))
            for options in BASIC_OTHERS
        ]
        sas = replace(_sas_admm(BASIC, BASIC_RATIO, {}, BASIC_SAS), **retrained)
        return [replace(_stages(BASIC), **retrained), _stages(BASIC | BASIC_L1), *others, sas]
    if part in admm.SAS_RECIPES:
        return [_sas_admm(*admm.SAS_RECIPES[part], scale)]
    if part in admm.LP_RECIPES:
        return [_lp_admm(*admm.LP_RECIPES[part], scale)]
    if part in SINGLE:
        return [_paper(SINGLE[part] | {"method": "proximal"}, None, scale)]
    table, found = TABLES[part], []
    for row in table.rows:
        if method := table.method(row):
            arch, depth = NETWORKS[row[0]]
            network = {"arch": arch, "depth": depth, "method": method}
            for dataset in dict.fromkeys(column.dataset for column in table.columns[2:]):
                found.append(_paper(network | {"dataset": dataset}, table.share(row), scale))
    # Table 1 counts zeros at the end of training.
    return [replace(e, prunes=False, refine_epochs=0) for e in found] if part == "table1" else found


def _stages(settings: Mapping[str, Any], share: float | None = None, label: str = "") -> Experiment:
    """A training; for methods that prune, also pruning and fine-tuning for as many epochs."""
    config = Config.from_dict(settings)
    prunes = METHODS[config.method].prunes()
    share = 0.0 if config.method == "proximal" else share
    return Experiment(config, prunes, config.epochs * prunes, share, label)


def _paper(settings: Mapping[str, Any], share: float | None, scale: int | None) -> Experiment:
    """A row of Table 2. ``share``: percent of the channels that original slimming prunes."""
    if scale is None:
        return _stages(settings, share)
    shorter = {**settings, "epochs": scale}
    if settings["method"] == "proximal":
        shorter["s"] = scaled(recipe(settings["arch"], settings["depth"]), scale)
    return _stages(shorter, label=f"_{scale}epochs")


def scaled(full: Recipe, epochs: int) -> float:
    """λ of proximal slimming for fewer epochs, with the same total shrinkage.

    This is not the paper's problem: which channels survive depends on λ itself. Original slimming
    keeps its λ, because its share is pruned in any case.
    """
    total = shrinkage(full.lambda_, full.beta, schedule())
    return float(f"{total / shrinkage(1, full.beta, schedule(epochs)):.3g}")


def _lp_admm(network: str, claim: admm.Claim, scale: int | None) -> Experiment:
    """Lp slimming from scratch, pruned to the FLOPs of a published row and fine-tuned like it.

    A shorter run keeps its λ: the FLOPs are chosen, and with a larger λ γ would be far from z.
    """
    arch, depth, dataset = admm.LP_NETWORKS[network]
    settings = {"arch": arch, "depth": depth, "dataset": dataset, "method": admm.LP}
    settings |= admm.LP_TRAINING.get(network, {})
    epochs, label = claim.epochs or admm.LP_EPOCHS, ""
    tuning = admm.LP_TUNING | {"schedule": claim.schedule or admm.LP_SCHEDULE}
    if scale is not None:
        tuning["warmup"] = tuning["warmup"] * scale // epochs
        settings["epochs"], epochs, label = scale, scale, f"_{scale}epochs"
    config = Config.from_dict(settings)
    return Experiment(config, True, epochs, None, label, target=claim.flops, tuning=tuning)


def _sas_admm(
    network: Mapping[str, Any], ratio: float, tuning: Mapping[str, Any], scale: int | None
) -> Experiment:
    """SAS-ADMM, weight pruning at ``ratio``, and retraining by SGD.

    ``scale``: outer iterations, and epochs of retraining. In a shorter run the inner loop grows,
    and averaging starts, at the same fraction of it.
    """
    settings: dict[str, Any] = {**network, "method": "sas-admm"}
    epochs, label = {**RETRAINING, **tuning}["epochs"], ""
    if scale is not None:
        starts = {"growth_from": SAS.k0, "average_from": SAS.average_from}
        settings |= {name: max(1, round(at * scale / SAS.outer)) for name, at in starts.items()}
        if "inner" in network:
            settings["inner"] = max(1, network["inner"] * scale // SAS.outer)
        settings["outer"], epochs, label = scale, scale, f"_{scale}iterations"
    config = Config.from_dict(settings)
    return Experiment(config, False, epochs, label=label, prune_ratio=ratio, tuning=tuning)


def parser() -> argparse.ArgumentParser:
    text = "Train, prune and fine-tune what tables lack."
    p = console.Parser(prog="python -m utils.experiments.recipes", description=text)
    p.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    add_flags(p, "epochs instead of 160, with a larger λ for the same total shrinkage")
    return p


def add_flags(p: argparse.ArgumentParser, scale: str) -> None:
    """Adds the flags of all commands that run experiments; ``scale`` is a help text."""
    seeds: dict[str, Any] = {"nargs": "+", "type": arguments.seed, "default": [1], "metavar": "N"}
    p.add_argument("--seeds", **seeds, help="seeds of the runs (default 1)")
    p.add_argument("--scale", type=arguments.epochs, metavar="EPOCHS", help=scale)
    subset = "number of training and of test images, to rehearse (with another --save)"
    p.add_argument("--subset", type=arguments.positive_int, metavar="N", help=subset)
    folder = "folder of all files (default logs)"
    p.add_argument("--save", default=DEFAULT_FOLDER, metavar="DIR", help=folder)
    p.add_argument("--data", metavar="DIR", help="folder of the data set, as for main.py")
    precision = "precision of the trainings, as for main.py (default fp32)"
    p.add_argument("--precision", choices=PRECISIONS, default="fp32", help=precision)
    p.add_argument("--no-cuda", action="store_true", help="use the CPU")
    p.add_argument("--dry-run", action="store_true", help="print the missing commands only")


def with_flags(e: Experiment, args: argparse.Namespace) -> Experiment:
    """Returns the experiment with --data, --precision and --subset."""
    config = replace(e.config, data=args.data, precision=args.precision)
    if args.subset is not None:
        config = replace(config, subset=args.subset, test_subset=args.subset)
    return replace(e, config=config)


def run(
    runs: Runs, args: argparse.Namespace, finished: Callable[[], object] = lambda: None
) -> bool | None:
    """Runs what the experiments lack for their seeds, or with --dry-run prints the commands.

    ``finished`` is called after each job. Returns whether all succeeded, None with --dry-run.
    """
    folder = Path(args.save)
    check_writable(folder)
    flags, gpus = (["--no-cuda"], []) if args.no_cuda else ([], scheduler.visible_gpus())
    plan = Plan(runs, folder, flags)
    overview = plan.overview(len(gpus))
    if args.dry_run:
        for words in (job.argv() for job in plan.jobs):
            comment = "# " if UNKNOWN in words else ""  # until the share is known
            print(f"{comment}{format_command(*words)}")
        print(overview)
        return None
    print(overview, flush=True)
    names = ("dataset", "data", "size", "stream", "subset", "test_subset")
    for data in {itemgetter(*names)(job.experiment.config.to_dict()) for job in plan.jobs}:
        # Errors in the data are found here, and it is downloaded once, not by several processes.
        if data[:2] != ("shapes", None):
            load(dict(zip(names, data, strict=True)))
    folder.mkdir(parents=True, exist_ok=True)
    return scheduler.run(plan.jobs, gpus, finished)


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    chosen: dict[str, Experiment] = {}
    for part in args.parts:
        for e in (with_flags(e, args) for e in experiments(part, args.scale)):
            if e.prunes or e.run(0) not in chosen:  # a run of Table 1 may also be in Table 2
                chosen[e.run(0)] = e
    # Seed by seed, so that the first rows of a table are known early.
    runs = [(e, seed) for seed in dict.fromkeys(args.seeds) for e in chosen.values()]
    done, folder = run(runs, args), Path(args.save)
    if done is None:
        return
    print(listing(folder, [e.run(seed) for e, seed in runs]))
    if not done:
        raise SystemExit(1)
    first = runs[0][0].run(runs[0][1])
    drawn = "quickstart" in args.parts and RunPaths(folder, first).checkpoint.exists()
    if drawn and style.can_draw():
        plots.main(["--save", args.save, "--run", first])
    tables = format_command("-m", "utils.reports.tables", "--save", path_argument(folder))
    print(f"results: {tables}")


if __name__ == "__main__":
    sys.exit(console.run(main))
