"""Train a network so that the scaling factors of channels it does not need become exactly zero.

    python main.py -sr --dataset cifar10 --arch vgg --depth 19

:func:`train` and :func:`alternate` read as Algorithm 1 of "A Proximal Algorithm for Network
Slimming" does.
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

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
from utils.atomic import file_lock
from utils.console import InputError, Progress, Signals, note
from utils.data.batches import Batches
from utils.data.datasets import load
from utils.data.streaming import test_batches
from utils.device import Execution, pick_device
from utils.files.init_from import InitFrom, config_from_checkpoint
from utils.files.paths import DEFAULT_FOLDER
from utils.flags.parser import parser, runtime_argv
from utils.launch import run_seeds
from utils.paper.accounting import cost
from utils.reports.listing import listing
from utils.training import logs
from utils.training.build import build_trainer
from utils.training.distributed import ProcessGroup
from utils.training.recalibrate import recalibrate_bn
from utils.training.step import Step, evaluate
from utils.training.trainer import Trainer


def train(run: Trainer, given: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Algorithm 1, from the run's next epoch to its last; a log line and a checkpoint each."""
    s, group = run.config, run.group
    tests = test_batches(run.data, given, run.execution.device)
    log = logs.keep_log(run)
    full_flops = cost(run.network.model, s.size).flops
    trains, score = run.epoch < s.epochs, None
    accuracy_cut = evaluate_pruned(run, tests) if not run.epoch else ""
    with Signals() as signals:
        for epoch in range(run.epoch, s.epochs):  # line 1: for each epoch t
            if dead := run.remove_dead_channels():
                note(
                    f"epoch {epoch + 1}: {dead} dead channels are cut; {int((~run.removed).sum())} of"
                    f" {len(run.removed)} train on, at {run.flops / full_flops:.0%} of the FLOPs"
                )
            step = run.step
            torch.manual_seed(s.seed + (epoch << 32))  # dropout: the same after a resume
            order = step.batches.epoch_indices(epoch, step.method.steps(epoch))
            progress = Progress(
                len(order),
                f"epoch {epoch + 1}/{s.epochs}",
                given.get("log_interval", 50),
                partial(progress_of, run, order),
                epochs_left=s.epochs - epoch - 1,
            )
            start, z = time.perf_counter(), step.iterate()
            step.begin(run.lr(epoch))
            step.method.begin(epoch)
            with progress.bar:
                for where in order:
                    step.launch(where)  # lines 2 to 4: alternate, or a captured graph of it
                    progress.step()
                    signals.check()
            group.all_reduce_(step.sums.sums)
            group.broadcast_(list(step.model.buffers()))
            step.method.end_epoch(step.lr)  # line 4, once an epoch where --prox-every says so
            with step.method.eval_weights(lambda: recalibrate_bn(run.step.model, run.batches)):
                reading = run.metrics(order)
                train_seconds = time.perf_counter() - start
                score = evaluate(step.model, tests, step.execution, group)
                run.check(score.loss)
                test_seconds = time.perf_counter() - start - train_seconds
                run.epoch = epoch + 1
                seconds = train_seconds, test_seconds
                change = step.squared_distance(z)
                log.append(logs.log(run, reading, score, seconds, change, accuracy_cut))
                accuracy_cut = ""  # it stands in the first line
                last, drop = run.epoch == s.epochs, run.lr(run.epoch) < run.lr(epoch) / 2
                run.save(score.accuracy, now=last or drop)
            rate = "" if "lr" in step.method.unused_flags else f"lr {run.lr(epoch):g}, "
            print(
                f"epoch {epoch + 1}/{s.epochs}: {rate}{reading}, {score},"
                f" {logs.zeros(run, reading.zeros)},"
                f" {train_seconds:.1f} s + {test_seconds:.1f} s",
                flush=True,
            )
    accuracy = float(log[-1]["test_accuracy"]) if log else run.best
    # A finished run that is resumed has its row, unless it was killed just before that.
    if log and group.rank == 0 and (trains or not logs.is_recorded(run)):
        logs.record(run, log, argv)
    if log and run.removed.any():
        spent = sum(int(row["flops"]) for row in log) / len(log) / full_flops
        print(f"training took {spent:.1%} of the FLOPs that it takes at full width")
    said = runtime_argv(given, "test_batch_size", "workers", "no_cuda")
    score = score or evaluate(run.step.model, tests, run.execution, group)
    print(logs.summary(run, accuracy, score.per_class, said))


def evaluate_pruned(run: Trainer, tests: Batches) -> str:
    """Test accuracy of a network whose weights were just cut, its statistics retaken; '' else."""
    if run.config.prune_ratio is None:
        return ""
    model = copy.deepcopy(run.step.model)
    recalibrate_bn(model, run.batches)
    score = evaluate(model, tests, run.step.execution, run.group)
    note(f"right after the cut: {score}")
    return f"{score.accuracy:.4f}"


def train_step(step: Step, where: Tensor) -> None:
    """Lines 2 to 4 of Algorithm 1, on the mini-batch that ``where`` names."""
    step.method.before_forward()
    step.loss(where).backward()
    step.method.before_step()  # (3b) of original network slimming
    step.optimizer.step()  # (8a): line 2, and the SGD part of (8b)
    step.method.step(step.lr)  # (8b): line 3, and (9): line 4
    step.model.zero_grad()


def progress_of(run: Trainer, order: Sequence[Tensor]) -> str:
    """How the epoch of ``order`` stands; raises Diverged."""
    reading = run.metrics(order)
    return f"{logs.zeros(run, reading.zeros)}, {reading}"


def evaluate_checkpoint(start: InitFrom, given: Mapping[str, Any], device: torch.device) -> None:
    """``--evaluate``: print loss and accuracy on the test set."""
    assert start.checkpoint is not None and start.path is not None
    known = config_from_checkpoint(start.checkpoint, given, start.path)
    data = load({**known, **given}, start.checkpoint.norm)
    start.checkpoint.check_classes(data, start.path)
    execution = Execution(device)
    tests = test_batches(data, given, device)
    model = start.checkpoint.network.model
    execution.place(model)
    score = evaluate(model, tests, execution)
    print(f"{start.path}: test loss {score.loss:.4f}, {score}")
    for line in score.per_class.remarks(data.classes):
        note(line)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    given = vars(parser().parse_args(argv))
    if "version" in given:
        python = platform.python_version()
        commit = logs.commit() or "unknown"
        print(f"commit {commit}, torch {torch.__version__}, Python {python}")
        return
    if "list" in given:
        print(listing(Path(given.get("save", DEFAULT_FOLDER))))
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
    start = InitFrom.from_flags(given)
    if "evaluate" in given:
        evaluate_checkpoint(start, given, pick_device("no_cuda" in given))
        return
    settings = start.config(given)
    if "seeds" in given:
        load(settings.to_dict(), start.norm(settings))  # downloaded once, before several would
        named = "name" in given or settings.refine is not None
        run_seeds(argv, settings.name if named else None, "no_cuda" in given)
        return
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    with file_lock(start.paths(given, settings).lock) if first else nullcontext():
        device = pick_device("no_cuda" in given)
        group = ProcessGroup.join(device)  # who is not the first reads once the first has the lock
        run = build_trainer(start.latest(given), given, device, group, train_step)
        with run.saving_on_exit(logs.resume_command(run, given)):
            train(run, given, argv)
        run.group.destroy()


if __name__ == "__main__":
    sys.exit(console.run(main))
