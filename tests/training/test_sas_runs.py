"""SAS-ADMM and masked retraining by the real commands: what is saved, records, files, kills."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from models import build_model
from netslim.weights import weights
from runs import assert_same, assert_same_run, kill_and_resume, rows, train
from utils import console, export
from utils.data.batches import Batches
from utils.data.datasets import load_dataset
from utils.files import checkpoint
from utils.flags.parser import parser, resolve
from utils.methods.sas_admm import SasAdmm
from utils.training import logs
from utils.training.recalibrate import recalibrate_bn

SAS = "-sr --method sas-admm --arch resnet-basic --depth 8 --batch-size 8 --inner 3 --k0 3".split()
NAME = "sas-admm_seed1_resnet-basic_8_folder"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures) -> Path:
    """The checkpoint of a run of six outer iterations, averaged from the fourth."""
    folder = tmp_path_factory.mktemp("sas")
    assert train(folder, pictures, *SAS, "--outer", "6", "--average-from", "4") == 0
    return folder / f"{NAME}checkpoint.pth.tar"


def stop_at(epoch: int, patch: pytest.MonkeyPatch) -> None:
    """Interrupt a training at the end of that epoch, before it is kept."""
    log = logs.log

    def stopping(run, *args):
        if run.epoch == epoch:
            raise KeyboardInterrupt
        return log(run, *args)

    patch.setattr(logs, "log", stopping)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if "running" in k}


def test_the_average_is_saved_with_statistics_of_its_own(trained, pictures):
    content = torch.load(trained, weights_only=True)
    model, kept = checkpoint.load(trained).network.model, content["method"]
    assert torch.equal(parameters_to_vector(weights(model).values()), kept["average"])
    assert not torch.equal(kept["average"], kept["W"])
    saved = {key: value.clone() for key, value in statistics(model).items()}
    data = load_dataset("folder", pictures)
    batches = Batches(data, "train", 8, torch.device("cpu"), 1)
    recalibrate_bn(model, batches)
    assert_same(statistics(model), saved)
    # and not what training at Ŵ left, nor what other weights give
    vector_to_parameters(kept["W"], weights(model).values())
    recalibrate_bn(model, batches)
    assert not torch.equal(statistics(model)["bn1.running_mean"], saved["bn1.running_mean"])


def test_its_epochs_are_outer_iterations(trained):
    log = rows(trained.with_name(f"{NAME}log.csv"))
    assert len(log) == 6
    inner = [float(row["inner_steps"]) for row in log]
    assert inner == [3, 6, 9, 14, 20, 27]  # M_i = 3 · (i/3)^1.1, rounded up, from the third on
    for row in log:
        assert float(row["penalised_loss"]) > float(row["train_loss"])
        assert float(row["primal_gap"]) > 0
    (row,) = rows(trained.with_name("train_record.csv"))
    assert (row["epochs"], row["outer"], row["growth_from"], row["s"]) == ("6", "6", "3", "0.0001")


def test_scaling_factors_and_biases_keep_their_initial_values(trained):
    for name, value in checkpoint.load(trained).network.model.named_parameters():
        if "bn" in name:
            assert (value == (1 if name.endswith("weight") else 0)).all()


def told(*flags: str):
    return resolve(vars(parser().parse_args(flags)), None, {})


def test_the_papers_settings_are_the_defaults():
    s = told(*SAS[:5])
    assert (s.epochs, s.batch_size) == (190, 256)
    assert s.options == {
        "s": 1e-4, "sas_beta": 0.04, "outer": 190, "inner": 50, "growth_from": 50, "q": 1.1,
        "v": 25.0, "average_from": 170,
    }  # fmt: skip
    a = told("--refine", "x", "--prune-ratio", "0.85")
    assert (a.epochs, a.batch_size, a.lr, a.momentum, a.nesterov) == (200, 128, 0.1, 0.9, False)
    b = told(*SAS[:3], "--refine", "x", "--prune-ratio", "0.85")
    assert (b.epochs, b.batch_size, b.options["s"], b.options["average_from"]) == (190, 256, 0, 151)
    assert told(*SAS[:3], "--epochs", "7", "--lr", "3").epochs == 190
    assert told("--epochs", "7").epochs == 7
    for settings in (s, a, b):  # what a recipe would type
        assert told(*settings.argv()) == settings


def test_a_killed_run_is_the_uninterrupted_one(tmp_path, pictures):
    flags = [*SAS, "--outer", "30", "--q", "0.5", "--average-from", "9"]
    kill_and_resume(tmp_path, pictures, flags, 2, random.Random(1))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, pictures) -> Path:
    """The run of ``trained``, stopped in its sixth iteration: averaging has begun."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(6, patch)
        flags = [*SAS, "--outer", "6", "--average-from", "4"]
        assert train(folder, pictures, *flags) == 130
    return folder


def test_a_run_that_goes_on_while_it_averages_is_the_uninterrupted_one(
    stopped, trained, tmp_path, pictures
):
    parts = tmp_path / "parts"
    shutil.copytree(stopped, parts)
    assert train(parts, pictures, "--resume", parts / trained.name) == 0
    assert_same_run(trained.parent, parts)


@pytest.mark.parametrize("name", ["W", "breve", "Z", "U"])
def test_it_takes_every_tensor_to_go_on(name, stopped, trained, tmp_path, pictures, monkeypatch):
    """But for Wᵃ, which is the network. An iteration begins at W̆, so W is in the log only."""
    parts = tmp_path / "parts"
    shutil.copytree(stopped, parts)
    whole = SasAdmm.state_dict
    monkeypatch.setattr(
        SasAdmm, "state_dict", lambda self: {k: x for k, x in whole(self).items() if k != name}
    )
    assert train(parts, pictures, "--resume", parts / trained.name) == 0
    folders = trained.parent, parts
    last = [rows(folder / f"{NAME}log.csv")[-1] for folder in folders]
    assert last[0]["w_change"] != last[1]["w_change"]
    one, other = (torch.load(f / trained.name, weights_only=True)["state_dict"] for f in folders)
    same = torch.equal(one["layer1.0.conv1.weight"], other["layer1.0.conv1.weight"])
    assert same == (name == "W")


def test_what_diverges_is_told_of_a_flag_that_it_uses(tmp_path, pictures, monkeypatch, capsys):
    monkeypatch.setattr(SasAdmm, "_mean", lambda self: self.w * torch.nan)
    assert train(tmp_path, pictures, *SAS, "--outer", "2") == 3
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ") and said[-1].endswith("try a larger --v than 25")
    assert any("no γ is trained here and no channel dies" in line for line in said)


RETRAINING = {
    "SGD": ["--epochs", "4"],
    "SAS-ADMM": ["-sr", "--method", "sas-admm", "--outer", "4", "--inner", "2"],
}


@pytest.mark.parametrize("flags", RETRAINING.values(), ids=RETRAINING)
def test_masked_retraining_goes_on_bit_for_bit_and_zeros_stay(
    flags, trained, tmp_path, pictures, monkeypatch
):
    flags = ["--refine", trained, "--prune-ratio", "0.85", "--batch-size", "8", *flags]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, pictures, *flags) == 0
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert train(parts, pictures, *flags) == 130
    assert train(parts, pictures, *flags, "--resume", "auto") == 0
    assert_same_run(whole, parts)

    content = torch.load(next(whole.glob("*checkpoint.pth.tar")), weights_only=True)
    own = weights(build_model("resnet-basic", 8, 2))
    flat = torch.cat([content["state_dict"][name].flatten() for name in own])
    assert torch.equal(flat != 0, content["method"]["mask"])
    assert int((flat == 0).sum()) == 63_033
    before = torch.load(trained, weights_only=True)["state_dict"]
    moved = torch.cat([before[name].flatten() for name in own])
    assert not torch.equal(flat[flat != 0], moved[flat != 0]), "nothing was trained"


@pytest.mark.parametrize(
    ("depth", "ratio", "left", "factor"),
    [(32, "0.85", 69_839, "6.6134"), (56, "0.9", 85_500, "9.9292")],
)
def test_the_papers_factors_are_in_the_record_and_in_the_files(
    depth, ratio, left, factor, tmp_path, pictures, capsys
):
    torch.manual_seed(0)
    torch.save(build_model("resnet-basic", depth, 10).state_dict(), tmp_path / "trained.pth")
    flags = ["--refine", tmp_path / "trained.pth", "--prune-ratio", ratio, "--epochs", "1"]
    flags += ["--dataset", "shapes", "--subset", "8", "--test-subset", "8"]
    assert train(tmp_path, pictures, *flags) == 0
    (row,) = rows(tmp_path / "refine_record.csv")
    assert row["compression"] == factor
    assert int(row["weights_kept"]) == left
    path = tmp_path / row["checkpoint"]
    state = torch.load(path, weights_only=True)["state_dict"]
    names = [k for k in state if ("conv" in k or "linear" in k) and k.endswith("weight")]
    total = sum(state[k].numel() for k in names)
    kept = sum(int(state[k].count_nonzero()) for k in names)
    assert f"{total / kept:.4f}" == factor
    assert f"{factor} times fewer" in capsys.readouterr().out

    sparse = tmp_path / "small.sparse"
    argv = ["--format", "sparse", "--model", str(path), "--output", str(sparse)]
    assert console.run(export.main, argv) == 0
    assert f"{sparse.stat().st_size:,} bytes" in capsys.readouterr().out
    read = checkpoint.load(sparse).network.model.state_dict()
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in read)
    assert 4 * left + total // 8 < int(row["bytes_sparse"]) <= sparse.stat().st_size
    assert sparse.stat().st_size < path.stat().st_size / 4


def test_what_it_makes_no_use_of_is_said_once(tmp_path, pictures, capsys):
    idle = ["--epochs", "7", "--lr", "3", "--resume", "auto"]
    assert train(tmp_path, pictures, *SAS, "--outer", "1", *idle) == 0
    assert capsys.readouterr().err.count("does not use --epochs, --lr") == 1
