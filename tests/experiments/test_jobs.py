"""Running the missing stages: by the real commands, and on several GPUs."""

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
from utils import console
from utils.experiments import jobs, recipes, scheduler
from utils.experiments.jobs import Experiment
from utils.files.paths import REFINED, TRAINED, RunPaths
from utils.flags.config import Config
from utils.reports import results

command = partial(runs.command, recipes)
SHORT = {"arch": "resnet-basic", "depth": 8, "dataset": "folder", "epochs": 10}
SHORT |= {"batch_size": 8, "momentum": 0.0}
# With so large a λ, factors are zero after ten epochs.
PROXIMAL = Config.from_dict({**SHORT, "method": "proximal", "s": 100.0, "beta": 1000.0})
SUBGRADIENT = Config.from_dict({**SHORT, "epochs": 1, "method": "subgradient", "s": 0.001})
TINY = Experiment(PROXIMAL, True, 1)
DEPENDENT = Experiment(SUBGRADIENT, True, 0, share=None)


@pytest.fixture
def plan(monkeypatch):
    """A function that sets the experiments of all recipes, whose jobs run in this process."""
    monkeypatch.setattr(scheduler, "start", runs.InThisProcess)
    return lambda *planned: monkeypatch.setattr(recipes, "experiments", lambda *part: planned)


def test_a_recipe_is_completed_and_resumed(plan, tmp_path, pictures, monkeypatch, capsys):
    plan(DEPENDENT, TINY)
    folder = tmp_path / "-my runs"
    monkeypatch.chdir(tmp_path)  # the folder's name looks like a flag
    argv = ["small", f"--save={folder.name}", "--data", pictures, "--no-cuda"]
    assert command(*argv, "--precision", "bf16") == 0
    out = capsys.readouterr().out
    found = {result.row["run"]: result for result in results.load(folder)}
    both = [found[experiment.run(1)] for experiment in (TINY, DEPENDENT)]
    for result, experiment in zip(both, (TINY, DEPENDENT), strict=True):
        planned = replace(experiment.training(1), data=str(pictures), precision="bf16")
        assert result.config == planned
    assert float(both[0].pruning()["channels_pruned_percent"]) > 0
    assert len({result.pruning()["channels_kept"] for result in both}) == 1
    (tuned,) = runs.rows(folder / REFINED)
    assert (tuned["run"], tuned["epochs"]) == (f"{TINY.run(1)}_refine", "1")
    # The output ends with a line for each run, and the command for the tables.
    *_, line = (line for line in out.splitlines() if line.startswith(TINY.run(1)))
    assert line.split()[1:3] == ["10/10", f"{float(both[0].row['test_accuracy']):.2f}"]
    assert line.endswith(f" {float(tuned['test_accuracy']):.2f} after 1")
    assert out.splitlines()[-1].endswith(" -m utils.reports.tables --save './-my runs'")

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert command(*argv) == 0
    assert "all is done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    # As if killed before the trainings were recorded, one with a damaged checkpoint.
    for name in (TRAINED, REFINED):
        (folder / name).unlink()
    RunPaths(folder, DEPENDENT.run(1)).checkpoint.write_bytes(b"half a checkpoint")
    assert command(*argv) == 0
    assert {result.row["run"] for result in results.load(folder)} == found.keys()
    assert (folder / REFINED).exists()


def test_quickstart_ends_with_a_figure(plan, tmp_path, pictures, monkeypatch, capsys):
    short = replace(DEPENDENT, prunes=False)
    plan(short)
    drawn = list[list[str]]()
    monkeypatch.setattr(recipes.plots, "main", drawn.append)
    argv = ["quickstart", "--save", tmp_path, "--data", pictures, "--no-cuda"]
    with monkeypatch.context() as without:
        without.setattr(console, "find_spec", lambda name: None)
        assert command(*argv) == 0
    assert "no figure is drawn without matplotlib" in capsys.readouterr().err and not drawn
    pytest.importorskip("matplotlib")
    assert command(*argv) == 0
    assert drawn == [["--save", str(tmp_path), "--run", short.run(1)]]
    # A run with other settings is not resumed.
    (tmp_path / TRAINED).unlink()  # as if killed before it was recorded
    plan(replace(short, config=replace(short.config, options={"s": 1e-5})))
    assert command(*argv) == 1
    assert "this run was started with --lambda 0.001" in capsys.readouterr().err


# Replaces all programs: writes a line with stage, name, GPU, start and end.
FAKE = """
import json, os, sys, time
words = sys.argv
stage = "refine" if "--refine" in words else "prune" if "prune" in words[0] else "train"
flag, part = ("--model", -2) if stage == "prune" else ("--name", -1)
name = words[words.index(flag) + 1].split("/")[part]
with open(os.environ["NOTES"], "a") as file:
    start = time.time()
    time.sleep(0.1)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    file.write(json.dumps([stage, name[:14], gpu, start, time.time()]) + "\\n")
print("hello from", name)
sys.exit(7 if [stage, name] == ["train", os.environ.get("FAILS")] else 0)
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A function that returns the lines that FAKE wrote."""
    (tmp_path / "fake").mkdir()
    for script in ("main.py", "resnet_prune.py"):
        (tmp_path / "fake" / script).write_text(FAKE)
    monkeypatch.setattr(scheduler, "ROOT", tmp_path / "fake")
    monkeypatch.setattr(recipes, "experiments", lambda *part: [TINY])
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    return lambda: [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]


def test_jobs_run_one_at_a_time_on_each_gpu(calls, tmp_path, pictures, monkeypatch, capfd):
    monkeypatch.setattr(scheduler, "visible_gpus", lambda: ["4", "GPU-a"])
    argv = ["small", "--seeds", 1, 2, 3, "--save", tmp_path / "logs", "--data", pictures]
    assert command(*argv) == 0
    found = calls()
    assert len(found) == 9 and {gpu for _, _, gpu, *_ in found} == {"4", "GPU-a"}
    for gpu in ("4", "GPU-a"):
        times = sorted((start, end) for _, _, g, start, end in found if g == gpu)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    for seed in (1, 2, 3):
        stages = [stage for stage, name, *_ in found if f"seed{seed}" in name]
        assert stages == ["train", "prune", "refine"]
    out = capfd.readouterr().out
    assert "divided by 2 GPUs" in out and "hello" not in out  # each job has an output file
    assert len(list((tmp_path / "logs").glob("*/*.out"))) == 9


def test_a_failed_job_stops_only_its_dependents(calls, tmp_path, pictures, monkeypatch, capfd):
    """And fine-tunings wait for the trainings of all seeds."""
    monkeypatch.setattr(scheduler, "visible_gpus", list)
    monkeypatch.setenv("FAILS", "proximal_seed1")
    argv = ["small", "--seeds", 1, 2, 3, "--save", tmp_path / "logs", "--data", pictures]
    assert command(*argv) == 1
    stages = [(int(name[-1]), stage) for stage, name, *_ in calls()]
    others = [(seed, stage) for seed in (2, 3) for stage in ("train", "prune")]
    assert stages == [(1, "train"), *others, (2, "refine"), (3, "refine")]
    out = capfd.readouterr().out
    assert "hello from" in out  # without several GPUs there are no output files
    assert "FAILED with status 7: train proximal_seed1" in out and "3 of 9 jobs not done" in out


def test_modules_run_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils/__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs.Job, "argv", lambda job: ["-m", "utils.shell"])
    job = jobs.Job(TINY, 1, "prune", tmp_path, (), None)
    assert scheduler.start(job, "", parallel=True).wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_running_job(number, calls, tmp_path):
    """A second start would train into the same files."""
    pid = tmp_path / "pid"
    (tmp_path / "fake" / "main.py").write_text(
        f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )

    def kill() -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # the default outside nohup
    try:
        threading.Thread(target=kill).start()
        with pytest.raises(console.Interrupted):
            scheduler.run([jobs.Job(TINY, 1, "train", tmp_path, (), None)], [])
    finally:
        signal.signal(number, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_nohup_is_respected(calls, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGHUP]).start()
        assert scheduler.run([jobs.Job(TINY, 1, "train", tmp_path, (), None)], [])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(calls()) == 1


@pytest.mark.parametrize("flag", ["subset", "test_subset"])
def test_unusable_data_is_rejected_before_the_first_job(
    flag, calls, tmp_path, pictures, monkeypatch, capsys
):
    few = replace(TINY, config=replace(PROXIMAL, **{flag: 1000}))
    monkeypatch.setattr(recipes, "experiments", lambda *part: [few])
    argv = ["small", "--seeds", 1, 2, "--save", tmp_path / "logs", "--data", pictures, "--no-cuda"]
    assert command(*argv) == 2
    assert "1000 is more than the" in capsys.readouterr().err
    assert not (tmp_path / "notes").exists() and not (tmp_path / "logs").exists()
