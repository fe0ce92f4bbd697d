"""Checkpoints of the two ADMM programs load: bare state dicts, other names, convolution biases."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

import main
import resnet_prune
from models import build_model, family
from models.vgg import WIDTHS
from runs import DYING, train
from utils import console
from utils.console import InputError
from utils.files import checkpoint

x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def basic(depth: int = 20) -> nn.Module:
    """A network with statistics."""
    torch.manual_seed(0)
    model = build_model("resnet-basic", depth, 10)
    for bn in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.5, 1)
        nn.init.normal_(bn.bias, 0, 0.2)
        nn.init.normal_(bn.running_mean)
        nn.init.uniform_(bn.running_var, 0.5, 2)
    return model.eval()


def lp_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the Lp program calls the layers of a ResNet."""
    named = {}
    for key, value in state.items():
        *block, layer, entry = key.split(".")
        if block:
            block[1] = f"block_{block[1]}"
        number = layer[-1] if block else ""
        kind = layer[:-1]
        words = [*block, f"conv_bn{number}", kind, entry] if layer != "linear" else [layer, entry]
        named[".".join(words)] = value
    return named


@torch.no_grad()
def test_the_sas_programs_bare_state_dict_is_a_network(tmp_path):
    model = basic()
    torch.save(model.state_dict(), tmp_path / "sas.pth")
    loaded = checkpoint.load(tmp_path / "sas.pth")
    assert (loaded.network.arch, loaded.network.depth) == ("resnet-basic", 20)
    assert loaded.why_not_resumable
    assert torch.equal(loaded.network.model.eval()(x), model(x))


@torch.no_grad()
def test_the_lp_programs_names_are_read(tmp_path):
    model = basic()
    named = lp_names(model.state_dict())
    assert {"conv_bn.conv.weight", "layer1.block_0.conv_bn1.bn.bias", "linear.bias"} <= set(named)
    content = {"model_state_dict": named, "optimizer_state_dict": {}}
    torch.save(content, tmp_path / "lp.pth")
    assert torch.equal(checkpoint.load(tmp_path / "lp.pth").network.model.eval()(x), model(x))


def vgg16() -> nn.Module:
    """As the Lp program builds it, from torchvision's layers."""
    layers = torchvision.models.vgg.make_layers(list(WIDTHS[16]), batch_norm=True)
    model = torchvision.models.VGG(layers, num_classes=10)
    model.avgpool = nn.AdaptiveAvgPool2d((1, 1))
    model.classifier = nn.Linear(512, 10)
    torch.manual_seed(1)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.1)
    return model.eval()


@torch.no_grad()
def test_convolution_biases_are_folded_exactly(tmp_path):
    model = vgg16()
    assert sum(p.numel() for p in model.parameters()) == 14_728_266
    torch.save({"model_state_dict": model.state_dict()}, tmp_path / "vgg.pth")
    ours = checkpoint.load(tmp_path / "vgg.pth").network
    assert (ours.arch, ours.depth) == ("vgg", 16)
    folded = [m.running_mean for m in ours.model.feature if isinstance(m, nn.BatchNorm2d)]
    layers = [m for m in model.features if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for conv, bn, mean in zip(layers[::2], layers[1::2], folded, strict=True):
        assert torch.equal(mean, bn.running_mean - conv.bias)  # one rounding, and nothing else
    torch.testing.assert_close(ours.model.eval()(x), model(x), rtol=1e-4, atol=1e-5)
    for conv in (m for m in model.features if isinstance(m, nn.Conv2d)):
        conv.bias.zero_()
    assert not torch.allclose(ours.model(x), model(x), rtol=1e-2), "the biases change nothing"


def test_a_bias_without_its_batch_norm_is_refused(tmp_path):
    conv = nn.Conv2d(3, 64, 3).state_dict()
    torch.save({f"features.0.{key}": x for key, x in conv.items()}, tmp_path / "vgg.pth")
    with pytest.raises(InputError, match=r"feature\.1\.running_mean is missing"):
        checkpoint.load(tmp_path / "vgg.pth")


def test_one_is_tested_and_pruned_by_the_commands(tmp_path, pictures, capsys):
    torch.manual_seed(0)
    model = build_model("resnet-basic", 8, 2)
    with torch.no_grad():
        model.layer1[0].bn1.weight[:5] = 0
        model.layer1[0].bn1.bias[:5] = -1
    torch.save(model.state_dict(), path := tmp_path / "sas.pth")
    data = ["--dataset", "folder", "--data", str(pictures), "--no-cuda"]
    assert console.run(main.main, ["--evaluate", str(path), *data]) == 0
    argv = ["--model", str(path), *data, "--name", "small_"]
    assert console.run(resnet_prune.main, argv) == 0
    assert "lossless" in capsys.readouterr().out
    slim = checkpoint.load(tmp_path / "small_pruned.pth.tar").network
    assert slim.cfg == [11, 32, 64]
    assert family(slim.arch) == "resnet"


def test_a_run_trains_cuts_prunes_and_is_fine_tuned(tmp_path, pictures, capsys):
    flags = [*DYING, "--arch", "resnet-basic", "--depth", 8]  # the last ones given count
    assert train(tmp_path, pictures, *flags) == 0
    printed = capsys.readouterr()
    assert "dead channels are cut" in printed.err
    assert "resnet_prune.py" in printed.out
    path = tmp_path / "proximal_seed1_resnet-basic_8_foldercheckpoint.pth.tar"
    assert console.run(resnet_prune.main, ["--model", str(path), "--no-cuda"]) == 0
    slim = tmp_path / "proximal_seed1_resnet-basic_8_folder_pruned.pth.tar"
    assert sum(checkpoint.load(slim).network.cfg) < 112
    assert console.run(main.main, ["--refine", str(slim), "--epochs", "1", "--no-cuda"]) == 0
