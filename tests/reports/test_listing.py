"""main.py --list: how far the runs in a folder are, finished or not, and what came of them."""

from pathlib import Path

import pytest

import main
import recorded
from utils import console
from utils.atomic import file_lock
from utils.files import checkpoint, records
from utils.files.checkpoint import Checkpoint
from utils.files.paths import PRUNED, REFINED, RunPaths
from utils.flags.config import Config
from utils.network import fresh
from utils.reports.listing import LEGEND

VGG = {"arch": "vgg", "depth": 11, "dataset": "cifar10", "epochs": 5}


def shown(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, list[str]]:
    """The cells of a listing's lines, by run."""
    capsys.readouterr()
    assert console.run(main.main, ["--list", "--save", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.endswith(f"{LEGEND}\n")
    assert all(len(line) <= 80 for line in out.splitlines()), out
    lines = out.removesuffix(f"{LEGEND}\n").splitlines()
    at = [lines[0].index(word) for word in lines[0].split()]
    cells = [
        [line[a:b].strip() for a, b in zip(at, [*at[1:], None], strict=True)] for line in lines
    ]
    return {run: found for run, *found in cells[1:]}


def log(folder: Path, run: str, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "test_accuracy": 50.0 + epoch, "gamma_zeros": 3, "xi_zeros": 7}
        records.append(RunPaths(folder, run).log, row)


def begun(folder: Path, epochs: int, **told: object) -> str:
    """A run of five epochs that has come so far."""
    settings = Config.from_dict({**VGG, **told})
    network = fresh("vgg", 11, 10, 32)
    content = Checkpoint(
        network, settings.run_name, settings, epoch=epochs, precision="fp32"
    ).to_dict()
    checkpoint.save(RunPaths(folder, settings.run_name).checkpoint, content)
    log(folder, settings.run_name, epochs)
    return settings.run_name


def test_finished_runs(tmp_path, capsys):
    told = {"arch": "vgg", "depth": 11, "epochs": 5, "zeros": 10}
    run = recorded.run(tmp_path, method="proximal", seed=1, **told, percent=0.0, accuracy=86.0,
                       tuned=86.8)  # fmt: skip
    base = recorded.run(tmp_path, method="baseline", seed=1, **told, accuracy=88.61)
    other = recorded.run(tmp_path, method="subgradient", seed=1, **told, percent=0.3,
                         tuned=81.0, tuned_more={"epochs": 1})  # fmt: skip
    assert shown(capsys, tmp_path) == {
        run: ["5/5", "86.00", "10", "50.0%", "86.80"],
        base: ["5/5", "88.61", "-", "-", "-"],
        other: ["5/5", "90.00", "10", "50.0%", "81.00 after 1"],
    }


def test_runs_that_are_not_finished(tmp_path, capsys):
    stopped = begun(tmp_path, 2)
    running = begun(tmp_path, 3, method="proximal")
    new = "baseline_seed4_vgg_11_cifar10"
    with file_lock(RunPaths(tmp_path, running).lock), file_lock(RunPaths(tmp_path, new).lock):
        assert shown(capsys, tmp_path) == {
            stopped: ["2/5 stopped", "52.00", "-", "-", "-"],
            running: ["3/5 running", "53.00", "3", "-", "-"],
            new: ["0/? running", "-", "-", "-", "-"],
        }
    assert shown(capsys, tmp_path)[running][0] == "3/5 stopped"
    # As a kill leaves it: the lock is there, and nobody has it.
    RunPaths(tmp_path, stopped).lock.touch()
    assert shown(capsys, tmp_path)[stopped][0] == "2/5 stopped"


def test_a_fine_tuning_that_is_at_work_stands_with_its_training(tmp_path, capsys):
    run = recorded.run(tmp_path, "vgg", 11, "proximal", 1, epochs=5, percent=0.0)
    tuning = begun(tmp_path, 2, name="proximal_seed1", refine="logs/x_pruned.pth.tar")
    assert tuning == f"{run}_refine"
    with file_lock(RunPaths(tmp_path, tuning).lock):
        assert shown(capsys, tmp_path)[run][3:] == ["50.0%", "52.00, 2/5 running"]
    alone_there = begun(tmp_path / "other", 1, name="mine", refine="logs/x_pruned.pth.tar")
    assert shown(capsys, tmp_path / "other").keys() == {alone_there}


OTHERS = {
    "on fewer pictures": {"subset": 100},
    "tested on fewer": {"test_subset": 100},
    "tested on others": {"test_pictures": "0000cccc"},
    "on others": {"pictures": "0000cccc"},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("name", ["few", "proximal_seed1"])
def test_a_fine_tuning_on_other_pictures_is_not_the_runs(name, other, tmp_path, capsys):
    """Nor in the place of one that is, though it be the later one, and of its name."""
    told = {"arch": "vgg", "depth": 11, "epochs": 5, "percent": 0.0, "source": ""}
    run = recorded.run(tmp_path, method="proximal", seed=1, **told, tuned=43.0,
                       tuned_more={"name": name, **other})  # fmt: skip
    log(tmp_path, f"{name}_vgg_11_cifar10_refine", 5)
    lines = shown(capsys, tmp_path)
    assert lines[run] == ["5/5", "90.00", "0", "50.0%", "-"]
    assert lines[f"{name}_vgg_11_cifar10_refine"][:1] == ["5/5"] and len(lines) == 2
    folder = tmp_path / "both"
    for tuned, more in ((88.0, {}), (43.0, {"name": name, **other})):
        recorded.run(folder, method="proximal", seed=1, **told, tuned=tuned, tuned_more=more)
    log(folder, f"{name}_vgg_11_cifar10_refine", 5)
    assert shown(capsys, folder)[run][4] == "88.00"


@pytest.mark.parametrize("done", [2, 5])
def test_one_on_fewer_pictures_that_is_not_on_record_is_not_the_runs(done, tmp_path, capsys):
    run = recorded.run(tmp_path, "vgg", 11, "proximal", 1, epochs=5, percent=0.0)
    told = {"name": "proximal_seed1", "refine": "logs/x_pruned.pth.tar", "test_subset": 100}
    tuning = begun(tmp_path, done, **told)
    lines = shown(capsys, tmp_path)
    assert lines[run][4] == "-"
    assert lines[tuning][1] == f"5{done}.00"


def test_a_fine_tuning_of_another_pruning_has_its_own_line(tmp_path, capsys):
    run = recorded.run(tmp_path, "vgg", 11, "proximal", 1, epochs=5, percent=0.0, tuned=43.0,
                       tuned_more={"channels": 700})  # fmt: skip
    lines = shown(capsys, tmp_path)
    assert lines[run][3:] == ["50.0%", "-"] and lines[f"{run}_refine"][1] == "43.00"


def test_the_share_of_weights_that_a_retraining_kept(tmp_path, capsys):
    run = recorded.run(tmp_path, "resnet-basic", 32, "sas-admm", 1)
    told = {"arch": "resnet-basic", "depth": 32, "name": "sas-admm_seed1", "epochs": 190}
    told |= {"batch_size": 256, "prune_ratio": 0.85, "refine": f"logs/{run}checkpoint.pth.tar"}
    found = {"weights": 1000, "weights_kept": 151, "test_accuracy": 91.5}
    row = recorded.training(Config.from_dict(told), **found)
    recorded.append(tmp_path / REFINED, row)
    assert shown(capsys, tmp_path)[run][3:] == ["15.1% w", "91.50"]


def test_a_pruning_to_a_target_is_shown(tmp_path, capsys):
    run = recorded.run(tmp_path, "vgg", 16, "lp-admm", 1, percent=0.0, mask="z")
    text = (tmp_path / PRUNED).read_text().replace(",0.0,z,", ",,z,")
    (tmp_path / PRUNED).write_text(text)
    assert shown(capsys, tmp_path)[run][3] == "50.0%"


def test_a_folder_without_runs(tmp_path, capsys):
    assert console.run(main.main, ["--list", "--save", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert console.run(main.main, ["--list", "--save", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_somebody_elses_log_is_passed_over(tmp_path, capsys):
    run = begun(tmp_path, 2)
    (tmp_path / "changelog.csv").write_text("a,b\n1,2\n")
    assert console.run(main.main, ["--list", "--save", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert run in out and "change" not in out
    assert "passed over" in err and "changelog.csv" in err
