"""Files of older versions of this program are loaded.

Pruned models with streams had other names in their state dicts.
"""

import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import utils.network
from utils.files import checkpoint
from utils.network import Network, fresh

DEPTHS = {"vgg": 11, "resnet": 11, "resnet-basic": 8, "densenet": 7, "resnet18": 18}
x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def older_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames: a selection was beside its batch norm, and a stream had an index of its own."""
    old = {re.sub(r"\b(bn1?)\.norm\.", r"\1.", key): value for key, value in state.items()}
    old = {re.sub(r"\bbn1?\.select\.", "select.", key): value for key, value in old.items()}
    selects = any(key.endswith("select.index") for key in old)
    return old | ({"stream3.index": torch.arange(0, 64, 2)} if selects else {})


def pruned(arch: str) -> Network:
    """A network with few channels of each layer and stream."""
    torch.manual_seed(0)
    network = fresh(arch, DEPTHS[arch], 2, 32)
    masks = [torch.rand(width) < 0.2 for width in network.widths]
    for mask in masks:
        mask[0] = True
    return network.remove(network.plan(masks))


@pytest.mark.parametrize("arch", DEPTHS)
def test_a_pruned_model_and_its_training_state_are_loaded(arch, tmp_path, monkeypatch):
    network = pruned(arch)
    model, cfg, channels = network.model, network.cfg, sum(network.widths)
    parameters = dict(model.named_parameters())
    xi = torch.rand(channels)
    momentum = {i: {"momentum_buffer": x + i} for i, x in enumerate(parameters.values())}
    settings = {"arch": arch, "depth": DEPTHS[arch], "dataset": "folder", "size": 32}
    content = {
        "state_dict": older_names(model.state_dict()),
        "cfg": cfg,
        "settings": settings | {"method": "proximal", "penalty": "l1"},
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
    assert torch.equal(loaded.network.model.eval()(x), model.eval()(x))
    assert loaded.momentum.keys() == parameters.keys()
    for i, (name, value) in enumerate(parameters.items()):
        assert torch.equal(loaded.momentum[name], value + i)
    assert torch.equal(loaded.scaling_factors["xi"], xi) and loaded.network.cfg == cfg
