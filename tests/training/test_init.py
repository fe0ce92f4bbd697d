"""--init: a new run that starts from the weights of a file."""

import hashlib
import shutil

import pytest
import torch
from torchvision.models import get_model

import main
import netslim
import resnet_prune
from runs import command, only_checkpoint, rows, train
from utils.data.batches import Batches
from utils.data.datasets import IMAGENET_NORM, load_dataset
from utils.device import Execution
from utils.files import checkpoint
from utils.training.step import evaluate

RESNET = ["--arch", "resnet", "--depth", 11]
FROZEN = ["--epochs", 1, "--lr", 1e-30]


@pytest.fixture(scope="module")
def before(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("before")
    assert train(folder, pictures, *RESNET, "--epochs", 1, "--name", "old", "--seed", 7) == 0
    return folder / "old_resnet_11_folder/checkpoint.pth.tar"


@pytest.mark.parametrize(("method", "factor"), [("proximal", "xi"), ("lp-admm", "z")])
def test_the_run_has_the_files_weights_and_its_own_seed(method, factor, before, tmp_path, pictures):
    flags = ["-sr", "--method", method, "--init", before, *FROZEN, "--s", 0]
    assert train(tmp_path, pictures, *flags) == 0
    path = only_checkpoint(tmp_path)
    assert path.parent.name == f"{method}_seed1_resnet_11_folder"
    old, new = checkpoint.load(before), checkpoint.load(path)
    for name, weights in old.network.model.named_parameters():
        torch.testing.assert_close(new.network.model.get_parameter(name), weights)
    factors = new.scaling_factors
    torch.testing.assert_close(factors[factor], factors["gamma"])
    assert (factors["gamma"] != 0.5).any()
    assert new.config.seed == 1 and new.epoch == 1
    (row,) = rows(tmp_path / "train_record.csv")
    assert row["init"] == str(before) and row["xi_init"] == ""
    assert row["init_checksum"] == hashlib.sha256(before.read_bytes()).hexdigest()


def test_it_can_be_resumed_without_the_file(before, tmp_path, pictures):
    init, record = shutil.copy(before, tmp_path / "init.pth.tar"), tmp_path / "train_record.csv"
    assert train(tmp_path, pictures, "-sr", "--init", init, "--epochs", 1) == 0
    (row,) = rows(record)
    init.unlink()
    record.unlink()  # as after a kill just before it is written
    assert train(tmp_path, pictures, "--resume", only_checkpoint(tmp_path), "--epochs", 1) == 0
    (again,) = rows(record)
    assert again["init_checksum"] == row["init_checksum"] != ""
    assert again["test_accuracy"] == row["test_accuracy"]


def test_contradictions_are_refused(before, tmp_path, pictures, capsys):
    prune = ["--model", before, "--percent", 0.3, "--save", tmp_path, "--no-cuda"]
    assert command(resnet_prune, *prune) == 0
    pruned = tmp_path / "old_resnet_11_folder/pruned.pth.tar"
    for flags, word in (
        (["--init", pruned], "--refine"),
        (["--init", before, "--refine", pruned], "exclude one another"),
        (["--init", before, "--evaluate", before], "exclude one another"),
        (["--init", before, "--resume", before], "exclude one another"),
        (["--init", before, "--arch", "vgg"], "arch resnet, not vgg"),
        (["--init", before, "--depth", 20], "depth 11, not 20"),
        (["--init", before, "--dataset", "cifar10"], "2 classes"),
        (["--init", tmp_path / "nowhere"], "nowhere"),
    ):
        capsys.readouterr()
        assert train(tmp_path / "new", pictures, *flags) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert err.startswith("error: ") and word in err
    assert not (tmp_path / "new").exists()


def norm(folder):
    state = checkpoint.load(only_checkpoint(folder))
    return state.norm, state.config.normalise


def test_torchvisions_weights_get_a_new_head_and_imagenets_normalisation(
    tmp_path, pictures, capsys
):
    torch.manual_seed(0)
    model = get_model("resnet18", num_classes=7)
    for bn in netslim.analyze(model, torch.zeros(1, 3, 32, 32)).norms.values():
        torch.nn.init.uniform_(bn.weight)
    path = tmp_path / "resnet18-5c106cde.pth"
    torch.save({k: v for k, v in model.state_dict().items() if "num_batches" not in k}, path)
    flags = ["--init", path, "--size", 32, *FROZEN, "-sr", "--s", 0]
    assert train(tmp_path / "none", pictures, *flags) == 2  # --arch is needed
    assert capsys.readouterr().err.count("\n") == 1
    flags += ["--arch", "resnet18"]
    assert train(tmp_path / "own", pictures, *flags) == 0
    err = capsys.readouterr().err
    assert "the last layer, of 7 classes, is replaced by a new one of 2" in err
    assert "0.485 0.456 0.406" in err
    new = checkpoint.load(only_checkpoint(tmp_path / "own"))
    assert new.network.model.fc.weight.shape == (2, 512)
    for name, value in model.named_parameters():
        if not name.startswith("fc."):
            torch.testing.assert_close(new.network.model.get_parameter(name), value)
    torch.testing.assert_close(new.scaling_factors["xi"], new.scaling_factors["gamma"])
    assert norm(tmp_path / "own") == (IMAGENET_NORM, "imagenet")
    (row,) = rows(tmp_path / "own" / "train_record.csv")
    assert row["normalise"] == "imagenet"


def test_torchvisions_weights_are_evaluated_with_imagenets_normalisation(
    tmp_path, pictures, capsys
):
    path, data = tmp_path / "resnet18.pth", ["--dataset", "folder", "--data", pictures, "--no-cuda"]
    torch.save(get_model("resnet18", num_classes=2).state_dict(), path)
    argv = ["--evaluate", path, "--arch", "resnet18", "--size", 32, *data]
    assert command(main, *argv) == 0
    images, cpu = load_dataset("folder", pictures, normalise="imagenet"), torch.device("cpu")
    model = checkpoint.load(path, "resnet18").network.model
    metrics = evaluate(model, Batches(images, "test", None, cpu), Execution(cpu))
    assert f"test loss {metrics.loss:.4f}" in capsys.readouterr().out


def test_a_measured_normalisation_is_kept_unless_another_is_given(tmp_path, pictures, monkeypatch):
    """Without --save, the new run goes to logs."""
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", "folder", "--data", pictures, "--epochs", 1, "--no-cuda"]
    assert train(tmp_path / "first", pictures, *RESNET, *data, "--normalise", "data") == 0
    init = only_checkpoint(tmp_path / "first")
    assert command(main, "--init", init, *data) == 0
    assert norm(tmp_path / "logs") == norm(tmp_path / "first")
    assert norm(tmp_path / "logs")[1] == "data"
    flags = ["--init", init, "--epochs", 1, "--normalise", "imagenet"]
    assert train(tmp_path / "third", pictures, *flags) == 0
    assert norm(tmp_path / "third") == (IMAGENET_NORM, "imagenet")
