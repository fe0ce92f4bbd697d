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
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils import console
from utils.atomic import alone
from utils.console import InputError, Progress, Signals, note
from utils.data.batches import Batches
from utils.data.datasets import load
from utils.data.stream import test_batches
from utils.device import Execution, pick_device
from utils.files.names import FOLDER
from utils.files.start import Start, known_of
from utils.flags.parser import parser, said_again
from utils.launch import run_seeds
from utils.paper.accounting import cost
from utils.reports.listing import listing
from utils.training import account
from utils.training.begin import begin
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
    trains, score = run.epoch < s.epochs, None
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
            group.sum_(step.tally.sums)
            group.take_from_first(list(step.model.buffers()))
            step.method.end_epoch(step.lr)  # line 4, once an epoch where --prox-every says so
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
                f" {account.zeros(run, reading.zeros)},"
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
    said = said_again(given, "test_batch_size", "workers", "no_cuda")
    score = score or evaluate(run.step.model, tests, run.execution, group)
    print(account.summary(run, accuracy, score.by_class, said))


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
    step.method.before_step()  # (3b) of original network slimming
    step.optimizer.step()  # (8a): line 2, and the SGD part of (8b)
    step.method.step(step.lr)  # (8b): line 3, and (9): line 4
    step.model.zero_grad()


def progress_of(run: Run, order: Sequence[Tensor]) -> str:
    """How the epoch of ``order`` stands; raises Diverged."""
    reading = run.read(order)
    return f"{account.zeros(run, reading.zeros)}, {reading}"


def test(start: Start, given: Mapping[str, Any], device: torch.device) -> None:
    """``--evaluate``: print loss and accuracy on the test set."""
    assert start.checkpoint is not None and start.path is not None
    known = known_of(start.checkpoint, given, start.path)
    data = load({**known, **given}, start.checkpoint.norm)
    start.checkpoint.check_classes(data, start.path)
    execution = Execution(device)
    tests = test_batches(data, given, device)
    model = start.checkpoint.network.model
    execution.place(model)
    score = evaluate(model, tests, execution)
    print(f"{start.path}: test loss {score.loss:.4f}, {score}")
    for line in score.by_class.remarks(data.classes):
        note(line)


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
        load(settings.values(), start.norm(settings))  # downloaded once, before several would
        named = "name" in given or settings.refine is not None
        run_seeds(argv, settings.name if named else None, "no_cuda" in given)
        return
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    with alone(start.files(given, settings).lock) if first else nullcontext():
        device = pick_device("no_cuda" in given)
        group = Group.join(device)  # who is not the first reads once the first has the lock
        run = begin(start.latest(given), given, device, group, alternate)
        with run.kept(account.way_on(run, given)):
            train(run, given, argv)
        run.group.leave()


if __name__ == "__main__":
    sys.exit(console.run(main))
