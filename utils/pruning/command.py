"""The prune command: arguments, plan, tests, report, checkpoint, record."""

import argparse
import copy
import sys
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models import family
from netslim.surgery import Removal
from utils import arguments
from utils.atomic import check_writable
from utils.console import InputError, note
from utils.data.batches import Batches
from utils.data.datasets import DATASETS, load
from utils.data.streaming import test_batches
from utils.device import pick_device
from utils.files import checkpoint, records
from utils.files.init_from import config_from_checkpoint
from utils.files.legacy_formats import EARLIER, State, to_released, widened
from utils.files.paths import PRUNED, RunPaths, run_name_of
from utils.flags.config import FLAGS
from utils.flags.parser import RUNTIME_FLAGS, runtime_argv
from utils.methods.base import count_of, is_zero
from utils.network import Network, with_weights
from utils.pruning.plan import apply_plan, filter_sizes, plan
from utils.pruning.report import (
    accuracy,
    cost_of,
    differences,
    kinds,
    of_all,
    of_original,
    print_comparison,
    print_report,
    sizes,
    told_apart,
    unread,
)
from utils.shell import format_command, path_argument
from utils.training.classes import PerClass, class_counts

TARGETS = {"flops": "flops", "params": "parameters"}  # flags, and entries of a Cost


def parser(kind: str | None) -> argparse.ArgumentParser:
    # Defaults are suppressed: what is not given is what the checkpoint knows.
    p = arguments.Parser(
        prog=f"{kind}_prune.py" if kind else "python -m utils.prune",
        description=f"Cut the channels with zero scaling factors out of a {kind or 'network'}.",
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument("--model", required=True, metavar="CHECKPOINT", help="what to prune")
    other = "another that the checkpoint has, as xi: more, and not always for free"
    usual = "(default: what its method makes zero)"
    p.add_argument("--mask", default=None, help=f"prune where gamma is 0, or {other} {usual}")
    share, fraction = p.add_mutually_exclusive_group(), arguments.fraction
    smallest = "share of channels to prune, smallest |γ| first; zeros go in any case (default 0)"
    share.add_argument("--percent", "--ratio", type=fraction, default=0.0, help=smallest)
    for flag, what in TARGETS.items():
        text = f"share of the {what} to remove, from 0 to 1"
        share.add_argument(f"--target-{flag}", type=fraction, default=None, metavar="P", help=text)
    criteria = "what is small: |γ| (default), or the filters' ℓ1 norms, from 0 to 1 in every layer"
    choices = ("gamma", "filters")
    p.add_argument("--criterion", choices=choices, default="gamma", help=criteria)
    floor = "share of its channels that every layer keeps, whatever is zero or small (default 0)"
    p.add_argument("--adjust", type=fraction, default=0.0, metavar="A", help=floor)
    p.add_argument("--save", metavar="DIR", help="where to write (default: the folder of --model)")
    slim_name = "the slim checkpoint is NAMEpruned.pth.tar (default: the run and _)"
    p.add_argument("--name", type=arguments.file_name, help=slim_name)
    layouts = "of the slim checkpoint: kept channels only (default), or as earlier programs read it"
    names = ("compact", "released")
    p.add_argument("--layout", choices=names, default="compact", help=layouts)
    p.add_argument("--dataset", choices=DATASETS, help="default: the checkpoint's")
    p.add_argument("--data", metavar="DIR", help="where it is (default: the checkpoint's)")
    count = arguments.positive_int
    p.add_argument("--test-subset", type=count, metavar="N", help="test pictures")
    p.add_argument("--depth", type=count, help="default: the checkpoint's")
    for of_process in RUNTIME_FLAGS:
        if of_process.name in ("test_batch_size", "workers"):
            of_process.add_to(p)
    p.add_argument("--no-cuda", action="store_true", default=False, help="test on the CPU")
    return p


def prune(kind: str | None, argv: list[str] | None = None) -> None:
    """Prune, test and write one network, of any kind or of an architecture of this family."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser(kind).parse_args(argv)
    path = Path(args.model)
    given = checkpoint.load(path)
    arch = given.network.arch
    if kind is not None and family(arch) != kind:
        arch = kind  # which it is refused for
    known = config_from_checkpoint(given, {**vars(args), "arch": arch}, path)
    folder = Path(getattr(args, "save", path.parent))
    out = RunPaths(folder, run_name_of(path)).pruned(getattr(args, "name", None))
    check_writable(folder)
    records.read(folder / PRUNED, ("run",))

    network = given.network
    network.model.eval()
    if args.layout == "released":
        if arch not in EARLIER:
            raise InputError(f"--layout released: the earlier programs know no {arch}")
        network = widened(network)  # all that those programs know
    layers, factors = list(network.norms.values()), given.scaling_factors
    if not layers:
        why = next(iter(network.graph.reasons.values()), "it has no batch norm")
        raise InputError(f"{path} is of {arch}, no channel of which can be removed: {why}")
    mask = args.mask or given.default_mask
    if mask not in factors:
        has = ", ".join(factors)
        raise InputError(f"{path} has no {mask}: --mask takes what it has, {has}")
    zeros, by = is_zero(factors[mask]), factors["gamma"].abs()
    if args.criterion == "filters":
        by = filter_sizes(network)
        if by.isinf().all():
            raise InputError(f"--criterion filters: no channel of a {arch} has its own filter")
    names = list(network.norms)
    ties = [[names.index(name) for name in tie] for tie in network.graph.ties]
    choose = partial(plan, layers, sizes=by, floor=args.adjust, ties=ties)

    def cut(zeros: Tensor, count: int) -> tuple[Removal, Network, Network, Network]:
        """What is removed, the masked network, what is left of it, and what is written of that."""
        masks = choose(zeros, count)
        masked = with_weights(network, copy.deepcopy(network.model))
        apply_plan(list(masked.norms.values()), masks, zeros)
        removal = masked.plan(masks, streams=args.layout != "released")
        return removal, masked, masked.remove(masked.plan(masks, False)), masked.remove(removal)

    def enough(zeros: Tensor) -> int:
        channels = int(by.isfinite().sum())
        return channels_to_prune(args, network, channels, lambda count: cut(zeros, count)[3])

    count = enough(zeros)
    removal, masked, small, written = cut(zeros, count)
    masks = list(removal.keep.values())
    # A file of the network as it was, which nothing was cut out of, has nothing to lose.
    if out.exists() and (out.samefile(path) or not holds(out, written.model, network.model)):
        raise InputError(f"{out} is there already: move it away, or choose another --name")
    data = load({**known, **vars(args)}, given.norm)
    given.check_classes(data, path)
    device = pick_device(args.no_cuda)
    tests = test_batches(data, vars(args), device)
    labels, full_cost = tests.labels.cpu(), cost_of(network)
    networks = network, masked, written
    before, of_masked, of_slim = (predict(each.model, tests) for each in networks)
    settings, targeted = given.config, (args.target_flops, args.target_params) != (None, None)
    row = {
        "model": out.name,
        "run": given.run_name or run_name_of(path),
        "checkpoint": path.name,
        "epoch": given.epoch,
        "checksum": checkpoint.checksum(path),
        "test_pictures": f"{data.test.checksum():08x}",
        **({} if settings is None else settings.to_row()),
        "arch": arch,
        "depth": given.network.depth,
        "dataset": data.name,
        "percent": None if targeted else args.percent,
        **sizes(masks, full_cost, cost_of(small)),
        **unread(network, small, written, removal),
        "accuracy_before": accuracy(before, labels),
        "accuracy_masked": accuracy(of_masked, labels),
        "accuracy_slim": accuracy(of_slim, labels),
        "mask": mask,
        **kinds(network, removal, masks),
        **differences(before, of_masked, of_slim),
        "target_flops": args.target_flops,
        "target_params": args.target_params,
        "criterion": args.criterion,
        "adjust": args.adjust,
    }
    row |= of_original(given.network, small) | of_all(network, row)
    print_report(row, network, masks)
    of_before, of_after = (
        PerClass(*class_counts(answers.argmax(1), labels, network.num_classes).tolist())
        for answers in (before, of_slim)
    )
    if of_before.collapse(data.classes):
        remarks = of_before.remarks(data.classes, "before pruning: ")
    else:
        remarks = of_after.remarks(data.classes, "pruned: ")
    for line in remarks:
        note(line)
    if said := told_apart(by, zeros, torch.cat(choose(zeros, count))):
        note(f"note: {said}")
    if mask != "gamma":
        zeros_of_gamma = is_zero(factors["gamma"])
        with suppress(InputError):  # a target may be out of its reach
            fewer, _, other, _ = cut(zeros_of_gamma, enough(zeros_of_gamma))
            by_gamma = sizes(list(fewer.keep.values()), full_cost, cost_of(other))
            answers = predict(other.model, tests)
            print_comparison(row, {**by_gamma, "accuracy_slim": accuracy(answers, labels)})
    released = args.layout == "released"
    content = {
        "cfg": written.cfg,
        "state_dict": to_released(written) if released else written.model.state_dict(),
        "layout": args.layout,
        "classes": given.classes,
        "mean": given.mean,
        "std": given.std,
        "settings": None if settings is None else settings.to_dict(),
        **{key: row[key] for key in ("run", "percent", "mask")},
    }
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out, content)
    records.append(folder / PRUNED, row | {"slim_checksum": checkpoint.sha256(out)})
    if row["channels_kept"] == row["channels"]:
        advise([*program(kind), *argv], args, factors, mask, given.network.is_full)
        if given.network.is_full:
            print(f"{out} is the network as it was; another pruning may overwrite it")
            return
    print(f"slim network: {out}")
    words = ["main.py", "--refine", path_argument(out)]
    if settings is not None:  # section 5.2: as the training went, but for the penalty
        precision = given.precision or settings.precision
        words += replace(settings, precision=precision).finetuning_argv()
    told = {name: x for name, x in vars(args).items() if x is not None and x is not False}
    for name in [name for name in ("dataset", "data") if name in told]:
        words += FLAGS[name].to_argv(told[name])
    print(f"to fine-tune it: {format_command(*words, *runtime_argv(told))}")


def program(kind: str | None) -> list[str]:
    """The words that start the prune command of this ``kind``."""
    return [f"{kind}_prune.py"] if kind else ["-m", "utils.prune"]


def advise(
    words: list[str], args: argparse.Namespace, factors: State, mask: str, is_full: bool
) -> None:
    """Say why the command of these ``words`` pruned nothing, and print which ones would."""
    zeros = {name: int(is_zero(factor).sum()) for name, factor in factors.items()}
    targeted = (args.target_flops, args.target_params) != (None, None)
    if zeros[mask] or args.percent or args.target_flops or args.target_params:
        floor = f"--adjust {args.adjust:g} keeps" if args.adjust else "every layer keeps a channel:"
        note(f"nothing was pruned: {floor} all that is zero or small, or the share is too small")
        return
    ways = ["train with -sr and a larger --s or more epochs"] if is_full else []
    other = max(zeros, key=zeros.__getitem__)
    if zeros[other]:  # the penalty has done its work, and a larger one would ruin the network
        ways = ["train for more epochs"] if is_full else []
        ways.append(f"prune the {zeros[other]} channels whose {other} is zero")
        print(f"next, where {other} is zero: {format_command(*words, '--mask', other)}")
    if not targeted:
        ways.append("choose a share of the channels with --percent")
        print(f"next, a share of the channels: {format_command(*words, '--percent', '0.5')}")
    left = "" if is_full else " that is left"
    note(f"no scaling factor{left} is zero, so nothing was pruned: {', or '.join(ways)}")


def holds(path: Path, *models: nn.Module) -> bool:
    """Whether the file has just one of these networks."""
    try:
        there = checkpoint.load(path).network.model.state_dict()
    except InputError:
        return False
    return any(
        there.keys() == state.keys() and all(torch.equal(there[k], x) for k, x in state.items())
        for state in (model.state_dict() for model in models)
    )


def channels_to_prune(
    args: argparse.Namespace,
    network: Network,
    channels: int,
    pruned: Callable[[int], Network],
) -> int:
    """How many of the smallest go: as --percent says, or the fewest that reach the target.

    ``pruned`` gives what is left when so many of the ``channels`` go.
    """
    flag = next((flag for flag in TARGETS if getattr(args, f"target_{flag}") is not None), None)
    if flag is None:
        return count_of(args.percent, channels)
    target, what = getattr(args, f"target_{flag}"), TARGETS[flag]
    full = getattr(cost_of(network), what)

    def saved(count: int) -> float:
        return 1 - getattr(cost_of(pruned(count)), what) / full

    # Pruning more never costs more, so this is a binary search.
    count = bisect_left(range(channels + 1), target, key=saved)
    if count > channels:
        raise InputError(
            f"--target-{flag} {target:g} is out of reach: with as few channels as may be left in"
            f" every layer {saved(channels):.4f} of the {what} are gone"
        )
    return count


@torch.no_grad()
def predict(model: nn.Module, tests: Batches) -> Tensor:
    """Logits [n, classes] of all test pictures in eval mode and float32, on the CPU."""
    model = copy.deepcopy(model).to(tests.labels.device).eval()
    return torch.cat([model(images).cpu() for images, _ in tests.iter_eval()])
