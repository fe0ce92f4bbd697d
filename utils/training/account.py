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
from utils.flags.parser import said_again
from utils.methods.base import is_zero
from utils.shell import ROOT, command, near, word
from utils.training.classes import ByClass
from utils.training.run import Run
from utils.training.step import Reading, Score

TOP_FIVE = "test_top_five"  # a column


def keep_log(run: Run) -> list[records.Row]:
    """The log's lines of the finished epochs; what is beyond them is dropped."""
    if run.group.rank > 0:
        return []
    run.files.folder.mkdir(parents=True, exist_ok=True)
    return records.keep_epochs(run.files.log, run.epoch)


def log(
    run: Run,
    reading: Reading,
    score: Score,
    seconds: tuple[float, float],
    change: float,
    accuracy_cut: str,
) -> records.Row:
    """Append the line of the epoch just finished to the log.

    ``seconds`` are those of training and test; ``accuracy_cut`` is the test accuracy of a network
    just cut, "" of all others.
    """
    figures = run.step.method.figures(reading.loss)
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
        **({} if run.settings.prune_ratio is None else {"accuracy_cut": accuracy_cut}),
    }
    if run.group.rank == 0:
        records.append(run.files.log, row)
    return {key: str(value) for key, value in row.items()}


def compression(run: Run) -> dict[str, object]:
    """Of a network whose weights were cut: what is left of them, and bytes in a file."""
    if run.settings.prune_ratio is None:
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


def is_recorded(run: Run) -> bool:
    return any(row["run"] == run.files.run for row in records.read(run.files.record))


def record(run: Run, log: Sequence[records.Row], argv: Sequence[str]) -> None:
    """Append the finished run's row to the record. ``log`` has its epochs' lines."""
    run.write()
    seconds = [float(row["train_seconds"]) for row in log]
    device = run.execution.device
    on_cpu = device.type == "cpu"
    row = {
        "run": run.files.run,
        **replace(run.settings, precision=run.execution.precision).cells(),
        "channels": len(run.cut),
        "batch_norm_channels": run.network.all_channels,
        **{f"{name}_zeros": count for name, count in run.zeros().items()},
        **{key: log[-1][key] for key in ("test_accuracy", TOP_FIVE) if key in log[-1]},
        "best_accuracy": f"{run.best:.4f}",
        **compression(run),
        "accuracy_cut": log[0].get("accuracy_cut"),
        "seconds_per_epoch": f"{sum(seconds) / len(seconds):.3f}",
        "train_seconds": f"{sum(seconds):.3f}",
        "memory_format": run.execution.layout,
        "checkpoint": run.files.checkpoint.name,
        "checksum": checkpoint.checksum(run.files.checkpoint),
        "pictures": f"{run.pictures:08x}",
        "test_pictures": f"{run.data.test.checksum():08x}",
        "command": shlex.join(["python", "main.py", *argv]),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": platform.machine() if on_cpu else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "processes": run.group.size,
        "source": run.data.source,
        "init_checksum": run.origin,
    }
    records.append(run.files.record, row)


def zeros(run: Run, counts: Mapping[str, int]) -> str:
    symbols = run.step.method.factors
    return ", ".join(f"{symbols.get(name, name)} = 0: {count}" for name, count in counts.items())


def summary(run: Run, accuracy: float, by_class: ByClass, said: Sequence[str]) -> str:
    """Zeros per layer, the final ``accuracy`` in percent, and the command that comes next.

    ``said`` are flags that it needs as this one did.
    """
    checkpoint = word(run.files.checkpoint)
    factors, symbols = run.factors(), run.step.method.factors
    lines = [f"{'layer':<24}channels" + "".join(f"  {symbols[name]} = 0" for name in factors)]
    for name, *parts in zip(run.network.layers, *factors.values(), strict=True):
        counts = "".join(f"{int(is_zero(part).sum()):7}" for part in parts)
        lines.append(f"{name:<24}{len(parts[0]):8}{counts}")
    totals = [f"{symbols[name]} = 0: {run.zeros()[name]}" for name in factors]
    lines.append(
        f"test accuracy {accuracy:.2f} % (best {run.best:.2f} %),"
        f" {', '.join(totals)} of {len(run.cut)}; checkpoint {run.files.checkpoint}"
    )
    if found := compression(run):
        lines.append(
            f"weights: {found['weights']:,} -> {found['weights_kept']:,}, {found['compression']}"
            f" times fewer; of all parameters {found['compression_all']} times;"
            f" {found['bytes']:,} bytes dense, {found['bytes_sparse']:,} sparse"
        )
        words = ["-m", "utils.export", "--format", "sparse", "--model", checkpoint]
        lines.append(f"to keep it small: {command(*words)}")
    if accuracies := by_class.accuracies(run.data.classes):
        lines.append(accuracies)
    if verdict := run.verdict(by_class):
        lines.append(f"verdict: {verdict}")
    flags = run.step.method.prune_flags
    if flags is not None:
        words = [*pruner(run.settings.arch), "--model", checkpoint]
        lines.append(f"next: {command(*words, *flags, *said)}")
    if (flags := run.step.method.refine_flags) is not None:
        kept = replace(run.settings, precision=run.execution.precision).refine_argv(cuts=True)
        lines.append(f"next: {command('main.py', '--refine', checkpoint, *flags, *kept, *said)}")
    return "\n".join(lines)


def way_on(run: Run, given: Mapping[str, Any]) -> str:
    """The command that goes on with ``run``, on as many processes."""
    words = ["--resume", word(run.files.checkpoint), *said_again(given)]
    if run.group.size == 1:
        return command("main.py", *words)
    here = os.environ.get("LOCAL_WORLD_SIZE", str(run.group.size))
    several = ["-m", "torch.distributed.run", "--nproc-per-node", here]
    return command(*several, "--", word(near(ROOT / "main.py")), *words)


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
