"""Progress and results of the runs in a folder, a line per run (``main.py --list``)."""

from collections.abc import Collection
from pathlib import Path

from utils.console import InputError, note
from utils.files import paths, records
from utils.files.init_from import latest_checkpoint
from utils.files.locks import is_locked
from utils.files.paths import RunPaths
from utils.files.records import Row
from utils.methods import METHODS
from utils.reports.results import Result, read_records
from utils.reports.text import format_columns

COLUMNS = ["run", "epochs", "top-1", "zeros", "kept", "tuned"]
LEGEND = """\
top-1: test accuracy, %; zeros: scaling factors equal to 0; kept: channels kept
by pruning (w: weights); tuned: accuracy fine-tuned (epochs, if not as many).
Further prunings of a run follow it. A fine-tuning that is not finished, was
pruned, or is of another file or on other images, has a line of its own"""
LOG_COLUMNS = ("epoch", "test_accuracy")


def progress_of(files: RunPaths, finished: Result | None) -> list[str]:
    """Epochs, accuracy and zeros from the log, the record and the checkpoint; [] without any."""
    try:
        log = records.read(files.log, LOG_COLUMNS, LOG_COLUMNS)
    except InputError as error:
        note(f"note: skipped: {error}")
        log = []
    running, done, row = is_locked(files.lock), 0, Row()
    config = finished.config if finished else None
    if finished:
        done, row = finished.config.epochs, finished.row
    elif latest := latest_checkpoint(files):
        config, done = latest[1].config, latest[1].epoch or 0
    elif not log and not running:
        return []
    if log:
        done, row = int(float(log[-1]["epoch"])), log[-1]
    total = str(config.epochs) if config else "?"
    state = " running" if running else "" if str(done) == total else " stopped"
    method = METHODS[config.method] if config else None
    zeros = row.get(f"{method.pruned_by}_zeros") if method and method.prunes() else None
    accuracy = f"{float(row['test_accuracy']):.2f}" if row else "-"
    return [f"{done}/{total}{state}", accuracy, zeros or "-"]


def listing(folder: Path, only: Collection[str] | None = None) -> str:
    """A table of the trainings in ``folder``, or of the runs named in ``only``.

    A finished fine-tuning is in the line of its training, unless it is of another file or on other
    images.

    Raises InputError: ``folder`` does not exist, or a record is damaged or another program's.
    """
    trained, finetunings = read_records(folder)
    results = {result.row["run"]: result for result in (*finetunings, *trained)}
    runs = paths.runs_in(folder) | results.keys()
    after = {run: _after_training(results.get(run)) for run in runs}
    tuned = {tuning for lines in after.values() for *_, tuning in lines if tuning}
    in_other_lines = {tuning for tuning in tuned if not results[tuning].prunings}
    lines = [COLUMNS]
    for run in sorted(runs - in_other_lines if only is None else runs & set(only)):
        if progress := progress_of(RunPaths(folder, run), results.get(run)):
            (_, *cells, _), *others = after[run]
            lines.append([run, *progress, *cells])
            for row, *cells, _ in others:
                name = Path(row["model"]).name.partition(".")[0]
                lines.append([f"  {name}", "", f"{float(row['accuracy_slim']):.2f}", "", *cells])
    if len(lines) == 1:
        return f"no runs in {folder}"
    return f"{format_columns(lines)}\n{LEGEND}"


def _after_training(result: Result | None) -> list[tuple[Row, str, str, str]]:
    """A pruning, the share kept, the fine-tuned accuracy, and the run name of the fine-tuning.

    The prunings are the latest of their names, the method's own first, {} in place of none.
    """
    if result is None:
        return [({}, "-", "-", "")]
    first = result.pruning() or (result.prunings or [{}])[-1]
    latest = {row["model"]: row for row in result.prunings} or {"": first}
    lines = []
    for pruning in sorted(latest.values(), key=lambda row: row is not first):
        tunings = result.finetunings_of(pruning) if pruning else result.finetunings
        tuning = next(filter(result.same_images, reversed(tunings)), None)
        kept, tuned = "-", "-"
        if pruning:
            kept = f"{100 * float(pruning['channels_kept']) / float(pruning['channels']):.1f}%"
        elif tuning and tuning.row.get("weights_kept"):
            share = float(tuning.row["weights_kept"]) / float(tuning.row["weights"])
            kept = f"{100 * share:.1f}% w"
        if tuning:
            epochs, tuned = tuning.config.epochs, f"{float(tuning.row['test_accuracy']):.2f}"
            tuned += "" if epochs == result.config.epochs else f" after {epochs}"
        lines.append((pruning, kept, tuned, tuning.row["run"] if tuning else ""))
    return lines
