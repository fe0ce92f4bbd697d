"""main.py --list: progress and results of the runs in a folder."""

from pathlib import Path

import pytest

import main
import recorded
from utils import console
from utils.files import checkpoint, records
from utils.files.checkpoint import Checkpoint
from utils.files.locks import file_lock
from utils.files.paths import PRUNED, REFINED, RunPaths
from utils.flags.config import Config
from utils.network import fresh
from utils.reports.listing import LEGEND

VGG = {"arch": "vgg", "depth": 11, "epochs": 5}
PROXIMAL = {**VGG, "method": "proximal", "seed": 1, "percent": 0.0}


@pytest.fixture
def listed(capsys):
    """A function that returns the cells of a listing's lines, by run."""

    def listed(folder: Path) -> dict[str, list[str]]:
        capsys.readouterr()
        assert console.run(main.main, ["--list", "--save", str(folder)]) == 0
        out, err = capsys.readouterr()
        assert err == "" and out.endswith(f"{LEGEND}\n")
        assert all(len(line) <= 80 for line in out.splitlines()), out
        heads, *lines = out.removesuffix(f"{LEGEND}\n").splitlines()
        starts = [heads.index(word) for word in heads.split()]
        ends = [*starts[1:], None]
        cells = [[line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in lines]
        return {run: rest for run, *rest in cells}  # without the indentation of further prunings

    return listed


def begin(folder: Path, epochs: int, **settings: object) -> str:
    """The log and checkpoint of a run after ``epochs`` of its five epochs; returns its name."""
    config = Config.from_dict({"arch": "resnet-basic", "depth": 8, "epochs": 5, **settings})
    content = Checkpoint(fresh("resnet-basic", 8, 10, 32), config.run_name, config, epoch=epochs)
    files = RunPaths(folder, config.run_name)
    checkpoint.save(files.checkpoint, content.to_dict())
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "test_accuracy": 50.0 + epoch, "gamma_zeros": 3, "xi_zeros": 7}
        records.append(files.log, row)
    return config.run_name


def test_finished_runs(tmp_path, listed):
    settings = {**VGG, "zeros": 10, "seed": 1}
    run = recorded.run(tmp_path, method="proximal", **settings, percent=0.0, accuracy=86.0,
                       tuned=86.8)  # fmt: skip
    baseline = recorded.run(tmp_path, method="baseline", **settings, accuracy=88.61)
    other = recorded.run(tmp_path, method="subgradient", **settings, percent=0.3,
                         tuned=81.0, tuning={"epochs": 1})  # fmt: skip
    lp = recorded.run(tmp_path, method="lp-admm", **settings, percent=0.0, mask="z")
    recorded.set_cells(tmp_path / PRUNED, percent="", target_flops=0.5)
    sas = {**VGG, "name": "sas-admm_seed1", "prune_ratio": 0.85}
    retrained = recorded.run(tmp_path, **VGG, method="sas-admm", seed=1)
    config = Config.from_dict({**sas, "refine": f"logs/{retrained}/checkpoint.pth.tar"})
    results = {"weights": 1000, "weights_kept": 151, "test_accuracy": 91.5, "pictures": "0000aaaa"}
    recorded.append(tmp_path / REFINED, recorded.training(config, **results))
    assert listed(tmp_path) == {
        run: ["5/5", "86.00", "10", "50.0%", "86.80"],
        baseline: ["5/5", "88.61", "-", "-", "-"],
        other: ["5/5", "90.00", "10", "50.0%", "81.00 after 1"],
        lp: ["5/5", "90.00", "-", "50.0%", "-"],
        retrained: ["190/190", "90.00", "-", "15.1% w", "91.50 after 5"],
    }


def test_unfinished_runs(tmp_path, listed):
    stopped = begin(tmp_path, 2)
    running = begin(tmp_path, 3, method="proximal")
    tuning = begin(tmp_path, 1, name="mine", refine="logs/x/pruned.pth.tar")
    new = "baseline_seed4_resnet-basic_8_cifar10"
    with file_lock(RunPaths(tmp_path, running).lock), file_lock(RunPaths(tmp_path, new).lock):
        assert listed(tmp_path) == {
            stopped: ["2/5 stopped", "52.00", "-", "-", "-"],
            running: ["3/5 running", "53.00", "3", "-", "-"],
            tuning: ["1/5 stopped", "51.00", "-", "-", "-"],
            new: ["0/? running", "-", "-", "-", "-"],
        }
    RunPaths(tmp_path, stopped).lock.touch()  # left by a killed process
    lines = listed(tmp_path)
    assert (lines[running][0], lines[stopped][0]) == ("3/5 stopped", "2/5 stopped")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "few", "subset": 100},
        {"pictures": "0000cccc"},
        {"test_pictures": "0000cccc"},
        {"name": "other", "channels": 700},  # of another file
    ],
    ids=str,
)
def test_other_fine_tunings_have_their_own_line(change, tmp_path, listed):
    """They do not replace the run's own fine-tuning, even if later and with its name."""
    run = recorded.run(tmp_path / "a", **PROXIMAL, source="", tuned=43.0, tuning=change)
    other = f"{change.get('name', 'proximal_seed1')}_vgg_11_cifar10_refine"
    assert listed(tmp_path / "a") == {
        run: ["5/5", "90.00", "0", "50.0%", "-"],
        other: ["5/5", "43.00", "-", "-", "-"],
    }
    for tuned, tuning in ((88.0, {}), (43.0, change)):
        recorded.run(tmp_path / "b", **PROXIMAL, source="", tuned=tuned, tuning=tuning)
    assert listed(tmp_path / "b")[run][4] == "88.00"


def test_further_prunings_have_a_line_below_their_run(tmp_path, listed):
    run = recorded.run(tmp_path, **PROXIMAL, tuned=91.0)
    (row,) = records.read(tmp_path / PRUNED)
    strong = {"model": f"{run}/strong.pth.tar", "percent": 0.7, "channels_kept": 300}
    recorded.append(tmp_path / PRUNED, row | strong | {"accuracy_slim": 47.5})
    assert listed(tmp_path) == {
        run: ["5/5", "90.00", "0", "50.0%", "91.00"],
        "strong": ["", "47.50", "", "30.0%", "-"],
    }
    recorded.append(tmp_path / PRUNED, row | {"channels_kept": 200, "percent": 0.8})
    lines = listed(tmp_path)  # the file that was fine-tuned is overwritten
    assert [lines[name][3:] for name in (run, "strong")] == [["20.0%", "-"], ["30.0%", "-"]]
    assert lines[f"{run}_refine"][1] == "91.00"


def test_a_pruned_fine_tuning_has_its_own_line(tmp_path, listed):
    run = recorded.run(tmp_path, **PROXIMAL, tuned=91.0)
    (row,) = records.read(tmp_path / PRUNED)
    (tuning,) = records.read(tmp_path / REFINED)
    again = {"run": tuning["run"], "model": f"{tuning['run']}/pruned.pth.tar", "channels": 500}
    again |= {"checksum": tuning["checksum"], "channels_kept": 100}
    recorded.append(tmp_path / PRUNED, row | again)
    assert listed(tmp_path) == {
        run: ["5/5", "90.00", "0", "50.0%", "91.00"],
        tuning["run"]: ["5/5", "91.00", "-", "20.0%", "-"],
    }


def test_folders_without_runs_and_logs_of_other_programs(tmp_path, capsys):
    assert console.run(main.main, ["--list", "--save", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert console.run(main.main, ["--list", "--save", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    run = begin(tmp_path, 2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.csv").write_text("a,b\n1,2\n")
    assert console.run(main.main, ["--list", "--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert run in out and "other  " not in out
    assert "skipped" in err and "other/log.csv" in err
