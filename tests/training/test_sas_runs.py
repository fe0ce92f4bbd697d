"""SAS-ADMM and retraining with masks by the real commands."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from models import build_model
from netslim.weights import weights
from runs import assert_same, assert_same_run, command, rows, train
from utils import export
from utils.data.batches import Batches
from utils.data.datasets import load_dataset
from utils.files import checkpoint
from utils.flags.config import Config
from utils.flags.parser import parser, resolve
from utils.methods.sas_admm import SasAdmm
from utils.training import logs
from utils.training.recalibrate import recalibrate_bn

SAS = "-sr --method sas-admm --arch resnet-basic --depth 8 --batch-size 8 --inner 3 --k0 3".split()
NAME = "sas-admm_seed1_resnet-basic_8_folder"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures) -> Path:
    """The checkpoint of six outer iterations, averaged from the fourth on."""
    folder = tmp_path_factory.mktemp("sas")
    assert train(folder, pictures, *SAS, "--outer", "6", "--average-from", "4") == 0
    return folder / f"{NAME}/checkpoint.pth.tar"


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if "running" in k}


def test_the_average_is_saved_with_recalibrated_statistics(trained, pictures):
    state = torch.load(trained, weights_only=True)["method"]
    model = checkpoint.load(trained).network.model
    assert torch.equal(parameters_to_vector(weights(model).values()), state["average"])
    assert not torch.equal(state["average"], state["W"])
    saved = {key: value.clone() for key, value in statistics(model).items()}
    batches = Batches(load_dataset("folder", pictures), "train", 8, torch.device("cpu"), 1)
    recalibrate_bn(model, batches)
    assert_same(statistics(model), saved)
    vector_to_parameters(state["W"], weights(model).values())  # other weights, other statistics
    recalibrate_bn(model, batches)
    assert not torch.equal(statistics(model)["bn1.running_mean"], saved["bn1.running_mean"])
    for name, value in model.named_parameters():  # scaling factors and biases are not trained
        if "bn" in name:
            assert (value == (1 if name.endswith("weight") else 0)).all()


def test_epochs_are_outer_iterations_of_growing_length(trained):
    log = rows(trained.with_name("log.csv"))
    inner = [float(row["inner_steps"]) for row in log]
    assert inner == [3, 6, 9, 14, 20, 27]  # M_i = ⌈3 · (i/3)^1.1⌉ from the third on, summed up
    for row in log:
        assert float(row["penalised_loss"]) > float(row["train_loss"])
        assert float(row["primal_gap"]) > 0
    (row,) = rows(trained.parents[1] / "train_record.csv")
    assert (row["epochs"], row["outer"], row["growth_from"], row["s"]) == ("6", "6", "3", "0.0001")


def config(*flags: str) -> Config:
    return resolve(vars(parser().parse_args(flags)), None, {})


def test_the_papers_settings_are_the_defaults():
    training = config(*SAS[:5])
    assert (training.epochs, training.batch_size) == (190, 256)
    assert training.options == {
        "s": 1e-4, "sas_beta": 0.04, "outer": 190, "inner": 50, "growth_from": 50, "q": 1.1,
        "v": 25.0, "average_from": 170,
    }  # fmt: skip
    refine = ["--refine", "x", "--prune-ratio", "0.85"]
    by_sgd, by_sas = config(*refine), config(*SAS[:3], *refine)
    assert (by_sgd.epochs, by_sgd.batch_size, by_sgd.nesterov) == (200, 128, False)
    assert (by_sgd.lr, by_sgd.momentum) == (0.1, 0.9)
    assert (by_sas.epochs, by_sas.batch_size) == (190, 256)
    assert (by_sas.options["s"], by_sas.options["average_from"]) == (0, 151)
    assert config(*SAS[:3], "--epochs", "7", "--lr", "3").epochs == 190
    for each in (training, by_sgd, by_sas):
        assert config(*each.argv()) == each


def test_advice_and_notes_name_flags_that_it_uses(tmp_path, pictures, monkeypatch, capsys):
    unused = ["--epochs", "7", "--lr", "3"]
    monkeypatch.setattr(SasAdmm, "_mean", lambda self: self.w * torch.nan)
    assert train(tmp_path, pictures, *SAS, "--outer", "2", *unused) == 3
    err = capsys.readouterr().err
    assert err.count("does not use --epochs, --lr") == 1
    assert "γ is not trained" in err
    assert err.splitlines()[-1].endswith("try a larger --v than 25")


@pytest.mark.parametrize(
    "flags",
    ["--epochs 3", "-sr --method sas-admm --outer 3 --inner 2 --average-from 2"],
    ids=["SGD", "SAS-ADMM"],
)
def test_masked_retraining_resumes_with_the_same_bits_and_zeros_stay(
    flags, trained, tmp_path, pictures, monkeypatch
):
    flags = ["--refine", trained, "--prune-ratio", "0.85", "--batch-size", "8", *flags.split()]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, pictures, *flags) == 0
    log = logs.log

    def stop(trainer, *args):
        if trainer.epoch == 3:  # before it is saved; SAS-ADMM averages from the second on
            raise KeyboardInterrupt
        return log(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(logs, "log", stop)
        assert train(parts, pictures, *flags) == 130
    assert train(parts, pictures, *flags, "--resume", "auto") == 0
    assert_same_run(whole, parts)

    content = torch.load(next(whole.glob("*/checkpoint.pth.tar")), weights_only=True)
    before = torch.load(trained, weights_only=True)["state_dict"]
    names = weights(build_model("resnet-basic", 8, 2))
    after, start = (
        torch.cat([state[name].flatten() for name in names])
        for state in (content["state_dict"], before)
    )
    assert torch.equal(after != 0, content["method"]["mask"])
    assert int((after == 0).sum()) == 63_033
    assert not torch.equal(after[after != 0], start[after != 0])  # they are trained


def test_the_published_factor_is_in_the_record_and_in_the_files(tmp_path, pictures, capsys):
    torch.manual_seed(0)
    torch.save(build_model("resnet-basic", 20, 10).state_dict(), tmp_path / "trained.pth")
    flags = ["--refine", tmp_path / "trained.pth", "--prune-ratio", "0.85", "--epochs", "1"]
    flags += ["--dataset", "shapes", "--subset", "8", "--test-subset", "8"]
    assert train(tmp_path, pictures, *flags) == 0
    kept, factor = 40_803, "6.5764"
    assert f"{factor} times fewer" in capsys.readouterr().out
    (row,) = rows(tmp_path / "refine_record.csv")
    assert (row["compression"], int(row["weights_kept"])) == (factor, kept)
    path = tmp_path / row["checkpoint"]
    state = torch.load(path, weights_only=True)["state_dict"]
    names = [k for k in state if ("conv" in k or "linear" in k) and k.endswith("weight")]
    total = sum(state[k].numel() for k in names)
    assert f"{total / sum(int(state[k].count_nonzero()) for k in names):.4f}" == factor

    sparse = tmp_path / "small.sparse"
    assert command(export, "--format", "sparse", "--model", path, "--output", sparse) == 0
    assert f"{sparse.stat().st_size:,} bytes" in capsys.readouterr().out
    read = checkpoint.load(sparse).network.model.state_dict()
    assert_same(dict(read), dict(state))
    assert 4 * kept + total // 8 < int(row["bytes_sparse"]) <= sparse.stat().st_size
    assert sparse.stat().st_size < path.stat().st_size / 4
