"""Trains a model so that the scaling factors of channels it does not need become exactly zero.

    python main.py -sr --dataset cifar10 --arch vgg --depth 19

:func:`train` and :func:`train_step` are Algorithm 1 of "A Proximal Algorithm for Network Slimming".
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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import netslim
from utils import console
from utils.console import InputError, Progress, Signals, note
from utils.data.batches import Batches, test_batches
from utils.data.datasets import load
from utils.device import Execution, pick_device
from utils.files.init_from import InitFrom, config_from_checkpoint
from utils.files.locks import file_lock
from utils.files.paths import DEFAULT_FOLDER
from utils.flags.parser import parser, runtime_argv
from utils.reports.listing import listing
from utils.training import logs
from utils.training.build import build_trainer
from utils.training.distributed import ProcessGroup
from utils.training.recalibrate import recalibrate_bn
from utils.training.step import Step, evaluate
from utils.training.trainer import Trainer


def train_step(step: Step, batch_index: Tensor) -> None:
    """Lines 2 to 4 of Algorithm 1 on one mini-batch."""
    with step.execution.arithmetic():
        step.method.before_forward()
        step.loss(batch_index).backward()
        step.method.before_step()  # (3b) of original network slimming
        step.optimizer.step()  # (8a): line 2, and the SGD part of (8b)
        step.method.step(step.lr)  # (8b): line 3, and (9): line 4
        step.model.zero_grad()


def train(trainer: Trainer, args: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Algorithm 1 from the next epoch on; each epoch adds to the log and writes a checkpoint."""
    config, group = trainer.config, trainer.group
    test_data = test_batches(trainer.data, args, trainer.execution.device)
    log = logs.keep_log(trainer)
    board = logs.tensorboard(trainer) if "tensorboard" in args and group.rank == 0 else None
    first_epoch, test_metrics = trainer.epoch, None
    accuracy_cut = evaluate_pruned(trainer, test_data) if not first_epoch else ""
    run_step = trainer.compile(train_step)
    with Signals() as signals:
        for epoch in range(first_epoch, config.epochs):  # line 1: for each epoch t
            if removed := trainer.remove_dead_channels():
                run_step = trainer.compile(train_step)
                note(
                    f"epoch {epoch + 1}: {removed} dead channels are removed;"
                    f" {int((~trainer.removed).sum())} of {len(trainer.removed)} remain,"
                    f" with {trainer.flops / trainer.full_flops:.0%} of the FLOPs"
                )
            step = trainer.step
            torch.manual_seed(config.seed + (epoch << 32))  # dropout: the same after resuming
            order = step.batches.epoch_indices(epoch, step.method.steps(epoch))

            def progress_text(order: Sequence[Tensor] = order) -> str:
                metrics = trainer.metrics(order)
                return f"{logs.format_zeros(trainer, metrics.zeros)}, {metrics}"

            title, interval = f"epoch {epoch + 1}/{config.epochs}", args.get("log_interval", 50)
            epochs_left = config.epochs - epoch - 1
            progress = Progress(len(order), title, interval, progress_text, epochs_left)
            start, iterate = time.perf_counter(), step.iterate()
            step.start_epoch(trainer.lr(epoch))
            step.method.begin_epoch(epoch)
            with progress.bar:
                for batch_index in order:
                    run_step(batch_index)  # lines 2 to 4
                    progress.step()
                    signals.check()
            group.all_reduce_(step.sums)
            group.broadcast_(list(step.model.buffers()))
            step.method.end_epoch(step.lr)  # line 4 for --prox-every epoch
            with step.method.eval_weights(
                lambda: recalibrate_bn(trainer.step.model, trainer.batches)
            ):
                metrics = trainer.metrics(order)
                train_seconds = time.perf_counter() - start
                test_metrics = evaluate(step.model, test_data, step.execution, group)
                trainer.check(test_metrics.loss)
                test_seconds = time.perf_counter() - start - train_seconds
                trainer.epoch = epoch + 1
                seconds, change = (train_seconds, test_seconds), step.squared_distance(iterate)
                row = logs.log(trainer, metrics, test_metrics, seconds, change, accuracy_cut)
                log.append(row)
                if board is not None:
                    logs.add_scalars(board, row)
                accuracy_cut = ""  # in the first row only
                trainer.save(test_metrics.accuracy)
            lr = "" if "lr" in step.method.unused_flags else f"lr {trainer.lr(epoch):g}, "
            print(
                f"{title}: {lr}{metrics}, {test_metrics},"
                f" {logs.format_zeros(trainer, metrics.zeros)}, {train_seconds:.1f} s training,"
                f" {test_seconds:.1f} s evaluation",
                flush=True,
            )
    # A finished run that is resumed has its record, unless it was killed just before.
    if log and group.rank == 0 and (first_epoch < config.epochs or not logs.is_recorded(trainer)):
        logs.record(trainer, log, argv)
    if log and trainer.removed.any():
        share = sum(int(row["flops"]) for row in log) / len(log) / trainer.full_flops
        print(f"training took {share:.1%} of the FLOPs of training at full width")
    accuracy = float(log[-1]["test_accuracy"]) if log else trainer.best
    if test_metrics is None:
        test_metrics = evaluate(trainer.step.model, test_data, trainer.execution, group)
    runtime_flags = runtime_argv(args, "test_batch_size", "workers", "no_cuda")
    print(logs.summary(trainer, accuracy, test_metrics.per_class, runtime_flags))


def evaluate_pruned(trainer: Trainer, test_data: Batches) -> str:
    """Returns the test accuracy right after --prune-ratio zeroed weights, "" without it."""
    if trainer.config.prune_ratio is None:
        return ""
    model = copy.deepcopy(trainer.step.model)
    recalibrate_bn(model, trainer.batches)
    metrics = evaluate(model, test_data, trainer.execution, trainer.group)
    note(f"after pruning weights, before training: {metrics}")
    return f"{metrics.accuracy:.4f}"


def evaluate_checkpoint(init_from: InitFrom, args: Mapping[str, Any], device: torch.device) -> None:
    """``--evaluate``: prints loss and accuracy on the test set."""
    checkpoint, path = init_from.checkpoint, init_from.path
    assert checkpoint is not None and path is not None
    config = config_from_checkpoint(checkpoint, args, path)
    data = load({**config, **args}, checkpoint.norm)
    checkpoint.check_classes(data, path)
    execution, model = Execution(device), checkpoint.network.model
    execution.place(model)
    metrics = evaluate(model, test_batches(data, args, device), execution)
    print(f"{path}: test loss {metrics.loss:.4f}, {metrics}")
    for line in metrics.per_class.remarks(data.classes):
        note(line)


def check_args(args: Mapping[str, Any]) -> None:
    """Raises InputError for flags that exclude one another."""
    sources = args.keys() & {"resume", "refine", "init", "evaluate"}
    auto = args.get("resume") == "auto"
    if len(sources) > 1 + auto or (auto and "evaluate" in sources):
        raise InputError(
            "--resume, --refine, --init and --evaluate exclude one another; only --resume auto can"
            " be combined with --refine or --init"
        )
    if "tensorboard" in args:
        console.require_packages("--tensorboard", "tensorboard")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = vars(parser().parse_args(argv))
    if "version" in args:
        commit, python = logs.commit() or "unknown", platform.python_version()
        version = f"{netslim.__version__}, commit {commit}"
        print(f"version {version}, torch {torch.__version__}, Python {python}")
        return
    if "list" in args:
        print(listing(Path(args.get("save", DEFAULT_FOLDER))))
        return
    check_args(args)
    init_from = InitFrom.from_flags(args)
    if "evaluate" in args:
        evaluate_checkpoint(init_from, args, pick_device("no_cuda" in args))
        return
    config = init_from.config(args)
    is_rank_0 = os.environ.get("RANK", "0") == "0"
    with file_lock(init_from.paths(args, config).lock) if is_rank_0 else nullcontext():
        device = pick_device("no_cuda" in args)
        group = ProcessGroup.join(device)  # the others read files once rank 0 has the lock
        trainer = build_trainer(init_from.latest(args), args, device, group)
        with trainer.explaining_errors(logs.resume_command(trainer, args)):
            train(trainer, args, argv)
        trainer.group.destroy()


if __name__ == "__main__":
    sys.exit(console.run(main))
