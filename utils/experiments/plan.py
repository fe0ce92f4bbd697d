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

SECONDS = ("train_seconds", "test_seconds")  # columns of the log


class Plan:
    """The ``jobs`` that ``experiments`` lack in ``folder`` for each of ``seeds``, in order.

    Args:
        flags: added to every command.

    Raises:
        InputError: a recorded run has a planned run's name but other settings, or a record is
            damaged.
    """

    def __init__(
        self, experiments: list[Experiment], seeds: Iterable[int], folder: Path, flags: list[str]
    ) -> None:
        self.folder, self.flags = folder, tuple(flags)
        self.results = recorded(folder)
        # Seed by seed, so that the first complete rows of a table come early.
        runs = [(e, seed) for seed in seeds for e in experiments]
        self.seconds = defaultdict[Hashable, list[float]](list)  # per epoch
        for result in self.results.values():
            for training in (result, *result.finetunings):
                self._add_seconds(training.config, float(training.row["seconds_per_epoch"]))
        for config in (c for e, seed in runs for c in self._configs(e, seed) if c):
            log = self._log(config)
            if log and config.run_name not in self.seconds:
                # The latest epoch's: epochs get shorter while channels are removed.
                self._add_seconds(config, sum(float(log[-1][column]) for column in SECONDS))
        self.jobs: list[Job] = []
        self.lines = [["run", "train", "prune", "fine-tune", "left"]]
        for e, seed in runs:
            self._add(e, seed)

    def _add_seconds(self, config: Config, seconds: float) -> None:
        for key in _keys(config)[:2]:
            self.seconds[key].append(seconds)

    def _configs(self, e: Experiment, seed: int) -> tuple[Config, Config | None]:
        """The settings of the training, and of the fine-tuning if there is one."""
        files = RunPaths(self.folder, e.run(seed))
        return e.training(seed), e.finetuning(seed, files) if e.refine_epochs else None

    def _log(self, config: Config) -> list[records.Row]:
        """The log of a training that has a checkpoint to resume from."""
        files = RunPaths(self.folder, config.run_name)
        return records.read(files.log, SECONDS, SECONDS) if files.checkpoint.exists() else []

    def _add(self, e: Experiment, seed: int) -> None:
        """Add the missing stages of a run to the jobs, and its line to the overview."""
        files = RunPaths(self.folder, e.run(seed))
        train, tune = self._configs(e, seed)
        result, pruning, finetuning = self._recorded(e, seed, tune)
        for config, training in ((train, result), (tune, finetuning)):
            if config and training:
                _check_same(RunPaths(self.folder, config.run_name).record, config, training)
        # The pruned model may be deleted once it is fine-tuned.
        pruned = pruning is not None and (finetuning is not None or files.pruned().exists())
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
                begun = 0 if stage == "refine" and other_pruning else len(self._log(needed))
                rest = max(needed.epochs - begun, 0)
                cell = f"{rest} of {needed.epochs} epochs" if begun else f"{rest} epochs"
                measured = (self.seconds[key] for key in _keys(needed) if key in self.seconds)
                seconds = next((rest * fmean(each) for each in measured), None)
            cells.append(cell)
            left.append(Job(e, seed, stage, self.folder, self.flags, seconds))
        self.jobs += left
        self.lines.append([files.run, *cells, _cost(left) if left else "-"])

    def _recorded(
        self, e: Experiment, seed: int, tune: Config | None
    ) -> tuple[Result | None, records.Row | None, Training | None]:
        """The finished training, pruning and fine-tuning of an experiment, as far as recorded."""
        result = self.results.get(e.run(seed))
        if result is None:
            return None, None, None
        share = e.share_of(seed, self.results)
        chosen = e.prunes and (e.target is not None or share is not None)
        pruning = result.pruning(share, e.target) if chosen else None
        finetunings = result.finetunings_of(pruning) if pruning else result.finetunings
        if tune is None or (e.prunes and not pruning):
            return result, pruning, None
        named = [t for t in finetunings if t.row["run"] == tune.run_name]
        alike = [t for t in named if _different_flag(tune, t) is None]
        return result, pruning, next(reversed(alike or named), None)

    def overview(self, gpus: int) -> str:
        """A line per run with its stages and cost, and the total."""
        width = max(len(run) for run, *_ in self.lines)
        lines = [
            (f"{run:<{width}}" + "".join(f"  {cell:<15}" for cell in cells)).rstrip()
            for run, *cells in self.lines
        ]
        if not self.jobs:
            return "\n".join([*lines, "all is done"])
        train, prune, refine = (sum(job.stage == stage for job in self.jobs) for stage in STAGES)
        device = f"{gpus} GPUs" if gpus > 1 else "one GPU" if gpus else "the CPU, one at a time"
        left = f"left: {train} trainings, {prune} prunings, {refine} fine-tunings, on {device}"
        divided = f" in all, divided by {gpus} GPUs" if gpus > 1 else ""
        return "\n".join([*lines, f"{left}: {_cost(self.jobs)}{divided}"])


def _keys(config: Config) -> list[Hashable]:
    """Keys of seconds per epoch, best first: this run, the same settings, the same unpruned."""
    key = experiment_of(replace(config, epochs=1))[0]
    return [config.run_name, (key, config.refine is None), (key, True)]


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
