"""Train a network so that the scaling factors of channels it does not need become exactly zero.

    python main.py -sr --dataset cifar10 --arch vgg --depth 19

:func:`train` reads as Algorithm 1 of "A Proximal Algorithm for Network Slimming" does.
"""

import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import Network, build_model, full_cfg, restore
from utils import checkpoint, cli, records
from utils.cli import Diverged, InputError, Progress, note
from utils.data import Batches, Dataset
from utils.device import Execution, fastest, pick_device
from utils.recipes import recipe
from utils.run import Files, Run
from utils.settings import (
    Settings,
    check_classes,
    check_said,
    inherit,
    load_data,
    parser,
    resolve,
    stored_settings,
)
from utils.slimming import (
    METHODS,
    Baseline,
    Subgradient,
    batch_norms,
    is_zero,
    shrinkage,
)
from utils.training import Tally, evaluate, learning_rate, train_epoch


def train(run: Run, test_batch_size: int, log_interval: int, argv: Sequence[str]) -> None:
    """Algorithm 1, from the run's next epoch to its last; a log line and a checkpoint each."""
    s, model, method, execution = run.settings, run.network.model, run.method, run.execution
    batches = Batches(run.data, "train", s.batch_size, execution.device, s.seed)
    tests = Batches(run.data, "test", test_batch_size, execution.device)
    run.files.folder.mkdir(parents=True, exist_ok=True)
    log = records.keep_epochs(run.files.log, run.epoch)
    trains = run.epoch < s.epochs
    for epoch in range(run.epoch, s.epochs):  # line 1: for each epoch t
        lr = learning_rate(epoch, s.epochs, s.lr)
        alpha = 1 / lr
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        tally = Tally.on(execution.device)
        progress = Progress(
            len(batches),
            f"epoch {epoch + 1}/{s.epochs}",
            log_interval,
            lambda tally=tally: f"{tally}, {zeros(method)}",
            epochs_left=s.epochs - epoch - 1,
        )
        start = time.perf_counter()
        # Lines 2 to 4, as often as --prox-every says.
        train_epoch(
            model, batches.epoch(epoch), run.optimizer, method, alpha, execution, tally, progress
        )
        train_loss = tally.mean_loss()
        train_seconds = time.perf_counter() - start
        progress.close()
        test_loss, accuracy = evaluate(model, tests, execution)
        if not (math.isfinite(train_loss + test_loss) and method.gamma.isfinite().all()):
            raise Diverged(
                f"the loss or a scaling factor is not finite in epoch {epoch + 1}, which is not"
                f" saved: try a smaller --lr than {s.lr}"
            )
        test_seconds = time.perf_counter() - start - train_seconds
        run.epoch = epoch + 1
        log.append(run.log(lr, train_loss, test_loss, accuracy, train_seconds, test_seconds))
        run.save(accuracy)
        print(
            f"epoch {epoch + 1}/{s.epochs}: lr {lr:g}, {tally}, test accuracy {accuracy:.2f} %,"
            f" {zeros(method)}, {train_seconds:.1f} s + {test_seconds:.1f} s",
            flush=True,
        )
    accuracy = float(log[-1]["test_accuracy"]) if log else run.best
    # A finished run that is resumed has its row, unless it was killed just before that.
    if log and (trains or not run.is_recorded()):
        seconds = [float(row["train_seconds"]) for row in log]
        run.record(accuracy, sum(seconds) / len(seconds), argv)
    print(summary(run, accuracy))


def zeros(method: Baseline) -> str:
    text = f"γ = 0: {method.gamma_zeros()}"
    return text if method.xi is None else f"{text}, ξ = 0: {method.xi_zeros()}"


def summary(run: Run, accuracy: float) -> str:
    """Zeros per layer, the final ``accuracy`` in percent, and the command that comes next."""
    s, method, norms = run.settings, run.method, batch_norms(run.network.model)
    names = [name for name, module in run.network.model.named_modules() if module in norms]
    xi = method.gamma if method.xi is None else method.xi
    lines = [f"{'layer':<24}channels  γ = 0" + ("" if method.xi is None else "  ξ = 0")]
    for name, g, x in zip(names, method.split(method.gamma), method.split(xi), strict=True):
        line = f"{name:<24}{len(g):8}{int(is_zero(g).sum()):7}"
        lines.append(line if method.xi is None else f"{line}{int((x == 0).sum()):7}")
    lines.append(
        f"test accuracy {accuracy:.2f} % (best {run.best:.2f} %),"
        f" {zeros(method)} of {len(method.gamma)}; checkpoint {run.files.checkpoint}"
    )
    if method.lambda_ is not None:
        command = [f"{s.arch}_prune.py", "--model", str(run.files.checkpoint)]
        command += ["--name", f"{run.files.run}_"]
        if s.method == Subgradient.name:
            command += ["--percent", "0.5"]  # its factors come near zero only: choose a share
        lines.append(f"next: python {shlex.join(command)}")
    return "\n".join(lines)


def make_method(settings: Settings, model: nn.Module) -> Baseline:
    method = METHODS[settings.method]
    names = {"s": "lambda_"}
    return method(model, **{names.get(k, k): getattr(settings, k) for k in method.settings})


def warn_if_out_of_reach(settings: Settings, xi: torch.Tensor, pictures: int) -> None:
    """Say so when the penalty alone cannot bring a factor to zero in this schedule."""
    s = settings
    each = math.ceil(pictures / s.batch_size) if s.prox_every == "step" else 1
    schedule = [(each, 1 / learning_rate(epoch, s.epochs, s.lr)) for epoch in range(s.epochs)]
    reach, start = shrinkage(s.s, s.beta, schedule), xi.abs().min().item()
    if reach < start:
        enough = recipe(s.arch, s.depth).shrinkage() / shrinkage(1, s.beta, schedule)
        note(
            f"warning: in {s.epochs} epochs the penalty alone moves ξ by {reach:.2g}, and it starts"
            f" at {start:.2g} or more: zeros may not appear. --s {enough:.2g} shrinks as much in"
            " total as the paper's recipe does"
        )


def choose_execution(
    settings: Settings,
    resumed: Mapping[str, Any],
    network: Network,
    data: Dataset,
    device: torch.device,
) -> Execution:
    """Precision and memory format: as ``resumed``, as told, or measured."""
    if "precision" in resumed:
        if settings.precision not in ("auto", resumed["precision"]):
            raise InputError(f"this run was started with --precision {resumed['precision']}")
        return Execution(device, resumed["precision"], resumed["channels_last"])
    if settings.precision != "auto":
        return Execution(device, settings.precision)
    images, labels = next(Batches(data, "train", settings.batch_size, device).epoch(0))
    execution = fastest(network.model, images, labels, device)
    layout = "channels last" if execution.channels_last else "channels first"
    note(f"fastest here: {execution.precision}, {layout}")
    return execution


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    given = vars(parser().parse_args(argv))
    modes = [mode for mode in ("resume", "refine", "evaluate") if mode in given]
    if len(modes) > 1:
        raise InputError("--resume, --refine and --evaluate exclude one another")
    mode = modes[0] if modes else None
    path, content, network, known = given.get(mode), {}, None, {}
    if mode is not None:
        content, network = checkpoint.load(Path(path), restore)
        if mode == "resume" and "epoch" not in content:
            raise InputError(
                f"{path} cannot be resumed: no training is in it; fine-tune by --refine"
            )
        known = inherit(content, network, path)
        check_said(given, known, path)
    device = pick_device("no_cuda" in given)
    test_batch_size = given.get("test_batch_size", 256)

    if mode == "evaluate":
        data = load_data({**known, **given})
        check_classes(content, network, data, path)
        execution = Execution(device)
        tests = Batches(data, "test", test_batch_size, device)
        loss, accuracy = evaluate(execution.place(network.model), tests, execution)
        print(f"{path}: test loss {loss:.4f}, test accuracy {accuracy:.2f} %")
        return

    stored = stored_settings(content, path) if mode == "resume" else {}
    settings = resolve(given, stored, known)
    if given.get("start_epoch", 0) >= settings.epochs:
        raise InputError(f"--start-epoch must be below the {settings.epochs} epochs")
    try:
        cfg = full_cfg(settings.arch, settings.depth)
    except ValueError as error:
        raise InputError(str(error)) from None
    folder = "logs" if path is None else Path(path).parent
    files = Files(Path(given.get("save", folder)), settings.run)
    cli.check_writable(files.folder)
    files.check(Path(path) if mode == "resume" else None)
    data = load_data(asdict(settings))
    torch.manual_seed(settings.seed)
    if network is None:
        model = build_model(settings.arch, settings.depth, len(data.classes))
        network = Network(model, settings.arch, settings.depth, len(data.classes), cfg)
    check_classes(content, network, data, path)
    execution = choose_execution(
        settings, content if mode == "resume" else {}, network, data, device
    )
    model = execution.place(network.model)
    method = make_method(settings, model)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov and settings.momentum > 0,
        fused=True,
    )
    run = Run(settings, files, network, data, execution, method, optimizer)
    if mode == "resume":
        run.resume(content, path)
    else:
        run.epoch = given.get("start_epoch", 0)
        if method.xi is not None:
            warn_if_out_of_reach(settings, method.xi, len(data.train))
    train(run, test_batch_size, given.get("log_interval", 50), argv)


if __name__ == "__main__":
    sys.exit(cli.run(main))
