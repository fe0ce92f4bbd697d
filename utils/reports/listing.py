"""How far the runs in a folder are, and what came of them: a line each."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.atomic import is_locked
from utils.console import InputError, note
from utils.files import paths, records
from utils.files.init_from import latest_checkpoint
from utils.files.paths import RunPaths
from utils.files.records import Row
from utils.flags.config import Config
from utils.methods import METHODS
from utils.reports import results
from utils.reports.results import Result, Training

HEADINGS = ("run", "epochs", "top-1", "zeros", "left", "tuned")
LEGEND = """\
top-1: test accuracy, %; zeros: scaling factors that are 0; left: channels (w:
weights) that pruning left; tuned: fine-tuned (after N epochs, if not as long).
A fine-tuning of something else, or on other pictures, has its own line"""
LOG = ("epoch", "test_accuracy")


@dataclass(frozen=True)
class State:
    """How far a training is."""

    done: int  # epochs
    total: int | None  # of all, where it is known
    accuracy: str
    zeros: str
    at_work: bool
    settings: Config | None = None  # where they are known

    @property
    def epochs(self) -> str:
        all_done = self.done == self.total
        known = "?" if self.total is None else self.total
        more = " running" if self.at_work else "" if all_done else " stopped"
        return f"{self.done}/{known}{more}"


def state_of(files: RunPaths, finished: Training | None) -> State | None:
    """From the log, the record if it is ``finished``, else its checkpoint; None of no training."""
    try:
        log = records.read(files.log, LOG, LOG)
    except InputError as error:
        note(f"note: passed over: {error}")
        log = []
    found = None if finished else latest_checkpoint(files)
    settings = finished.config if finished else found[1].config if found else None
    if log:
        done, row = int(float(log[-1]["epoch"])), log[-1]
    elif finished:
        done, row = finished.config.epochs, finished.row
    else:
        done, row = (found[1].epoch or 0 if found else 0), Row()
    if not (log or finished or found or is_locked(files.lock)):
        return None
    method = METHODS[settings.method] if settings else None
    zeros = row.get(f"{method.pruned_by}_zeros") if method and method.prunes() else None
    accuracy = f"{float(row['test_accuracy']):.2f}" if row else "-"
    total = settings.epochs if settings else None
    return State(done, total, accuracy, zeros or "-", is_locked(files.lock), settings)


def listing(folder: Path, only: Collection[str] | None = None) -> str:
    """A table of the trainings in ``folder``, or of those whose runs are named in ``only``.

    A fine-tuning stands with what was pruned; one that is of something else, or on other pictures
    than the training, alone. Raises InputError where the folder is missing, or a record is foreign
    or damaged.
    """
    found = {result.row["run"]: result for result in results.load(folder)}
    refined = results.trainings(folder / paths.REFINED)
    tunings = {tuning.row["run"]: tuning for tuning in refined}
    runs = paths.runs_in(folder) | found.keys() | tunings.keys()
    after = {run: _after(RunPaths(folder, run), found.get(run), refined) for run in runs}
    shown = {tuned for _, _, tuned in after.values()}
    lines = [HEADINGS]
    for run in sorted(runs - shown if only is None else runs & set(only)):
        if state := state_of(RunPaths(folder, run), found.get(run) or tunings.get(run)):
            lines.append((run, state.epochs, state.accuracy, state.zeros, *after[run][:2]))
    if len(lines) == 1:
        return f"no runs in {folder}"
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join([*rows, LEGEND])


def _after(
    files: RunPaths, result: Result | None, refined: Sequence[Training]
) -> tuple[str, str, str | None]:
    """What pruning left, the accuracy of the latest fine-tuning of that, and how it is called.

    ``refined`` are all fine-tunings on record. Only those count that saw the run's own pictures.
    """
    pruning = (result.pruning() or next(reversed(result.prunings), None)) if result else None
    of_name = [tuning for tuning in refined if tuning.row["run"] == files.refined.run]
    tunings = result.refined(pruning) if result and pruning else of_name
    if result:
        tunings = [tuning for tuning in tunings if result.sees(tuning.config, tuning.row)]
    tuning = next(reversed(tunings), None)
    left = "-"
    if pruning:
        left = f"{100 * float(pruning['channels_kept']) / float(pruning['channels']):.1f}%"
    elif tuning and tuning.row.get("weights_kept"):
        left = f"{100 * float(tuning.row['weights_kept']) / float(tuning.row['weights']):.1f}% w"
    if tuning:  # as it is on record: the log may be of a later one of this name
        done, accuracy = tuning.config.epochs, f"{float(tuning.row['test_accuracy']):.2f}"
        tuned = tuning.row["run"]
    else:
        state, tuned = state_of(files.refined, None), files.refined.run
        if state is None or (result and state.settings and not result.sees(state.settings, Row())):
            return left, "-", None
        if of_name and state.total in (None, state.done):  # it is on record, of something else
            return left, "-", None
        if state.done != state.total:
            return left, f"{state.accuracy}, {state.epochs}", tuned
        done, accuracy = state.done, state.accuracy
    as_long = result and done == result.config.epochs
    return left, accuracy if as_long else f"{accuracy} after {done}", tuned
