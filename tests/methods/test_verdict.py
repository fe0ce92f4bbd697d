"""Advice on λ before and after a training."""

import re
from functools import cache

import pytest
import torch

import vgg_prune
from netslim import Graph
from runs import command, train
from utils.methods.base import TrainingSetup
from utils.methods.lp_admm import LpAdmm
from utils.methods.slimming import ProximalSlimming, Subgradient, shrinkage
from utils.network import fresh
from utils.paper.settings import XI_INIT, recipe, schedule

VGG = ["--arch", "vgg", "--depth", 11, "--name", "net", "-sr"]
NO_ZEROS = {"gamma": 0, "xi": 0}


@cache
def graph() -> Graph:
    return fresh("vgg", 11, 2, 32).graph


def setup(epochs: int, steps: int = 50, momentum: float = 0.9) -> TrainingSetup:
    return TrainingSetup(schedule(epochs, steps), momentum, recipe("vgg", 11))


def verdict(zeros: dict[str, int], collapse: str = "", lambda_: float = 0.01, epochs: int = 2):
    method = ProximalSlimming(graph(), lambda_, 100.0, xi_init=XI_INIT)
    return method.verdict(zeros, collapse, setup(epochs))


def warnings(
    lambda_: float, epochs: int, steps: int = 50, beta: float = 100.0, momentum: float = 0.9
) -> str:
    method = ProximalSlimming(graph(), lambda_, beta, xi_init=XI_INIT)
    return " ".join(method.warnings(setup(epochs, steps, momentum)))


@pytest.mark.parametrize(
    ("zeros", "collapse", "message"),
    [
        ({"gamma": 50, "xi": 100}, "", ""),
        ({"gamma": 49, "xi": 100}, "", "only 49 γ yet: train for more epochs, raise --beta"),
        ({"gamma": 50, "xi": 100}, "a layer is empty", "a layer is empty: λ = 0.01 was too large"),
        (NO_ZEROS, "", "no ξ is 0: λ = 0.01 was too small"),
        (NO_ZEROS, "chance", "chance; no ξ is 0: λ = 0.01 was too small"),
    ],
)
def test_the_verdict_of_proximal_slimming(zeros, collapse, message):
    text = verdict(zeros, collapse)
    assert message in text and bool(message) == bool(text)


@pytest.mark.parametrize("kind", [Subgradient, LpAdmm])
def test_the_verdict_of_methods_without_xi(kind):
    method = kind(graph(), 0.1)
    assert method.verdict({"gamma": 0}, "", setup(2)) == ""
    assert "too large" in method.verdict({"gamma": 0}, "x", setup(2))


def test_the_advised_lambda_is_the_same_before_and_after_and_reaches_zero():
    texts = [warnings(0.01, 60), verdict(NO_ZEROS, "", 0.01, 60)]
    texts += [warnings(0.2, 60), verdict({"gamma": 9, "xi": 99}, "every ξ of a is 0", 0.2, 60)]
    (advised,) = {re.search(r"try --lambda (\S+),", text)[1] for text in texts}
    reach = shrinkage(float(advised), 100.0, schedule(60, 50))
    assert reach == pytest.approx(2 * 0.47, rel=0.05)
    assert warnings(float(advised), 60) == ""


def test_more_epochs_are_advised_instead_of_a_lambda_above_20_times_the_papers():
    texts = [warnings(0.0045, 4), verdict(NO_ZEROS, "", 0.0045, 4)]
    texts += [warnings(27, 4), verdict({"gamma": 0, "xi": 2752}, "every ξ of a is 0", 27, 4)]
    (times,) = {re.search(r"train for (\d+) times as many epochs", text)[1] for text in texts}
    assert not any("try --lambda" in text for text in texts)
    advised = re.search(r"try --lambda (\S+),", warnings(0.0045, 4 * int(times)))
    assert 0.05 < float(advised[1]) <= 0.09
    assert "try --lambda" not in warnings(0.0045, 2 * int(times))


def test_a_large_enough_lambda_needs_more_epochs_and_a_small_one_is_made_smaller():
    assert "train for more epochs" in verdict(NO_ZEROS, "", 0.09, 100)
    assert "too large; try a smaller --lambda" in verdict({"gamma": 9, "xi": 9}, "x", 0.004, 40)


def test_a_warning_tells_if_gamma_cannot_follow():
    assert warnings(0.085, 60) == ""
    assert "too few steps for γ = 0" in warnings(0.085, 60, beta=0.1)
    assert "too few steps for γ = 0" in warnings(0.085, 60, momentum=0.99)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lambda", 100, "--beta", 1000, "--momentum", 0, "--epochs", 4], "too large"),
        (
            ["--lambda", 27, "--beta", 1, "--epochs", 2],
            "every ξ of feature.1 and of 7 more layers is 0",
        ),
        (["--lambda", 0.001, "--epochs", 1], "too small"),
    ],
)
def test_a_training_ends_with_its_verdict(flags, message, tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, *VGG, *flags) == 0
    *_, line, following = capsys.readouterr().out.splitlines()
    assert line.startswith("verdict: ") and message in line
    assert following.startswith("next: ")


def test_a_good_training_has_no_verdict(tmp_path, pictures, capsys):
    flags = ["--arch", "resnet", "--depth", 11, "--name", "net"]
    assert train(tmp_path, pictures, *flags, "--epochs", 1) == 0
    assert "verdict" not in capsys.readouterr().out


@pytest.mark.parametrize("zeros", [0, 100])
def test_pruning_advises_a_larger_lambda_only_if_no_xi_is_zero(zeros, tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, *VGG, "--lambda", 0.001, "--epochs", 1) == 0
    (path,) = tmp_path.glob("*/checkpoint.pth.tar")
    content = torch.load(path, weights_only=True)
    content["method"]["xi"][:zeros] = 0
    torch.save(content, path)
    capsys.readouterr()
    assert command(vgg_prune, "--model", path, "--no-cuda") == 0
    err = capsys.readouterr().err
    assert ("larger --lambda" in err) == (zeros == 0)
    assert zeros == 0 or ("xi" in err and "100" in err)
