"""The commands that an experiment consists of, and running many, one on each GPU at a time."""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from utils.console import clock
from utils.reports import results

ROOT = Path(__file__).parents[2]
STAGES = ("train", "prune", "refine")


@dataclass(frozen=True)
class Experiment:
    """A training and what follows it, but for the seed: a row of a table."""

    arch: str
    depth: int
    dataset: str
    setting: tuple[str, float | None, float | None, str]  # as utils.reports.results.Result has it
    epochs: int
    prunes: bool
    refine_epochs: int  # 0: it is not fine-tuned
    # Percent of the channels to prune; None: as many as the proximal run of the same seed lost.
    share: float | None = 0.0
    flags: tuple[str, ...] = ()  # of both trainings, in the order of utils.reports.results.FLAGS
    label: str = ""  # what else is in the run's name

    @property
    def group(self) -> tuple[str, int, str, int, tuple[str, ...]]:
        """As utils.reports.results.Result has it."""
        return self.arch, self.depth, self.dataset, self.epochs, self.flags

    def name(self, seed: int, method: str | None = None) -> str:
        return f"{method or self.setting[0]}_seed{seed}{self.label}"

    def run(self, seed: int, method: str | None = None) -> str:
        """What the names of the run's files begin with; of ``method``'s run, if that is given."""
        return f"{self.name(seed, method)}_{self.arch}_{self.depth}_{self.dataset}"


@dataclass(frozen=True)
class Job:
    """One command that is left. ``seconds`` is what it should take, None where unknown."""

    experiment: Experiment
    seed: int
    stage: str
    folder: Path
    flags: tuple[str, ...]  # --data and the like
    seconds: float | None

    @property
    def run(self) -> str:
        return self.experiment.run(self.seed)

    def needs(self, other: "Job") -> bool:
        """Whether ``other`` must be done before."""
        if self.run == other.run:
            return STAGES.index(other.stage) < STAGES.index(self.stage)
        like = self.experiment.run(self.seed, "proximal")
        depends = self.stage == "prune" and self.experiment.share is None
        return depends and (other.run, other.stage) == (like, "prune")

    def argv(self) -> list[str]:
        """The command; a training that was begun is resumed."""
        e = self.experiment
        if self.stage == "prune":
            model = self.folder / f"{self.run}checkpoint.pth.tar"
            words = [f"{e.arch}_prune.py", "--model", model, "--name", f"{self.run}_"]
            return list(map(str, [*words, "--percent", self.percent(), *self.flags]))
        words = ["main.py", "--arch", e.arch, "--depth", e.depth, "--dataset", e.dataset]
        words += ["--name", e.name(self.seed), "--seed", self.seed, "--save", self.folder]
        words += [word for flag in e.flags for word in flag.split()]
        if self.stage == "train":
            method, s, beta, _ = e.setting
            words += [] if s is None else ["-sr", "--method", method, "--s", s]
            words += [] if beta is None else ["--beta", beta]
            words += ["--epochs", e.epochs]
        else:
            words += ["--epochs", e.refine_epochs]
            words += ["--refine", self.folder / f"{self.run}_pruned.pth.tar"]
        return list(map(str, [*words, "--resume", "auto", *self.flags]))

    def percent(self) -> str:
        """--percent of the pruning; ``SHARE`` where it depends on a run that is not pruned yet."""
        if self.experiment.share is not None:
            return f"{self.experiment.share / 100:.6g}"
        like = self.experiment.run(self.seed, "proximal")
        found = results.load(self.folder) if self.folder.is_dir() else []
        row = next((r.pruning() for r in found if r.train["run"] == like), None)
        if row is None:
            return "SHARE"
        removed = 1 - float(row["channels_kept"]) / float(row["channels"])
        return f"{math.ceil(1e6 * removed) / 1e6:g}"  # up: ⌊percent · channels⌋ is then that many

    def __str__(self) -> str:
        return f"{self.stage} {self.run}"


def visible_gpus() -> list[str]:
    """The visible GPUs, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if named is None else named.split(",")[:count]


def run(jobs: Sequence[Job], gpus: Sequence[str]) -> bool:
    """Run ``jobs`` in their order, one on each of ``gpus`` at a time; return whether all went well.

    Where several run at a time each prints into a file of its own, else where this process does.
    A job that fails takes those with it that need it, and no others.
    """
    free = list(gpus)[: len({job.run for job in jobs})] or [""]
    together = len(free) > 1
    waiting, lost = list(jobs), list[Job]()
    running: dict[subprocess.Popen, tuple[Job, str, float]] = {}

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # Killed, this process must leave no training behind that its next start would meet.
    # (Under nohup a hang-up is ignored, and stays so.)
    ends = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    before = {s: signal.signal(s, stop) for s in ends if signal.getsignal(s) != signal.SIG_IGN}
    try:
        while waiting or running:
            for job in list(waiting):
                unfinished = [*waiting, *(other for other, *_ in running.values())]
                if any(job.needs(other) for other in lost):
                    waiting.remove(job)
                    lost.append(job)
                    print(f"not run, for what it needs failed: {job}", flush=True)
                elif free and not any(job.needs(other) for other in unfinished):
                    waiting.remove(job)
                    gpu = free.pop(0)
                    running[start(job, gpu, together)] = job, gpu, time.monotonic()
            for process in [p for p in running if p.poll() is not None]:
                job, gpu, began = running.pop(process)
                free.append(gpu)
                if process.returncode:
                    lost.append(job)
                    seen = f": see {output(job)}" if together else ""
                    print(f"FAILED with status {process.returncode}: {job}{seen}", flush=True)
                else:
                    print(f"done in {clock(time.monotonic() - began)}: {job}", flush=True)
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    if lost:
        print(f"{len(lost)} of {len(jobs)} not done; the same command tries them again", flush=True)
    return not lost


def output(job: Job) -> Path:
    """Where a job prints that runs beside others."""
    return job.folder / f"{job.run}{job.stage}.out"


def start(job: Job, gpu: str, together: bool) -> subprocess.Popen:
    words = job.argv()
    print(f"{f'GPU {gpu}: ' if together else ''}python {shlex.join(words)}", flush=True)
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu} if gpu else None
    # In a session of its own, so that a signal from the terminal comes once: through this process.
    if not together:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    with output(job).open("a") as file:
        return subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
