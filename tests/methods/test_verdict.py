"""What a training says of its own λ when it ends, and what a pruning advises."""

import re
from functools import cache

import pytest
import torch

import vgg_prune
from netslim import Graph
from runs import train
from utils import console
from utils.methods.slimming import ProximalSlimming, Subgradient, shrinkage
from utils.network import fresh
from utils.paper.settings import XI_INIT, schedule

NETWORK = ["--arch", "vgg", "--depth", 11, "--name", "net", "-sr"]


@cache
def vgg() -> Graph:
    return fresh("vgg", 11, 2, 32).graph


def verdict(zeros: dict[str, int], collapse: str = "", lambda_: float = 0.01, epochs: int = 2):
    method = ProximalSlimming(vgg(), lambda_, 100.0, xi_init=XI_INIT)
    return method.verdict(zeros, collapse, schedule(epochs, 50), "vgg", 11)


def test_the_rule():
    assert verdict({"gamma": 50, "xi": 100}) == ""
    assert "more epochs" in verdict({"gamma": 49, "xi": 100})
    assert "too large" in verdict({"gamma": 50, "xi": 100}, "a layer is empty")
    assert "too small" in verdict({"gamma": 0, "xi": 0})
    # With no ξ at 0 it is not λ that ruined the network.
    assert "too small" in verdict({"gamma": 0, "xi": 0}, "accuracy is near chance")


def before(lambda_: float, epochs: int, steps: int = 50, beta: float = 100.0, **sgd: float) -> str:
    """What is said before the training of that verdict."""
    method = ProximalSlimming(vgg(), lambda_, beta, xi_init=XI_INIT)
    sgd = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4} | sgd
    optimizer = torch.optim.SGD(method.model.parameters(), 0.1, **sgd)
    return " ".join(method.warnings(schedule(epochs, steps), "vgg", 11, optimizer))


def test_the_lambda_that_is_advised_is_one_before_and_after_and_reaches_zero():
    said = [before(0.01, 60), verdict({"gamma": 0, "xi": 0}, "", 0.01, 60)]
    said.append(verdict({"gamma": 9, "xi": 99}, "every ξ of a is 0", 0.2, 60))
    said.append(before(0.2, 60))
    (advised,) = {re.search(r"--s (\S+) the penalty moves", line)[1] for line in said}
    reach = shrinkage(float(advised), 100.0, schedule(60, 50))
    assert reach == pytest.approx(2 * 0.47, rel=0.05)
    assert before(float(advised), 60) == ""


def test_beyond_the_cap_more_epochs_are_advised_and_no_lambda():
    """Of 4 · 50 steps; 20 times the paper's λ is 0.09."""
    said = [before(0.0045, 4), verdict({"gamma": 0, "xi": 0}, "", 0.0045, 4)]
    said += [before(27, 4), verdict({"gamma": 0, "xi": 2752}, "every ξ of a is 0", 27, 4)]
    (times,) = {re.search(r"train for (\d+) times as many epochs", line)[1] for line in said}
    assert not any("the penalty moves" in line for line in said)
    longer = 4 * int(times)
    advised = re.search(r"--s (\S+) the penalty moves", before(0.0045, longer))
    assert 0.05 < float(advised[1]) <= 0.09
    assert "the penalty moves" not in before(0.0045, longer // 2)


def test_what_was_large_enough_needs_more_epochs():
    assert "more epochs" in verdict({"gamma": 0, "xi": 0}, "", 0.09, 100)
    assert "too large; try a smaller --s" in verdict({"gamma": 9, "xi": 9}, "x", 0.004, 40)


def test_where_gamma_cannot_follow_it_is_said_before():
    assert before(0.085, 60) == ""
    assert "too few for γ = 0" in before(0.085, 60, beta=0.1)
    assert "too few for γ = 0" in before(0.085, 60, momentum=0.99)


@pytest.mark.parametrize("nesterov", [True, False])
def test_flags_with_which_no_channel_is_called_dead_are_said_before(nesterov):
    flags = {"momentum": 0.99, "nesterov": nesterov}
    said = before(0.0045, 160, 782, weight_decay=5e-4, **flags)
    assert "no channel is called dead in the first 80 of 160 epochs" in said
    assert "in all epochs" in before(0.05, 1, 5000, weight_decay=5e-4, **flags)
    advised = float(re.search(r"up to --weight-decay (\S+)", said)[1])
    assert advised == 2.5e-4 and before(0.0045, 160, 782, weight_decay=advised, **flags) == ""
    method = ProximalSlimming(fresh("vgg", 11, 2, 32).graph, 0.0045, 100.0)
    method.write(torch.zeros_like(method.gamma))
    method.xi.zero_()
    for weight_decay, dead in ((5e-4, 0), (advised, 2752)):
        sgd = torch.optim.SGD(method.model.parameters(), 0.1, weight_decay=weight_decay, **flags)
        assert int(method.dead(sgd, 0.1).sum()) == dead


def test_original_slimming_has_no_xi():
    method = Subgradient(vgg(), 0.1)
    assert method.verdict({"gamma": 0}, "", schedule(2, 50), "vgg", 11) == ""
    assert "too large" in method.verdict({"gamma": 0}, "x", schedule(2, 50), "vgg", 11)


# One epoch of four steps: a large λ is at 0 in no time, and without momentum γ goes with it.
GONE = ["--s", 100, "--beta", 1000, "--momentum", 0, "--epochs", 8]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (GONE, "too large"),
        # All ξ are 0, and γ is not on its way to anything but that.
        (["--s", 27, "--beta", 1, "--epochs", 2], "every ξ of feature.1 and of 7 more layers is 0"),
        (["--s", 0.001, "--epochs", 1], "too small"),
        (["--s", 3, "--beta", 100, "--epochs", 1, "--lr", 1], "as many epochs"),
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
