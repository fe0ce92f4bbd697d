"""The penalty is group where several layers write a stream, and l1 in the paper's networks."""

import pytest

from models.torchvision_models import DEPTHS, STREAMS
from utils.flags.config import Config
from utils.flags.parser import resolve
from utils.network import fresh


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
