"""Checkpoints of the two ADMM programs: bare state dicts, other names, convolution biases."""

import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

import main
import resnet_prune
from models import build_model
from models.vgg import WIDTHS
from runs import DYING, command, train
from utils.console import InputError
from utils.files import checkpoint

x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def randomise(model: nn.Module) -> nn.Module:
    """Sets random convolution biases, batch-norm parameters and statistics."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model.eval()


def lp_admm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the layers of a ResNet as the Lp-ADMM program does."""
    names = {key: re.sub(r"^(conv|bn)1\.", r"conv_bn.\1.", key) for key in state}
    block = r"^(layer\d)\.(\d+)\.(conv|bn)(\d)\."
    return {re.sub(block, r"\1.block_\2.conv_bn\4.\3.", names[key]): x for key, x in state.items()}


@torch.no_grad()
@pytest.mark.parametrize("program", ["sas-admm", "lp-admm"])
def test_resnets_are_loaded(program, tmp_path):
    model = randomise(build_model("resnet-basic", 20, 10))
    content = model.state_dict()
    if program == "lp-admm":
        renamed = lp_admm_names(content)
        assert {"conv_bn.conv.weight", "layer1.block_0.conv_bn1.bn.bias"} <= renamed.keys()
        content = {"model_state_dict": renamed, "optimizer_state_dict": {}}
    torch.save(content, tmp_path / "net.pth")
    loaded = checkpoint.load(tmp_path / "net.pth")
    assert (loaded.network.arch, loaded.network.depth) == ("resnet-basic", 20)
    assert loaded.why_not_resumable
    assert torch.equal(loaded.network.model.eval()(x), model(x))


@torch.no_grad()
def test_convolution_biases_of_vggs_are_folded(tmp_path):
    layers = torchvision.models.vgg.make_layers(list(WIDTHS[16]), batch_norm=True)
    model = torchvision.models.VGG(layers, num_classes=10)
    model.avgpool = nn.AdaptiveAvgPool2d((1, 1))
    model.classifier = nn.Linear(512, 10)
    randomise(model)
    torch.save({"model_state_dict": model.state_dict()}, tmp_path / "vgg.pth")
    network = checkpoint.load(tmp_path / "vgg.pth").network
    assert (network.arch, network.depth) == ("vgg", 16)
    torch.testing.assert_close(network.model.eval()(x), model(x), rtol=1e-4, atol=1e-5)
    for conv in (m for m in layers if isinstance(m, nn.Conv2d)):
        conv.bias.zero_()
    assert not torch.allclose(network.model(x), model(x), rtol=1e-2), "the biases change nothing"


def test_a_bias_without_a_batch_norm_is_refused(tmp_path):
    state = {f"features.0.{key}": x for key, x in nn.Conv2d(3, 64, 3).state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(InputError, match=r"feature\.1\.running_mean is missing"):
        checkpoint.load(tmp_path / "vgg.pth")


def test_a_state_dict_is_evaluated_and_pruned(tmp_path, pictures, capsys):
    torch.manual_seed(0)
    model = build_model("resnet-basic", 8, 2)
    with torch.no_grad():
        model.layer1[0].bn1.weight[:5] = 0
        model.layer1[0].bn1.bias[:5] = -1
    torch.save(model.state_dict(), path := tmp_path / "sas.pth")
    data = ["--dataset", "folder", "--data", pictures, "--no-cuda"]
    assert command(main, "--evaluate", path, *data) == 0
    assert command(resnet_prune, "--model", path, *data, "--name", "small_pruned") == 0
    assert "lossless" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "small_pruned.pth.tar").network.cfg == [11, 32, 64]


def test_a_basic_resnet_is_trained_pruned_and_fine_tuned(tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, *DYING, "--arch", "resnet-basic", "--depth", 8) == 0
    assert "resnet_prune.py" in capsys.readouterr().out
    run = "proximal_seed1_resnet-basic_8_folder"
    assert command(resnet_prune, "--model", tmp_path / f"{run}/checkpoint.pth.tar") == 0
    pruned = tmp_path / f"{run}/pruned.pth.tar"
    assert sum(checkpoint.load(pruned).network.cfg) < 112
    assert command(main, "--refine", pruned, "--epochs", 1, "--no-cuda") == 0
