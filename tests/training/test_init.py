"""--init: the weights of a file, and a run of one's own."""

import hashlib
import shutil

import pytest
import torch
from torchvision.models import get_model

import main
from runs import assert_same, command, rows, train
from utils.data.batches import Batches
from utils.data.datasets import CIFAR_NORM, IMAGENET_NORM, load_dataset
from utils.device import Execution
from utils.files import checkpoint
from utils.training.step import evaluate

NETWORK = ["--arch", "resnet", "--depth", 11]


@pytest.fixture(scope="module")
def before(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("before")
    assert train(folder, pictures, *NETWORK, "--epochs", 2, "--name", "old", "--seed", 7) == 0
    return folder / "old_resnet_11_foldercheckpoint.pth.tar"


@pytest.mark.parametrize("method", ["proximal", "lp-admm"])
def test_a_run_begins_with_the_files_weights_and_is_its_own(method, before, tmp_path, pictures):
    flags = ["-sr", "--method", method, "--init", before, "--epochs", 1, "--lr", 1e-30]
    assert train(tmp_path, pictures, *flags, "--s", 0) == 0
    (path,) = tmp_path.glob("*checkpoint.pth.tar")
    assert path.name == f"{method}_seed1_resnet_11_foldercheckpoint.pth.tar"
    old, new = checkpoint.load(before), checkpoint.load(path)
    for name, weights in old.network.model.named_parameters():  # so small a step only rounds
        torch.testing.assert_close(dict(new.network.model.named_parameters())[name], weights)
    other = {"proximal": "xi", "lp-admm": "z"}[method]
    torch.testing.assert_close(
        new.scaling_factors[other], new.scaling_factors["gamma"]
    )  # ξ or z := γ
    assert (new.scaling_factors["gamma"] != 0.5).any()
    assert new.config.seed == 1 and new.epoch == 1
    (row,) = rows(tmp_path / "train_record.csv")
    assert row["init"] == str(before) and row["xi_init"] == ""
    assert row["init_checksum"] == hashlib.sha256(before.read_bytes()).hexdigest()


def test_it_goes_on_where_the_file_is_gone_and_says_the_same(before, tmp_path, pictures):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    gone = tmp_path / "gone.pth.tar"
    gone.write_bytes(before.read_bytes())
    flags = ["-sr", "--init", gone, "--epochs", 3]
    assert train(whole, pictures, *flags) == 0
    assert train(parts, pictures, *flags, "--resume", "auto") == 0
    (path,) = parts.glob("*checkpoint.pth.tar")
    gone.unlink()
    (parts / "train_record.csv").unlink()
    assert train(parts, pictures, "--epochs", 3, "--resume", path) == 0
    assert_same(*(torch.load(f / path.name, weights_only=True) for f in (whole, parts)))
    one, other = (rows(folder / "train_record.csv")[0] for folder in (whole, parts))
    assert one["init_checksum"] == other["init_checksum"] != ""


def test_other_classes_get_a_last_layer_of_their_own(before, tmp_path, pictures, capsys):
    others = tmp_path / "others"  # as many
    shutil.copytree(pictures, others)
    for part in ("train", "test"):
        (others / part / "blue").rename(others / part / "green")
    flags = ["--init", before, "--epochs", 1, "--lr", 1e-30]
    assert train(tmp_path / "new", others, *flags) == 0
    assert "the last layer, of 2 classes, is a fresh one of 2" in capsys.readouterr().err
    (path,) = (tmp_path / "new").glob("*checkpoint.pth.tar")
    old, new = (checkpoint.load(p).network.model for p in (before, path))
    torch.testing.assert_close(new.conv1.weight, old.conv1.weight)
    assert not torch.allclose(new.fc.weight, old.fc.weight)


def test_it_may_begin_on_another_data_set(before, tmp_path, pictures, capsys):
    flags = ["--init", before, "--dataset", "cifar10"]
    assert train(tmp_path / "new", pictures, *flags) == 2
    assert "2 classes" in capsys.readouterr().err  # what --data has, and no contradiction before


def test_what_cannot_be_begun_with_is_refused(before, tmp_path, pictures, capsys):
    import resnet_prune
    from utils import console

    prune = ["--model", str(before), "--percent", "0.3", "--save", str(tmp_path), "--no-cuda"]
    assert console.run(resnet_prune.main, prune) == 0
    slim = tmp_path / "old_resnet_11_folder_pruned.pth.tar"
    for flags, said in (
        (["--init", slim], "use --refine"),
        (["--init", before, "--refine", slim], "exclude one another"),
        (["--init", before, "--evaluate", before], "exclude one another"),
        (["--init", before, "--resume", before], "exclude one another"),
        (["--init", before, "--arch", "vgg"], "has arch resnet, not vgg"),
        (["--init", before, "--depth", 20], "has depth 11, not 20"),
        (["--init", tmp_path / "nowhere"], "nowhere"),
    ):
        capsys.readouterr()
        assert train(tmp_path / "new", pictures, *flags) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not (tmp_path / "new").exists()


def norm(folder):
    (path,) = folder.glob("*checkpoint.pth.tar")
    found = checkpoint.load(path)
    return (tuple(found.mean), tuple(found.std)), found.config.normalise


def test_torchvisions_weights_are_given_images_as_they_were_trained_on(tmp_path, pictures, capsys):
    theirs = tmp_path / "resnet18.pth"
    torch.save(get_model("resnet18", num_classes=5).state_dict(), theirs)
    flags = ["--init", theirs, "--arch", "resnet18", "--size", 32, "--epochs", 1]
    assert train(tmp_path / "own", pictures, *flags) == 0
    said = capsys.readouterr().err
    assert "normalised by mean 0.485 0.456 0.406, deviation 0.229 0.224 0.225 (imagenet)" in said
    assert f"note: images are normalised as those that {theirs} was trained on" in said
    assert norm(tmp_path / "own") == (IMAGENET_NORM, "imagenet")
    (row,) = rows(tmp_path / "own" / "train_record.csv")
    assert row["normalise"] == "imagenet"
    assert train(tmp_path / "other", pictures, *flags, "--normalise", "cifar") == 0
    said = capsys.readouterr().err
    assert f"note: images are normalised otherwise than those that {theirs} was trained on" in said
    assert norm(tmp_path / "other") == (CIFAR_NORM, "cifar")
    # and so where they are only tested
    torch.save(get_model("resnet18", num_classes=2).state_dict(), theirs)
    model = checkpoint.load(theirs, "resnet18").network.model
    argv = ["--evaluate", theirs, "--arch", "resnet18", "--dataset", "folder", "--data", pictures]
    assert command(main, *argv, "--size", 32, "--no-cuda") == 0
    data, cpu = load_dataset("folder", pictures, normalise="imagenet"), torch.device("cpu")
    score = evaluate(model, Batches(data, "test", None, cpu), Execution(cpu))
    assert f"test loss {score.loss:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["imagenet", "data"])
def test_ones_own_weights_are_given_images_as_they_were_trained_on(how, tmp_path, pictures, capsys):
    flags = [*NETWORK, "--epochs", 1]
    assert train(tmp_path / "first", pictures, *flags, "--normalise", how) == 0
    (path,) = (tmp_path / "first").glob("*checkpoint.pth.tar")
    capsys.readouterr()
    assert train(tmp_path / "then", pictures, "--init", path, "--epochs", 1) == 0
    assert norm(tmp_path / "then") == norm(tmp_path / "first")
    assert norm(tmp_path / "then")[1] == how
    assert "note: images are normalised as those" in capsys.readouterr().err


def test_a_run_that_begins_as_its_data_set_is_normalised_is_not_said_to_be_another(
    before, tmp_path, pictures
):
    """Else it would stand apart in tables."""
    assert train(tmp_path, pictures, "--init", before, "--epochs", 1) == 0
    assert norm(tmp_path) == (CIFAR_NORM, None)
