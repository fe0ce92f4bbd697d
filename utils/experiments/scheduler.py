"""Running jobs, one on each GPU at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from utils.console import Signals, format_duration
from utils.experiments.jobs import Job
from utils.shell import ROOT, format_command

# Prunings take seconds, and half of a result is known then; fine-tunings add the other half.
ORDER = ("prune", "train", "refine")


def visible_gpus() -> list[str]:
    """Returns the visible GPUs as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if names is None else names.split(",")[:count]


def run(
    jobs: Sequence[Job], gpus: Sequence[str], finished: Callable[[], object] = lambda: None
) -> bool:
    """Runs ``jobs`` by stage, one on each of ``gpus`` at a time; returns whether all succeeded.

    With several GPUs the output of each job goes to a file. After a failure, jobs that do not
    depend on the failed one still run. A first signal is passed on to the running jobs. All have
    ended when this returns. ``finished`` is called after each job that succeeded.

    Raises:
        Interrupted: a signal was received.
    """
    free = list(gpus)[: len({job.files.run for job in jobs})] or [""]
    parallel, waiting, failed = len(free) > 1, list(jobs), list[Job]()
    running: dict[subprocess.Popen[str], tuple[Job, str, float]] = {}
    # A closed terminal sends SIGHUP, which nohup ignores. Windows has none.
    hang_up = getattr(signal, "SIGHUP", signal.SIGTERM)
    passed_on = 0
    with Signals(*([hang_up] if signal.getsignal(hang_up) != signal.SIG_IGN else [])) as signals:
        try:
            while running or (waiting and not signals.received):
                ready = sorted(waiting, key=lambda job: ORDER.index(job.stage))
                for job in [] if signals.received else ready:
                    unfinished = [*waiting, *(other for other, *_ in running.values())]
                    if any(map(job.depends_on, failed)):
                        waiting.remove(job)
                        failed.append(job)
                        print(f"skipped, because a job before it failed: {job}", flush=True)
                    elif free and not any(map(job.depends_on, unfinished)):
                        waiting.remove(job)
                        gpu = free.pop(0)
                        running[start(job, gpu, parallel)] = job, gpu, time.monotonic()
                time.sleep(0.1)
                if signals.received != passed_on:
                    passed_on = signals.received
                    for process in running:
                        process.send_signal(passed_on)
                for process in [p for p in running if p.poll() is not None]:
                    job, gpu, started = running.pop(process)
                    free.append(gpu)
                    text = f"done in {format_duration(time.monotonic() - started)}: {job}"
                    if process.returncode:
                        failed.append(job)
                        output = f": see {job.files.output(job.stage)}" if parallel else ""
                        text = f"FAILED with status {process.returncode}: {job}{output}"
                    if not passed_on:
                        print(text, flush=True)
                    if not process.returncode:
                        finished()
            signals.check()
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
    if failed:
        again = "jobs not done: run the same command again"
        print(f"{len(failed)} of {len(jobs)} {again}", flush=True)
    return not failed


def start(job: Job, gpu: str, parallel: bool) -> subprocess.Popen[str]:
    """Starts a job on ``gpu``, "" for the default device; ``parallel``: its output to a file."""
    words, environment = job.argv(), dict(os.environ)
    print(f"{f'GPU {gpu}: ' if parallel else ''}{format_command(*words)}", flush=True)
    command = [str(ROOT / words[0])]
    if words[0] == "-m":  # -P: ignores a package utils of the current folder
        command, environment["PYTHONPATH"] = ["-P", "-m"], str(ROOT)
    if gpu:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    if parallel:
        job.files.directory.mkdir(parents=True, exist_ok=True)
    with job.files.output(job.stage).open("a") if parallel else nullcontext() as output:
        # A session of its own gets signals of the terminal once, through this process.
        return subprocess.Popen(
            [sys.executable, *command, *words[1:]],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            text=True,
            start_new_session=True,
        )
