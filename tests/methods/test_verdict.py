"""What a training says of its own λ when it ends, and what a pruning advises."""

import re

import pytest
import torch

import vgg_prune
from models import build_model
from runs import train
from utils import console
from utils.methods.slimming import ProximalSlimming, Subgradient
from utils.paper.settings import schedule

NETWORK = ["--arch", "vgg", "--depth", 11, "--name", "net", "-sr"]


def verdict(zeros: dict[str, int], collapse: str = "", lambda_: float = 0.01, epochs: int = 2):
    method = ProximalSlimming(build_model("vgg", 11, 2), lambda_, 100.0)
    return method.verdict(zeros, collapse, schedule(epochs, 50), "vgg", 11)


def test_the_rule():
    assert verdict({"gamma": 50, "xi": 100}) == ""
    assert "more epochs" in verdict({"gamma": 49, "xi": 100})
    assert "too large" in verdict({"gamma": 50, "xi": 100}, "a layer is empty")
    assert "too small" in verdict({"gamma": 0, "xi": 0})
    # With no ξ at 0 it is not λ that ruined the network.
    assert "too small" in verdict({"gamma": 0, "xi": 0}, "accuracy is near chance")


@pytest.mark.parametrize(
    ("lambda_", "epochs", "said"),
    [(0.01, 2, 0.45), (0.01, 100, 0.113), (0.2, 100, 0.4), (0.3, 100, 0.45)],
    ids=["capped at 100 times the paper's", "as much in total", "more than it was", "both"],
)
def test_the_lambda_that_would_do(lambda_, epochs, said):
    found = re.search(r"--s (\S+)", verdict({"gamma": 0, "xi": 0}, "", lambda_, epochs))
    assert float(found[1]) == pytest.approx(said, rel=0.05)


def test_where_lambda_is_at_the_cap_more_epochs_are_advised():
    said = verdict({"gamma": 0, "xi": 0}, "", 0.45)
    assert "more epochs" in said and "--s" not in said


def test_original_slimming_has_no_xi():
    method = Subgradient(build_model("vgg", 11, 2), 0.1)
    assert method.verdict({"gamma": 0}, "", schedule(2, 50), "vgg", 11) == ""
    assert "too large" in method.verdict({"gamma": 0}, "x", schedule(2, 50), "vgg", 11)


# One epoch of four steps: a large λ is at 0 in no time, and without momentum γ goes with it.
GONE = ["--s", 100, "--beta", 1000, "--momentum", 0, "--epochs", 8]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (GONE, "too large"),
        (["--s", 0.001, "--epochs", 1], "too small"),
        (["--s", 3, "--beta", 100, "--epochs", 1, "--lr", 1], "more epochs"),
    ],
)
def test_a_training_ends_with_its_verdict(flags, said, tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, *NETWORK, *flags) == 0
    *_, line, following = capsys.readouterr().out.splitlines()
    assert line.startswith("verdict: ") and said in line
    assert following.startswith("next: ")


def test_a_training_that_went_well_has_none(tmp_path, pictures, capsys):
    flags = ["--arch", "resnet", "--depth", 11, "--name", "net"]
    assert train(tmp_path, pictures, *flags, "--epochs", 1) == 0  # a baseline
    assert "verdict" not in capsys.readouterr().out


def test_pruning_does_not_advise_a_larger_lambda_where_xi_is_zero(tmp_path, pictures, capsys):
    """γ is on its way there; with a larger λ the network would be ruined."""
    assert train(tmp_path, pictures, *NETWORK, "--s", 0.001, "--epochs", 1) == 0
    (path,) = tmp_path.glob("*checkpoint.pth.tar")
    content = torch.load(path, weights_only=True)
    said = {}
    for name, zeros in (("some", 100), ("none", 0)):
        content["method"]["xi"][:zeros] = 0
        torch.save(content, path)
        said[name] = advice(path, name, capsys)
        content["method"]["xi"][:] = 0.4
    assert "larger --s" in said["none"]
    assert "larger --s" not in said["some"]
    assert "xi" in said["some"] and "100" in said["some"] and "more epochs" in said["some"]


def advice(path, name: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    argv = ["--model", path, "--no-cuda", "--name", f"{name}_"]
    assert console.run(vgg_prune.main, list(map(str, argv))) == 0
    return capsys.readouterr().err
