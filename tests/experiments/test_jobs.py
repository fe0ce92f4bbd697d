"""Doing what is left: every stage by the real commands, and how jobs are spread."""

import csv
import importlib
import itertools
import json
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import pytest

import runs
from utils import console, device, launch
from utils.device import Execution
from utils.experiments import jobs, recipes
from utils.experiments.jobs import Experiment
from utils.files.paths import REFINED, TRAINED, RunPaths
from utils.flags.config import Config
from utils.reports import results

command = partial(runs.command, recipes)
# So large a λ makes zeros in no time.
NETWORK = {"arch": "resnet", "depth": 11, "dataset": "folder", "epochs": 10}
SHORT = {**NETWORK, "batch_size": 8, "momentum": 0.0}
TINY = Experiment(
    Config.from_dict({**SHORT, "method": "proximal", "s": 100.0, "beta": 1000.0}), True, 1
)
LIKE = Experiment(
    Config.from_dict({**SHORT, "method": "subgradient", "s": 0.001}), True, 0, share=None
)


class Finished:
    """A process that was run in this one, which saves importing torch in each."""

    def __init__(self, job: jobs.Job, gpu: str, together: bool) -> None:
        script, *flags = job.argv()
        main = importlib.import_module(script.removesuffix(".py")).main
        self.returncode = console.run(main, flags)

    def poll(self) -> int:
        return self.returncode


def test_a_recipe_is_carried_out_and_then_nothing_is_left(tmp_path, pictures, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [LIKE, TINY])
    monkeypatch.setattr(jobs, "start", Finished)
    tmp_path = tmp_path / "-my runs"
    monkeypatch.chdir(tmp_path.parent)  # the folder's name is no flag
    argv = [f"--save={tmp_path.name}", "--data", pictures, "--no-cuda", "--precision", "fp32"]
    argv = ["small", *argv]
    assert command(*argv) == 0
    said = capsys.readouterr().out
    found = {r.row["run"]: r for r in results.load(tmp_path)}
    proximal, like = found[TINY.run(1)], found[LIKE.run(1)]
    for result, experiment in ((proximal, TINY), (like, LIKE)):
        planned = replace(experiment.training(1), data=str(pictures), precision="fp32")
        assert result.config == planned
    assert float(proximal.pruning()["channels_pruned_percent"]) > 0
    kept = [int(r.pruning()["channels_kept"]) for r in (proximal, like)]
    assert kept[0] == kept[1]
    with (tmp_path / REFINED).open() as file:
        (refined,) = csv.DictReader(file)
    assert (refined["run"], refined["epochs"]) == (f"{TINY.run(1)}_refine", "1")
    # What it prints last: a line for each run, and a command.
    *_, line = (line for line in said.splitlines() if line.startswith(TINY.run(1)))
    assert line.split()[1:3] == ["10/10", f"{float(proximal.row['test_accuracy']):.2f}"]
    assert line.endswith(f" {float(refined['test_accuracy']):.2f} after 1")
    assert said.splitlines()[-1].endswith(" -m utils.reports.tables --save './-my runs'")

    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert command(*argv) == 0
    assert "all is done" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    # As if killed just before they were recorded: both trainings are resumed, and accepted.
    for name in (TRAINED, REFINED):
        (tmp_path / name).unlink()
    assert command(*argv) == 0
    assert {r.row["run"] for r in results.load(tmp_path)} == found.keys()
    assert (tmp_path / REFINED).exists()


def test_recipes_measure_once_for_all_their_runs(tmp_path, pictures, monkeypatch, capsys):
    """And what a run in the folder was begun with is what the others take."""
    asked, argv = [], ["small", "--save", tmp_path, "--data", pictures, "--no-cuda"]
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [LIKE, TINY])
    monkeypatch.setattr(jobs, "start", Finished)

    def seconds(execution: Execution, *args: object) -> float:
        asked.append(execution.precision)
        return {"bf16": 1.0, "fp32": 2.0}[execution.precision]

    monkeypatch.setattr(device, "_step_seconds", seconds)
    assert command(*argv) == 0
    assert asked == ["fp32", "bf16"]
    recorded = runs.rows(tmp_path / TRAINED) + runs.rows(tmp_path / REFINED)
    assert [row["precision"] for row in recorded] == ["bf16"] * 3
    capsys.readouterr()
    assert command(*argv, "--seeds", 2, "--dry-run") == 0
    assert asked == ["fp32", "bf16"]
    trainings = [line for line in capsys.readouterr().out.splitlines() if " main.py " in line]
    assert trainings and all("--precision bf16" in line for line in trainings)


def test_a_run_goes_on_although_its_checkpoint_is_damaged(tmp_path, pictures, monkeypatch):
    """As it does by hand, with --resume auto."""
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [TINY])
    monkeypatch.setattr(jobs, "start", Finished)
    argv = ["small", "--save", tmp_path, "--data", pictures, "--no-cuda", "--precision", "fp32"]
    assert command(*argv) == 0
    (tmp_path / TRAINED).unlink()
    RunPaths(tmp_path, TINY.run(1)).checkpoint.write_bytes(b"half a checkpoint")
    assert command(*argv) == 0
    assert TINY.run(1) in (tmp_path / TRAINED).read_text()


def test_a_run_that_began_with_other_settings_is_not_gone_on_with(
    tmp_path, pictures, monkeypatch, capsys
):
    """Also where this time it is the default that is wanted."""
    monkeypatch.setattr(jobs, "start", Finished)
    argv = ["small", "--save", tmp_path, "--data", pictures, "--no-cuda", "--precision", "fp32"]
    begun = replace(LIKE, prunes=False)
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [begun])
    assert command(*argv) == 0
    (tmp_path / TRAINED).unlink()  # as if killed just before
    usual = replace(begun, config=Config.from_dict({**SHORT, "method": "subgradient"}))
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [usual])
    assert command(*argv) == 1
    assert "this run was started with s 0.001" in capsys.readouterr().err


# How jobs are spread, with programs in the place of ours that only note how they were called.
FAKE = """
import json, os, sys, time
words = sys.argv
name = words[words.index("--name") + 1]
what = "refine" if "--refine" in words else "prune" if "prune" in words[0] else "train"
with open(os.environ["NOTES"], "a") as file:
    start = time.time()
    time.sleep(0.3)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    file.write(json.dumps([what, name, gpu, start, time.time()]) + "\\n")
print("hello from", name)
sys.exit(7 if [what, name] == ["train", os.environ.get("FAILS")] else 0)
"""


@pytest.fixture
def notes(tmp_path, monkeypatch):
    (tmp_path / "fake").mkdir()
    for script in ("main.py", "resnet_prune.py"):
        (tmp_path / "fake" / script).write_text(FAKE)
    monkeypatch.setattr(launch, "ROOT", tmp_path / "fake")
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [TINY])
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))

    def read() -> list[list]:
        return [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]

    return read


def test_jobs_are_spread_over_the_gpus(notes, tmp_path, pictures, monkeypatch, capfd):
    monkeypatch.setattr(launch, "visible_gpus", lambda: ["4", "GPU-a"])
    argv = ["small", "--seeds", 1, 2, 3, "--save", tmp_path / "logs", "--data", pictures]
    assert command(*argv) == 0
    calls = notes()
    assert len(calls) == 9
    assert {gpu for _, _, gpu, *_ in calls} == {"4", "GPU-a"}
    for gpu in ("4", "GPU-a"):  # one at a time on each
        times = sorted((start, end) for _, _, g, start, end in calls if g == gpu)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    for seed in (1, 2, 3):  # a run's stages in order
        order = [what for what, name, *_ in calls if f"seed{seed}" in name]
        assert order == ["train", "prune", "refine"]
    # Each printed into a file of its own.
    assert "hello" not in capfd.readouterr().out
    assert len(list((tmp_path / "logs").glob("*.out"))) == 9


@pytest.mark.parametrize("mps", [True, False])
def test_several_runs_share_a_gpu(tmp_path, pictures, monkeypatch, capsys, mps):
    """As many places as GPUs and runs on each; where MPS is off, how to turn it on."""
    places = []
    monkeypatch.setattr(launch, "visible_gpus", lambda: ["4", "GPU-a"])
    monkeypatch.setattr(
        jobs.launch, "run_tasks", lambda jobs, slots, *how: places.extend(slots) or []
    )
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    if mps:
        (tmp_path / "control").touch()
    argv = ["small", "--seeds", 1, 2, "--save", tmp_path / "logs", "--data", pictures]
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [TINY])
    assert command(*argv, "--per-gpu", 2) == 0
    assert places == ["4", "GPU-a"]  # two runs take two places, on two GPUs
    places.clear()
    assert command(*argv[:2], *range(9), *argv[4:], "--per-gpu", 3) == 0
    assert sorted(places) == sorted(["4", "GPU-a"] * 3)
    said = capsys.readouterr().out
    assert "divided by 2 GPUs and, as far as 3 on one run as fast as one, by 3" in said
    assert ("nvidia-cuda-mps-control -d\n" in said) is not mps


def test_runs_share_a_gpu_only_where_there_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch, "visible_gpus", list)
    assert command("small", "--save", tmp_path, "--per-gpu", 2) == 2
    assert "--per-gpu" in capsys.readouterr().err


def test_a_job_that_fails_takes_only_what_needs_it(notes, tmp_path, pictures, monkeypatch, capfd):
    monkeypatch.setattr(launch, "visible_gpus", list)
    monkeypatch.setenv("FAILS", "proximal_seed1")
    argv = ["small", "--seeds", 1, 2, "--save", tmp_path / "logs", "--data", pictures]
    assert command(*argv) == 1
    assert [what for what, name, *_ in notes() if "seed1" in name] == ["train"]
    assert [what for what, name, *_ in notes() if "seed2" in name] == ["train", "prune", "refine"]
    out = capfd.readouterr().out
    assert "hello from" in out  # one at a time: where everybody sees it
    assert "FAILED with status 7: train proximal_seed1" in out
    assert "3 of 6 not done" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_killed_it_leaves_no_training_behind(number, notes, tmp_path):
    """Or a second start would train into the same files."""
    pid = tmp_path / "pid"
    (tmp_path / "fake" / "main.py").write_text(
        f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )

    def kill() -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # as it is but under nohup
    try:
        threading.Thread(target=kill).start()
        with pytest.raises(console.Interrupted):
            jobs.run([jobs.Job(TINY, 1, "train", tmp_path, (), None)], [])
    finally:
        signal.signal(number, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_under_nohup_a_hang_up_is_ignored(notes, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGHUP]).start()
        assert jobs.run([jobs.Job(TINY, 1, "train", tmp_path, (), None)], [])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(notes()) == 1


@pytest.mark.parametrize("missing", ["subset", "test_subset"])
def test_data_of_no_use_is_refused_once_before_the_first_training(
    missing, notes, tmp_path, pictures, monkeypatch, capsys
):
    few = replace(TINY, config=replace(TINY.config, **{missing: 1000}))
    monkeypatch.setattr(recipes, "experiments", lambda part, scale: [few])
    argv = ["small", "--seeds", 1, 2, "--save", tmp_path / "logs", "--data", pictures, "--no-cuda"]
    assert command(*argv) == 2
    assert "1000 is more than the" in capsys.readouterr().err
    assert not (tmp_path / "notes").exists() and not (tmp_path / "logs").exists()
