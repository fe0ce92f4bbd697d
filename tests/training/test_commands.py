"""The commands as a user types them, from training to fine-tuning."""

import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from resuming import stop_in

import densenet_prune
import main
import resnet_prune
from runs import QUICK, ROOT, assert_same_run, command, rows, train
from utils import console
from utils.flags.config import FLAGS
from utils.network import fresh
from utils.reports import results

RESNET = ["--arch", "resnet", "--depth", 11]
LOG = (
    "epoch,lr,alpha,train_loss,objective,ns_objective,test_loss,test_accuracy,gamma_zeros,xi_zeros,"
    "train_seconds,test_seconds,change,channels,flops"
).split(",")
# So large a λ brings ξ to zero in a few of an epoch's 4 steps; without momentum γ follows at once.
SLIMMING = ["-sr", "--s", "100", "--beta", "1000", "--momentum", "0", "--epochs", "10"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures) -> Path:
    """The folder of a ResNet that was trained for an epoch, without zeros."""
    folder = tmp_path_factory.mktemp("trained")
    assert train(folder, pictures, *RESNET, "--epochs", 1) == 0
    return folder


@pytest.fixture
def baseline(trained, tmp_path) -> Path:
    """A checkpoint of its own for each test."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "baseline_seed1_resnet_11_folder/checkpoint.pth.tar"


def test_train_prune_and_refine(tmp_path, pictures, capsys, monkeypatch):
    """Each command names the next one in full; run and folder have names that look like flags."""
    monkeypatch.chdir(tmp_path)
    run, folder = "-x_densenet_7_folder", tmp_path / "-my runs"

    def run_next(program: str) -> None:
        """Runs the command that the last line of the output names."""
        line = capsys.readouterr().out.splitlines()[-1].partition(": ")[2]
        python, script, *flags = shlex.split(line)
        assert Path(python).is_absolute() and Path(script) == ROOT / f"{program}.py"
        assert command({"main": main, "densenet_prune": densenet_prune}[program], *flags) == 0

    data = ["--dataset", "folder", "--data", pictures, f"--save={folder.name}", "--name=-x"]
    assert command(main, *QUICK, *SLIMMING, *data, "--arch", "densenet", "--depth", 7) == 0
    log = rows(folder / f"{run}/log.csv")
    assert list(log[0]) == LOG
    assert [row["epoch"] for row in log] == [str(i) for i in range(1, 11)]
    lrs = [0.1] * 5 + [0.01] * 2 + [0.001] * 3
    assert [float(row["lr"]) for row in log] == pytest.approx(lrs)
    assert all(float(row["alpha"]) == pytest.approx(1 / float(row["lr"])) for row in log)
    assert all(float(row["objective"]) >= float(row["train_loss"]) for row in log)
    (record,) = rows(folder / "train_record.csv")
    assert list(record)[: len(FLAGS) + 1] == ["run", *FLAGS] and record["run"] == run
    for column in ("test_accuracy", "gamma_zeros"):
        assert record[column] == log[-1][column]
    assert int(record["xi_zeros"]) >= int(record["gamma_zeros"]) > 0

    run_next("densenet_prune")
    (pruned,) = rows(folder / "pruned_record.csv")
    removed = int(pruned["channels"]) - int(pruned["channels_kept"])
    # All zeros except one channel of an empty layer, and one that carries constants.
    layers = len(fresh("densenet", 7, 2, 32).norms)
    assert 0 <= int(record["gamma_zeros"]) - removed <= 2 * layers
    assert int(pruned["silent"]) + int(pruned["constant"]) == removed
    assert (pruned["run"], pruned["alive"], pruned["changed_masked"]) == (run, "0", "0")

    run_next("main")
    (refined,) = rows(folder / "refine_record.csv")
    assert (refined["run"], refined["method"]) == (f"{run}_refine", "baseline")
    (result,) = results.load(folder)
    assert result.finetuning(pruned).row == refined  # no penalty, else as trained
    path = folder / f"{run}_refine/checkpoint.pth.tar"
    assert command(main, "--evaluate", path, "--no-cuda") == 0
    assert f"test accuracy {float(refined['test_accuracy']):.2f} %" in capsys.readouterr().out
    # A pruned model can be pruned again.
    flags = ["--model", path, "--percent", 0.2, "--save", folder / "again", "--no-cuda"]
    assert command(densenet_prune, *flags) == 0


def test_refining_with_a_penalty_starts_at_xi_equal_to_gamma(baseline, tmp_path, pictures):
    """ξ drawn from [0.47, 0.5] would pull every trained γ there. Without zeros, nothing changes."""
    content = torch.load(baseline, weights_only=True)
    content["state_dict"]["layer1.0.bn1.weight"].fill_(2.0)
    torch.save(content, baseline)
    assert command(resnet_prune, "--model", baseline, "--no-cuda") == 0
    pruned = baseline.with_name("pruned.pth.tar")
    state = torch.load(pruned, weights_only=True)
    assert state["cfg"] == content["cfg"]
    assert all(torch.equal(v, content["state_dict"][k]) for k, v in state["state_dict"].items())
    flags = ["--refine", pruned, "-sr", "--s", "0.001", "--epochs", 1, "--name", "again"]
    assert train(tmp_path, pictures, *flags) == 0
    refined = torch.load(
        tmp_path / "again_resnet_11_folder_refine/checkpoint.pth.tar", weights_only=True
    )
    assert refined["method"]["xi"][:16].min() > 1.5
    assert refined["state_dict"]["layer1.0.bn1.weight"].min() > 1.5


@pytest.mark.parametrize(
    "flags",
    [
        "--s 4 --beta 100 --prox-every epoch --penalty mcp --schedule cosine --label-smoothing 0.1",
        "--method lp-admm --s 0.1 --rho 0.5 --z-every 3 --no-nesterov",
    ],
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(flags, tmp_path, pictures):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = [*RESNET, "-sr", "--epochs", 3, *flags.split()]
    assert train(whole, pictures, *run) == 0
    stop_in(2, parts, pictures, *run)
    (path,) = parts.glob("*/checkpoint.pth.tar")
    assert len(rows(path.with_name("log.csv"))) == 2
    for _ in range(2):  # the second time it is finished: no new record
        assert train(parts, pictures, "--resume", path, "--epochs", 3) == 0
    assert_same_run(whole, parts)
    (one,), (other,) = (rows(folder / "train_record.csv") for folder in (whole, parts))
    for row in (one, other):
        # The file's checksum differs by pickle's numbering of equal strings.
        for column in ("command", "seconds_per_epoch", "train_seconds", "checksum"):
            del row[column]
    assert one == other
    assert (one["nesterov"] == "False") == ("--no-nesterov" in flags)


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


def test_a_small_model_learns_two_colours(tmp_path, pictures, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ["-sr", "--lr", 0.02, "--log-interval", 2, "--tensorboard"]
    assert train(tmp_path, pictures, *RESNET, *flags) == 0
    err = capsys.readouterr().err
    assert "\r" not in err  # in a file, a line per interval
    assert re.search(r"epoch 1/4: 2/4, γ = 0: 0, .*loss [\d.]+, accuracy [\d.]+ %, .*left\n", err)
    (path,) = tmp_path.glob("*/log.csv")
    events, log = EventAccumulator(str(path.parent)).Reload(), rows(path)
    assert float(log[0]["train_loss"]) < 2 * math.log(2) + 1
    assert float(log[-1]["test_accuracy"]) == 100
    assert {*events.Tags()["scalars"]} == log[0].keys() - {"epoch"}
    for name in events.Tags()["scalars"]:
        written = [(str(e.step), e.value) for e in events.Scalars(name)]
        assert written == [(row["epoch"], pytest.approx(float(row[name]))) for row in log]


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--lr", "1e30"], 3, "--lr"),
        (
            ["--arch", "resnet18", "--size", 32, "--batch-size", 31],
            2,
            "choose another --batch-size",
        ),
        (["--tensorboard"], 2, "pip install tensorboard"),
    ],
)
def test_errors_are_one_line_and_leave_no_checkpoint(
    flags, status, message, tmp_path, pictures, monkeypatch, capsys
):
    find = console.find_spec
    monkeypatch.setattr(console, "find_spec", lambda n: None if n == "tensorboard" else find(n))
    model = [] if "--arch" in flags else RESNET
    assert train(tmp_path, pictures, *model, *flags) == status
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.tar"))


def test_wrong_data_is_reported_before_an_existing_run(tmp_path, capsys):
    checkpoint = tmp_path / "x_vgg_19_folder" / "checkpoint.pth.tar"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    flags = ["--dataset", "folder", "--data", str(tmp_path), "--name", "x", "--save", str(tmp_path)]
    assert console.run(main.main, flags) == 2
    assert "has neither train nor test" in capsys.readouterr().err


def test_a_new_run_never_overwrites_another(baseline, tmp_path, pictures, capsys):
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    assert train(tmp_path, pictures, *RESNET, "--epochs", 2) == 2
    error = capsys.readouterr().err
    assert "--resume" in error and "--name" in error
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before


def test_a_training_too_short_for_zeros_gets_the_same_advice_before_and_after(
    tmp_path, pictures, capsys
):
    flags = ["-sr", "--epochs", 1, "--s", "0.0045", "--beta", 100]
    assert train(tmp_path, pictures, *RESNET, *flags) == 0
    out, err = capsys.readouterr()
    advice = [re.search(r"train for (\d+) times as many", text) for text in (out, err)]
    assert advice[0][1] == advice[1][1]
    assert "--epochs 1 is too short to drop the learning rate" in err


def test_a_fine_tuning_says_what_it_trains_and_what_comes_next(
    baseline, tmp_path, pictures, capsys
):
    assert train(tmp_path, pictures, "--refine", baseline, "--epochs", 1) == 0
    out, err = capsys.readouterr()
    assert f"note: {baseline} is not pruned" in err
    refined = tmp_path / f"{baseline.parent.name}_refine/checkpoint.pth.tar"
    assert re.search(rf"\nnext: \S+ -m utils.export --model {refined} --format onnx\n$", out)
