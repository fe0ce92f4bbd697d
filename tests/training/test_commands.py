"""The commands as a user gives them, from training to fine-tuning, in real processes."""

import importlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
from runs import QUICK, ROOT, assert_same_run, rows, train
from utils import console, launch
from utils.flags.config import FLAGS
from utils.network import fresh
from utils.reports import results

SLIM = "baseline_seed1_vgg_11_folder_pruned.pth.tar"
NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 7)]
# So large a λ brings ξ to zero in a few of an epoch's 4 steps, and without momentum γ follows it.
LOG = (
    "epoch,lr,alpha,train_loss,objective,ns_objective,test_loss,test_accuracy,gamma_zeros,xi_zeros,"
    "train_seconds,test_seconds,change,channels,flops"
).split(",")
SLIMMING = ["-sr", "--s", "100", "--beta", "1000", "--momentum", "0", "--epochs", "10"]


def command(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Without the running python among the shell's, so that it must be named in full."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)] if arguments[0] != "sh" else arguments,
        cwd=cwd,
        env={**os.environ, "PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done


def pasted(label: str, said: str, cwd: Path) -> str:
    """What is printed when what the last line of ``said`` tells to type is typed into a shell."""
    line = said.splitlines()[-1]
    assert line.startswith(label)
    return command("sh", "-c", line.removeprefix(label), cwd=cwd).stdout


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_train_prune_and_refine(arch, depth, tmp_path, pictures, capsys):
    """From a folder of the user's, with names that a command line could misread."""
    run, save = f"-x_{arch}_{depth}_folder", "-my runs"
    data = ["--dataset", "folder", "--data", pictures, f"--save={save}", "--name=-x"]
    flags = [*QUICK, *SLIMMING, *data, "--arch", arch, "--depth", depth]
    said = command(ROOT / "main.py", *flags, cwd=tmp_path).stdout
    caller, tmp_path = tmp_path, tmp_path / save
    log = rows(tmp_path / f"{run}log.csv")
    assert list(log[0]) == LOG
    assert [row["epoch"] for row in log] == [str(i) for i in range(1, 11)]
    lrs = [0.1] * 5 + [0.01] * 2 + [0.001] * 3
    assert [float(row["lr"]) for row in log] == pytest.approx(lrs)
    assert all(float(row["alpha"]) == pytest.approx(1 / float(row["lr"])) for row in log)
    assert all(float(row["objective"]) >= float(row["train_loss"]) for row in log)
    (trained,) = rows(tmp_path / "train_record.csv")
    assert list(trained)[: len(FLAGS) + 1] == ["run", *FLAGS]
    assert trained["run"] == run
    assert trained["test_accuracy"] == log[-1]["test_accuracy"]
    assert trained["gamma_zeros"] == log[-1]["gamma_zeros"]
    assert int(trained["xi_zeros"]) >= int(trained["gamma_zeros"]) > 0

    # The line that it prints last is the command that comes next.
    said = pasted("next: ", said, caller)
    (pruned,) = rows(tmp_path / "pruned_record.csv")
    assert pruned["run"] == run
    removed = int(pruned["channels"]) - int(pruned["channels_kept"])
    # All zeros go, but for the one that an empty layer keeps, and a carrier of constants.
    layers = len(fresh(arch, depth, 2, 32).norms)
    assert 0 <= int(trained["gamma_zeros"]) - removed <= 2 * layers
    assert int(pruned["silent"]) + int(pruned["constant"]) == removed
    assert pruned["alive"] == "0"
    assert pruned["changed_masked"] == "0"
    slim = tmp_path / f"{run}_pruned.pth.tar"
    assert set(torch.load(slim, weights_only=True)) >= {"cfg", "state_dict"}

    pasted("to fine-tune it: ", said, caller)
    (refined,) = rows(tmp_path / "refine_record.csv")
    assert refined["run"] == f"{run}_refine"
    assert refined["method"] == "baseline"
    # It went as the training did, but for the penalty.
    (result,) = results.load(tmp_path)
    assert result.tuned(pruned) == refined
    refined_path = tmp_path / f"{run}_refinecheckpoint.pth.tar"
    assert console.run(main.main, ["--evaluate", str(refined_path), "--no-cuda"]) == 0
    assert f"test accuracy {float(refined['test_accuracy']):.2f} %" in capsys.readouterr().out
    # Slim networks can be pruned again.
    again = ["--percent", "0.2", "--save", tmp_path / "again", "--no-cuda"]
    argv = list(map(str, ["--model", refined_path, *again]))
    assert console.run(importlib.import_module(f"{arch}_prune").main, argv) == 0


def test_refining_with_the_penalty_starts_from_the_networks_own_gamma(tmp_path, pictures):
    """ξ = γ: drawn anew in [0.47, 0.5], the penalty would pull every trained γ there."""
    import vgg_prune

    assert train(tmp_path, pictures, "--arch", "vgg", "--depth", 11, "--epochs", 1) == 0
    path = tmp_path / "baseline_seed1_vgg_11_foldercheckpoint.pth.tar"
    content = torch.load(path, weights_only=True)
    content["state_dict"]["feature.1.weight"].fill_(2.0)
    torch.save(content, path)
    assert console.run(vgg_prune.main, ["--model", str(path), "--no-cuda"]) == 0
    argv = ["--refine", tmp_path / SLIM, "-sr", "--s", "0.001", "--epochs", 1]
    assert train(tmp_path, pictures, *argv, "--name", "again") == 0
    refined = torch.load(
        tmp_path / "again_vgg_11_folder_refinecheckpoint.pth.tar", weights_only=True
    )
    assert refined["method"]["xi"][:64].min() > 1.5
    assert refined["state_dict"]["feature.1.weight"].min() > 1.5


PROXIMAL = ["-sr", "--s", "4", "--beta", "100"]


@pytest.mark.parametrize(
    "flags",
    [
        PROXIMAL,
        [*PROXIMAL, "--prox-every", "epoch"],
        ["--lr", "0.05", "--no-nesterov"],
        ["-sr", "--method", "subgradient"],
        ["-sr", "--method", "lp-admm", "--s", "0.1", "--rho", "0.5", "--z-every", "3"],
        [*PROXIMAL, "--penalty", "mcp", "--schedule", "cosine", "--label-smoothing", "0.1"],
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(flags, tmp_path, pictures):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    network = ["--arch", "resnet", "--depth", 11, "--epochs", 5]
    assert train(whole, pictures, *network, *flags) == 0
    # As if killed in epoch 4: its log line is written, its checkpoint is not.
    assert stop_after(3, parts, pictures, *network, *flags) == ["1", "2", "3", "4"]
    (path,) = parts.glob("*checkpoint.pth.tar")
    assert train(parts, pictures, "--resume", path, "--epochs", 5) == 0
    assert_same_run(whole, parts)
    recorded = [rows(folder / "train_record.csv") for folder in (whole, parts)]
    for (row,) in recorded:  # but for the command the same, although that names no flags
        del row["command"], row["seconds_per_epoch"], row["train_seconds"]
        del row["checksum"]  # of the file: pickle's own numbering of equal strings differs
    assert recorded[0] == recorded[1]
    assert (recorded[1][0]["nesterov"] == "False") == ("--no-nesterov" in flags)
    # It is finished already: nothing more happens.
    assert train(parts, pictures, "--resume", path, "--epochs", 5) == 0
    assert len(rows(parts / "train_record.csv")) == 1


def stop_after(epochs: int, folder: Path, pictures: Path, *more: object) -> list[str]:
    """Train, but break off when ``epochs`` are saved and the next is only logged."""
    from utils.training.trainer import Trainer

    save = Trainer.save

    def stop(self: Trainer, accuracy: float, now: bool) -> None:
        if self.epoch > epochs:
            raise KeyboardInterrupt
        save(self, accuracy, True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save", stop)
        assert train(folder, pictures, *more) == 130
    (log,) = folder.glob("*log.csv")
    return [row["epoch"] for row in rows(log)]


def test_each_of_several_seeds_is_what_it_is_alone(tmp_path, pictures):
    flags = ["--arch", "resnet", "--depth", 11, "-sr", "--s", "1", "--epochs", 2]
    data = ["--dataset", "folder", "--data", pictures]
    together, alone = tmp_path / "together", tmp_path / "alone"
    quick = [*QUICK, *flags, *data, "--save", together]
    done = command("main.py", *quick, "--name", "x", "--seeds", 2, 3)
    assert "seed 2: epoch 2/2" in done.stderr
    assert {row["run"] for row in rows(together / "train_record.csv")} == {
        "x_seed2_resnet_11_folder",
        "x_seed3_resnet_11_folder",
    }
    assert train(alone, pictures, *flags, "--name", "x_seed3", "--seed", 3) == 0
    assert_same_run(alone, together)


def test_seeds_are_spread_over_the_gpus(monkeypatch, capsys):
    def start(words, output, environment):
        says = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
        argv, env = [sys.executable, "-c", says], {**os.environ, **environment}
        return subprocess.Popen(argv, stdout=output, env=env, text=True)

    monkeypatch.setattr(launch, "visible_gpus", lambda: ["4", "GPU-a"])
    monkeypatch.setattr(launch, "start_process", start)
    launch.run_seeds(["--seeds", "1", "2", "3"], None, no_cuda=False)
    said = sorted(capsys.readouterr().err.splitlines())
    assert said == ["seed 1: 4", "seed 2: GPU-a", "seed 3: 4"]


def test_pictures_of_no_use_are_refused_once_for_all_seeds(tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, "--seeds", 1, 2, "--subset", 1000) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_may_begin_at_a_later_epoch_and_is_another_then(tmp_path, pictures, capsys):
    flags = ["--arch", "resnet", "--depth", 11, "--epochs", 4, "--start-epoch", 2]
    for _ in range(2):  # the same line goes on with it
        assert train(tmp_path, pictures, *flags, "--resume", "auto") == 0
    log = rows(next(tmp_path.glob("*log.csv")))
    assert [(row["epoch"], float(row["lr"])) for row in log] == [("3", 0.01), ("4", 0.001)]
    (result,) = results.load(tmp_path)
    assert result.config.start_epoch == 2
    assert ("start_epoch", 2) in result.experiment[1].options
    assert "--start-epoch" not in result.config.finetuning_argv()
    assert result.config.for_finetuning(Path("slim")).start_epoch == 0


@pytest.mark.parametrize(
    ("network", "size"),
    [(["--arch", "resnet18", "--size", 32], 31), (["--arch", "mobilenet_v2", "--size", 32], 1)],
)
def test_a_batch_that_cannot_be_normalised_is_found_before_the_first_step(
    network, size, tmp_path, pictures, monkeypatch, capsys
):
    """Of 32 images: the last batch, or each."""
    monkeypatch.setattr(main, "train", lambda *begun: pytest.fail("it has begun"))
    assert train(tmp_path, pictures, *network, "--batch-size", size) == 2
    err = capsys.readouterr().err
    assert "error: a batch of one image cannot be normalised" in err.splitlines()[-1]
    assert f"--batch-size {size} leaves one of 32 images" in err
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_one_is_trained_on_where_the_maps_have_more_pixels(tmp_path, pictures):
    flags = ["--arch", "resnet", "--depth", 11, "--batch-size", 31, "--epochs", 1]
    assert train(tmp_path, pictures, *flags) == 0


def test_a_new_run_never_overwrites_another(tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, "--arch", "vgg", "--depth", 11, "--epochs", 1) == 0
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert train(tmp_path, pictures, "--arch", "vgg", "--depth", 11, "--epochs", 2) == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "--name" in error
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_run_that_cannot_reach_zeros_is_warned_of_it(tmp_path, pictures, capsys):
    flags = ["-sr", "--arch", "vgg", "--depth", 11, "--epochs", 1]
    assert train(tmp_path, pictures, *flags, "--s", "0.0045", "--beta", 100) == 0
    said = [re.search(r"train for (\d+) times as many", x) for x in capsys.readouterr()]
    assert said[0][1] == said[1][1]  # the verdict, and before the first epoch


def test_a_network_without_zeros_is_written_unpruned(tmp_path, pictures, capsys):
    import vgg_prune

    assert train(tmp_path, pictures, "--arch", "vgg", "--depth", 11, "--epochs", 1) == 0
    path = tmp_path / "baseline_seed1_vgg_11_foldercheckpoint.pth.tar"
    assert console.run(vgg_prune.main, ["--model", str(path)]) == 0
    assert "no scaling factor is zero" in capsys.readouterr().err
    slim = torch.load(path.with_name(SLIM), weights_only=True)
    full = torch.load(path, weights_only=True)
    assert slim["cfg"] == full["cfg"]
    assert all(torch.equal(v, full["state_dict"][k]) for k, v in slim["state_dict"].items())


def test_a_loss_that_is_not_finite_ends_the_run_with_status_3(tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, "--arch", "vgg", "--depth", 11, "--lr", "1e30") == 3
    assert "--lr" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tar"))


def test_the_bars_lines_are_sane_in_a_file(tmp_path, pictures, capsys):
    flags = ["--arch", "resnet", "--depth", 11, "--epochs", 2, "--log-interval", 2]
    assert train(tmp_path, pictures, *flags) == 0
    said = capsys.readouterr().err
    assert "\r" not in said
    assert re.search(r"epoch 1/2: 2/4, γ = 0: 0, loss [\d.]+, accuracy [\d.]+ %, .*left\n", said)


def test_a_tiny_network_learns_the_pictures(tmp_path, pictures):
    """The whole loop does reduce the loss: two colours are easy."""
    assert train(tmp_path, pictures, "--arch", "vgg", "--depth", 11, "--lr", 0.02) == 0
    log = rows(tmp_path / "baseline_seed1_vgg_11_folderlog.csv")
    assert float(log[0]["train_loss"]) < 2 * math.log(2) + 1
    assert float(log[-1]["test_accuracy"]) == 100


@pytest.mark.skipif(
    "CIFAR10_JPEG" not in os.environ, reason="CIFAR10_JPEG does not name a folder of the pictures"
)
def test_a_few_steps_on_real_pictures(tmp_path):
    argv = ["-sr", "--arch", "resnet", "--depth", "11", "--dataset", "cifar10", "--epochs", "2",
            "--data", os.environ["CIFAR10_JPEG"], "--subset", "1000", "--test-subset", "500",
            "--s", "20", "--beta", "100", "--save", str(tmp_path)]  # fmt: skip
    done = command("main.py", *argv)
    log = rows(tmp_path / "proximal_seed1_resnet_11_cifar10log.csv")
    assert float(log[1]["train_loss"]) < math.log(10)
    assert " resnet_prune.py --model " in done.stdout
