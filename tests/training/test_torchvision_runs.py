"""torchvision's models: trained, pruned during training, resumed, pruned, fine-tuned, refused."""

import pytest
import torch
from resuming import assert_resumes
from torchvision.models import get_model

from runs import command, rows, train
from utils import prune
from utils.files import checkpoint


def test_from_training_to_the_fine_tuned_pruned_model(tmp_path, pictures, capsys):
    flags = ["--arch", "resnet18", "--size", 32, "-sr", "--penalty", "l1", "--batch-size", 4]
    flags += ["--s", 300, "--beta", 1000, "--momentum", 0, "--epochs", 5]
    assert train(tmp_path, pictures, *flags) == 0
    out, err = capsys.readouterr()
    assert "1920 of 4800 batch-norm channels can be removed" in err
    assert " -m utils.prune --model" in out
    run = tmp_path / "proximal_seed1_resnet18_folder"
    log = rows(tmp_path / f"{run.name}/log.csv")
    assert int(log[-1]["channels"]) < 1920 and int(log[-1]["flops"]) < int(log[0]["flops"])
    (row,) = rows(tmp_path / "train_record.csv")
    assert (row["channels"], row["batch_norm_channels"]) == ("1920", "4800")
    path = tmp_path / f"{run.name}/checkpoint.pth.tar"
    full = checkpoint.load(path).network
    assert full.is_full
    assert full.model.state_dict().keys() == get_model("resnet18").state_dict().keys()
    assert command(prune, "--model", path, "--no-cuda") == 0
    (row,) = rows(tmp_path / "pruned_record.csv")
    removed = int(row["channels"]) - int(row["channels_kept"])
    share = float(row["batch_norm_channels_pruned_percent"])
    assert removed > 0 and share == pytest.approx(100 * removed / 4800, abs=0.006)
    pruned_path = tmp_path / f"{run.name}/pruned.pth.tar"
    pruned = checkpoint.load(pruned_path).network
    assert (pruned.arch, pruned.is_full) == ("resnet18", False)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        one, other = (network.model.eval()(x) for network in (pruned, full))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert train(tmp_path, pictures, "--refine", pruned_path, "--epochs", 1) == 0
    tuned = checkpoint.load(tmp_path / f"{run.name}_refine/checkpoint.pth.tar")
    assert tuned.network.cfg == pruned.cfg


def test_dropout_draws_the_same_after_resuming(tmp_path, pictures, capsys):
    flags = ["--arch", "mobilenet_v2", "--size", 32, "-sr", "--epochs", 2, "--subset", 16]
    assert train(tmp_path / "whole", pictures, *flags) == 0
    notes = capsys.readouterr().err
    assert "no channel of features.18.1 is removed during training" in notes
    assert "the penalty is group, which makes channels of residual streams 0" in notes
    assert_resumes(2, tmp_path / "parts", pictures, tmp_path / "whole", *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--arch", "resnet18", "--depth", 50], ["resnet18", "depth 50"]),
        (["--arch", "alexnet", "--size", 62], ["alexnet", "63×63", "62×62"]),
        (["--arch", "alexnet", "-sr"], ["--method proximal", "use --method sas-admm"]),
        (["--arch", "vgg11_bn", "--size", 31], ["vgg11_bn", "32×32", "31×31"]),
    ],
)
def test_impossible_models_are_refused(flags, words, tmp_path, pictures, capsys):
    assert train(tmp_path / "new", pictures, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(word in error for word in words)
    assert not (tmp_path / "new").exists()
