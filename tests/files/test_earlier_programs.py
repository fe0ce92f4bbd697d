"""Files of the earlier programs and of older versions of this one are read; they can read ours."""

import importlib
import re

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import main
import released
import resnet_prune
import utils.network
from models import build_model
from models.vgg import WIDTHS
from released import batch_norms
from runs import command
from utils.files import checkpoint
from utils.flags.config import Config
from utils.network import Network, fresh

DEPTHS = {"vgg": 11, "resnet": 11, "densenet": 7}
x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", DEPTHS)
@torch.no_grad()
def test_a_released_checkpoint_is_loaded_and_pruned(arch, tmp_path, pictures):
    """``mask-impl`` saves ``cfg`` of the channels that are left, at full width with zeros."""
    path = tmp_path / "net_foldercheckpoint.pth.tar"
    content = released.training_checkpoint(path, arch, DEPTHS[arch], torch.tensor(0.5))
    expected = getattr(released, arch)(content["state_dict"], x)
    model = released.trained(arch, DEPTHS[arch])
    left = iter([int((bn.weight != 0).sum()) for bn in batch_norms(model)])
    full_cfg = Network(model, arch, DEPTHS[arch], 32).cfg
    cfg = ["M" if width == "M" else next(left) for width in full_cfg]
    torch.save(torch.load(path, weights_only=True) | {"cfg": cfg}, path)

    loaded = checkpoint.load(path)
    assert loaded.network.is_full
    assert loaded.momentum.keys() == {n for n, _ in loaded.network.model.named_parameters()}
    for name, buffer in loaded.momentum.items():  # selections count as parameters, and have none
        saved = content["optimizer"]["state"][content["names"].index(name)]
        assert torch.equal(buffer, saved["momentum_buffer"])

    data = ["--dataset", "folder", "--data", pictures, "--name", "small_pruned", "--no-cuda"]
    assert command(importlib.import_module(f"{arch}_prune"), "--model", path, *data) == 0
    network = checkpoint.load(tmp_path / "small_pruned.pth.tar").network
    written = torch.load(tmp_path / "small_pruned.pth.tar", weights_only=True)
    assert written["cfg"] == network.cfg == cfg and not network.is_full
    torch.testing.assert_close(network.model.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet", "densenet"])
def test_momentum_of_a_released_pruned_model_is_selected(arch, tmp_path):
    """Its batch norms have full width before a selection, and so have their buffers."""
    path = tmp_path / "slim.pth.tar"
    content = released.training_checkpoint(path, arch, DEPTHS[arch], 0.5)
    state = content["state_dict"]
    for key in [key for key in state if key.endswith("select.indexes")]:
        indexes = (torch.arange(len(state[key])) % 3 != 1).float()
        state = released.remove(state, key.removesuffix(".indexes"), indexes)
    for i, name in enumerate(content["names"]):
        content["optimizer"]["state"][i] = {"momentum_buffer": state[name].clone()}
    torch.save(content | {"state_dict": state}, path)
    loaded = checkpoint.load(path)
    assert not loaded.why_not_resumable
    parameters = dict(loaded.network.model.named_parameters())
    assert loaded.momentum.keys() == parameters.keys()
    assert all(torch.equal(loaded.momentum[name], value) for name, value in parameters.items())
    with torch.no_grad():
        expected = getattr(released, arch)(state, x)
        torch.testing.assert_close(loaded.network.model.eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_a_released_run_is_resumed(tmp_path, pictures, capsys):
    path = tmp_path / "released.pth.tar"
    for best in (0.5, np.float64(0.5), np.float32(0.5), torch.tensor(0.5)):
        released.training_checkpoint(path, "resnet", 11, best)
        read = checkpoint.load(path)
        assert (read.best, read.why_not_resumable) == (50, "")
    flags = ["--dataset", "folder", "--data", pictures, "--save", tmp_path]
    argv = ["-sr", "--resume", path, "--epochs", 2, "--precision", "fp32", "--no-cuda"]
    assert command(main, *argv, "--start-epoch", 1) == 2
    assert "leave out --start-epoch" in capsys.readouterr().err
    assert command(main, *argv, *flags) == 0
    printed = capsys.readouterr()
    assert "ξ = γ" in printed.err and "epoch 2/2" in printed.out
    saved = checkpoint.load(tmp_path / "proximal_seed1_resnet_11_folder/checkpoint.pth.tar")
    assert saved.epoch == 2 and saved.best >= 50


@pytest.mark.parametrize("arch", DEPTHS)
def test_the_earlier_programs_read_our_checkpoints(arch, tmp_path):
    network = fresh(arch, DEPTHS[arch], 2, 32)
    randomise(network.model)
    ours = checkpoint.Checkpoint(network, epoch=1, best=50.0)
    checkpoint.save(tmp_path / "ours.pth.tar", ours.to_dict())
    content = torch.load(tmp_path / "ours.pth.tar", weights_only=True)
    assert content.keys() >= {"epoch", "state_dict", "best_prec1", "optimizer", "cfg"}
    assert content["best_prec1"].dim() == 0 and content["best_prec1"] == 0.5
    reference = released.add_indexes(build_model(arch, DEPTHS[arch], 2).state_dict())
    state = content["state_dict"]
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in reference.items()}
    model = checkpoint.load(tmp_path / "ours.pth.tar").network.model.eval()
    with torch.no_grad():
        expected = getattr(released, arch)(state, x)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_views_are_saved_without_their_storage(tmp_path):
    """γ of every batch norm is a view of one buffer."""
    whole = torch.zeros(1_000_000)
    checkpoint.save(tmp_path / "view", {"state_dict": {"part": whole[:10]}})
    assert (tmp_path / "view").stat().st_size < 10_000


@pytest.mark.parametrize("arch", ["resnet", "densenet"])
def test_pruned_models_of_older_versions_and_their_training_state_are_loaded(
    arch, tmp_path, monkeypatch
):
    """A selection was beside its batch norm, and a stream had an index of its own."""
    torch.manual_seed(0)
    network = fresh(arch, DEPTHS[arch], 2, 32)
    masks = [torch.arange(width) < torch.randint(1, 5, ()) for width in network.widths]
    network = network.remove(network.plan(masks))
    model, channels = network.model, sum(network.widths)
    parameters = dict(model.named_parameters())
    xi, old = torch.rand(channels), {"stream3.index": torch.arange(0, 64, 2)}
    for name, value in model.state_dict().items():
        name = re.sub(r"\b(bn1?)\.norm\.", r"\1.", name)
        old[re.sub(r"\bbn1?\.select\.", "select.", name)] = value
    assert len(old) == len(model.state_dict()) + 1 and old.keys() != model.state_dict().keys()
    settings = Config.from_dict({"arch": arch, "depth": DEPTHS[arch], "method": "proximal"})
    momentum = {i: {"momentum_buffer": x + i} for i, x in enumerate(parameters.values())}
    content = {
        "state_dict": old,
        "settings": settings.to_dict(),
        "epoch": 1,
        "best_prec1": 0.5,
        "optimizer": {"state": momentum, "param_groups": [{"params": [*momentum]}]},
        "method": {"xi": xi},
        "cut": torch.zeros(channels, dtype=torch.bool),
    }
    torch.save(content, tmp_path / "old.pth.tar")
    with monkeypatch.context() as patched:
        patched.setattr(utils.network, "analyze", None)  # loading must not trace: it is slow
        loaded = checkpoint.load(tmp_path / "old.pth.tar")
    state = loaded.network.model.state_dict()
    assert not loaded.why_not_resumable and state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert loaded.momentum.keys() == parameters.keys()
    for i, (name, value) in enumerate(parameters.items()):
        assert torch.equal(loaded.momentum[name], value + i)
    assert torch.equal(loaded.scaling_factors["xi"], xi) and loaded.network.cfg == network.cfg


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
def test_resnets_of_the_admm_programs_are_evaluated_and_pruned(program, tmp_path, pictures, capsys):
    """They are bare state dicts, with other names."""
    model, path = randomise(build_model("resnet-basic", 8, 2)), tmp_path / "net.pth"
    model.layer1[0].bn1.weight[:5] = 0
    model.layer1[0].bn1.bias[:5] = -1
    content = model.state_dict()
    if program == "lp-admm":
        renamed = lp_admm_names(content)
        assert {"conv_bn.conv.weight", "layer1.block_0.conv_bn1.bn.bias"} <= renamed.keys()
        content = {"model_state_dict": renamed, "optimizer_state_dict": {}}
    torch.save(content, path)
    loaded = checkpoint.load(path)
    assert (loaded.network.arch, loaded.network.depth) == ("resnet-basic", 8)
    assert loaded.why_not_resumable
    assert torch.equal(loaded.network.model.eval()(x), model(x))
    data = ["--dataset", "folder", "--data", pictures, "--no-cuda"]
    assert command(main, "--evaluate", path, *data) == 0
    assert command(resnet_prune, "--model", path, *data) == 0
    assert "lossless" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "net_pruned.pth.tar").network.cfg == [11, 32, 64]


@torch.no_grad()
def test_convolution_biases_of_vggs_are_folded(tmp_path):
    layers = torchvision.models.vgg.make_layers(list(WIDTHS[11]), batch_norm=True)
    model = torchvision.models.VGG(layers, num_classes=10, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d((1, 1))
    model.classifier = nn.Linear(512, 10)
    randomise(model)
    torch.save({"model_state_dict": model.state_dict()}, tmp_path / "vgg.pth")
    network = checkpoint.load(tmp_path / "vgg.pth").network
    assert (network.arch, network.depth) == ("vgg", 11)
    torch.testing.assert_close(network.model.eval()(x), model(x), rtol=1e-4, atol=1e-5)
    for conv in (m for m in layers if isinstance(m, nn.Conv2d)):
        conv.bias.zero_()
    assert not torch.allclose(network.model(x), model(x), rtol=1e-2), "the biases change nothing"
