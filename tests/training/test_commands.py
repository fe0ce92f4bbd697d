"""The commands as a user types them, from training to fine-tuning, in real processes."""

import importlib
import math
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

import main
import resnet_prune
import warm
from runs import QUICK, ROOT, assert_same_run, rows, train
from runs import command as run_command
from utils import console
from utils.flags.config import FLAGS
from utils.network import fresh
from utils.reports import results
from utils.training.trainer import Trainer

VGG = ["--arch", "vgg", "--depth", 11]
RESNET = ["--arch", "resnet", "--depth", 11]
LOG = (
    "epoch,lr,alpha,train_loss,objective,ns_objective,test_loss,test_accuracy,gamma_zeros,xi_zeros,"
    "train_seconds,test_seconds,change,channels,flops"
).split(",")
# So large a λ brings ξ to zero in a few of an epoch's 4 steps; without momentum γ follows at once.
SLIMMING = ["-sr", "--s", "100", "--beta", "1000", "--momentum", "0", "--epochs", "10"]


def command(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Runs a command in a process without python on its PATH, so that it must be named in full."""
    done = subprocess.run(
        [*map(str, words)],
        cwd=cwd,
        env={**os.environ, "PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 11), ("densenet", 7)])
def test_train_prune_and_refine(arch, depth, tmp_path, pictures, capsys, monkeypatch):
    """Each command names the next one; run and folder have names that look like flags.

    The commands for the ResNet run in a shell, those for the DenseNet in this process.
    """
    monkeypatch.chdir(tmp_path)

    def run_line(line: str) -> str:
        """Runs a command line; returns its output."""
        if arch == "resnet":
            return command("sh", "-c", line, cwd=tmp_path).stdout
        _, script, *flags = shlex.split(line)
        capsys.readouterr()
        assert run_command(importlib.import_module(Path(script).stem), *flags) == 0
        return capsys.readouterr().out

    def run_next(output: str) -> str:
        """Runs the command that the last line of ``output`` names."""
        return run_line(output.splitlines()[-1].partition(": ")[2])

    run, save = f"-x_{arch}_{depth}_folder", "-my runs"
    data = ["--dataset", "folder", "--data", pictures, f"--save={save}", "--name=-x"]
    flags = [*QUICK, *SLIMMING, *data, "--arch", arch, "--depth", depth]
    output = run_line(shlex.join(map(str, [warm.PYTHON, ROOT / "main.py", *flags])))
    folder = tmp_path / save
    log = rows(folder / f"{run}/log.csv")
    assert list(log[0]) == LOG
    assert [row["epoch"] for row in log] == [str(i) for i in range(1, 11)]
    lrs = [0.1] * 5 + [0.01] * 2 + [0.001] * 3
    assert [float(row["lr"]) for row in log] == pytest.approx(lrs)
    assert all(float(row["alpha"]) == pytest.approx(1 / float(row["lr"])) for row in log)
    assert all(float(row["objective"]) >= float(row["train_loss"]) for row in log)
    (trained,) = rows(folder / "train_record.csv")
    assert list(trained)[: len(FLAGS) + 1] == ["run", *FLAGS]
    assert trained["run"] == run
    for column in ("test_accuracy", "gamma_zeros"):
        assert trained[column] == log[-1][column]
    assert int(trained["xi_zeros"]) >= int(trained["gamma_zeros"]) > 0

    output = run_next(output)
    (pruned,) = rows(folder / "pruned_record.csv")
    assert pruned["run"] == run
    removed = int(pruned["channels"]) - int(pruned["channels_kept"])
    # All zeros except one channel of an empty layer, and one that carries constants.
    layers = len(fresh(arch, depth, 2, 32).norms)
    assert 0 <= int(trained["gamma_zeros"]) - removed <= 2 * layers
    assert int(pruned["silent"]) + int(pruned["constant"]) == removed
    assert pruned["alive"] == pruned["changed_masked"] == "0"

    run_next(output)
    (refined,) = rows(folder / "refine_record.csv")
    assert (refined["run"], refined["method"]) == (f"{run}_refine", "baseline")
    (result,) = results.load(folder)
    assert result.finetuning(pruned).row == refined  # no penalty, else as trained
    path = folder / f"{run}_refine/checkpoint.pth.tar"
    assert run_command(main, "--evaluate", path, "--no-cuda") == 0
    assert f"test accuracy {float(refined['test_accuracy']):.2f} %" in capsys.readouterr().out
    prune = importlib.import_module(f"{arch}_prune")  # a pruned model can be pruned again
    flags = ["--model", path, "--percent", 0.2, "--save", folder / "again", "--no-cuda"]
    assert run_command(prune, *flags) == 0


def test_refining_with_a_penalty_starts_at_xi_equal_to_gamma(tmp_path, pictures):
    """ξ drawn from [0.47, 0.5] would pull every trained γ there."""
    assert train(tmp_path, pictures, *RESNET, "--epochs", 1) == 0
    path = tmp_path / "baseline_seed1_resnet_11_folder/checkpoint.pth.tar"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["layer1.0.bn1.weight"].fill_(2.0)
    torch.save(content, path)
    assert run_command(resnet_prune, "--model", path, "--no-cuda") == 0
    pruned = path.with_name("pruned.pth.tar")
    flags = ["--refine", pruned, "-sr", "--s", "0.001", "--epochs", 1, "--name", "again"]
    assert train(tmp_path, pictures, *flags) == 0
    path = tmp_path / "again_resnet_11_folder_refine/checkpoint.pth.tar"
    refined = torch.load(path, weights_only=True)
    assert refined["method"]["xi"][:16].min() > 1.5
    assert refined["state_dict"]["layer1.0.bn1.weight"].min() > 1.5


PROXIMAL = ["-sr", "--s", "4", "--beta", "100"]


@pytest.mark.parametrize(
    "flags",
    [
        [*PROXIMAL, "--prox-every", "epoch"],
        ["-sr", "--method", "subgradient", "--lr", "0.05", "--no-nesterov"],
        ["-sr", "--method", "lp-admm", "--s", "0.1", "--rho", "0.5", "--z-every", "3"],
        [*PROXIMAL, "--penalty", "mcp", "--schedule", "cosine", "--label-smoothing", "0.1"],
    ],
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(flags, tmp_path, pictures):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, pictures, *RESNET, "--epochs", 5, *flags) == 0
    save = Trainer.save

    def stop(trainer: Trainer, accuracy: float) -> None:
        if trainer.epoch == 4:  # its log line is written, its checkpoint is not
            raise KeyboardInterrupt
        save(trainer, accuracy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", stop)
        assert train(parts, pictures, *RESNET, "--epochs", 5, *flags) == 130
    (path,) = parts.glob("*/checkpoint.pth.tar")
    assert len(rows(next(parts.glob("*/log.csv")))) == 4
    assert train(parts, pictures, "--resume", path, "--epochs", 5) == 0
    assert_same_run(whole, parts)
    (one,), (other,) = (rows(folder / "train_record.csv") for folder in (whole, parts))
    for row in (one, other):
        # The file's checksum differs by pickle's numbering of equal strings.
        for column in ("command", "seconds_per_epoch", "train_seconds", "checksum"):
            del row[column]
    assert one == other
    assert (one["nesterov"] == "False") == ("--no-nesterov" in flags)
    assert train(parts, pictures, "--resume", path, "--epochs", 5) == 0  # finished: no new record
    assert len(rows(parts / "train_record.csv")) == 1


def test_start_epoch_belongs_to_the_experiment(tmp_path, pictures):
    flags = [*RESNET, "--epochs", 4, "--start-epoch", 2]
    for _ in range(2):  # the second time resumes the finished run
        assert train(tmp_path, pictures, *flags, "--resume", "auto") == 0
    log = rows(next(tmp_path.glob("*/log.csv")))
    assert [(row["epoch"], float(row["lr"])) for row in log] == [("3", 0.01), ("4", 0.001)]
    (result,) = results.load(tmp_path)
    assert result.config.start_epoch == 2
    assert ("start_epoch", 2) in result.experiment[1].options
    assert "--start-epoch" not in result.config.finetuning_argv()
    assert result.config.for_finetuning(Path("pruned")).start_epoch == 0


def test_a_batch_of_one_image_that_cannot_be_normalised_is_an_error_of_one_line(
    tmp_path, pictures, capsys
):
    flags = ["--batch-size", 31, "--epochs", 1]
    assert train(tmp_path, pictures, "--arch", "resnet18", "--size", 32, *flags) == 2
    assert "choose another --batch-size" in capsys.readouterr().err.splitlines()[-1]
    assert train(tmp_path, pictures, *RESNET, *flags) == 0  # maps of more than one pixel


def test_a_new_run_never_overwrites_another_and_is_pruned_without_change(
    tmp_path, pictures, capsys
):
    assert train(tmp_path, pictures, *RESNET, "--epochs", 1) == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    assert train(tmp_path, pictures, *RESNET, "--epochs", 2) == 2
    error = capsys.readouterr().err
    assert "--resume" in error and "--name" in error
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before

    # Without zeros, the pruned model is the same.
    path = tmp_path / "baseline_seed1_resnet_11_folder/checkpoint.pth.tar"
    assert run_command(resnet_prune, "--model", path, "--no-cuda") == 0
    one, other = (
        torch.load(p, weights_only=True) for p in (path.with_name("pruned.pth.tar"), path)
    )
    assert one["cfg"] == other["cfg"]
    assert all(torch.equal(v, other["state_dict"][k]) for k, v in one["state_dict"].items())


def test_a_training_too_short_for_zeros_gets_the_same_advice_before_and_after(
    tmp_path, pictures, capsys
):
    flags = ["-sr", "--epochs", 1, "--s", "0.0045", "--beta", 100]
    assert train(tmp_path, pictures, *VGG, *flags) == 0
    out, err = capsys.readouterr()
    advice = [re.search(r"train for (\d+) times as many", text) for text in (out, err)]
    assert advice[0][1] == advice[1][1]
    assert "--epochs 1 is too short to drop the learning rate" in err


def test_a_loss_that_is_not_finite_ends_the_run_with_status_3(tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, *VGG, "--lr", "1e30") == 3
    assert "--lr" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tar"))


def test_a_small_model_learns_two_colours(tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, *RESNET, "--lr", 0.02, "--log-interval", 2) == 0
    err = capsys.readouterr().err
    assert "\r" not in err  # in a file, a line per interval
    assert re.search(r"epoch 1/4: 2/4, γ = 0: 0, loss [\d.]+, accuracy [\d.]+ %, .*left\n", err)
    log = rows(tmp_path / "baseline_seed1_resnet_11_folder/log.csv")
    assert float(log[0]["train_loss"]) < 2 * math.log(2) + 1
    assert float(log[-1]["test_accuracy"]) == 100


def test_tensorboard_gets_the_columns_of_the_log(tmp_path, pictures):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [*RESNET, "-sr", "--epochs", 2, "--tensorboard"]
    assert train(tmp_path, pictures, *flags) == 0
    (path,) = tmp_path.glob("*/log.csv")
    events, log = EventAccumulator(str(path.parent)).Reload(), rows(path)
    assert {*events.Tags()["scalars"]} == log[0].keys() - {"epoch"}
    for name in events.Tags()["scalars"]:
        written = [(str(e.step), e.value) for e in events.Scalars(name)]
        assert written == [(row["epoch"], pytest.approx(float(row[name]))) for row in log]


def test_wrong_data_is_reported_before_an_existing_run(tmp_path, capsys):
    checkpoint = tmp_path / "x_vgg_19_folder" / "checkpoint.pth.tar"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    flags = ["--dataset", "folder", "--data", str(tmp_path), "--name", "x", "--save", str(tmp_path)]
    assert console.run(main.main, flags) == 2
    assert "has neither train nor test" in capsys.readouterr().err


def test_tensorboard_without_its_package_is_refused(tmp_path, pictures, monkeypatch, capsys):
    monkeypatch.setattr(console, "find_spec", lambda name: None)
    assert train(tmp_path, pictures, *RESNET, "--tensorboard") == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_fine_tuning_says_what_it_trains_and_what_comes_next(tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, *RESNET, "--epochs", 1) == 0
    (full,) = tmp_path.glob("*/checkpoint.pth.tar")
    assert train(tmp_path, pictures, "--refine", full, "--epochs", 1) == 0
    out, err = capsys.readouterr()
    assert f"note: {full} is not pruned" in err
    refined = tmp_path / f"{full.parent.name}_refine/checkpoint.pth.tar"
    assert re.search(rf"\nnext: \S+ -m utils.export --model {refined} --format onnx\n$", out)
