"""Files of before this program's networks were plain modules: read, and gone on with.

Only what slim networks with streams have in them has other names now. That a resumed training goes
on to the same bits as one in the names of today was compared with the program of then, too.
"""

import re
import signal
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import main
import utils.network
from models import build_model
from runs import assert_same_run, command, train
from utils.console import Interrupted
from utils.files import checkpoint
from utils.network import Network, fresh

DEPTHS = {"vgg": 11, "resnet": 11, "resnet-basic": 8, "densenet": 7, "resnet18": 18}
x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def older(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in the names of then.

    A selection stood beside its batch norm, and a stream said where in the unpruned one its
    channels had been, which nothing needs that the network computes.
    """
    old = {re.sub(r"\b(bn1?)\.norm\.", r"\1.", key): value for key, value in state.items()}
    old = {re.sub(r"\bbn1?\.select\.", "select.", key): value for key, value in old.items()}
    selects = any(key.endswith("select.index") for key in old)
    return old | ({"stream3.index": torch.arange(0, 64, 2)} if selects else {})


def slim_of(arch: str) -> Network:
    """With few channels, some of each stream."""
    torch.manual_seed(0)
    network = fresh(arch, DEPTHS[arch], 2, 32)
    masks = [torch.rand(width) < 0.2 for width in network.widths]
    for mask in masks:
        mask[0] = True
    return network.remove(network.plan(masks))


@pytest.mark.parametrize("arch", DEPTHS)
def test_a_slim_network_and_its_training_are_read_at_once(arch, tmp_path, monkeypatch):
    slim = slim_of(arch)
    assert set(slim.layers) <= dict(build_model(arch, DEPTHS[arch], 2).named_modules()).keys()
    assert not any(name.endswith(".norm") for name in slim.layers)
    model, cfg, widths = slim.model, slim.cfg, slim.widths
    parameters = dict(model.named_parameters())
    xi, cut = torch.rand(sum(widths)), torch.zeros(sum(widths), dtype=torch.bool)
    momentum = {i: {"momentum_buffer": x + i} for i, x in enumerate(parameters.values())}
    settings = {"arch": arch, "depth": DEPTHS[arch], "dataset": "folder", "size": 32}
    content = {
        "state_dict": older(model.state_dict()),
        "cfg": cfg,
        "settings": settings | {"method": "proximal", "penalty": "l1"},
        "epoch": 1,
        "best_prec1": 0.5,
        "optimizer": {"state": momentum, "param_groups": [{"params": [*momentum]}]},
        "method": {"xi": xi},
        "cut": cut,
    }
    torch.save(content, tmp_path / "old.pth.tar")
    built, build = [], utils.network.build_model
    with monkeypatch.context() as patched:
        patched.setattr(utils.network, "analyze", None)  # which takes long
        patched.setattr(utils.network, "build_model", lambda *a: built.append(a) or build(*a))
        read = checkpoint.load(tmp_path / "old.pth.tar")
    assert len(built) == 1 and not read.why_not_resumable
    state = read.network.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(read.network.model.eval()(x), model.eval()(x))
    assert read.momentum.keys() == parameters.keys()
    for i, (name, value) in enumerate(parameters.items()):
        assert torch.equal(read.momentum[name], value + i)
    assert torch.equal(read.scaling_factors["xi"], xi) and read.network.cfg == cfg
    content["cfg"] = [*cfg[:-1], cfg[-1] + 1]
    torch.save(content, tmp_path / "old.pth.tar")
    with pytest.raises(checkpoint.InputError, match="its cfg does not fit"):
        checkpoint.load(tmp_path / "old.pth.tar")


@pytest.mark.parametrize("arch", ["resnet", "densenet"])
def test_a_training_goes_on_as_it_would(arch, tmp_path, pictures, monkeypatch):
    slim, old, new = slim_of(arch), tmp_path / "old", tmp_path / "new"
    path = new / "small_pruned.pth.tar"
    new.mkdir()
    torch.save({"state_dict": slim.model.state_dict()}, path)
    calls, evaluate = [], main.evaluate

    def stops(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Interrupted(signal.SIGTERM)
        return evaluate(*args)

    with monkeypatch.context() as patched:
        patched.setattr(main, "evaluate", stops)
        flags = ["--refine", path, "--dataset", "folder", "--data", pictures, "-sr", "--epochs", 2]
        assert train(new, pictures, *flags) == 128 + signal.SIGTERM
    path.unlink()
    (path,) = new.glob("*checkpoint.pth.tar")
    content = torch.load(path, weights_only=True)
    state, cut = content["state_dict"], content["cut"]
    for name, part in zip(slim.norms, cut.split(slim.widths), strict=True):
        if len(part) > 2:  # its last channel has died, and was removed
            name = f"{name}.norm" if f"{name}.norm.bias" in state else name
            part[-1], state[f"{name}.weight"][-1], state[f"{name}.bias"][-1] = True, 0, -1
    assert cut.any()
    content["method"]["xi"][cut] = 0
    old.mkdir()
    for folder, names in (new, state), (old, older(state)):
        for copied in new.glob("*log.csv"):
            (folder / copied.name).write_bytes(copied.read_bytes())
        torch.save({**content, "state_dict": names}, folder / path.name)
        (folder / path.name.replace("checkpoint", "model_best")).unlink(missing_ok=True)
        flags = ["--resume", folder / path.name, "--deterministic", "--no-cuda"]
        assert command(main, *flags) == 0
    assert_same_run(old, new)
