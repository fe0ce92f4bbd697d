"""The commands that an experiment consists of, and running many, one on each GPU at a time."""

import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models import pruner
from utils import launch
from utils.console import format_duration
from utils.files.paths import RunPaths
from utils.flags.config import FLAGS, Config
from utils.reports import results
from utils.shell import format_command, path_argument

STAGES = ("train", "prune", "refine")
UNKNOWN = "SHARE"  # a --percent that depends on a run that is not pruned yet


@dataclass(frozen=True)
class Experiment:
    """A training and what follows it, but for the seed: a row of a table."""

    config: Config  # of the training, but for seed and name
    prunes: bool
    refine_epochs: int  # 0: it is not fine-tuned
    # Percent of the channels to prune; None: as many as the proximal run of the same seed lost.
    share: float | None = 0.0
    label: str = ""  # what else is in the run's name, and in its like's
    kind: str = ""  # what its name has behind the method's, to be told from others of the method
    target: float | None = None  # percent of the FLOPs to prune, in place of a share
    # Of the weights of each convolution, which are cut before the fine-tuning: of the run itself.
    prune_ratio: float | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict)  # what fine-tuning has otherwise

    def replace(self, **more: Any) -> "Experiment":
        """The same with other settings."""
        return replace(self, config=replace(self.config, **more))

    def training(self, seed: int) -> Config:
        method = "-".join(filter(None, (self.config.method, self.kind)))
        return replace(self.config, seed=seed, name=self._name(method, seed))

    def finetuning(self, seed: int, files: RunPaths) -> Config:
        """Those of the fine-tuning."""
        start = files.pruned() if self.prune_ratio is None else files.checkpoint
        told = {"epochs": self.refine_epochs, "prune_ratio": self.prune_ratio}
        return self.training(seed).for_finetuning(start, **{**self.tuning, **told})

    def share_of(self, seed: int, found: Mapping[str, results.Result]) -> float | None:
        """Percent of the channels to prune; None until its like is pruned, as ``found`` says."""
        if self.share is not None:
            return self.share
        like = found.get(self.reference(seed))
        if not like or not (row := like.pruning(0.0)):
            return None
        removed = 1 - float(row["channels_kept"]) / float(row["channels"])
        return math.ceil(1e6 * removed) / 1e4  # up: ⌊share · channels⌋ is then that many

    def run(self, seed: int) -> str:
        """What the names of the run's files begin with."""
        return self.training(seed).run_name

    def reference(self, seed: int) -> str:
        """The run that says how many channels to prune."""
        return replace(self.config, name=self._name("proximal", seed)).run_name

    def _name(self, method: str, seed: int) -> str:
        return f"{method}_seed{seed}{self.label}"


@dataclass(frozen=True)
class Job:
    """One command that is left. ``seconds`` is what it should take, None where unknown."""

    experiment: Experiment
    seed: int
    stage: str
    folder: Path
    flags: tuple[str, ...]  # of any command
    seconds: float | None

    @property
    def run(self) -> str:
        return self.experiment.run(self.seed)

    @property
    def files(self) -> RunPaths:
        return RunPaths(self.folder, self.run)

    @property
    def output(self) -> Path:
        """Where it prints if it runs beside others."""
        return self.files.output(self.stage)

    def depends_on(self, other: "Job") -> bool:
        """Whether ``other`` must be done before."""
        if self.run == other.run:
            return STAGES.index(other.stage) < STAGES.index(self.stage)
        depends = self.stage == "prune" and self.experiment.share is None
        return depends and (other.run, other.stage) == (
            self.experiment.reference(self.seed),
            "prune",
        )

    def argv(self) -> list[str]:
        """The command; a training that was begun is resumed."""
        settings = self.experiment.training(self.seed)
        if self.stage == "prune":
            data = [] if settings.data is None else FLAGS["data"].to_argv(settings.data)
            words = [*pruner(settings.arch), "--model", path_argument(self.files.checkpoint)]
            target = self.experiment.target
            share = ["--percent", self.percent()]
            share = share if target is None else ["--target-flops", f"{target / 100:.6g}"]
            return [*words, "--name", f"{self.run}_", *share, *data, *self.flags]
        if self.stage == "refine":
            settings = self.experiment.finetuning(self.seed, self.files)
        words = [
            "main.py",
            *settings.argv(),
            "--save",
            path_argument(self.folder),
            "--resume",
            "auto",
        ]
        return [*words, *self.flags]

    def percent(self) -> str:
        """--percent of the pruning, or UNKNOWN."""
        share = self.experiment.share_of(self.seed, recorded(self.folder))
        return UNKNOWN if share is None else f"{share / 100:.6g}"

    def __str__(self) -> str:
        return f"{self.stage} {self.run}"


def recorded(folder: Path) -> dict[str, results.Result]:
    """What is on record in ``folder``, by run."""
    found = results.load(folder) if folder.is_dir() else []
    return {result.row["run"]: result for result in found}


def run(jobs: Sequence[Job], gpus: Sequence[str], per_gpu: int = 1) -> bool:
    """Run ``jobs`` in their order, ``per_gpu`` on each of ``gpus``; return whether all went well.

    Where several run at a time each prints into a file of its own, else where this process does.
    A job that fails takes those with it that need it, and no others. Raises Stopped when a signal
    came and all that ran have ended.
    """
    slots = (list(gpus) * per_gpu)[: len({job.run for job in jobs})] or [""]
    together, lost = len(slots) > 1, 0
    ends = launch.run_tasks(jobs, slots, Job.depends_on, lambda job, gpu: start(job, gpu, together))
    for job, status, seconds in ends:
        lost += status != 0
        if status is None:
            print(f"not run, for what it needs failed: {job}", flush=True)
        elif status:
            seen = f": see {job.output}" if together else ""
            print(f"FAILED with status {status}: {job}{seen}", flush=True)
        else:
            print(f"done in {format_duration(seconds)}: {job}", flush=True)
    if lost:
        print(f"{lost} of {len(jobs)} not done; the same command tries them again", flush=True)
    return not lost


def start(job: Job, gpu: str, together: bool) -> subprocess.Popen[str]:
    words = job.argv()
    print(f"{f'GPU {gpu}: ' if together else ''}{format_command(*words)}", flush=True)
    environment = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else None
    if not together:
        return launch.start_process(words, None, environment)
    with job.output.open("a") as file:
        return launch.start_process(words, file, environment)
