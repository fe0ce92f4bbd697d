"""Checkpoints of torchvision's networks: what is in them is checked as that of all others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models import build_model, named, surgery
from models.surgery import norms
from utils import console, prune
from utils.console import InputError
from utils.files import checkpoint

ARCH = "mobilenet_v2"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """A slim checkpoint with few channels."""
    model = build_model(ARCH, named.DEPTHS[ARCH], 3)
    slim = surgery.slim(model, [torch.arange(bn.num_features) < 2 for bn in norms(model).values()])
    settings = {"arch": ARCH, "depth": named.DEPTHS[ARCH], "dataset": "folder"}
    return {"state_dict": slim.state_dict(), "cfg": slim.cfg, "settings": settings}


def test_a_slim_network_is_read_as_it_was_written(content, tmp_path):
    torch.save(content, tmp_path / "net.pth.tar")
    network = checkpoint.load(tmp_path / "net.pth.tar").network
    assert network.arch == ARCH and network.model.cfg == content["cfg"] == [2] * 35
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
        "features.0.1 and features.1.conv.0.1 are not equally wide",
    ),
    "more channels than there are": (
        lambda c: c["state_dict"].update({"features.0.1.weight": torch.ones(33)}),
        "this cfg does not fit mobilenet_v2",
    ),
    "no channels": (
        lambda c: c["state_dict"].update({"features.0.1.weight": torch.ones(0)}),
        "features.0.1.weight is missing or has no length",
    ),
    "a layer of another shape": (
        lambda c: narrow(c["state_dict"], "features.2.conv.0.0.weight"),
        "features.2.conv.0.0.weight has shape",
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
