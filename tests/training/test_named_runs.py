"""torchvision's networks in the commands: begun, cut, resumed, pruned, fine-tuned, refused."""

import signal

import pytest
import torch
from torchvision.models import get_model

import main
import netslim
from runs import assert_same_run, rows, train
from utils import console, prune
from utils.console import Interrupted
from utils.files import checkpoint


def test_channels_die_are_cut_and_pruned_and_the_slim_network_is_tuned(tmp_path, pictures, capsys):
    flags = ["--arch", "resnet18", "--size", 32, "-sr", "--s", 10, "--beta", 200, "--momentum", 0]
    assert train(tmp_path, pictures, *flags, "--epochs", 10, "--batch-size", 4) == 0
    said = capsys.readouterr()
    assert "1920 of 4800 channels of batch norms can go" in said.err
    assert " -m utils.prune --model" in said.out
    path = tmp_path / "proximal_seed1_resnet18_foldercheckpoint.pth.tar"
    log = rows(tmp_path / "proximal_seed1_resnet18_folderlog.csv")
    assert int(log[-1]["channels"]) < 1920 and int(log[-1]["flops"]) < int(log[0]["flops"])
    (row,) = rows(tmp_path / "train_record.csv")
    assert (row["channels"], row["batch_norm_channels"]) == ("1920", "4800")
    whole = checkpoint.load(path).network
    assert whole.is_full
    assert whole.model.state_dict().keys() == get_model("resnet18").state_dict().keys()
    assert console.run(prune.main, ["--model", str(path), "--no-cuda"]) == 0
    said = capsys.readouterr().out
    assert "lossless: every removed channel was silent" in said
    assert "2,880 channels of 12 batch norms are those of streams" in said
    (row,) = rows(tmp_path / "pruned_record.csv")
    gone = int(row["channels"]) - int(row["channels_kept"])
    share = float(row["batch_norm_channels_pruned_percent"])
    assert gone > 0 and share == pytest.approx(100 * gone / 4800, abs=0.006)
    assert f"of all 4,800 channels of batch norms {share:.2f} % are gone" in said
    small = tmp_path / "proximal_seed1_resnet18_folder_pruned.pth.tar"
    slim = checkpoint.load(small).network
    assert (slim.arch, slim.is_full) == ("resnet18", False)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            slim.model.eval()(x), whole.model.eval()(x), rtol=1e-3, atol=1e-3
        )
    assert train(tmp_path, pictures, "--refine", small, "--epochs", 1) == 0
    tuned = checkpoint.load(tmp_path / "proximal_seed1_resnet18_folder_refinecheckpoint.pth.tar")
    assert tuned.network.cfg == slim.cfg


def test_what_dropout_draws_is_the_same_after_a_resume(tmp_path, pictures, monkeypatch, capsys):
    flags = ["--arch", "mobilenet_v2", "--size", 32, "-sr", "--epochs", 2]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, pictures, *flags) == 0
    assert "no channel of features.18.1 is cut while training: dropout" in capsys.readouterr().err
    calls, evaluate = [], main.evaluate

    def stops(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Interrupted(signal.SIGTERM)
        return evaluate(*args)

    with monkeypatch.context() as patched:
        patched.setattr(main, "evaluate", stops)
        assert train(parts, pictures, *flags) == 128 + signal.SIGTERM
    assert train(parts, pictures, *flags, "--resume", "auto") == 0
    assert_same_run(whole, parts)


def test_torchvisions_weights_begin_a_run_with_a_head_of_its_own(tmp_path, pictures, capsys):
    torch.manual_seed(0)
    given = get_model("resnet18", num_classes=7)
    for bn in netslim.analyze(given, torch.zeros(1, 3, 32, 32)).norms.values():
        torch.nn.init.uniform_(bn.weight)
    old = {k: v for k, v in given.state_dict().items() if "num_batches" not in k}  # as theirs are
    torch.save(old, tmp_path / "resnet18-5c106cde.pth")
    flags = ["--init", tmp_path / "resnet18-5c106cde.pth", "--size", 32, "--epochs", 1, "-sr"]
    flags += ["--lr", 1e-30]
    assert train(tmp_path, pictures, *flags, "--s", 0, "--arch", "resnet18") == 0
    assert "the last layer, of 7 classes, is a fresh one of 2" in capsys.readouterr().err
    (path,) = tmp_path.glob("*checkpoint.pth.tar")
    new = checkpoint.load(path)
    assert new.network.model.fc.weight.shape == (2, 512)
    for name, value in given.named_parameters():
        if not name.startswith("fc."):
            torch.testing.assert_close(new.network.model.get_parameter(name), value)
    torch.testing.assert_close(new.scaling_factors["xi"], new.scaling_factors["gamma"])
    # Without its name it is no network of this program.
    assert train(tmp_path / "other", pictures, *flags) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--arch", "resnet18", "--depth", 50], "resnet18 has no depth 50: leave --depth out"),
        (["--arch", "alexnet", "--size", 62], "alexnet takes 63×63 pixels or more, not 62×62"),
        (["--arch", "alexnet", "-sr"], "--method proximal finds no channels: take --method sas"),
        (["--arch", "vgg11_bn", "--size", 31], "vgg11_bn takes 32×32 pixels or more, not 31×31"),
    ],
)
def test_what_is_no_network_is_refused(flags, said, tmp_path, pictures, capsys):
    assert train(tmp_path / "new", pictures, *flags) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()
