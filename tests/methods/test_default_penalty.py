"""The penalty is group where several layers write a stream, and l1 in the paper's networks."""

import pytest
import torch
from torch import nn

from models.torchvision_models import DEPTHS, STREAMS
from utils.flags.config import Config
from utils.flags.parser import resolve
from utils.network import Network, fresh
from utils.training.removal import select_removable


def penalty(**flags: object) -> str:
    return resolve({"sparsity_regularization": True, **flags}, None, {}).options["penalty"]


def test_the_default_depends_on_the_network():
    assert {arch: penalty(arch=arch) for arch in DEPTHS} == {
        arch: "group" if arch in STREAMS else "l1" for arch in DEPTHS
    }
    for arch in ("vgg", "resnet", "resnet-basic", "densenet"):
        assert penalty(arch=arch) == "l1"
    assert penalty(arch="resnet18", penalty="l1") == "l1"
    assert penalty(arch="resnet18", method="subgradient") == "l1"
    assert penalty(arch="resnet18", budget_flops=0.3) == "l1"  # a budget needs it


def test_a_run_with_l1_is_resumed_with_l1():
    stored = Config.from_dict({"arch": "resnet18", "method": "proximal", "penalty": "l1"})
    assert resolve({"arch": "resnet18"}, stored, {}).options["penalty"] == "l1"
    flags = {"sparsity_regularization": True, "arch": "resnet18"}
    assert resolve(flags, stored, {}).options["penalty"] == "l1"


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_streams_are_those_of_the_graph(arch):
    network = fresh(arch, DEPTHS[arch], 2, 32)
    assert arch in STREAMS and network.graph.coupled


def test_channels_of_a_group_within_a_layer_are_removed_after_training():
    grouped = nn.Conv2d(8, 8, 1, groups=4), nn.BatchNorm2d(8), nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *grouped, nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    model.extend([nn.ReLU(), nn.Conv2d(8, 2, 1)])
    network = Network(model, "grouped", 0, 8, coupled=True)
    dead = torch.arange(16) % 8 > 3
    removed = select_removable(network, torch.zeros_like(dead), dead)
    assert removed.tolist() == [False] * 8 + dead[8:].tolist()
