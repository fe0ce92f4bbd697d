"""Train a network so that the scaling factors of channels it does not need become exactly zero.

    python main.py -sr --dataset cifar10 --arch vgg --depth 19

:func:`train` and :func:`alternate` read as Algorithm 1 of "A Proximal Algorithm for Network
Slimming" does.
"""

if __name__ == "__main__":
    from utils import early as early  # before all others

import copy
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Network, build_model, full_cfg, pruner
from models.cost import cost
from models.surgery import Slimmable, all_channels, norms
from utils import console
from utils.atomic import alone
from utils.console import InputError, Progress, Signals, note
from utils.data.batches import Batches
from utils.data.datasets import Dataset, load
from utils.data.stream import WORKERS, batches_of
from utils.device import Execution, be_deterministic, execution_for, fastest, pick_device
from utils.files.names import FOLDER
from utils.files.start import Start, check_free, known_of
from utils.flags.parser import parser, said_again
from utils.flags.settings import Settings
from utils.launch import run_seeds
from utils.methods import METHODS
from utils.methods.base import is_zero
from utils.reports.listing import listing
from utils.shell import ROOT, command, near, word
from utils.training import account
from utils.training.group import Group
from utils.training.run import Run
from utils.training.statistics import retake
from utils.training.step import Step, evaluate


def train(run: Run, given: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Algorithm 1, from the run's next epoch to its last; a log line and a checkpoint each."""
    s, group = run.settings, run.group
    tests = test_batches(run.data, given, run.execution.device)
    log = account.keep_log(run)
    full_flops = cost(run.network.model, s.size).flops
    trains = run.epoch < s.epochs
    accuracy_cut = after_the_cut(run, tests) if not run.epoch else ""
    with Signals() as signals:
        for epoch in range(run.epoch, s.epochs):  # line 1: for each epoch t
            if dead := run.cut_dead():
                note(
                    f"epoch {epoch + 1}: {dead} dead channels are cut; {int((~run.cut).sum())} of"
                    f" {len(run.cut)} train on, at {run.flops / full_flops:.0%} of the FLOPs"
                )
            step = run.step
            torch.manual_seed(s.seed + (epoch << 32))  # dropout: the same after a resume
            order = step.batches.order(epoch, step.method.steps(epoch))
            progress = Progress(
                len(order),
                f"epoch {epoch + 1}/{s.epochs}",
                given.get("log_interval", 50),
                partial(progress_of, run, order),
                epochs_left=s.epochs - epoch - 1,
            )
            start, z = time.perf_counter(), step.z()
            step.begin(run.lr(epoch))
            step.method.begin(epoch)
            with progress.bar:
                for where in order:
                    step.launch(where)  # lines 2 to 4: alternate, or a captured graph of it
                    progress.step()
                    signals.check()
            step.method.on_epoch(step.alpha)  # line 4, once an epoch where --prox-every says so
            group.sum_(step.tally.sums)
            group.take_from_first(list(step.model.buffers()))
            with step.method.solution(lambda: retake(run.step.model, run.batches)):
                reading = run.read(order)
                train_seconds = time.perf_counter() - start
                score = evaluate(step.model, tests, step.execution, group)
                run.check(score.loss)
                test_seconds = time.perf_counter() - start - train_seconds
                run.epoch = epoch + 1
                seconds = train_seconds, test_seconds
                change = step.change(z)
                log.append(account.log(run, reading, score, seconds, change, accuracy_cut))
                accuracy_cut = ""  # it stands in the first line
                last, drop = run.epoch == s.epochs, run.lr(run.epoch) < run.lr(epoch) / 2
                run.save(score.accuracy, now=last or drop)
            rate = "" if "lr" in step.method.idle else f"lr {run.lr(epoch):g}, "
            print(
                f"epoch {epoch + 1}/{s.epochs}: {rate}{reading}, {score},"
                f" {zeros(run, reading.zeros)},"
                f" {train_seconds:.1f} s + {test_seconds:.1f} s",
                flush=True,
            )
    accuracy = float(log[-1]["test_accuracy"]) if log else run.best
    # A finished run that is resumed has its row, unless it was killed just before that.
    if log and group.rank == 0 and (trains or not account.is_recorded(run)):
        account.record(run, log, argv)
    if log and run.cut.any():
        spent = sum(int(row["flops"]) for row in log) / len(log) / full_flops
        print(f"training took {spent:.1%} of the FLOPs that it takes at full width")
    print(summary(run, accuracy, said_again(given, "test_batch_size", "no_cuda")))


def after_the_cut(run: Run, tests: Batches) -> str:
    """Test accuracy of a network whose weights were just cut, its statistics retaken; '' else."""
    if run.settings.prune_ratio is None:
        return ""
    model = copy.deepcopy(run.step.model)
    retake(model, run.batches)
    score = evaluate(model, tests, run.step.execution, run.group)
    note(f"right after the cut: {score}")
    return f"{score.accuracy:.4f}"


def alternate(step: Step, where: Tensor) -> None:
    """Lines 2 to 4 of Algorithm 1, on the mini-batch that ``where`` names."""
    step.method.before_forward()
    step.loss(where).backward()
    step.method.on_gradient()  # (3b) of original network slimming
    step.optimizer.step()  # (8a): line 2, and the SGD part of (8b)
    step.method.on_step(step.alpha)  # (8b): line 3, and (9): line 4
    step.model.zero_grad()


def progress_of(run: Run, order: Sequence[Tensor]) -> str:
    """How the epoch of ``order`` stands; raises Diverged."""
    reading = run.read(order)
    return f"{zeros(run, reading.zeros)}, {reading}"


def zeros(run: Run, counts: Mapping[str, int]) -> str:
    symbols = run.step.method.factors
    return ", ".join(f"{symbols.get(name, name)} = 0: {count}" for name, count in counts.items())


def summary(run: Run, accuracy: float, said: Sequence[str]) -> str:
    """Zeros per layer, the final ``accuracy`` in percent, and the command that comes next.

    ``said`` are flags that it needs as this one did.
    """
    checkpoint = word(run.files.checkpoint)
    factors, symbols = run.factors(), run.step.method.factors
    lines = [f"{'layer':<24}channels" + "".join(f"  {symbols[name]} = 0" for name in factors)]
    for name, *parts in zip(norms(run.network.model), *factors.values(), strict=True):
        counts = "".join(f"{int(is_zero(part).sum()):7}" for part in parts)
        lines.append(f"{name:<24}{len(parts[0]):8}{counts}")
    totals = [f"{symbols[name]} = 0: {run.zeros()[name]}" for name in factors]
    lines.append(
        f"test accuracy {accuracy:.2f} % (best {run.best:.2f} %),"
        f" {', '.join(totals)} of {len(run.cut)}; checkpoint {run.files.checkpoint}"
    )
    if found := account.compression(run):
        lines.append(
            f"weights: {found['weights']:,} -> {found['weights_kept']:,}, {found['compression']}"
            f" times fewer; of all parameters {found['compression_all']} times;"
            f" {found['bytes']:,} bytes dense, {found['bytes_sparse']:,} sparse"
        )
        words = ["-m", "utils.export", "--format", "sparse", "--model", checkpoint]
        lines.append(f"to keep it small: {command(*words)}")
    if verdict := run.verdict(accuracy):
        lines.append(f"verdict: {verdict}")
    flags = run.step.method.prune_flags
    if flags is not None:
        words = [*pruner(run.settings.arch), "--model", checkpoint]
        lines.append(f"next: {command(*words, *flags, *said)}")
    if (flags := run.step.method.refine_flags) is not None:
        kept = replace(run.settings, precision=run.execution.precision).refine_argv(cuts=True)
        lines.append(f"next: {command('main.py', '--refine', checkpoint, *flags, *kept, *said)}")
    return "\n".join(lines)


def notes(model: Slimmable) -> Iterator[str]:
    """What to say before a training of what of ``model`` cannot go, or not at once."""
    if model.stays():
        channels = sum(bn.num_features for bn in norms(model).values())
        yield (
            f"note: {channels} of {all_channels(model)} channels of batch norms can go, and are"
            " penalised; of the others, the prune command says why they stay"
        )
    if kept := [name for name in norms(model) if name in model.never_cut()]:
        yield (
            f"note: no channel of {', '.join(kept)} is cut while training: dropout behind it would"
            " draw other numbers"
        )


def choose_execution(
    start: Start, settings: Settings, network: Network, batches: Batches, group: Group
) -> Execution:
    """Precision and memory format: as the run that is resumed, else as told, or measured."""
    device = batches.labels.device
    before = start.checkpoint if start.resumes else None
    if before is not None and before.precision is not None:
        if settings.precision not in ("auto", before.precision):
            raise InputError(f"this run was started with --precision {before.precision}")
        return Execution(device, before.precision, before.channels_last)
    precision = settings.precision
    if precision == "auto":
        first = batches.cut(batches.order(0)[0])
        precision = group.first_says(lambda: fastest(network, *first, device))
        note(f"fastest here: {precision}")
    return execution_for(network, precision, device)


def test(start: Start, given: Mapping[str, Any], device: torch.device) -> None:
    """``--evaluate``: print loss and accuracy on the test set."""
    assert start.checkpoint is not None and start.path is not None
    known = known_of(start.checkpoint, given, start.path)
    data = load({**known, **given}, start.checkpoint.norm)
    start.checkpoint.check_classes(data, start.path)
    execution = Execution(device)
    tests = test_batches(data, given, device)
    model = execution.place(start.checkpoint.network.model)
    score = evaluate(model, tests, execution)
    print(f"{start.path}: test loss {score.loss:.4f}, {score}")


def test_batches(data: Dataset, given: Mapping[str, Any], device: torch.device) -> Batches:
    workers = given.get("workers", WORKERS)
    return batches_of(data, "test", given.get("test_batch_size"), device, workers=workers)


def fresh(settings: Settings, data: Dataset) -> Network:
    """The network of ``settings``, with its initial values."""
    model = build_model(settings.arch, settings.depth, len(data.classes), size=settings.size)
    METHODS[settings.method].initialise(model)
    return Network(model, settings.arch, settings.depth)


def begin(start: Start, settings: Settings, given: Mapping[str, Any]) -> Run:
    """The run of ``settings``, from where it ``start``s."""
    device = pick_device("no_cuda" in given)
    chosen = start.checkpoint.precision if start.resumes and start.checkpoint else None
    if "tf32" in (settings.precision, chosen) and device.type == "cpu":
        raise InputError("only a GPU computes in tf32: choose another --precision for a new run")
    if start.resumes and "start_epoch" in given:
        raise InputError("--start-epoch is for a run that begins; --resume knows its epoch")
    if given.get("start_epoch", 0) >= settings.epochs:
        raise InputError(f"--start-epoch must be below the {settings.epochs} epochs")
    try:
        channels = full_cfg(settings.arch, settings.depth)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not channels and METHODS[settings.method].prunes():
        raise InputError(
            f"{settings.arch} has no batch norm, so --method {settings.method} finds no channels:"
            " take --method sas-admm"
        )
    files = start.files(given, settings)
    check_free(files, start.path if start.resumes else None)

    group = Group.join(device)
    if group.rank > 0:
        group.wait()  # the first process downloads and decodes for all
    data = load(settings.values(), start.norm(settings))
    if group.rank == 0:
        group.wait()
    torch.manual_seed(settings.seed)
    be_deterministic(settings.deterministic)
    if start.checkpoint is None or start.path is None:
        network = fresh(settings, data)
    else:
        network = start.checkpoint.network
        count = network.model.num_classes
        if settings.init is not None and not start.resumes and count != len(data.classes):
            network = network.with_classes(len(data.classes))
            note(f"note: the last layer, of {count} classes, is a fresh one of {len(data.classes)}")
        else:
            start.checkpoint.check_classes(data, start.path)
    workers = given.get("workers", WORKERS)
    batches = batches_of(
        data, "train", settings.batch_size, device, settings.seed, workers, group.part
    )
    execution = choose_execution(start, settings, network, batches, group)
    group = group.on_time()
    graphs = device.type == "cuda" and group.size == 1 and "no_graph" not in given
    if graphs and settings.stream:  # a graph takes its pictures from the device
        note("note: pictures that are streamed are trained on without CUDA graphs")
        graphs = False
    found = start.checkpoint if start.resumes else None
    epoch = given.get("start_epoch", 0)
    origin = start.origin(settings)
    how = execution, group, alternate, graphs, found, epoch, origin
    try:
        run = Run(settings, files, network, data, batches, *how)
    except ValueError as error:
        raise InputError(f"{start.path} cannot be resumed: {error}") from None
    if run.step.method.prunes():
        for line in notes(network.model):
            note(line)
    if found is None:
        trained = settings.arch, settings.depth, settings.momentum
        for line in run.step.method.warnings(run.schedule()[epoch:], *trained):
            note(line)
    elif start.path is not None and start.path.resolve() != files.checkpoint.resolve():
        run.keep()  # its own checkpoint is elsewhere or damaged, and there may be no epoch left
    return run


def way_on(run: Run, given: Mapping[str, Any]) -> str:
    """The command that goes on with ``run``, on as many processes."""
    words = ["--resume", word(run.files.checkpoint), *said_again(given)]
    if run.group.size == 1:
        return command("main.py", *words)
    here = os.environ.get("LOCAL_WORLD_SIZE", str(run.group.size))
    several = ["-m", "torch.distributed.run", "--nproc-per-node", here]
    return command(*several, "--", word(near(ROOT / "main.py")), *words)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    given = vars(parser().parse_args(argv))
    if "version" in given:
        python = platform.python_version()
        commit = account.commit() or "unknown"
        print(f"commit {commit}, torch {torch.__version__}, Python {python}")
        return
    if "list" in given:
        print(listing(Path(given.get("save", FOLDER))))
        return
    said = given.keys() & {"resume", "refine", "init", "evaluate"}
    auto = given.get("resume") == "auto"
    if len(said) > 1 + auto or (auto and "evaluate" in said):
        raise InputError(
            "--resume, --refine, --init and --evaluate exclude one another (but --resume auto goes"
            " with --refine or --init)"
        )
    if "seeds" in given and ("evaluate" in given or ("resume" in given and not auto)):
        raise InputError(
            "--seeds starts one run each: it takes neither --evaluate nor --resume PATH"
        )
    if "seeds" in given and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("--seeds starts its own processes: leave out torchrun")
    start = Start.of(given)
    if "evaluate" in given:
        test(start, given, pick_device("no_cuda" in given))
        return
    settings = start.settings(given)
    if "seeds" in given:
        named = "name" in given or settings.refine is not None
        run_seeds(argv, settings.name if named else None, "no_cuda" in given)
        return
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    with alone(start.files(given, settings).lock) if first else nullcontext():
        run = begin(start, settings, given)
        with run.kept(way_on(run, given)):
            train(run, given, argv)
        run.group.leave()


if __name__ == "__main__":
    sys.exit(console.run(main))
