"""Weights of other programs and of torchvision's models are found, checked and loaded."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models import build_model
from models.torchvision_models import DEPTHS
from utils.console import InputError
from utils.files import checkpoint
from utils.network import Network

ARCH = "mobilenet_v2"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A pruned checkpoint with two channels per layer."""
    network = Network(build_model(ARCH, DEPTHS[ARCH], 3), ARCH, DEPTHS[ARCH], 64)
    masks = [torch.arange(bn.num_features) < 2 for bn in network.norms.values()]
    pruned = network.remove(network.plan(masks))
    settings = {"arch": ARCH, "depth": DEPTHS[ARCH], "dataset": "folder"}
    return {"state_dict": pruned.model.state_dict(), "cfg": [2] * len(masks), "settings": settings}


def test_the_arch_flag_is_only_used_without_settings(content, tmp_path):
    torch.save(content["state_dict"], tmp_path / "bare.pth")
    assert checkpoint.load(tmp_path / "bare.pth", ARCH).network.arch == ARCH
    hints = r"does not fit a network of this program.*--init \S+ --arch.*utils.prune.*--arch NAME"
    with pytest.raises(InputError, match=hints):
        checkpoint.load(tmp_path / "bare.pth")
    torch.save(content, tmp_path / "whole.pth")
    network = checkpoint.load(tmp_path / "whole.pth", "resnet18").network
    assert network.arch == ARCH and network.cfg == content["cfg"]
    assert network.model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def inside(wrapper: str, state: State) -> State:
    """Adds the name of a wrapper behind the first module's."""
    return {key.replace(".", f".{wrapper}.", 1): value for key, value in state.items()}


FORMATS: dict[str, Callable[[State], Any]] = {
    "DataParallel": lambda s: {"state_dict": under("module.", s)},
    "torch.compile": lambda s: under("_orig_mod.", s),
    "both": lambda s: {"model": under("_orig_mod.module.", s)},
    "layers": lambda s: inside("_orig_mod", inside("module", s)),
    "FSDP": lambda s: {"model": under("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", s))},
    "activation checkpoints": lambda s: inside("_checkpoint_wrapped_module", s),
    "Lightning": lambda s: {"state_dict": under("model._orig_mod.", s), "epoch": 1, "loops": {}},
    "Fabric": lambda s: {"model": under("_forward_module.", s)},
    "attribute of an attribute": lambda s: under("encoder.backbone.", s),
    "torchvision": lambda s: {"model": s, "optimizer": {"state": {0: {"x": torch.ones(2)}}}},
    "any key": lambda s: {"trained": s, "accuracy": torch.tensor(0.9)},
    "dicts in dicts": lambda s: {"checkpoint": {}, "model": {"state_dict": s}},
    "flags of its script": lambda s: {"model": s, "args": Namespace(lr=0.1, output=Path("x"))},
    "thop": lambda s: s | {name: torch.zeros(1) for name in ("total_ops", "fc.total_params")},
    "AveragedModel": lambda s: {
        "model_ema": {"n_averaged": torch.tensor(3), **under("module.", s)}
    },
    "average, not read": lambda s: {"ema": {k: 0 * x for k, x in s.items()}, "state_dict": s},
    "loss, not read": lambda s: {"state_dict": under("model.", s) | {"loss.weight": torch.ones(9)}},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_weights_are_found(kind, content, tmp_path, capsys):
    """Every second one is of torchvision's, whose --arch is given."""
    arch = ARCH if [*FORMATS].index(kind) % 2 else None
    state = content["state_dict"] if arch else build_model("resnet-basic", 8, 3).state_dict()
    torch.save(FORMATS[kind](state), tmp_path / "net.pth")
    loaded = checkpoint.load(tmp_path / "net.pth", arch).network.model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    names = {"average, not read": "read: ema", "loss, not read": "loss.weight"}
    err = capsys.readouterr().err
    assert (names[kind] in err and err.count("\n") == 1) if kind in names else not err


# Channels of a layer and of its batch norm, but not of the layer behind them.
NARROWER = ["features.1.conv.0.0.weight"]
NARROWER += [f"features.1.conv.0.1.{x}" for x in ("weight", "bias", "running_mean", "running_var")]
NOT_FOUND: dict[str, tuple[Callable[[State], Any], str]] = {
    "two models": (lambda s: {"student": s, "teacher": s}, "student, teacher"),
    "two in one": (lambda s: under("student.", s) | under("teacher.", s), "student.features"),
    "another model": (lambda s: {"model": {"proj.weight": torch.ones(2)}}, "proj.weight"),
    "wrapped and plain": (lambda s: s | under("module.", s), "features.0.0.weight twice"),
    "no weights": (lambda s: {"epoch": 3, "model": "resnet18"}, "epoch, model"),
    "a list": (lambda s: [s], "it has no state_dict of finite tensors"),
    "layers that do not fit": (
        lambda s: {key: x[:1].clone() if key in NARROWER else x for key, x in s.items()},
        "features.1.conv.0.0 of mobilenet_v2 does not fit the layers before it",
    ),
    "a bias before no batch norm": (
        lambda s: under("features.0.", torch.nn.Conv2d(3, 64, 3).state_dict()),
        "feature.1.running_mean is missing",
    ),
}


@pytest.mark.parametrize("kind", NOT_FOUND)
def test_other_names_are_in_the_message(kind, content, tmp_path):
    edit, names = NOT_FOUND[kind]
    torch.save(edit(content["state_dict"]), tmp_path / "net.pth")
    with pytest.raises(InputError) as error:
        checkpoint.load(tmp_path / "net.pth", None if kind.startswith("a bias") else ARCH)
    assert str(tmp_path / "net.pth") in str(error.value) and names in str(error.value)
