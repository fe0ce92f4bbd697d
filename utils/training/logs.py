"""What a run says of itself: in its log, in the record, and when it ends."""

import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models import pruner
from netslim.weights import Compression
from utils.files import checkpoint, records, sparse
from utils.flags.parser import runtime_argv
from utils.methods.base import is_zero
from utils.shell import ROOT, format_command, path_argument, relative_path
from utils.training.classes import PerClass
from utils.training.step import EvalMetrics, TrainMetrics
from utils.training.trainer import Trainer

TOP_FIVE = "test_top_five"  # a column


def keep_log(run: Trainer) -> list[records.Row]:
    """The log's lines of the finished epochs; what is beyond them is dropped."""
    if run.group.rank > 0:
        return []
    run.paths.folder.mkdir(parents=True, exist_ok=True)
    return records.keep_epochs(run.paths.log, run.epoch)


def log(
    run: Trainer,
    reading: TrainMetrics,
    score: EvalMetrics,
    seconds: tuple[float, float],
    change: float,
    accuracy_cut: str,
) -> records.Row:
    """Append the line of the epoch just finished to the log.

    ``seconds`` are those of training and test; ``accuracy_cut`` is the test accuracy of a network
    just cut, "" of all others.
    """
    figures = run.step.method.log_metrics(reading.loss)
    row = {
        "epoch": run.epoch,
        "lr": f"{run.step.lr:.6g}",
        "alpha": f"{run.step.alpha:.6g}",
        "train_loss": f"{reading.loss:.6f}",
        **{name: f"{value:.6f}" for name, value in figures.items()},
        "test_loss": f"{score.loss:.6f}",
        "test_accuracy": f"{score.accuracy:.4f}",
        **({} if score.top_five is None else {TOP_FIVE: f"{score.top_five:.4f}"}),
        **{f"{name}_zeros": count for name, count in reading.zeros.items()},
        "train_seconds": f"{seconds[0]:.3f}",
        "test_seconds": f"{seconds[1]:.3f}",
        "change": f"{change:.6g}",
        "channels": len(run.step.method.gamma),
        "flops": run.flops,
        **({} if run.config.prune_ratio is None else {"accuracy_cut": accuracy_cut}),
    }
    if run.group.rank == 0:
        records.append(run.paths.log, row)
    return {key: str(value) for key, value in row.items()}


def compression(run: Trainer) -> dict[str, object]:
    """Of a network whose weights were cut: what is left of them, and bytes in a file."""
    if run.config.prune_ratio is None:
        return {}
    model = run.step.model
    found, (dense, packed) = Compression.of(model), sparse.bytes_of(model)
    return {
        "weights": found.weights,
        "weights_kept": found.kept,
        "compression": f"{found.factor:.4f}",
        "compression_all": f"{found.factor_all:.4f}",
        "bytes": dense,
        "bytes_sparse": packed,
    }


def is_recorded(run: Trainer) -> bool:
    return any(row["run"] == run.paths.run for row in records.read(run.paths.record))


def record(run: Trainer, log: Sequence[records.Row], argv: Sequence[str]) -> None:
    """Append the finished run's row to the record. ``log`` has its epochs' lines."""
    run.flush()
    seconds = [float(row["train_seconds"]) for row in log]
    device = run.execution.device
    on_cpu = device.type == "cpu"
    row = {
        "run": run.paths.run,
        **replace(run.config, precision=run.execution.precision).to_row(),
        "channels": len(run.removed),
        "batch_norm_channels": run.network.all_channels,
        **{f"{name}_zeros": count for name, count in run.zeros().items()},
        **{key: log[-1][key] for key in ("test_accuracy", TOP_FIVE) if key in log[-1]},
        "best_accuracy": f"{run.best:.4f}",
        **compression(run),
        "accuracy_cut": log[0].get("accuracy_cut"),
        "seconds_per_epoch": f"{sum(seconds) / len(seconds):.3f}",
        "train_seconds": f"{sum(seconds):.3f}",
        "memory_format": run.execution.layout,
        "checkpoint": run.paths.checkpoint.name,
        "checksum": checkpoint.checksum(run.paths.checkpoint),
        "pictures": f"{run.images_checksum:08x}",
        "test_pictures": f"{run.data.test.checksum():08x}",
        "command": shlex.join(["python", "main.py", *argv]),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": platform.machine() if on_cpu else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "processes": run.group.size,
        "source": run.data.source,
        "init_checksum": run.init_checksum,
    }
    records.append(run.paths.record, row)


def zeros(run: Trainer, counts: Mapping[str, int]) -> str:
    symbols = run.step.method.factors
    return ", ".join(f"{symbols.get(name, name)} = 0: {count}" for name, count in counts.items())


def summary(run: Trainer, accuracy: float, by_class: PerClass, said: Sequence[str]) -> str:
    """Zeros per layer, the final ``accuracy`` in percent, and the command that comes next.

    ``said`` are flags that it needs as this one did.
    """
    checkpoint = path_argument(run.paths.checkpoint)
    factors, symbols = run.factors(), run.step.method.factors
    lines = [f"{'layer':<24}channels" + "".join(f"  {symbols[name]} = 0" for name in factors)]
    for name, *parts in zip(run.network.layers, *factors.values(), strict=True):
        counts = "".join(f"{int(is_zero(part).sum()):7}" for part in parts)
        lines.append(f"{name:<24}{len(parts[0]):8}{counts}")
    totals = [f"{symbols[name]} = 0: {run.zeros()[name]}" for name in factors]
    lines.append(
        f"test accuracy {accuracy:.2f} % (best {run.best:.2f} %),"
        f" {', '.join(totals)} of {len(run.removed)}; checkpoint {run.paths.checkpoint}"
    )
    if found := compression(run):
        lines.append(
            f"weights: {found['weights']:,} -> {found['weights_kept']:,}, {found['compression']}"
            f" times fewer; of all parameters {found['compression_all']} times;"
            f" {found['bytes']:,} bytes dense, {found['bytes_sparse']:,} sparse"
        )
        words = ["-m", "utils.export", "--format", "sparse", "--model", checkpoint]
        lines.append(f"to keep it small: {format_command(*words)}")
    if accuracies := by_class.accuracies(run.data.classes):
        lines.append(accuracies)
    if verdict := run.verdict(by_class):
        lines.append(f"verdict: {verdict}")
    flags = run.step.method.prune_flags
    if flags is not None:
        words = [*pruner(run.config.arch), "--model", checkpoint]
        lines.append(f"next: {format_command(*words, *flags, *said)}")
    if (flags := run.step.method.refine_flags) is not None:
        kept = replace(run.config, precision=run.execution.precision).finetuning_argv(cuts=True)
        lines.append(
            f"next: {format_command('main.py', '--refine', checkpoint, *flags, *kept, *said)}"
        )
    return "\n".join(lines)


def resume_command(run: Trainer, given: Mapping[str, Any]) -> str:
    """The command that goes on with ``run``, on as many processes."""
    words = ["--resume", path_argument(run.paths.checkpoint), *runtime_argv(given)]
    if run.group.size == 1:
        return format_command("main.py", *words)
    here = os.environ.get("LOCAL_WORLD_SIZE", str(run.group.size))
    several = ["-m", "torch.distributed.run", "--nproc-per-node", here]
    return format_command(*several, "--", path_argument(relative_path(ROOT / "main.py")), *words)


def commit() -> str | None:
    """The commit of this program, with a ``+`` where files differ from it; None if not known.

    It is known where the program's own folder is a repository that has its files: one further up,
    or one that this program was copied into, is somebody else's.
    """
    own = ["git", "--git-dir", str(ROOT / ".git"), "--work-tree", str(ROOT)]
    tracked = ["ls-files", "--error-unmatch", str(Path(__file__).resolve())]
    described = ["describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    said = ""
    for words in (tracked, described):
        try:
            done = subprocess.run(
                [*own, *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        said = done.stdout.strip()
    return said or None
