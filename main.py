"""Train a network so that the scaling factors of channels it does not need become exactly zero.

    python main.py -sr --dataset cifar10 --arch vgg --depth 19

:func:`train` reads as Algorithm 1 of "A Proximal Algorithm for Network Slimming" does.
"""

import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from models import Network, build_model, full_cfg
from models.cost import cost
from models.surgery import norms
from utils import console
from utils.atomic import check_writable
from utils.console import Diverged, InputError, Lost, Progress, note
from utils.data.datasets import Batches
from utils.device import Execution, Group, fastest, pick_device
from utils.flags.settings import Settings, load_data, parser
from utils.flags.source import Source, check_classes
from utils.launch import run_seeds
from utils.methods.slimming import Subgradient, is_zero, shrinkage
from utils.paper.settings import recipe
from utils.training.run import Run
from utils.training.step import evaluate, learning_rate, train_epoch

TEST_BATCH_SIZE = 256


def train(run: Run, test_batch_size: int, log_interval: int, argv: Sequence[str]) -> None:
    """Algorithm 1, from the run's next epoch to its last; a log line and a checkpoint each."""
    s, group = run.settings, run.group
    tests = Batches(run.data, "test", test_batch_size, run.execution.device)
    log = run.keep_log()
    full_flops = cost(run.network.model).flops
    trains = run.epoch < s.epochs
    with console.Signals() as signals:
        for epoch in range(run.epoch, s.epochs):  # line 1: for each epoch t
            lr = learning_rate(epoch, s.epochs, s.lr)
            if dead := run.cut_dead(lr):
                note(
                    f"epoch {epoch + 1}: {dead} dead channels are cut; {int((~run.cut).sum())} of"
                    f" {len(run.cut)} train on, at {run.flops / full_flops:.0%} of the FLOPs"
                )
            step = run.step
            order = step.batches.order(epoch)
            progress = Progress(
                len(order),
                f"epoch {epoch + 1}/{s.epochs}",
                log_interval,
                lambda step=step: f"{step.tally}, {zeros(run)}",
                epochs_left=s.epochs - epoch - 1,
            )
            start, z = time.perf_counter(), step.z()
            step.begin(lr)
            with progress:
                # Lines 2 to 4, as often as --prox-every says.
                train_epoch(step, order, progress, signals)
            train_loss = step.tally.mean_loss()
            train_seconds = time.perf_counter() - start
            group.take_from_first(list(step.model.buffers()))
            test_loss, accuracy = evaluate(step.model, tests, step.execution, group)
            check_epoch(run, test_loss)
            test_seconds = time.perf_counter() - start - train_seconds
            run.epoch = epoch + 1
            values = {
                "lr": f"{lr:.6g}",
                "test_loss": f"{test_loss:.6f}",
                "test_accuracy": f"{accuracy:.4f}",
                "train_seconds": f"{train_seconds:.3f}",
                "test_seconds": f"{test_seconds:.3f}",
                "change": f"{step.change(z):.6g}",
            }
            log.append(run.log(train_loss, values))
            drops = learning_rate(run.epoch, s.epochs, s.lr) != lr
            run.save(accuracy, now=drops or run.epoch == s.epochs)
            print(
                f"epoch {epoch + 1}/{s.epochs}: lr {lr:g}, {step.tally}, test accuracy"
                f" {accuracy:.2f} %, {zeros(run)}, {train_seconds:.1f} s"
                f" + {test_seconds:.1f} s",
                flush=True,
            )
    accuracy = float(log[-1]["test_accuracy"]) if log else run.best
    # A finished run that is resumed has its row, unless it was killed just before that.
    if log and group.rank == 0 and (trains or not run.is_recorded()):
        run.record(accuracy, [float(row["train_seconds"]) for row in log], argv)
    if log and run.cut.any():
        spent = sum(int(row["flops"]) for row in log) / len(log) / full_flops
        print(f"training took {spent:.1%} of the FLOPs that it takes at full width")
    print(summary(run, accuracy))


def check_epoch(run: Run, test_loss: float) -> None:
    """Raise Diverged if the epoch's end is not fit to be saved, Lost if the processes disagree."""
    method = run.step.method
    if not math.isfinite(test_loss):
        raise Diverged("the test loss is not finite")
    same = [run.cut, method.gamma] + ([] if method.xi is None else [method.xi])
    if not run.group.agree(same):
        raise Lost(f"the processes' γ or ξ differ after epoch {run.epoch + 1}: it is not saved")


def zeros(run: Run) -> str:
    count = run.zeros()
    text = f"γ = 0: {count['gamma_zeros']}"
    return text if count["xi_zeros"] is None else f"{text}, ξ = 0: {count['xi_zeros']}"


def summary(run: Run, accuracy: float) -> str:
    """Zeros per layer, the final ``accuracy`` in percent, and the command that comes next."""
    s, method = run.settings, run.step.method
    layers = norms(run.network.model)
    widths = [bn.num_features for bn in layers.values()]
    gamma = run.full(method.gamma)
    xi = gamma if method.xi is None else run.full(method.xi)
    lines = [f"{'layer':<24}channels  γ = 0" + ("" if method.xi is None else "  ξ = 0")]
    for name, g, x in zip(layers, gamma.split(widths), xi.split(widths), strict=True):
        line = f"{name:<24}{len(g):8}{int(is_zero(g).sum()):7}"
        lines.append(line if method.xi is None else f"{line}{int((x == 0).sum()):7}")
    lines.append(
        f"test accuracy {accuracy:.2f} % (best {run.best:.2f} %),"
        f" {zeros(run)} of {len(gamma)}; checkpoint {run.files.checkpoint}"
    )
    if method.lambda_ is not None:
        command = [f"{s.arch}_prune.py", "--model", str(run.files.checkpoint)]
        command += ["--name", f"{run.files.run}_"]
        if s.method == Subgradient.name:
            command += ["--percent", "0.5"]  # its factors come near zero only: choose a share
        lines.append(f"next: python {shlex.join(command)}")
    return "\n".join(lines)


def warn_if_out_of_reach(settings: Settings, first: int, xi: torch.Tensor, pictures: int) -> None:
    """Say so when the penalty alone cannot bring a factor to zero from epoch ``first`` on."""
    s = settings
    each = math.ceil(pictures / s.batch_size) if s.prox_every == "step" else 1
    lrs = [learning_rate(epoch, s.epochs, s.lr) for epoch in range(first, s.epochs)]
    schedule = [(each, 1 / lr) for lr in lrs]
    reach, start = shrinkage(s.s, s.beta, schedule), xi.abs().min().item()
    if reach < start:
        enough = recipe(s.arch, s.depth).shrinkage() / shrinkage(1, s.beta, schedule)
        note(
            f"warning: in {len(lrs)} epochs the penalty alone moves ξ by {reach:.2g}, and it starts"
            f" at {start:.2g} or more: zeros may not appear. --s {enough:.2g} shrinks as much in"
            " total as the paper's recipe does"
        )


def choose_execution(
    settings: Settings,
    resumed: Mapping[str, Any],
    network: Network,
    batches: Batches,
    group: Group,
) -> Execution:
    """Precision and memory format: as ``resumed``, else as told and measured."""
    device = batches.images.device
    if "precision" in resumed:
        if settings.precision not in ("auto", resumed["precision"]):
            raise InputError(f"this run was started with --precision {resumed['precision']}")
        return Execution(device, resumed["precision"], resumed["channels_last"])
    if settings.deterministic:
        return Execution(device, "bf16" if settings.precision == "bf16" else "fp32")
    images, labels = batches.cut(batches.order(0)[0])
    measured = group.first_says(
        lambda: fastest(network.model, images, labels, device, settings.precision)
    )
    layout = "channels last" if measured.channels_last else "channels first"
    note(f"fastest here: {measured.precision}, {layout}")
    return replace(measured, device=device)


def test(source: Source, given: Mapping[str, Any], device: torch.device) -> None:
    """``--evaluate``: print loss and accuracy on the test set."""
    data = load_data({**source.known(given), **given})
    check_classes(source.content, source.network, data, source.path)
    execution = Execution(device)
    tests = Batches(data, "test", given.get("test_batch_size", TEST_BATCH_SIZE), device)
    loss, accuracy = evaluate(execution.place(source.network.model), tests, execution)
    print(f"{source.path}: test loss {loss:.4f}, test accuracy {accuracy:.2f} %")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    given = vars(parser().parse_args(argv))
    said = [mode for mode in ("resume", "refine", "evaluate") if mode in given]
    auto = given.get("resume") == "auto"
    if len(said) > 1 and (not auto or "evaluate" in given):
        raise InputError(
            "--resume, --refine and --evaluate exclude one another (but --resume auto and --refine)"
        )
    if "seeds" in given and ("evaluate" in given or ("resume" in given and not auto)):
        raise InputError(
            "--seeds starts one run each: it takes neither --evaluate nor --resume PATH"
        )
    if "seeds" in given and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("--seeds starts its own processes: leave out torchrun")
    source = Source.of(given)
    if "seeds" in given:
        run_seeds(argv, source.settings(given).name, "no_cuda" in given)
        return
    device = pick_device("no_cuda" in given)
    if "evaluate" in given:
        test(source, given, device)
        return
    settings = source.settings(given)
    if source.resumes and "start_epoch" in given:
        raise InputError("--start-epoch is for a run that begins; --resume knows its epoch")
    if given.get("start_epoch", 0) >= settings.epochs:
        raise InputError(f"--start-epoch must be below the {settings.epochs} epochs")
    try:
        cfg = full_cfg(settings.arch, settings.depth)
    except ValueError as error:
        raise InputError(str(error)) from None
    files = source.files(given, settings)
    check_writable(files.folder)
    files.check(Path(source.path) if source.resumes else None)

    group = Group.join(device)
    if group.rank > 0:
        group.wait()  # the first process downloads and decodes for all
    data = load_data(asdict(settings))
    if group.rank == 0:
        group.wait()
    torch.manual_seed(settings.seed)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.use_deterministic_algorithms(settings.deterministic)
    network = source.network
    if network is None:
        model = build_model(settings.arch, settings.depth, len(data.classes))
        network = Network(model, settings.arch, settings.depth, len(data.classes), cfg)
    check_classes(source.content, network, data, source.path)
    batches = Batches(data, "train", settings.batch_size, device, settings.seed)
    execution = choose_execution(
        settings, source.content if source.resumes else {}, network, batches, group
    )
    graphs = device.type == "cuda" and group.size == 1 and "no_graph" not in given
    run = Run(settings, files, network, data, batches, execution, group, graphs)
    if source.resumes:
        run.resume(source.content, source.path)
    else:
        run.epoch = given.get("start_epoch", 0)
        if run.step.method.xi is not None:
            warn_if_out_of_reach(settings, run.epoch, run.step.method.xi, len(data.train))
    with run.kept():
        train(
            run,
            given.get("test_batch_size", TEST_BATCH_SIZE),
            given.get("log_interval", 50),
            argv,
        )


if __name__ == "__main__":
    sys.exit(console.run(main))
