"""--init: a new run that starts from the weights of a file."""

import hashlib
import shutil

import pytest
import torch
from torchvision.models import get_model

import main
import resnet_prune
from runs import assert_same, command, rows, train
from utils.data.batches import Batches
from utils.data.datasets import CIFAR_NORM, IMAGENET_NORM, load_dataset
from utils.device import Execution
from utils.files import checkpoint
from utils.training.step import evaluate

RESNET = ["--arch", "resnet", "--depth", 11]
FROZEN = ["--epochs", 1, "--lr", 1e-30]


@pytest.fixture(scope="module")
def before(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("before")
    assert train(folder, pictures, *RESNET, "--epochs", 2, "--name", "old", "--seed", 7) == 0
    return folder / "old_resnet_11_folder/checkpoint.pth.tar"


def only_checkpoint(folder):
    (path,) = folder.glob("*/checkpoint.pth.tar")
    return path


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
    whole, parts, init = tmp_path / "whole", tmp_path / "parts", tmp_path / "init.pth.tar"
    shutil.copy(before, init)
    flags = ["-sr", "--init", init, "--epochs", 3]
    assert train(whole, pictures, *flags) == 0
    assert train(parts, pictures, *flags, "--resume", "auto") == 0
    path = only_checkpoint(parts)
    init.unlink()
    (parts / "train_record.csv").unlink()
    assert train(parts, pictures, "--epochs", 3, "--resume", path) == 0
    assert_same(*(torch.load(only_checkpoint(f), weights_only=True) for f in (whole, parts)))
    one, other = (rows(folder / "train_record.csv")[0] for folder in (whole, parts))
    assert one["init_checksum"] == other["init_checksum"] != ""


def test_other_classes_get_a_new_last_layer(before, tmp_path, pictures, capsys):
    images = tmp_path / "images"
    shutil.copytree(pictures, images)
    for part in ("train", "test"):
        (images / part / "blue").rename(images / part / "green")
    assert train(tmp_path / "new", images, "--init", before, *FROZEN) == 0
    assert "the last layer, of 2 classes, is replaced by a new one" in capsys.readouterr().err
    path = only_checkpoint(tmp_path / "new")
    old, new = (checkpoint.load(p).network.model for p in (before, path))
    torch.testing.assert_close(new.conv1.weight, old.conv1.weight)
    assert not torch.allclose(new.fc.weight, old.fc.weight)


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
    return (tuple(state.mean), tuple(state.std)), state.config.normalise


def test_torchvisions_weights_get_imagenets_normalisation(tmp_path, pictures, capsys):
    path = tmp_path / "resnet18.pth"
    torch.save(get_model("resnet18", num_classes=2).state_dict(), path)
    resnet18 = ["--arch", "resnet18", "--size", 32]
    assert train(tmp_path / "own", pictures, "--init", path, *resnet18, "--epochs", 1) == 0
    assert "0.485 0.456 0.406" in capsys.readouterr().err
    assert norm(tmp_path / "own") == (IMAGENET_NORM, "imagenet")
    (row,) = rows(tmp_path / "own" / "train_record.csv")
    assert row["normalise"] == "imagenet"
    flags = ["--init", path, *resnet18, "--epochs", 1, "--normalise", "cifar"]
    assert train(tmp_path / "other", pictures, *flags) == 0
    assert norm(tmp_path / "other") == (CIFAR_NORM, "cifar")
    capsys.readouterr()
    data = ["--dataset", "folder", "--data", pictures, "--no-cuda"]
    assert command(main, "--evaluate", path, *resnet18, *data) == 0
    images, cpu = load_dataset("folder", pictures, normalise="imagenet"), torch.device("cpu")
    model = checkpoint.load(path, "resnet18").network.model
    metrics = evaluate(model, Batches(images, "test", None, cpu), Execution(cpu))
    assert f"test loss {metrics.loss:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("normalise", [None, "data"])
def test_the_files_normalisation_is_kept(normalise, tmp_path, pictures):
    flags = [] if normalise is None else ["--normalise", normalise]
    assert train(tmp_path / "first", pictures, *RESNET, "--epochs", 1, *flags) == 0
    init = only_checkpoint(tmp_path / "first")
    assert train(tmp_path / "second", pictures, "--init", init, "--epochs", 1) == 0
    assert norm(tmp_path / "second") == norm(tmp_path / "first")
    assert norm(tmp_path / "second")[1] == normalise


def test_a_run_that_starts_from_weights_goes_to_logs(before, tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", "folder", "--data", pictures, "--epochs", 1, "--no-cuda"]
    assert command(main, "--init", before, *flags) == 0
    assert only_checkpoint(tmp_path / "logs")
