"""A run's log, its record, and its summary."""

import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from models import pruner
from netslim.weights import Compression
from utils.data.classes import PerClass
from utils.files import checkpoint, records, sparse
from utils.flags.parser import runtime_argv
from utils.methods.base import is_zero
from utils.shell import ROOT, format_command, path_argument, relative_path
from utils.training.step import EvalMetrics, TrainMetrics
from utils.training.trainer import Trainer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TOP_FIVE = "test_top_five"  # a column


def keep_log(trainer: Trainer) -> list[records.Row]:
    """Returns the log of the finished epochs; deletes later lines from the file."""
    if trainer.group.rank > 0:
        return []
    trainer.paths.directory.mkdir(parents=True, exist_ok=True)
    return records.keep_epochs(trainer.paths.log, trainer.epoch)


def log(
    trainer: Trainer,
    train_metrics: TrainMetrics,
    test_metrics: EvalMetrics,
    seconds: tuple[float, float],
    change: float,
    accuracy_cut: str,
) -> records.Row:
    """Appends the epoch just finished to the log, and returns its row.

    Args:
        seconds: of training and evaluation.
        change: ‖Zᵗ⁺¹ − Zᵗ‖².
        accuracy_cut: test accuracy after weights were zeroed, before training; "" if none were.
    """
    step = trainer.step
    columns = step.method.log_metrics(train_metrics.loss)
    row = {
        "epoch": trainer.epoch,
        "lr": f"{step.lr:.6g}",
        "alpha": f"{step.alpha:.6g}",
        "train_loss": f"{train_metrics.loss:.6f}",
        **{name: f"{value:.6f}" for name, value in columns.items()},
        "test_loss": f"{test_metrics.loss:.6f}",
        "test_accuracy": f"{test_metrics.accuracy:.4f}",
    }
    if test_metrics.top_five is not None:
        row[TOP_FIVE] = f"{test_metrics.top_five:.4f}"
    row |= {f"{name}_zeros": count for name, count in train_metrics.zeros.items()}
    row |= {
        "train_seconds": f"{seconds[0]:.3f}",
        "test_seconds": f"{seconds[1]:.3f}",
        "change": f"{change:.6g}",
        "channels": len(step.method.gamma),
        "flops": trainer.flops,
    }
    if trainer.config.prune_ratio is not None:
        row["accuracy_cut"] = accuracy_cut
    if trainer.group.rank == 0:
        records.append(trainer.paths.log, row)
    return {key: str(value) for key, value in row.items()}


def tensorboard(trainer: Trainer) -> "SummaryWriter":
    """Returns the writer of --tensorboard; events of epochs that are repeated become invisible."""
    from torch.utils.tensorboard import SummaryWriter  # an optional package

    return SummaryWriter(trainer.paths.directory, purge_step=trainer.epoch + 1)


def add_scalars(board: "SummaryWriter", row: records.Row) -> None:
    """Writes the columns of a row of the log as TensorBoard events."""
    for name, cell in row.items():
        if cell and name != "epoch":
            board.add_scalar(name, float(cell), int(row["epoch"]))
    board.flush()


def compression(trainer: Trainer) -> dict[str, object]:
    """Returns weights left and file sizes in bytes, for --prune-ratio only."""
    if trainer.config.prune_ratio is None:
        return {}
    model = trainer.step.model
    found, (dense_bytes, sparse_bytes) = Compression.of(model), sparse.bytes_of(model)
    return {
        "weights": found.weights,
        "weights_kept": found.kept,
        "compression": f"{found.factor:.4f}",
        "compression_all": f"{found.factor_all:.4f}",
        "bytes": dense_bytes,
        "bytes_sparse": sparse_bytes,
    }


def is_recorded(trainer: Trainer) -> bool:
    return any(row["run"] == trainer.paths.run for row in records.read(trainer.paths.record))


def record(trainer: Trainer, log: Sequence[records.Row], argv: Sequence[str]) -> None:
    """Appends the finished run to the record. ``log`` has all of its epochs."""
    config, paths, execution = trainer.config, trainer.paths, trainer.execution
    seconds = [float(row["train_seconds"]) for row in log]
    device, on_cpu = execution.device, execution.device.type == "cpu"
    row = {
        "run": paths.run,
        **replace(config, precision=execution.precision).to_row(),
        "channels": len(trainer.removed),
        "batch_norm_channels": trainer.network.all_channels,
        **{f"{name}_zeros": count for name, count in trainer.zeros().items()},
        **{key: log[-1][key] for key in ("test_accuracy", TOP_FIVE) if key in log[-1]},
        "best_accuracy": f"{trainer.best:.4f}",
        **compression(trainer),
        "accuracy_cut": log[0].get("accuracy_cut"),
        "seconds_per_epoch": f"{sum(seconds) / len(seconds):.3f}",
        "train_seconds": f"{sum(seconds):.3f}",
        "memory_format": execution.layout,
        "checkpoint": paths.recorded(paths.checkpoint),
        "checksum": checkpoint.checksum(paths.checkpoint),
        "pictures": f"{trainer.images_checksum:08x}",
        "test_pictures": f"{trainer.data.test.checksum():08x}",
        "command": shlex.join(["python", "main.py", *argv]),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": platform.machine() if on_cpu else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "processes": trainer.group.size,
        "source": trainer.data.source,
        "init_checksum": trainer.init_checksum,
    }
    records.append(paths.record, row)


def format_zeros(trainer: Trainer, counts: Mapping[str, int]) -> str:
    """Returns for example "γ = 0: 12, ξ = 0: 15"."""
    symbols = trainer.step.method.factors
    return ", ".join(f"{symbols.get(name, name)} = 0: {count}" for name, count in counts.items())


def summary(
    trainer: Trainer, accuracy: float, per_class: PerClass, runtime_flags: Sequence[str]
) -> str:
    """Returns zeros per layer, the final ``accuracy`` in percent, and the next command.

    Args:
        runtime_flags: for the next command, such as --no-cuda.
    """
    method, config = trainer.step.method, trainer.config
    checkpoint = path_argument(trainer.paths.checkpoint)
    factors, symbols = trainer.factors(), method.factors
    lines = [f"{'layer':<24}channels" + "".join(f"  {symbols[name]} = 0" for name in factors)]
    for name, *parts in zip(trainer.network.layers, *factors.values(), strict=True):
        counts = "".join(f"{int(is_zero(part).sum()):7}" for part in parts)
        lines.append(f"{name:<24}{len(parts[0]):8}{counts}")
    zeros = trainer.zeros()
    lines.append(
        f"test accuracy {accuracy:.2f} % (best {trainer.best:.2f} %),"
        f" {format_zeros(trainer, {name: zeros[name] for name in factors})} of"
        f" {len(trainer.removed)}; checkpoint {trainer.paths.checkpoint}"
    )
    if weights := compression(trainer):
        lines.append(
            f"weights: {weights['weights']:,} -> {weights['weights_kept']:,},"
            f" {weights['compression']} times fewer; of all parameters"
            f" {weights['compression_all']} times; {weights['bytes']:,} bytes dense,"
            f" {weights['bytes_sparse']:,} sparse"
        )
    lines.append(per_class.accuracies(trainer.data.classes))
    if verdict := trainer.verdict(per_class):
        lines.append(f"verdict: {verdict}")
    commands = []
    if (flags := method.prune_flags) is not None:
        commands.append([*pruner(config.arch), "--model", checkpoint, *flags, *runtime_flags])
    if (flags := method.refine_flags) is not None:
        measured = replace(config, precision=trainer.execution.precision)
        flags = *flags, *measured.finetuning_argv(prunes_weights=True), *runtime_flags
        commands.append(["main.py", "--refine", checkpoint, *flags])
    if not commands:  # nothing to train any more
        form = "sparse" if weights else "onnx"
        commands.append(["-m", "utils.export", "--model", checkpoint, "--format", form])
    return "\n".join([*lines, *(f"next: {format_command(*words)}" for words in commands)])


def resume_command(trainer: Trainer, args: Mapping[str, Any]) -> str:
    """Returns the command that resumes the run, with as many processes."""
    words = ["--resume", path_argument(trainer.paths.checkpoint), *runtime_argv(args)]
    if trainer.group.size == 1:
        return format_command("main.py", *words)
    processes = os.environ.get("LOCAL_WORLD_SIZE", str(trainer.group.size))
    torchrun = "-m", "torch.distributed.run", "--nproc-per-node", processes
    return format_command(*torchrun, "--", path_argument(relative_path(ROOT / "main.py")), *words)


def commit() -> str | None:
    """Returns the commit of this program, with ``+`` if files differ from it.

    None if this file is not tracked: then the repository around it, if any, is another program's.
    """
    git = ["git", "--git-dir", str(ROOT / ".git"), "--work-tree", str(ROOT)]
    tracked = "ls-files", "--error-unmatch", str(Path(__file__).resolve())
    describe = "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"
    options: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 10}
    try:
        subprocess.run([*git, *tracked], check=True, **options)
        done = subprocess.run([*git, *describe], check=True, **options)
        return done.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
