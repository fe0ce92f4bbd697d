"""The prune command: reads a checkpoint, prunes, evaluates, reports, writes."""

import argparse
import copy
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import family
from netslim.files import State
from utils import arguments
from utils.console import InputError, Parser, note, require_packages
from utils.data.batches import Batches, test_batches
from utils.data.classes import PerClass, class_counts
from utils.data.datasets import DATASETS, check_folder, load
from utils.device import pick_device
from utils.engines import ENGINES
from utils.files import checkpoint, records
from utils.files.init_from import config_from_checkpoint
from utils.files.legacy_formats import EARLIER, expanded, to_released
from utils.files.locks import check_writable
from utils.files.paths import PRUNED, RunPaths, locate, run_name_of
from utils.flags.config import FLAGS
from utils.flags.parser import RUNTIME_FLAGS, runtime_argv
from utils.methods.base import is_zero
from utils.pruning import report
from utils.pruning.external import prune_state_dict
from utils.pruning.latency import LatencyTarget
from utils.pruning.selector import TARGETS, Selector, target_of
from utils.shell import format_command, path_argument


def layer_share(text: str) -> tuple[str, float]:
    """Parses LAYER=SHARE, a pattern of layer names and a number from 0 to 1."""
    layer, separator, share = text.rpartition("=")
    if not (separator and layer):
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYER=SHARE, as conv1*=0.5")
    return layer, arguments.fraction(share)


def parser(kind: str | None) -> argparse.ArgumentParser:
    """Returns the parser; flags that a checkpoint has, too, have no default."""
    p = Parser(
        prog=f"{kind}_prune.py" if kind else "python -m utils.prune",
        description="Remove the channels with zero or small scaling factors from a model.",
        argument_default=argparse.SUPPRESS,
    )
    add, fraction, count = p.add_argument, arguments.fraction, arguments.positive_int
    text = "checkpoint of main.py or, with --arch, state dict of any model"
    add("--model", required=True, metavar="FILE", help=text)
    text = "model of a state dict: a name of torchvision's, or package:function that returns it"
    add("--arch", default=None, metavar="NAME", help=text)
    text = "with --arch: side of an image in pixels (default: torchvision's, or 224)"
    add("--size", type=arguments.size, metavar="N", help=text)
    share = p.add_mutually_exclusive_group()
    text = "share of all channels to remove, 0 to 1 (0.3: 30 %%), smallest |γ| first (default 0)"
    names = "--percent", "--ratio"
    share.add_argument(*names, type=fraction, default=0.0, metavar="P", help=text)
    for flag, unit in TARGETS.items():
        text = f"share of the {unit} to remove (0.3 or 30: 30 %%)"
        target: dict[str, Any] = {"type": arguments.share, "default": None, "metavar": "P"}
        share.add_argument(f"--target-{flag}", help=text, **target)
    text = "milliseconds to reach in the --for engine, or share of the full model's to save (30%%)"
    parse = LatencyTarget.parse
    share.add_argument("--target-latency", type=parse, default=None, metavar="MS", help=text)
    text = "engine in which widths are measured; channels with γ = 0 stay where that is faster"
    add("--for", dest="engine", choices=ENGINES, default=None, help=text)
    text = "images per call in these measurements (default 1)"
    add("--batch-size", type=count, default=None, metavar="N", help=text)
    text = (
        "size of a channel: |γ| (default), the ℓ1 norm of its filter, scaled by layer, or random,"
        " by the training's seed"
    )
    add("--criterion", choices=("gamma", "filters", "random"), default="gamma", help=text)
    text = "factor whose zeros are removed, one of the checkpoint's (default: by method)"
    add("--mask", default=None, help=text)
    text = "smallest share of its channels that every layer keeps, from 0 to 1 (default 0)"
    add("--adjust", type=fraction, default=0.0, metavar="A", help=text)
    text = "smallest share of their channels that the layers LAYER (a pattern) keep; repeatable"
    layers: dict[str, Any] = {"action": "append", "default": []}
    add("--keep", type=layer_share, metavar="LAYER=SHARE", help=text, **layers)
    text = "layers (a pattern) that keep all channels; repeatable"
    add("--skip", metavar="LAYER", help=text, **layers)
    text = "number to whose multiples widths are rounded up (default 1)"
    add("--round-to", type=count, default=1, metavar="N", help=text)
    add("--save", metavar="DIR", help="output folder (default: that of --model)")
    text = "name of the output, NAME.pth.tar (default: pruned, or of other files <file>_pruned)"
    add("--name", type=arguments.file_name, help=text)
    text = "names of the output's tensors: of netslim (default), or of the earlier programs"
    add("--layout", choices=("compact", "released"), default="compact", help=text)
    add("--dataset", choices=DATASETS, help="data set (default: the checkpoint's)")
    add("--data", metavar="DIR", help="folder of the data set (default: the checkpoint's)")
    text = "number of test images (default: the checkpoint's)"
    add("--test-subset", type=count, metavar="N", help=text)
    add("--depth", type=count, help="depth of the model (default: the checkpoint's)")
    for runtime in RUNTIME_FLAGS:
        if runtime.name in ("test_batch_size", "workers"):
            runtime.add_to(p)
    add("--no-cuda", action="store_true", default=False, help="evaluation on the CPU")
    return p


def prune(kind: str | None, argv: list[str] | None = None) -> None:
    """Runs the command; a ``kind`` as "vgg" only prunes checkpoints of this family."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser(kind).parse_args(argv)
    if args.engine:
        require_packages(f"--for {args.engine}", *ENGINES[args.engine])
        if args.round_to > 1:
            raise InputError("--for chooses the widths by measuring: leave --round-to out")
    elif args.batch_size or args.target_latency:
        flag = "--batch-size" if args.batch_size else "--target-latency"
        raise InputError(f"{flag} is of measurements: name the engine, as --for onnxruntime")
    if args.arch is not None:
        prune_state_dict(args)
    elif hasattr(args, "size"):
        raise InputError("--size is for --arch: a checkpoint has the size of its images")
    else:
        prune_checkpoint(kind, args, argv)


def prune_checkpoint(kind: str | None, args: argparse.Namespace, argv: list[str]) -> None:
    """Prunes a checkpoint of this program or of an earlier one, and evaluates the pruned model."""
    path = Path(args.model)
    loaded = checkpoint.load(path)
    network, config, arch = loaded.network, loaded.config, loaded.network.arch
    wanted = arch if kind in (None, family(arch)) else kind  # another one is refused
    known = config_from_checkpoint(loaded, {**vars(args), "arch": wanted}, path) | vars(args)
    source, name = locate(path, loaded.run_name)
    files = RunPaths(Path(getattr(args, "save", source.folder)), source.run)
    default = "pruned" if name == "checkpoint" else f"{name}_pruned"
    output = files.pruned(getattr(args, "name", default))
    if output in (files.checkpoint, files.best):
        raise InputError(f"{output} is a file of the training: choose another --name")
    check_writable(files.folder)
    check_writable(files.directory)
    records.read(files.folder / PRUNED, ("run",))
    check_folder(known.get("dataset", DATASETS[0]), known.get("data"))

    network.model.eval()
    released = args.layout == "released"
    if released:
        if arch not in EARLIER:
            raise InputError(f"--layout released: the earlier programs know no {arch}")
        network = expanded(network)  # streams at full width: the only ones that they read
    selector = Selector(network, args, seed=1 if config is None else config.seed)
    factors, mask = loaded.scaling_factors, args.mask or loaded.default_mask
    if mask not in factors:
        raise InputError(f"{path} has no {mask}: --mask takes {', '.join(factors)}")
    zeros = is_zero(factors[mask])
    pruning = selector.select(zeros)
    written = pruning.pruned
    # A file with the unpruned model may be overwritten.
    if output.exists() and (
        output.samefile(path) or not holds(output, written.model, network.model)
    ):
        raise InputError(f"{output} exists already: delete it, or pass another --name")
    data = load(known, loaded.norm)
    loaded.check_classes(data, path)
    batches = test_batches(data, vars(args), pick_device(args.no_cuda))
    labels = batches.labels.cpu()
    predictions = [predict(n.model, batches) for n in (network, pruning.masked, written)]
    flags = {x: getattr(args, x) for x in ("target_flops", "target_params", "criterion", "adjust")}
    row: dict[str, Any] = {
        "model": files.recorded(output),
        "run": loaded.run_name or run_name_of(path),
        "checkpoint": source.recorded(path),
        "epoch": loaded.epoch,
        "checksum": checkpoint.checksum(path),
        "test_pictures": f"{data.test.checksum():08x}",
        **({} if config is None else config.to_row()),
        "arch": arch,
        "depth": network.depth,
        "dataset": data.name,
        "percent": None if target_of(args) else args.percent,
        **report.record_columns(pruning, predictions, labels),
        "mask": mask,
        **flags,
        "keep": " ".join(f"{layer}={share:g}" for layer, share in args.keep),
        "skip": " ".join(args.skip),
        "round_to": args.round_to if args.round_to > 1 else None,
        "target_latency": args.target_latency,
        "engine": args.engine,
        "engine_batch_size": args.batch_size,
    }
    if pruning.milliseconds is not None:
        times = (f"{ms:.4g}" for ms in pruning.milliseconds)
        row |= dict(zip(("milliseconds", "milliseconds_slim"), times, strict=True))
    row |= report.shares_of_full(loaded.network, pruning.with_whole_streams)
    report.print_sizes(row, pruning)
    report.print_report(row, network)
    print_remarks(predictions, labels, data.classes)
    report.note_equal_scores(selector.scores, zeros, pruning.chosen)
    if mask != "gamma" and not args.engine:
        with suppress(InputError):  # the target may be out of reach
            other = selector.select(is_zero(factors["gamma"]))
            small = other.with_whole_streams
            row_gamma = report.sizes(network, other.masks, small)
            row_gamma["accuracy_slim"] = report.accuracy(predict(small.model, batches), labels)
            report.print_comparison(row, row_gamma)
    content = {
        "cfg": written.cfg,
        "state_dict": to_released(written) if released else written.model.state_dict(),
        "layout": args.layout,
        **loaded.metadata(),
        "percent": row["percent"],
        "mask": mask,
    }
    checkpoint.save(output, content)
    records.append(files.folder / PRUNED, row | {"slim_checksum": checkpoint.sha256(output)})
    if row["channels_kept"] == row["channels"]:
        program = [f"{kind}_prune.py"] if kind else ["-m", "utils.prune"]
        advise([*program, *argv], args, factors, mask, loaded.network.is_full)
        if loaded.network.is_full:
            print(f"{output} is the unpruned model; another pruning may overwrite it")
            return
    print(f"pruned model: {output}")
    print(f"to fine-tune it: {finetuning_command(output, args, loaded)}")


def print_remarks(predictions: Sequence[Tensor], labels: Tensor, classes: Sequence[str]) -> None:
    """Notes classes that the model, or else the pruned one, hardly predicts."""
    before, _, after = (
        PerClass(*class_counts(logits.argmax(1), labels, len(classes)).tolist())
        for logits in predictions
    )
    collapsed = before.collapse(classes)
    counts, title = (before, "before pruning: ") if collapsed else (after, "pruned: ")
    for line in counts.remarks(classes, title):
        note(line)


def finetuning_command(
    output: Path, args: argparse.Namespace, loaded: checkpoint.Checkpoint
) -> str:
    """Returns the command that fine-tunes as the training went, without penalty (section 5.2)."""
    words = ["main.py", "--refine", path_argument(output)]
    if (config := loaded.config) is not None:
        words += replace(config, precision=loaded.precision or config.precision).finetuning_argv()
    flags = {name: x for name, x in vars(args).items() if x is not None and x is not False}
    for name in [name for name in ("dataset", "data") if name in flags]:
        words += FLAGS[name].to_argv(flags[name])
    return format_command(*words, *runtime_argv(flags))


def advise(
    words: list[str], args: argparse.Namespace, factors: State, mask: str, is_full: bool
) -> None:
    """Says why the command of these ``words`` removed nothing, and prints commands that would."""
    zeros = {name: int(is_zero(factor).sum()) for name, factor in factors.items()}
    if zeros[mask] or args.percent or target_of(args):
        limits = "every layer keeps a channel:"
        if args.engine:
            limits = f"--for {args.engine} keeps"
        elif args.adjust:
            limits = f"--adjust {args.adjust:g} keeps"
        elif args.keep or args.skip or args.round_to > 1:
            limits = "the limits keep"
        note(f"nothing was pruned: {limits} all that is zero or small, or the share is too small")
        return
    ways = ["train with -sr and a larger --lambda or more epochs"] if is_full else []
    other = max(zeros, key=zeros.__getitem__)
    if zeros[other]:  # a larger penalty would ruin a model that has zeros already
        ways = ["train for more epochs"] if is_full else []
        ways.append(f"prune the {zeros[other]} channels whose {other} is zero")
        print(f"next, where {other} is zero: {format_command(*words, '--mask', other)}")
    ways.append("choose a share of the channels with --percent")
    print(f"next, a share of the channels: {format_command(*words, '--percent', '0.5')}")
    left = "" if is_full else " that is left"
    note(f"no scaling factor{left} is zero, so nothing was pruned: {', or '.join(ways)}")


def holds(path: Path, *models: nn.Module) -> bool:
    """Returns whether the checkpoint at ``path`` has one of these models, bit by bit."""
    try:
        state = checkpoint.load(path).network.model.state_dict()
    except InputError:
        return False
    return any(
        state.keys() == own.keys() and all(torch.equal(state[key], x) for key, x in own.items())
        for own in (model.state_dict() for model in models)
    )


@torch.no_grad()
def predict(model: nn.Module, batches: Batches) -> Tensor:
    """Returns the logits [n, classes] of all test images, in eval mode and float32, on the CPU."""
    model = copy.deepcopy(model).to(batches.labels.device).eval()
    return torch.cat([model(images).cpu() for images, _ in batches.iter_eval()])
