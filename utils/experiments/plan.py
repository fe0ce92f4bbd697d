"""The jobs that experiments lack in a folder, and their expected cost."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from utils.console import InputError, format_duration
from utils.experiments.jobs import STAGES, Experiment, Job, recorded
from utils.files import records
from utils.files.paths import RunPaths
from utils.flags.config import FLAGS, Config
from utils.reports.results import Result, Training, experiment_of
from utils.reports.text import format_columns

SECONDS = ("train_seconds", "test_seconds")  # columns of the log


class Plan:
    """The ``jobs`` that experiments lack in ``folder``, in order.

    Args:
        runs: experiments and seeds; several experiments may share a training.
        flags: added to every command.

    Raises:
        InputError: a recorded run has a planned run's name but other settings, or a record is
            damaged.
    """

    def __init__(
        self, runs: Iterable[tuple[Experiment, int]], folder: Path, flags: list[str]
    ) -> None:
        self.folder, self.flags = folder, tuple(flags)
        self.results = recorded(folder)
        # Seconds per epoch by settings and by whether it was a fine-tuning.
        self.measured = defaultdict[Hashable, list[float]](list)
        for training in (t for r in self.results.values() for t in (r, *r.finetunings)):
            key = experiment_of(replace(training.config, epochs=1))[0]
            seconds = float(training.row["seconds_per_epoch"])
            self.measured[key, training.config.refine is not None].append(seconds)
        self.jobs: list[Job] = []
        self.lines = [["run", "train", "prune", "fine-tune", "left"]]
        for experiment, seed in runs:
            self._add(experiment, seed)

    def _add(self, e: Experiment, seed: int) -> None:
        """Add the missing stages of a run to the jobs, and its line to the overview."""
        files = RunPaths(self.folder, e.run(seed))
        train, tune = e.training(seed), e.finetuning(seed, files) if e.refine_epochs else None
        result, pruning, finetuning = self.recorded(e, seed, tune)
        for config, training in ((train, result), (tune, finetuning)):
            if config and training:
                _check_same(RunPaths(self.folder, config.run_name).record, config, training)
        # The pruned model may be deleted once it is fine-tuned.
        pruned = pruning is not None and (finetuning is not None or e.pruned(files).exists())
        # The log of a fine-tuning from another pruning does not count.
        other_pruning = result is not None and result.prunings and pruning is None
        stages = (train, result), (e.prunes, pruned), (tune, finetuning)
        cells, left = [], []
        for stage, (needed, done) in zip(STAGES, stages, strict=True):
            if not needed or done:
                cells.append("done" if needed else "-")
                continue
            seconds: float | None = 0.0
            cell = "to do"
            if isinstance(needed, Config):
                log = [] if stage == "refine" and other_pruning else self._log(needed)
                rest = max(needed.epochs - len(log), 0)
                cell = f"{rest} of {needed.epochs} epochs" if log else f"{rest} epochs"
                per_epoch = self._seconds_per_epoch(needed, log)
                seconds = None if per_epoch is None else rest * per_epoch
            cells.append(cell)
            if stage == "train" and any(j.files.run == files.run for j in self.jobs):
                continue  # of an experiment before
            left.append(Job(e, seed, stage, self.folder, self.flags, seconds))
        self.jobs += left
        name = " ".join(filter(None, (files.run, e.variant)))
        self.lines.append([name, *cells, _cost(left) if left else "-"])

    def _log(self, config: Config) -> list[records.Row]:
        """The log of a training that has a checkpoint to resume from."""
        files = RunPaths(self.folder, config.run_name)
        return records.read(files.log, SECONDS, SECONDS) if files.checkpoint.exists() else []

    def _seconds_per_epoch(self, config: Config, log: list[records.Row]) -> float | None:
        """From the run's own log, else the mean of recorded runs with the same settings."""
        if log:  # the latest epoch: they get shorter while channels are removed
            return sum(float(log[-1][column]) for column in SECONDS)
        key = experiment_of(replace(config, epochs=1))[0]
        finetunes = config.refine is not None
        same = self.measured.get((key, finetunes)) or self.measured.get((key, False))
        return fmean(same) if same else None

    def recorded(
        self, e: Experiment, seed: int, tune: Config | None
    ) -> tuple[Result | None, records.Row | None, Training | None]:
        """The finished training, pruning and fine-tuning of an experiment, as far as recorded."""
        result = self.results.get(e.run(seed))
        if result is None:
            return None, None, None
        share = e.share_of(seed, self.results)
        chosen = e.prunes and (e.target is not None or share is not None)
        pruning = result.pruning(share, e.target) if chosen else None
        if e.variant:
            files = RunPaths(self.folder, e.run(seed))
            model = files.recorded(e.pruned(files))
            pruning = next((row for row in result.prunings[::-1] if row["model"] == model), None)
        finetunings = result.finetunings_of(pruning) if pruning else result.finetunings
        if tune is None or (e.prunes and not pruning):
            return result, pruning, None
        named = [t for t in finetunings if t.row["run"] == tune.run_name]
        alike = [t for t in named if _different_flag(tune, t) is None]
        return result, pruning, next(reversed(alike or named), None)

    def overview(self, gpus: int) -> str:
        """A line per run with its stages and cost, and the total."""
        table = format_columns(self.lines)
        if not self.jobs:
            return f"{table}\nall is done"
        train, prune, refine = (sum(job.stage == stage for job in self.jobs) for stage in STAGES)
        device = f"{gpus} GPUs" if gpus > 1 else "one GPU" if gpus else "the CPU, one at a time"
        left = f"left: {train} trainings, {prune} prunings, {refine} fine-tunings, on {device}"
        divided = f" in all, divided by {gpus} GPUs" if gpus > 1 else ""
        return f"{table}\n{left}: {_cost(self.jobs)}{divided}"


def _check_same(record: Path, planned: Config, done: Training) -> None:
    """Raise InputError if the recorded training has other settings."""
    if name := _different_flag(planned, done):
        before, now = done.config.to_dict()[name], planned.to_dict()[name]
        raise InputError(
            f"{record} has {planned.run_name} with {FLAGS[name].option_strings[-1]} {before}, not"
            f" {now}: choose another --save"
        )


def _different_flag(planned: Config, done: Training) -> str | None:
    before, now = done.config.to_dict(), planned.to_dict()
    flags = (name for name, flag in FLAGS.items() if flag.in_experiment_key)
    return next((name for name in flags if before[name] != now[name]), None)


def _cost(jobs: Sequence[Job]) -> str:
    """Expected duration of the trainings; prunings take seconds and are not counted."""
    total = sum(job.seconds for job in jobs if job.seconds is not None)
    unknown = ["unknown"] if any(job.seconds is None for job in jobs) else []
    return " + ".join([*([format_duration(total)] if total else []), *unknown]) or "0:00"
