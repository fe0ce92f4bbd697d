"""The experiments behind the paper's tables, and the command that carries them out.

    python -m utils.experiments.recipes table2a --seeds 1 2 3

trains, prunes and fine-tunes what that table still lacks. ``--dry-run`` only says what that is.
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from utils import arguments, console, launch
from utils.atomic import check_writable
from utils.console import InputError
from utils.data.datasets import load
from utils.device import fastest_precision, mps_runs, pick_device
from utils.experiments import jobs
from utils.experiments.jobs import UNKNOWN, Experiment, Job
from utils.experiments.plan import Plan, precision_in_use
from utils.files.paths import DEFAULT_FOLDER
from utils.flags.config import CORE_FLAGS, Config
from utils.methods import METHODS
from utils.methods.slimming import shrinkage
from utils.network import fresh
from utils.paper import lp, sas_admm
from utils.paper.published import NETWORKS, TABLES
from utils.paper.settings import RETRAINING, SAS, Recipe, recipe, schedule
from utils.reports.listing import listing
from utils.reports.results import paper_config
from utils.shell import format_command, path_argument

# What `small` is: Table 2 for a CPU, on some of CIFAR-10's pictures. Original slimming has its own
# paper's λ, as in Table 2: ten times that makes half of the VGG-11's factors next to nothing in so
# short a training too, and a share of 41 % is then cut without loss.
SMALL_DATA: dict[str, Any] = {"dataset": "cifar10", "epochs": 20}
SMALL_DATA |= {"subset": 10000, "test_subset": 2000}
SMALL = {("vgg", 11): {"s": 0.015, "beta": 10.0}, ("resnet", 20): {"s": 0.018, "beta": 10.0}}
# What `small-basic` is: other methods and penalties on the same pictures, cut where ℓ1's run was.
# tl1 and mcp have the λ with which they draw a γ of 0.47 to zero in as many steps as ℓ1: ∫dξ/φ'(ξ)
# is 0.77 and 1.35 times 0.47. SAS-ADMM's ten iterations see as many pictures as 23 epochs.
BASIC = {**SMALL_DATA, "arch": "resnet-basic", "depth": 20}
BASIC_L1: dict[str, Any] = {"method": "proximal", "s": 0.035, "beta": 10.0}
BASIC_OTHERS: tuple[dict[str, Any], ...] = (
    {**BASIC_L1, "penalty": "tl1", "s": 0.027},
    {**BASIC_L1, "penalty": "mcp", "s": 0.047},
    {"method": "subgradient"},
    {"method": "lp-admm", "s": 0.012, "rho": 0.05},
)
BASIC_SAS, BASIC_RATIO = 10, 0.85
# What `quickstart` is: proximal slimming of a VGG-11 on the built-in pictures. Its one epoch of
# fine-tuning is at the training's last learning rate: at the first one it would end below where it
# began.
QUICKSTART = {"arch": "vgg", "depth": 11, "dataset": "shapes", "epochs": 5, "batch_size": 32}
QUICKSTART |= {"method": "proximal", "s": 0.085, "beta": 80.0}
# One network by proximal slimming, as script.sh calls it.
ALONE_NAMES = ("vgg", "densenet", "resnet110", "resnet164")
ALONE = {
    f"{name}-{dataset}": {"arch": arch, "depth": depth, "dataset": dataset}
    for name, (arch, depth) in zip(ALONE_NAMES, NETWORKS.values(), strict=True)
    for dataset in ("cifar10", "cifar100")
}
PARTS = (*TABLES, "small", "small-basic", "quickstart", *ALONE, *sas_admm.RECIPES, *lp.RECIPES)
MPS = """\
runs on one GPU take turns unless NVIDIA's MPS shares it. To start it before, and end it after them:
    nvidia-cuda-mps-control -d
    echo quit | nvidia-cuda-mps-control"""


def experiments(part: str, scale: int | None = None) -> list[Experiment]:
    """What ``part``, one of PARTS, consists of; in ``scale`` epochs instead of 160.

    Raises InputError where it cannot be scaled.
    """
    if part in ("small", "small-basic", "quickstart") and scale is not None:
        raise InputError(f"{part} has few epochs already: leave out --scale")
    if part == "quickstart":
        return [
            replace(_stages(Config.from_dict(QUICKSTART)), refine_epochs=1, tuning={"lr": 1e-3})
        ]
    if part == "small":
        return [
            _stages(Config.from_dict({**SMALL_DATA, "arch": arch, "depth": depth, **told}))
            for (arch, depth), proximal in SMALL.items()
            for told in ({}, {"method": "proximal", **proximal}, {"method": "subgradient"})
        ]
    if part == "small-basic":
        epochs = SMALL_DATA["epochs"]
        plain = Experiment(Config.from_dict(BASIC), False, epochs, prune_ratio=BASIC_RATIO)
        l1 = _stages(Config.from_dict(BASIC | BASIC_L1))
        others = [
            replace(
                _stages(Config.from_dict(BASIC | told)), share=None, kind=told.get("penalty", "")
            )
            for told in BASIC_OTHERS
        ]
        cut = replace(_sas_admm(BASIC, BASIC_RATIO, {}, BASIC_SAS), refine_epochs=epochs, label="")
        return [plain, l1, *others, cut]
    if part in sas_admm.RECIPES:
        return [_sas_admm(*sas_admm.RECIPES[part], scale)]
    if part in ALONE:
        return [_of_paper(Config.from_dict(ALONE[part] | {"method": "proximal"}), None, scale)]
    if part in lp.RECIPES:
        return [_of_lp(*lp.RECIPES[part], scale)]
    table = TABLES[part]
    found = [
        _of_paper(settings, table.share(row), scale)
        for row in table.rows
        for dataset in dict.fromkeys(column.dataset for column in table.columns)
        if (settings := paper_config(table, row, dataset))
    ]
    # Table 1 counts zeros at the end of training.
    return [replace(e, prunes=False, refine_epochs=0) for e in found] if part == "table1" else found


def _of_paper(settings: Config, share: float | None, scale: int | None) -> Experiment:
    """A row of Table 2. ``share`` is what original network slimming prunes, in percent."""
    if scale is None:
        return _stages(settings, share)
    options = dict(settings.options)
    if settings.method == "proximal":
        options["s"] = scaled(recipe(settings.arch, settings.depth), scale)
    short = _stages(replace(settings, epochs=scale, options=options))
    return replace(short, label=f"_{scale}epochs")


def _of_lp(network: str, claim: lp.Claim, scale: int | None) -> Experiment:
    """Lp slimming from scratch, pruned to the FLOPs of a published row and fine-tuned as that was.

    Scaled, it keeps its λ: what is pruned is chosen, and a larger one would leave γ far from z.
    """
    arch, depth, dataset = lp.NETWORKS[network]
    known = {"arch": arch, "depth": depth, "dataset": dataset, "method": lp.METHOD}
    epochs = claim.epochs or lp.EPOCHS
    tuning = lp.TUNING | {"schedule": claim.schedule or lp.SCHEDULE}
    settings = Config.from_dict(known | lp.TRAINING.get(network, {}))
    full = Experiment(settings, True, epochs, None, target=claim.flops, tuning=tuning)
    if scale is None:
        return full
    short = replace(full.config, epochs=scale)
    tuning |= {"warmup": tuning["warmup"] * scale // epochs}
    return replace(full, config=short, refine_epochs=scale, label=f"_{scale}epochs", tuning=tuning)


def _sas_admm(
    network: Mapping[str, Any], ratio: float, tuning: Mapping[str, Any], scale: int | None
) -> Experiment:
    """SAS-ADMM, its cut and the retraining by SGD; ``scale``: outer iterations, and epochs after.

    In a shorter run the inner loop grows, and averaging begins, at the same part of it.
    """
    known = {**network, "method": "sas-admm"}
    epochs = {**RETRAINING, **tuning}["epochs"]
    whole = Experiment(Config.from_dict(known), False, epochs, prune_ratio=ratio, tuning=tuning)
    if scale is None:
        return whole
    moments = {"growth_from": SAS.k0, "average_from": SAS.average_from}
    shorter = {name: max(1, round(at * scale / SAS.outer)) for name, at in moments.items()}
    if "inner" in network:  # an inner loop that is the network's own gets shorter, too
        shorter["inner"] = max(1, network["inner"] * scale // SAS.outer)
    settings = Config.from_dict(known | shorter | {"outer": scale})
    return replace(whole, config=settings, refine_epochs=scale, label=f"_{scale}iterations")


def scaled(full: Recipe, epochs: int) -> float:
    """λ of proximal slimming for fewer epochs: raised to shrink as much in total.

    Not the paper's problem, only its shape: which channels survive depends on λ itself.
    Original slimming keeps its λ: it has no zeros to reach, its share is pruned in any case.
    """
    total = shrinkage(full.lambda_, full.beta, schedule())
    return float(f"{total / shrinkage(1, full.beta, schedule(epochs)):.3g}")


def _stages(settings: Config, share: float | None = None) -> Experiment:
    """A training; pruning, and fine-tuning as long, unless it is a baseline."""
    slims = METHODS[settings.method].prunes()
    share = 0.0 if settings.method == "proximal" else share
    return Experiment(settings, slims, settings.epochs * slims, share)


def parser() -> argparse.ArgumentParser:
    p = arguments.Parser(
        prog="python -m utils.experiments.recipes",
        description="Train, prune and fine-tune what the paper's tables still lack.",
    )
    p.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    seeds: dict[str, Any] = {"nargs": "+", "type": arguments.seed, "default": [1], "metavar": "N"}
    p.add_argument("--seeds", **seeds, help="default 1")
    scale = "so many epochs instead of 160, with λ raised to shrink as much in total"
    p.add_argument("--scale", type=arguments.epochs, metavar="EPOCHS", help=scale)
    p.add_argument(
        "--save", default=DEFAULT_FOLDER, metavar="DIR", help="where all files go (logs)"
    )
    p.add_argument("--data", metavar="DIR", help="where the data set is, as for main.py")
    precisions = CORE_FLAGS["precision"].choices
    said = "as for main.py; auto (default) is measured once, for all runs"
    p.add_argument("--precision", choices=precisions, default="auto", help=said)
    said = "runs at a time on each GPU (default 1; more pay where NVIDIA's MPS runs)"
    p.add_argument("--per-gpu", type=arguments.positive_int, default=1, metavar="N", help=said)
    p.add_argument("--no-cuda", action="store_true", help="on the CPU")
    p.add_argument("--dry-run", action="store_true", help="show what is left, as commands")
    return p


def measured(settings: Config, no_cuda: bool) -> str:
    """In which precision the network of ``settings`` trains fastest here."""
    device, count, size = pick_device(no_cuda), settings.batch_size, settings.size
    network = fresh(settings.arch, settings.depth, 10, size)
    images = torch.randn(count, 3, size, size, device=device)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    graphs = device.type == "cuda" and not settings.stream
    return fastest_precision(network, images, labels, device, graphs)


def shown(job: Job) -> str:
    """Its command; as a comment while it is not known how much it prunes."""
    words = job.argv()
    return f"{'# ' if UNKNOWN in words else ''}{format_command(*words)}"


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    chosen: dict[str, Experiment] = {}
    for experiment in (e for part in args.parts for e in experiments(part, args.scale)):
        experiment = experiment.replace(data=args.data)
        if experiment.prunes or experiment.run(0) not in chosen:  # Table 1 asks for less than 2
            chosen[experiment.run(0)] = experiment
    folder, seeds = Path(args.save), dict.fromkeys(args.seeds)
    check_writable(folder)
    precision = args.precision
    if precision == "auto":  # decided once: a measurement flips, and a run goes on as it began
        precision = precision_in_use(chosen.values(), seeds, folder) or precision
    planned = [experiment.replace(precision=precision) for experiment in chosen.values()]
    flags, gpus = (["--no-cuda"], []) if args.no_cuda else ([], launch.visible_gpus())
    agenda = Plan(planned, seeds, folder, flags)
    if args.per_gpu > 1 and not gpus:
        raise InputError("--per-gpu is for GPUs, and there is none: leave it out")
    print(agenda.overview(len(gpus), args.per_gpu), flush=True)
    if args.per_gpu > 1 and not mps_runs():
        print(MPS, flush=True)
    if args.dry_run:
        print("\n".join(map(shown, agenda.jobs)))
        return
    used = ("dataset", "data", "size", "stream", "subset", "test_subset")
    for pictures in {itemgetter(*used)(j.experiment.config.to_dict()) for j in agenda.jobs}:
        # Refused here if it is of no use, and downloaded once before several processes would.
        if pictures[:2] != ("shapes", None):
            load(dict(zip(used, pictures, strict=True)))
    left = agenda.jobs
    if left and precision == "auto":
        precision = measured(left[0].experiment.config, args.no_cuda)
        print(f"fastest here: {precision}", flush=True)
        left = [replace(j, experiment=j.experiment.replace(precision=precision)) for j in left]
    folder.mkdir(parents=True, exist_ok=True)
    done = jobs.run(left, gpus, args.per_gpu)
    print(listing(folder, [run for run, *_ in agenda.lines]))
    if not done:
        raise SystemExit(1)
    print(
        f"results: {format_command('-m', 'utils.reports.tables', '--save', path_argument(folder))}"
    )


if __name__ == "__main__":
    sys.exit(console.run(main))
