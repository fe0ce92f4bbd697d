"""Methods side by side: the same share of the FLOPs, the same images, the same seeds.

    python -m utils.experiments.compare --seeds 1 2 3

trains, prunes and fine-tunes what the comparison lacks, and writes a line of raw results for each
network, method, share and seed as soon as it is known, a table and a figure.
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models import ARCHITECTURES, display_name, pruner
from utils import arguments, console
from utils.console import InputError, missing_packages, note, require_packages
from utils.engines import ENGINES, milliseconds, prepare
from utils.experiments import recipes
from utils.experiments.jobs import Experiment, Plan
from utils.experiments.torch_pruning import PACKAGE, PRUNERS
from utils.files import checkpoint, records
from utils.files.paths import RunPaths
from utils.files.records import Row
from utils.flags.config import Config
from utils.paper.settings import EPOCHS, recipe
from utils.reports import comparison
from utils.reports.comparison import KEY
from utils.reports.results import experiment_of

IMAGES = 50_000  # of CIFAR-10 for training
BATCH, ENGINE = 64, "onnxruntime"
LAMBDAS = {**recipes.SMALL, ("resnet-basic", 20): recipes.BASIC_L1}
SMALL_NETWORKS = [f"{arch}-{depth}" for arch, depth in LAMBDAS]
TORCH_PRUNING = ("-m", "utils.experiments.torch_pruning")
Runs = dict[tuple[str, str, int], Experiment]  # by network, method and share


def network(text: str) -> tuple[str, int]:
    """Parses ARCH-DEPTH."""
    arch, _, depth = text.rpartition("-")
    if arch not in ARCHITECTURES or not depth.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not ARCH-DEPTH, as vgg-11")
    return arch, int(depth)


def percent(text: str) -> int:
    """Parses a share of the FLOPs in percent."""
    if (number := arguments.positive_int(text)) > 99:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage below 100")
    return number


def experiments(arch: str, depth: int, shares: list[int], scale: int | None) -> Runs:
    """Returns the experiments for a network, the baseline with share 0.

    ``scale``: epochs of all images; by default those of the recipe `small`.

    Raises InputError: `small` has no λ for the network, or there is none of this depth.
    """
    net = {"arch": arch, "depth": depth}
    if scale is not None:
        base, full = {"dataset": "cifar10", "epochs": scale, **net}, recipe(arch, depth)
        strength = {"s": recipes.scaled(full, scale), "beta": full.beta}
    elif (arch, depth) in LAMBDAS:
        base = recipes.SMALL_DATA | net
        strength = {name: LAMBDAS[arch, depth][name] for name in ("s", "beta")}
    else:
        few = ", ".join(SMALL_NETWORKS)
        raise InputError(f"--networks {arch}-{depth} needs --scale; without it: {few}")
    label = "" if scale in (None, EPOCHS) else f"_{scale}epochs"
    runs: Runs = {}

    def add(method: str, share: int, settings: dict[str, Any], **more: Any) -> None:
        config = Config.from_dict(base | settings)
        more |= {"label": label, "target": share or None}
        e = Experiment(config, bool(share), config.epochs if share else 0, **more)
        runs[display_name(arch, depth), method, share] = e

    add(comparison.BASELINE, 0, {})
    proximal = {"method": "proximal"}
    for share in shares:
        at_random = (*pruner(arch), "--criterion", "random")
        add("Random channels", share, {}, variant=f"random-{share}", program=at_random)
        for name in PRUNERS:
            program = (*TORCH_PRUNING, "--pruner", name)
            add(f"Torch-Pruning, {name}", share, {}, variant=f"{name}-{share}", program=program)
        add("Original NS", share, {"method": "subgradient"}, variant=str(share))
        add("Proximal NS, λ", share, proximal | strength, variant=str(share))
        budget = proximal | {"budget_flops": share / 100}
        add("Proximal NS, budget", share, budget, kind=f"budget-{share}")
    return runs


def key_of(name: tuple[str, str, int], e: Experiment, seed: int) -> Row:
    """Returns the columns that identify a line."""
    key, _ = experiment_of(e.config)
    settings = ", ".join([*key.terms, e.config.precision])
    values = name[0], key.dataset, settings, name[1], name[2], seed
    return dict(zip(KEY, map(str, values), strict=True))


def rows(runs: Runs, seeds: list[int], folder: Path) -> Iterator[tuple[Row, list[Path]]]:
    """Yields a line for each recorded run, with the files of the full and the pruned model."""
    plan = Plan([], folder)
    for seed, (name, e) in itertools.product(seeds, runs.items()):
        files = RunPaths(folder, e.run(seed))
        result, pruning, tuned = plan.recorded(e, seed)
        if result is None or (e.prunes and pruning is None):
            continue
        row = key_of(name, e, seed) | dict.fromkeys(comparison.COLUMNS, "")
        images = 3 * (e.config.subset or IMAGES) / 1e15  # backward costs twice the forward
        for column, training in (("train", result), ("finetune", tuned)):
            log = RunPaths(folder, training.row["run"]).log if training else None
            flops = [float(epoch["flops"]) for epoch in records.read(log)] if log else []
            row[f"{column}_pflops"] = f"{images * sum(flops):.4g}" if flops else ""
        row["accuracy_before"] = result.row["test_accuracy"]
        if pruning is not None:
            full, left = float(pruning["flops"]), float(pruning["flops_kept"])
            left -= float(pruning.get("unread_flops") or 0)
            row["flops_pruned_percent"] = f"{100 * (1 - left / full):.2f}"
            row["accuracy_before"] = pruning["accuracy_before"]
            row["accuracy_pruned"] = pruning["accuracy_slim"]
            row["accuracy_finetuned"] = tuned.row["test_accuracy"] if tuned else ""
        row["images"] = result.row.get("pictures") or ""
        row |= {column: result.row.get(column) or "" for column in ("torch", "commit")}
        yield row, [files.checkpoint, *([e.pruned(files)] if e.prunes else [])]


def update(runs: Runs, seeds: list[int], folder: Path, csv: Path) -> None:
    """Writes the recorded results that ``csv`` lacks; its complete lines stay as they are."""
    old = {comparison.key(row): row for row in comparison.read(csv)}
    complete = comparison.complete(old.values())
    for row, paths in rows(runs, seeds, folder):
        key = comparison.key(row)
        line = old.get(key, {})
        if key not in complete and any(row[name] and not line.get(name) for name in row):
            times = {name: line.get(name, "") for name in comparison.TIMES}
            models = ("accuracy_before", "accuracy_pruned")  # those of another machine differ
            same = all(line.get(name) == row[name] for name in models)
            if not same and not missing_packages(ENGINES[ENGINE]):
                times = dict(zip(comparison.TIMES, measure(paths), strict=True))
            records.append(csv, row | times, KEY)


def measure(paths: list[Path]) -> tuple[str, str]:
    """Returns the milliseconds of the first and of the last model, measured in turn."""
    images, models = torch.randn(BATCH, 3, 32, 32), (paths[0], paths[-1])
    if not all(path.exists() for path in models):
        return "", ""
    calls = [prepare(ENGINE, checkpoint.load(path).network.model, images) for path in models]
    full, pruned = milliseconds(calls, images.device)
    return f"{full:.4g}", f"{pruned:.4g}"


def parser() -> argparse.ArgumentParser:
    text = "Compare pruning methods at equal FLOPs, on the same images and seeds."
    p = console.Parser(prog="python -m utils.experiments.compare", description=text)
    add, default = p.add_argument, [("vgg", 11), ("resnet-basic", 20)]
    small = (
        f"networks (default vgg-11 resnet-basic-20; without --scale: {', '.join(SMALL_NETWORKS)})"
    )
    add("--networks", nargs="+", type=network, default=default, metavar="ARCH-DEPTH", help=small)
    text = "percent of the FLOPs to remove (default 30 50 70)"
    add("--shares", nargs="+", type=percent, default=[30, 50, 70], metavar="P", help=text)
    text = (
        "raw results, beside which table and figure are written (default DIR/compare.csv); runs of"
        " complete lines are not repeated"
    )
    add("--csv", type=Path, metavar="FILE", help=text)
    add("--report", action="store_true", help="write table and figure only")
    text = "epochs of all images, 160 as in the paper (default: 20 of 10,000, and a larger λ)"
    recipes.add_flags(p, text)
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    folder, seeds = Path(args.save), list(dict.fromkeys(args.seeds))
    csv = args.csv or folder / "compare.csv"
    runs: Runs = {}
    for arch, depth in args.networks:
        for name, e in experiments(arch, depth, args.shares, args.scale).items():
            runs[name] = recipes.with_flags(e, args)
    done: bool | None = True
    if not args.report:
        complete = comparison.complete(comparison.read(csv))
        every = [(e, seed, key_of(name, e, seed)) for seed in seeds for name, e in runs.items()]
        lacking = [(e, s) for e, s, row in every if comparison.key(row) not in complete]
        if kept := len(every) - len(lacking):
            note(f"{csv} has {kept} of {len(every)} results already: they are not repeated")
        if not args.dry_run and any(e.program[:2] == TORCH_PRUNING for e, _ in lacking):
            require_packages("the comparison", PACKAGE)
        torch.set_num_threads(1)  # of the measurements
        if folder.is_dir() and not args.dry_run:
            update(runs, seeds, folder, csv)
        done = recipes.run(lacking, args, lambda: update(runs, seeds, folder, csv))
    if done is not None:
        comparison.write(csv)
    if done is False:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(console.run(main))
