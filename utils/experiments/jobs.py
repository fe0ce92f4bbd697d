"""Experiments, the commands they consist of, and those that a folder lacks."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from models import pruner
from utils.console import InputError, format_duration
from utils.files import records
from utils.files.paths import RunPaths
from utils.flags.config import FLAGS, Config
from utils.reports import results
from utils.reports.results import Result, experiment_of
from utils.reports.text import format_columns
from utils.shell import path_argument

SECONDS = ("train_seconds", "test_seconds")  # columns of the log
STAGES = ("train", "prune", "refine")
UNKNOWN = "SHARE"  # printed for a --percent that depends on a run that is not pruned yet


@dataclass(frozen=True)
class Experiment:
    """A training, its pruning and its fine-tuning, for any seed."""

    config: Config  # of the training, except seed and name
    prunes: bool  # whether channels are pruned after the training
    refine_epochs: int  # of the fine-tuning, 0 for none
    # Percent of the channels to prune; None for as many as the reference run lost, which is the
    # proximal run with the same seed and label.
    share: float | None = 0.0
    label: str = ""  # suffix of the run's name
    kind: str = ""  # suffix of the method in the run's name
    target: float | None = None  # percent of the FLOPs to prune, instead of a share
    # Fraction of each convolution's weights to prune before the fine-tuning, which then starts
    # from the training's checkpoint.
    prune_ratio: float | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict)  # other settings of the fine-tuning
    variant: str = ""  # name of the pruning, where a training has several
    program: tuple[str, ...] = ()  # the prune command, by default that of the architecture

    def training(self, seed: int) -> Config:
        return replace(self.config, seed=seed, name=self._name(seed))

    def _name(self, seed: int, variant: str = "") -> str:
        method = "-".join(filter(None, (self.config.method, self.kind, variant)))
        return f"{method}_seed{seed}{self.label}"

    def pruned(self, files: RunPaths) -> Path:
        return files.pruned(self.variant or "pruned")

    def finetuning(self, seed: int, files: RunPaths) -> Config:
        start = self.pruned(files) if self.prune_ratio is None else files.checkpoint
        options = {"epochs": self.refine_epochs, "prune_ratio": self.prune_ratio}
        name = {"name": self._name(seed, self.variant)}
        return self.training(seed).for_finetuning(start, **{**self.tuning, **options, **name})

    def run(self, seed: int) -> str:
        """The run's name, that of its directory."""
        return self.training(seed).run_name

    def reference(self, seed: int) -> str:
        """The name of the run that sets the share, if ``share`` is None."""
        return replace(self.config, name=f"proximal_seed{seed}{self.label}").run_name

    def share_of(self, seed: int, recorded: Mapping[str, Result]) -> float | None:
        """Percent of the channels to prune; None if the reference run is not ``recorded``."""
        if self.share is not None:
            return self.share
        reference = recorded.get(self.reference(seed))
        if not reference or not (row := reference.pruning(0.0)):
            return None
        removed = 1 - float(row["channels_kept"]) / float(row["channels"])
        return math.ceil(1e6 * removed) / 1e4  # rounded up: ⌊share · channels⌋ is exact then


Runs = Iterable[tuple[Experiment, int]]  # experiments and seeds


@dataclass(frozen=True)
class Job:
    """A stage of an experiment that is not done."""

    experiment: Experiment
    seed: int
    stage: str
    folder: Path
    flags: tuple[str, ...]  # added to the command
    seconds: float | None  # expected duration, None if unknown

    @property
    def files(self) -> RunPaths:
        return RunPaths(self.folder, self.experiment.run(self.seed))

    def depends_on(self, other: "Job") -> bool:
        """Whether ``other`` must be done before."""
        e, run, stage = self.experiment, other.files.run, other.stage
        if run == self.files.run:
            same = stage == "train" or other.experiment.variant == e.variant
            return same and STAGES.index(stage) < STAGES.index(self.stage)
        needs_share = self.stage == "prune" and e.share is None
        return needs_share and (run, stage) == (e.reference(self.seed), "prune")

    def argv(self) -> list[str]:
        """The command: a script, or -m and a module, and its flags. Trainings are resumed."""
        e, config = self.experiment, self.experiment.training(self.seed)
        if self.stage == "prune":
            share = e.share_of(self.seed, recorded(self.folder))
            amount = ["--percent", UNKNOWN if share is None else f"{share / 100:.6g}"]
            if e.target is not None:
                amount = ["--target-flops", f"{e.target / 100:.6g}"]
            model = ["--model", path_argument(self.files.checkpoint)]
            name = ["--name", e.variant] if e.variant else []
            data = [] if config.data is None else FLAGS["data"].to_argv(config.data)
            return [*(e.program or pruner(config.arch)), *model, *amount, *name, *data, *self.flags]
        if self.stage == "refine":
            config = e.finetuning(self.seed, self.files)
        save = ["--save", path_argument(self.folder), "--resume", "auto"]
        return ["main.py", *config.argv(), *save, *self.flags]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.stage, self.files.run, self.experiment.variant)))


def recorded(folder: Path) -> dict[str, Result]:
    """The finished trainings in ``folder`` by name."""
    found = results.load(folder) if folder.is_dir() else []
    return {result.row["run"]: result for result in found}


class Plan:
    """The ``jobs`` that experiments lack in ``folder``, in order; ``flags`` are added to each.

    Several experiments may share a training. Raises InputError: a recorded run has a planned run's
    name but other settings, or a record is damaged.
    """

    def __init__(self, runs: Runs, folder: Path, flags: Sequence[str] = ()) -> None:
        self.folder, self.flags = folder, tuple(flags)
        self.results = recorded(folder)
        self.measured = defaultdict[Hashable, list[float]](list)  # seconds per epoch
        for training in (t for r in self.results.values() for t in (r, *r.finetunings)):
            seconds = float(training.row["seconds_per_epoch"])
            self.measured[_cost_key(training.config)].append(seconds)
        self.jobs: list[Job] = []
        self.lines = [["run", "train", "prune", "fine-tune", "left"]]
        for experiment, seed in runs:
            self._add(experiment, seed)

    def _add(self, e: Experiment, seed: int) -> None:
        """Adds the missing stages of a run to the jobs, and its line to the overview."""
        files = RunPaths(self.folder, e.run(seed))
        train, tune = e.training(seed), e.finetuning(seed, files) if e.refine_epochs else None
        result, pruning, finetuning = self.recorded(e, seed)
        for config, done in ((train, result), (tune, finetuning)):
            if config and done and (name := _different_flag(config, done)):
                before, now = done.config.to_dict()[name], config.to_dict()[name]
                raise InputError(
                    f"{RunPaths(self.folder, config.run_name).record} has {config.run_name} with"
                    f" {FLAGS[name].option_strings[-1]} {before}, not {now}: choose another --save"
                )
        # The pruned model may be deleted once it is fine-tuned.
        pruned = pruning is not None and (finetuning is not None or e.pruned(files).exists())
        # The log of a fine-tuning from another pruning does not count.
        other_pruning = result is not None and result.prunings and pruning is None
        stages = (train, result), (e.prunes, pruned), (tune, finetuning)
        cells, left = [], []
        for stage, (needed, finished) in zip(STAGES, stages, strict=True):
            if not needed or finished:
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
            if stage != "train" or all(job.files.run != files.run for job in self.jobs):
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
        key, finetunes = _cost_key(config)
        same = self.measured.get((key, finetunes)) or self.measured.get((key, False))
        return fmean(same) if same else None

    def recorded(
        self, e: Experiment, seed: int
    ) -> tuple[Result | None, records.Row | None, Result | None]:
        """The finished training, pruning and fine-tuning of an experiment, as far as recorded."""
        result = self.results.get(e.run(seed))
        if result is None:
            return None, None, None
        share = e.share_of(seed, self.results)
        chosen = e.prunes and (e.target is not None or share is not None)
        pruning = result.pruning(share, e.target) if chosen else None
        files = RunPaths(self.folder, e.run(seed))
        if e.variant:
            model = files.recorded(e.pruned(files))
            pruning = next((row for row in result.prunings[::-1] if row["model"] == model), None)
        if not e.refine_epochs or (e.prunes and not pruning):
            return result, pruning, None
        tune = e.finetuning(seed, files)
        finetunings = result.finetunings_of(pruning) if pruning else result.finetunings
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


def _cost_key(config: Config) -> tuple[Hashable, bool]:
    """Trainings with the same key have epochs of equal cost."""
    return experiment_of(replace(config, epochs=1))[0], config.refine is not None


def _different_flag(planned: Config, done: Result) -> str | None:
    before, now = done.config.to_dict(), planned.to_dict()
    flags = (name for name, flag in FLAGS.items() if flag.in_experiment_key)
    return next((name for name in flags if before[name] != now[name]), None)


def _cost(jobs: Sequence[Job]) -> str:
    """Expected duration of the trainings; prunings take seconds and are not counted."""
    total = sum(job.seconds for job in jobs if job.seconds is not None)
    unknown = ["unknown"] if any(job.seconds is None for job in jobs) else []
    return " + ".join([*([format_duration(total)] if total else []), *unknown]) or "0:00"
