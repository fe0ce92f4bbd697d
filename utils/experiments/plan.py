"""What experiments still lack in a folder, and what that should cost."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from utils.console import InputError, format_duration
from utils.experiments.jobs import STAGES, Experiment, Job, recorded
from utils.files import records
from utils.files.init_from import latest_checkpoint
from utils.files.paths import RunPaths
from utils.flags.config import FLAGS, Config
from utils.reports.results import Training, experiment_of

SPENT = ("train_seconds", "test_seconds")


class Plan:
    """The ``jobs`` that ``experiments`` lack in ``folder`` for each of ``seeds``, in order.

    ``flags`` go to all commands. Raises InputError where a run has the name of another with other
    settings, or where the records cannot be read.
    """

    def __init__(
        self, experiments: list[Experiment], seeds: Iterable[int], folder: Path, flags: list[str]
    ) -> None:
        self.folder, self.flags = folder, tuple(flags)
        self.results = recorded(folder)
        # Seed by seed: the first whole rows of a table come early.
        runs = [(e, seed) for seed in seeds for e in experiments]
        # Seconds that epochs took, by run and by what takes as long.
        self.seconds = defaultdict[Hashable, list[float]](list)
        for result in self.results.values():
            for training in (result, *result.finetunings):
                self._measured(training.config, float(training.row["seconds_per_epoch"]))
        for settings in (s for e, seed in runs for s in self._trainings(e, seed) if s):
            log = self._log(settings)
            if log and settings.run_name not in self.seconds:
                # The latest epoch's: a network gets cheaper while it trains.
                self._measured(settings, sum(float(log[-1][column]) for column in SPENT))
        self.jobs: list[Job] = []
        self.lines = [["run", "train", "prune", "fine-tune", "left"]]
        for e, seed in runs:
            self._add(e, seed)

    def _measured(self, settings: Config, seconds: float) -> None:
        for key in _keys(settings)[:2]:
            self.seconds[key].append(seconds)

    def _trainings(self, e: Experiment, seed: int) -> tuple[Config, Config | None]:
        """The training and the fine-tuning, if there is to be one."""
        files = RunPaths(self.folder, e.run(seed))
        return e.training(seed), e.finetuning(seed, files) if e.refine_epochs else None

    def _log(self, settings: Config) -> list[records.Row]:
        """The epochs so far of a training that has a checkpoint to go on from."""
        files = RunPaths(self.folder, settings.run_name)
        return records.read(files.log, SPENT, SPENT) if files.checkpoint.exists() else []

    def _add(self, e: Experiment, seed: int) -> None:
        """What is left of a run, as jobs and as a line of the overview."""
        files = RunPaths(self.folder, e.run(seed))
        result = self.results.get(files.run)
        train, tune = self._trainings(e, seed)
        share = e.share_of(seed, self.results)
        chosen = e.prunes and (e.target is not None or share is not None)
        pruning = result.pruning(share, e.target) if result and chosen else None
        tunings: Sequence[Training] = ()
        if result and (pruning or not e.prunes):
            tunings = result.refined(pruning) if pruning else result.finetunings
        named = [r for r in tunings if tune and r.row["run"] == tune.run_name]
        alike = [r for r in named if tune and not _other(tune, r)]
        refine = next(reversed(alike or named), None)
        otherwise = result and result.prunings and pruning is None  # pruned at another share
        for planned, found in ((train, result), (tune, refine)):
            if planned and found:
                _check_same(RunPaths(self.folder, planned.run_name).record, planned, found)
        # A slim network that was fine-tuned may be gone.
        slim = refine is not None or files.pruned().exists()
        stages = (train, result), (e.prunes, slim and pruning), (tune, refine)
        cells, left = [], []
        for stage, (needed, done) in zip(STAGES, stages, strict=True):
            if not needed or done:
                cells.append("done" if needed else "-")
                continue
            seconds: float | None = 0.0
            cells.append("to do")
            if isinstance(needed, Config):
                # What fine-tuned another pruning of the run is not begun.
                begun = 0 if stage == "refine" and otherwise else len(self._log(needed))
                rest = max(needed.epochs - begun, 0)
                cells[-1] = f"{rest} of {needed.epochs} epochs" if begun else f"{rest} epochs"
                known = (self.seconds[key] for key in _keys(needed) if key in self.seconds)
                seconds = next((rest * fmean(spent) for spent in known), None)
            left.append(Job(e, seed, stage, self.folder, self.flags, seconds))
        self.jobs += left
        self.lines.append([files.run, *cells, _cost(left) if left else "-"])

    def overview(self, gpus: int, per_gpu: int) -> str:
        """What is done and what is left, run by run, and the whole cost."""
        width = max(len(run) for run, *_ in self.lines)
        lines = [
            (f"{run:<{width}}" + "".join(f"  {cell:<15}" for cell in cells)).rstrip()
            for run, *cells in self.lines
        ]
        if not self.jobs:
            return "\n".join([*lines, "all is done"])
        train, prune, refine = (sum(job.stage == stage for job in self.jobs) for stage in STAGES)
        where = f"{gpus} GPUs" if gpus > 1 else "one GPU" if gpus else "the CPU, one at a time"
        left = f"left: {train} trainings, {prune} prunings, {refine} fine-tunings, on {where}"
        shared = f" in all, divided by {gpus} GPUs" if gpus > 1 else ""
        if per_gpu > 1:
            shared += f" and, as far as {per_gpu} on one run as fast as one, by {per_gpu}"
        return "\n".join([*lines, f"{left}: {_cost(self.jobs)}{shared}"])


def precision_in_use(
    experiments: Iterable[Experiment], seeds: Iterable[int], folder: Path
) -> str | None:
    """The precision that some of ``experiments`` were begun with in ``folder``, None if none was.

    Of any seed that is on record, or of ``seeds`` where there is a checkpoint.
    """
    found = {experiment_of(r.config): r.config.precision for r in recorded(folder).values()}
    for e in experiments:
        if (precision := found.get(experiment_of(e.config))) is not None:
            return precision
        for seed in seeds:
            begun = latest_checkpoint(RunPaths(folder, e.run(seed)))
            if begun is not None and begun[1].precision is not None:
                return begun[1].precision
    return None


def _keys(settings: Config) -> list[Hashable]:
    """What takes as long an epoch: the run, others like it, and of these the unpruned ones."""
    like = experiment_of(replace(settings, epochs=1))[0]
    return [settings.run_name, (like, settings.refine is None), (like, True)]


def _check_same(record: Path, planned: Config, found: Training) -> None:
    """Raise InputError where the training on record is another experiment's."""
    if name := _other(planned, found):
        before, now = found.config.to_dict()[name], planned.to_dict()[name]
        raise InputError(
            f"{record} has {planned.run_name} with {FLAGS[name].option_strings[-1]} {before}, not {now}:"
            " choose another --save"
        )


def _other(planned: Config, found: Training) -> str | None:
    """The first flag by which the training on record is another experiment's, if it is."""
    before, now = found.config.to_dict(), planned.to_dict()
    names = (
        name for name, flag in FLAGS.items() if flag.in_experiment_key and before[name] != now[name]
    )
    return next(names, None)


def _cost(jobs: Sequence[Job]) -> str:
    """Seconds per epoch × epochs left. Prunings take seconds each, and count for nothing."""
    known = sum(job.seconds for job in jobs if job.seconds is not None)
    unknown = ["unknown"] if any(job.seconds is None for job in jobs) else []
    return " + ".join([*([format_duration(known)] if known else []), *unknown]) or "0:00"
