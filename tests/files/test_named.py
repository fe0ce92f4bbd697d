"""Checkpoints of torchvision's networks: what is in them is checked as that of all others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models import build_model
from models import torchvision_models as named
from own_pictures import one_line
from utils import console, prune
from utils.console import InputError
from utils.files import checkpoint
from utils.network import Network

ARCH = "mobilenet_v2"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A slim checkpoint with few channels."""
    model = build_model(ARCH, named.DEPTHS[ARCH], 3)
    network = Network(model, ARCH, named.DEPTHS[ARCH], 64)
    masks = {n: torch.arange(bn.num_features) < 2 for n, bn in network.norms.items()}
    slim = network.remove(network.plan([*masks.values()]))
    settings = {"arch": ARCH, "depth": named.DEPTHS[ARCH], "dataset": "folder"}
    return {"state_dict": slim.model.state_dict(), "cfg": [2] * len(masks), "settings": settings}


def test_a_slim_network_is_read_as_it_was_written(content, tmp_path):
    torch.save(content, tmp_path / "net.pth.tar")
    network = checkpoint.load(tmp_path / "net.pth.tar").network
    assert network.arch == ARCH and network.cfg == content["cfg"] == [2] * len(content["cfg"])
    state = network.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in content["state_dict"].items())
    assert network.model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def narrow(state: dict[str, torch.Tensor], *keys: str) -> None:
    for key in keys:
        state[key] = state[key][:1].clone()


NORM = [f"features.1.conv.0.1.{x}" for x in ("weight", "bias", "running_mean", "running_var")]
SPOILT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "tied batch norms of other widths": (
        lambda c: narrow(c["state_dict"], "features.1.conv.0.0.weight", *NORM),
        "features.1.conv.0.0 of mobilenet_v2 does not fit what is before it",
    ),
    "more channels than there are": (
        lambda c: c["state_dict"].update({"features.0.1.weight": torch.ones(33)}),
        "features.0.1.weight is (33,) of torch.float32, and in the full model (32,)",
    ),
    "no channels": (
        lambda c: c["state_dict"].update({"features.0.1.weight": torch.ones(0)}),
        "features.0.1.weight is (0,) of torch.float32",
    ),
    "a layer of another shape": (
        lambda c: narrow(c["state_dict"], "features.2.conv.0.0.weight"),
        "features.2.conv.0.1 of mobilenet_v2 does not fit what is before it",
    ),
    "a layer is missing": (
        lambda c: c["state_dict"].pop("features.2.conv.0.0.weight"),
        "features.2.conv.0.0.weight is missing in mobilenet_v2",
    ),
    "one too many": (
        lambda c: c["state_dict"].update({"other": torch.ones(1)}),
        "other is not expected in mobilenet_v2",
    ),
    "another network's name": (
        lambda c: c["settings"].update(arch="resnet18", depth=18),
        "is missing or has no length",
    ),
    "no name": (lambda c: c["settings"].update(arch=["resnet18"]), "its settings are damaged"),
    "a cfg that does not fit": (lambda c: c.update(cfg=[3] * 35), "its cfg does not fit"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_does_not_fit_is_refused_in_one_line(case, content, tmp_path, capsys):
    spoil, said = SPOILT[case]
    mine = {**content, "state_dict": dict(content["state_dict"])}
    mine["settings"] = dict(content["settings"])
    spoil(mine)
    torch.save(mine, tmp_path / "net.pth.tar")
    assert console.run(prune.main, ["--model", str(tmp_path / "net.pth.tar"), "--no-cuda"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth.tar"]


def test_the_layout_of_programs_that_know_no_such_network_is_refused(content, tmp_path, capsys):
    torch.save(content, tmp_path / "net.pth.tar")
    argv = ["--model", str(tmp_path / "net.pth.tar"), "--layout", "released", "--no-cuda"]
    assert console.run(prune.main, argv) == 2
    err = capsys.readouterr().err
    assert err == "error: --layout released: the earlier programs know no mobilenet_v2\n"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth.tar"]


def test_a_name_is_only_taken_of_a_file_that_says_none(content, tmp_path):
    torch.save(content["state_dict"], tmp_path / "bare.pth")
    assert checkpoint.load(tmp_path / "bare.pth", ARCH).network.arch == ARCH
    with pytest.raises(InputError, match=r"does not fit a network of this program.*--arch NAME"):
        checkpoint.load(tmp_path / "bare.pth")
    torch.save(content, tmp_path / "whole.pth")
    assert checkpoint.load(tmp_path / "whole.pth", "resnet18").network.arch == ARCH


def averaged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As torch.optim.swa_utils.AveragedModel names them."""
    return {"n_averaged": torch.tensor(3), **under("module.", state)}


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def inside(wrapper: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every layer behind the first module's name is wrapped."""
    return {key.replace(".", f".{wrapper}.", 1): value for key, value in state.items()}


ELSEWHERE: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "DataParallel": lambda s: {"state_dict": under("module.", s)},
    "torch.compile": lambda s: under("_orig_mod.", s),
    "both": lambda s: under("module._orig_mod.", s),
    "both, the other way": lambda s: {"model": under("_orig_mod.module.", s)},
    "layers compiled, or parallel": lambda s: inside("_orig_mod", inside("module", s)),
    "FSDP": lambda s: {"model": under("_fsdp_wrapped_module.", inside("_fsdp_wrapped_module", s))},
    "checkpointed activations": lambda s: inside("_checkpoint_wrapped_module", s),
    "Lightning": lambda s: {"state_dict": under("model.", s), "epoch": 1, "callbacks": {}},
    "Lightning, compiled": lambda s: {"state_dict": under("model._orig_mod.", s)},
    "Fabric": lambda s: {"model": under("_forward_module.", s)},
    "an attribute": lambda s: under("net.", s),
    "of an attribute": lambda s: under("encoder.backbone.", s),
    "torchvision's references": lambda s: {
        "model": s,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
        "epoch": 3,
    },
    "net": lambda s: {"net": s, "acc": 93.1},
    "a name of one's own": lambda s: {"trained": s, "accuracy": torch.tensor(0.9)},
    "dicts in dicts": lambda s: {"checkpoint": {}, "model": {"state_dict": s}},
    "averages only": lambda s: {"model_ema": averaged(s)},
    "a shadow": lambda s: {"ema": {"shadow": s, "decay": 0.99}},
    "averages beside": lambda s: {
        "state_dict_ema": {key: 0 * value for key, value in s.items()},
        "state_dict": s,
    },
    "weights of a loss": lambda s: {
        "state_dict": under("model.", s) | {"loss.weight": torch.ones(9)}
    },
}


@pytest.mark.parametrize("arch", [ARCH, "resnet-basic"])
@pytest.mark.parametrize("kind", ELSEWHERE)
def test_weights_are_found_wherever_others_put_them(kind, arch, content, tmp_path, capsys):
    own = arch != ARCH
    state = build_model(arch, 8, 3).state_dict() if own else content["state_dict"]
    torch.save(ELSEWHERE[kind](state), tmp_path / "net.pth")
    network = checkpoint.load(tmp_path / "net.pth", None if own else ARCH).network
    read = network.model.state_dict()
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], value) for key, value in state.items())
    said = {"averages beside": "state_dict_ema", "weights of a loss": "loss.weight"}
    err = capsys.readouterr().err
    assert (said[kind] in err and err.count("\n") == 1) if kind in said else not err


UNREAD: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], tuple[str, ...]]] = {
    "two networks": (lambda s: {"student": s, "teacher": s}, ("student", "teacher")),
    "two in one": (lambda s: under("student.", s) | under("teacher.", s), ("student.features",)),
    "another network": (lambda s: {"model": {"proj.weight": torch.ones(2)}}, ("proj.weight",)),
    "wrapped and not": (lambda s: s | under("module.", s), ("features.0.0.weight twice",)),
    "no weights": (lambda s: {"epoch": 3, "model": "resnet18"}, ("epoch, model",)),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_weights_that_are_not_found_are_refused_with_what_was_found(kind, content, tmp_path):
    change, said = UNREAD[kind]
    torch.save(change(content["state_dict"]), tmp_path / "net.pth")
    with pytest.raises(InputError) as error:
        checkpoint.load(tmp_path / "net.pth", ARCH)
    one_line(error, tmp_path / "net.pth", *said)
