"""The penalty is group where several layers write a stream, and l1 in the paper's networks."""

import torch
from torch import nn

from models.torchvision_models import DEPTHS, STREAMS
from utils.flags.config import Config
from utils.flags.parser import resolve
from utils.network import Network, fresh
from utils.training.removal import select_removable

PAPERS = ("vgg", "resnet", "resnet-basic", "densenet")


def penalty(stored: Config | None = None, **flags: object) -> str:
    return resolve({"sparsity_regularization": True, **flags}, stored, {}).options["penalty"]


def test_the_default_depends_on_the_network():
    for arch in (*DEPTHS, *PAPERS):
        assert penalty(arch=arch) == ("group" if arch in STREAMS else "l1")
    assert all(
        fresh(arch, DEPTHS[arch], 2, 32).graph.coupled for arch in ("resnet18", "mobilenet_v2")
    )
    for flags in ({"penalty": "l1"}, {"method": "subgradient"}, {"budget_flops": 0.3}):
        assert penalty(arch="resnet18", **flags) == "l1"
    stored = Config.from_dict({"arch": "resnet18", "method": "proximal", "penalty": "l1"})
    assert penalty(stored, arch="resnet18") == "l1"  # a run with l1 is resumed with l1
    assert resolve({"arch": "resnet18"}, stored, {}).options["penalty"] == "l1"


def test_channels_of_a_group_within_a_layer_are_removed_after_training():
    grouped = nn.Conv2d(8, 8, 1, groups=4), nn.BatchNorm2d(8), nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *grouped, nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    model.extend([nn.ReLU(), nn.Conv2d(8, 2, 1)])
    network = Network(model, "grouped", 0, 8, coupled=True)
    dead = torch.arange(16) % 8 > 3
    removed = select_removable(network, torch.zeros_like(dead), dead)
    assert removed.tolist() == [False] * 8 + dead[8:].tolist()
