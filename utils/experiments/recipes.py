"""The experiments behind the paper's tables, and the command that carries them out.

    python -m utils.experiments.recipes table2a --seeds 1 2 3

trains, prunes and fine-tunes what that table still lacks. ``--dry-run`` only says what that is.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from utils import console
from utils.atomic import check_writable
from utils.console import InputError
from utils.data.datasets import load_dataset
from utils.experiments import jobs
from utils.experiments.jobs import Experiment
from utils.experiments.remaining import Agenda
from utils.flags import types
from utils.paper.published import NETWORKS, TABLES
from utils.paper.settings import EPOCHS, Recipe, recipe

# What `small` is: Table 2 for a CPU, on some of CIFAR-10's pictures. Original slimming has its own
# paper's λ, as in Table 2: ten times that makes half of the VGG-11's factors next to nothing in so
# short a training too, and a share of 41 % is then cut without loss.
SMALL_FLAGS, SMALL_EPOCHS = ("--subset 10000", "--test-subset 2000"), 20
SMALL = {
    ("vgg", 11): Recipe(lambda_=0.015, beta=10, subgradient_lambda=1e-4),
    ("resnet", 20): Recipe(lambda_=0.018, beta=10, subgradient_lambda=1e-5),
}
# What `quickstart` is: proximal slimming of a VGG-11 on the built-in pictures. Its one epoch of
# fine-tuning is at the last learning rate (both drops are at ⌊1/2⌋ and ⌊3/4⌋ = 0); two would begin
# at the first, and end below where they began.
QUICKSTART = Experiment(
    "vgg", 11, "shapes", ("proximal", 0.085, 80, "step"), 5, True, 1, flags=("--batch-size 32",)
)
# One network by proximal slimming, as script.sh calls it.
ALONE = {
    f"{name}-{dataset}": (network, dataset)
    for name, network in zip(("vgg", "densenet", "resnet110", "resnet164"), NETWORKS, strict=True)
    for dataset in ("cifar10", "cifar100")
}
PARTS = (*TABLES, "small", "quickstart", *ALONE)


def experiments(part: str, scale: int | None = None) -> list[Experiment]:
    """What ``part``, one of PARTS, consists of; in ``scale`` epochs instead of 160.

    Raises InputError where it cannot be scaled.
    """
    if part in ("small", "quickstart") and scale is not None:
        raise InputError(f"{part} has few epochs already: leave out --scale")
    if part == "quickstart":
        return [QUICKSTART]
    if part == "small":
        return [
            _stages(*network, "cifar10", method, settings, SMALL_EPOCHS, None,
                    flags=SMALL_FLAGS)
            for network, settings in SMALL.items()
            for method in ("baseline", "proximal", "subgradient")
        ]  # fmt: skip
    if part in ALONE:
        network, dataset = ALONE[part]
        return [_of_paper(network, dataset, "proximal", None, scale)]
    found = []
    for network, dataset, method, share in _rows(part):
        row = _of_paper(network, dataset, method, share, scale)
        # Table 1 counts zeros at the end of training.
        found.append(replace(row, prunes=False, refine_epochs=0) if part == "table1" else row)
    return found


def _rows(part: str) -> Iterator[tuple[str, str, str, float | None]]:
    """Network, data set, our method, and share of the channels pruned, of a table's rows."""
    table = TABLES[part]
    for row in table.rows:
        method = table.method(row)
        for dataset in dict.fromkeys(column.dataset for column in table.columns):
            if dataset and method:
                yield row[0], dataset, method, table.share(row)


def _of_paper(
    network: str, dataset: str, method: str, share: float | None, scale: int | None
) -> Experiment:
    """A row of Table 2. ``share`` is what original network slimming prunes, in percent."""
    settings = recipe(*NETWORKS[network])
    if scale is None:
        return _stages(*NETWORKS[network], dataset, method, settings, EPOCHS, share)
    settings = settings.scaled(scale)
    short = _stages(*NETWORKS[network], dataset, method, settings, scale, None)
    return replace(short, label=f"_{scale}epochs")


def _stages(
    arch: str, depth: int, dataset: str, method: str, settings: Recipe, epochs: int,
    share: float | None, flags: tuple[str, ...] = (),
) -> Experiment:  # fmt: skip
    """A training, and pruning and fine-tuning as long unless it is the baseline."""
    slims = method != "baseline"
    share = 0.0 if method == "proximal" else share
    return Experiment(
        arch, depth, dataset, settings.setting(method), epochs, slims, epochs * slims, share, flags
    )


def parser() -> argparse.ArgumentParser:
    p = types.Parser(
        prog="python -m utils.experiments.recipes",
        description="Train, prune and fine-tune what the paper's tables still lack.",
    )
    p.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    p.add_argument(
        "--seeds", nargs="+", type=types.seed, default=[1], metavar="N", help="default 1"
    )
    p.add_argument(
        "--scale",
        type=types.epochs,
        metavar="EPOCHS",
        help="so many epochs instead of 160, with λ raised to shrink as much in total",
    )
    p.add_argument("--save", default="logs", metavar="DIR", help="where all files go (logs)")
    p.add_argument("--data", metavar="DIR", help="where the data set is, as for main.py")
    p.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="as for main.py")
    p.add_argument("--no-cuda", action="store_true", help="on the CPU")
    p.add_argument("--dry-run", action="store_true", help="show what is left, as commands")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    chosen: dict[str, Experiment] = {}
    for experiment in (e for part in args.parts for e in experiments(part, args.scale)):
        same = chosen.setdefault(experiment.run(0), experiment)
        if experiment.prunes and not same.prunes:  # Table 1 asks for less than Table 2
            chosen[experiment.run(0)] = experiment
    folder = Path(args.save)
    check_writable(folder)
    flags = [] if args.data is None else ["--data", args.data]
    flags += ["--no-cuda"] if args.no_cuda else []
    precision = [] if args.precision is None else ["--precision", args.precision]
    agenda = Agenda(
        list(chosen.values()), dict.fromkeys(args.seeds), folder, [*flags, *precision], flags
    )
    gpus = [] if args.no_cuda else jobs.visible_gpus()
    print(agenda.overview(len(gpus)), flush=True)
    if args.dry_run:
        print("\n".join("python " + shlex.join(job.argv()) for job in agenda.jobs))
        return
    for dataset in sorted({job.experiment.dataset for job in agenda.jobs} - {"shapes"}):
        # Refused here if it is not there, and downloaded once before several processes would.
        load_dataset(dataset, None if args.data is None else Path(args.data))
    folder.mkdir(parents=True, exist_ok=True)
    if not jobs.run(agenda.jobs, gpus):
        raise SystemExit(1)
    print(f"results: python -m utils.reports.tables --save {shlex.quote(args.save)}")


if __name__ == "__main__":
    sys.exit(console.run(main))
