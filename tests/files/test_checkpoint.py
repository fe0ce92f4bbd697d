"""Checkpoints of the earlier programs are loaded, pruned and resumed, and they can read ours."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

import main
import released
from models import build_model
from released import batch_norms
from utils import console
from utils.files import checkpoint
from utils.files.legacy_formats import to_released
from utils.network import Network

NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 10)]
x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_a_released_checkpoint_is_pruned(arch, depth, tmp_path, pictures):
    path = tmp_path / f"net_{arch}_{depth}_foldercheckpoint.pth.tar"
    content = released.training_checkpoint(path, arch, depth, torch.tensor(0.5))
    command = importlib.import_module(f"{arch}_prune").main
    data = ["--dataset", "folder", "--data", str(pictures)]
    assert console.run(command, ["--model", str(path), *data, "--name", "small_pruned"]) == 0
    saved = torch.load(tmp_path / "small_pruned.pth.tar", weights_only=True)
    network = checkpoint.load(tmp_path / "small_pruned.pth.tar").network
    assert saved["cfg"] == network.cfg
    assert not network.is_full
    with torch.no_grad():
        expected = getattr(released, arch)(content["state_dict"], x)
        torch.testing.assert_close(network.model.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arch", "depth"), NETWORKS[1:])
def test_a_released_pruned_checkpoint_is_converted_both_ways(arch, depth, tmp_path):
    state = released.add_indexes(released.trained(arch, depth).state_dict())
    torch.manual_seed(2)
    for key in [key for key in state if key.endswith("select.indexes")]:
        indexes = (torch.rand(len(state[key])) < 0.5).float()
        indexes[0] = 1
        state = released.remove(state, key.removesuffix(".indexes"), indexes)
    cfg = []
    for name, module in build_model(arch, depth, 2).named_modules():
        if isinstance(module, nn.BatchNorm2d):
            everything = torch.ones(module.num_features)
            select = name.removesuffix("bn1").removesuffix("bn") + "select.indexes"
            has_select = name.endswith(("bn1", "bn"))
            cfg.append(int((state[select] if has_select else everything).sum()))
    torch.save({"cfg": cfg, "state_dict": state}, tmp_path / "slim.pth.tar")
    network = checkpoint.load(tmp_path / "slim.pth.tar").network
    assert network.cfg == cfg
    with torch.no_grad():
        expected = getattr(released, arch)(state, x)
        torch.testing.assert_close(network.model.eval()(x), expected, rtol=1e-4, atol=1e-5)
    back = to_released(network)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_released_momentum_is_loaded(arch, depth, tmp_path):
    """Selections count as parameters there, and have no momentum."""
    path = tmp_path / "c.pth.tar"
    content = released.training_checkpoint(path, arch, depth, 0.5)
    loaded = checkpoint.load(path)
    network, buffers = loaded.network, loaded.momentum
    assert buffers.keys() == {name for name, _ in network.model.named_parameters()}
    for name, buffer in buffers.items():
        saved = content["optimizer"]["state"][content["names"].index(name)]["momentum_buffer"]
        assert torch.equal(buffer, saved)


def test_a_released_run_is_resumed(tmp_path, pictures, capsys):
    path = tmp_path / "released.pth.tar"
    for best in (0.5, np.float64(0.5), np.float32(0.5), torch.tensor(0.5)):
        released.training_checkpoint(path, "vgg", 11, best)
        read = checkpoint.load(path)
        assert (read.best, read.why_not_resumable) == (50, "")
    flags = ["--dataset", "folder", "--data", str(pictures), "--save", str(tmp_path)]
    argv = ["-sr", "--resume", str(path), "--epochs", "2", "--precision", "fp32", "--no-cuda"]
    assert console.run(main.main, [*argv, "--start-epoch", "1"]) == 2
    assert "leave out --start-epoch" in capsys.readouterr().err
    assert console.run(main.main, [*argv, *flags]) == 0
    printed = capsys.readouterr()
    assert "ξ = γ" in printed.err and "epoch 2/2" in printed.out
    saved = tmp_path / "proximal_seed1_vgg_11_folder/checkpoint.pth.tar"
    assert checkpoint.load(saved).epoch == 2 and checkpoint.load(saved).best >= 50


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_the_earlier_programs_read_our_checkpoints(arch, depth, tmp_path, pictures):
    argv = ["-sr", "--arch", arch, "--depth", str(depth), "--epochs", "1", "--no-cuda"]
    argv += ["--dataset", "folder", "--data", str(pictures), "--precision", "fp32"]
    argv += ["--save", str(tmp_path)]
    assert console.run(main.main, argv) == 0
    run = f"proximal_seed1_{arch}_{depth}_folder"
    content = torch.load(tmp_path / f"{run}/checkpoint.pth.tar", weights_only=True)
    assert content.keys() >= {"epoch", "state_dict", "best_prec1", "optimizer", "cfg"}
    assert content["best_prec1"].dim() == 0 and 0 <= content["best_prec1"] <= 1
    assert (tmp_path / f"{run}/model_best.pth.tar").exists()
    reference = released.add_indexes(build_model(arch, depth, 2).state_dict())
    assert {k: v.shape for k, v in content["state_dict"].items()} == {
        k: v.shape for k, v in reference.items()
    }
    network = checkpoint.load(tmp_path / f"{run}/checkpoint.pth.tar").network
    with torch.no_grad():
        expected = getattr(released, arch)(content["state_dict"], x)
        torch.testing.assert_close(network.model.eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_views_are_saved_without_their_storage(tmp_path):
    """γ of every batch norm is a view of one buffer."""
    whole = torch.zeros(1_000_000)
    checkpoint.save(tmp_path / "view", {"state_dict": {"part": whole[:10]}})
    assert (tmp_path / "view").stat().st_size < 10_000


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_a_masked_checkpoint_is_pruned(arch, depth, tmp_path, pictures):
    """``mask-impl`` saves full width, removed channels as zeros, and ``cfg`` of the others."""
    model = released.trained(arch, depth)
    with torch.no_grad():
        for bn in batch_norms(model):
            bn.bias.mul_(bn.weight != 0)
    left = iter(int((bn.weight != 0).sum()) for bn in batch_norms(model))
    cfg = ["M" if width == "M" else next(left) for width in Network(model, arch, depth, 32).cfg]
    path = tmp_path / "pruned.pth.tar"
    torch.save({"cfg": cfg, "state_dict": released.add_indexes(model.state_dict())}, path)
    with torch.no_grad():
        loaded = checkpoint.load(path).network
        assert loaded.is_full
        torch.testing.assert_close(loaded.model.eval()(x), model(x))
    command = importlib.import_module(f"{arch}_prune").main
    data = ["--dataset", "folder", "--data", str(pictures), "--no-cuda"]
    assert console.run(command, ["--model", str(path), *data]) == 0
    assert checkpoint.load(tmp_path / "pruned_pruned.pth.tar").network.cfg == cfg
