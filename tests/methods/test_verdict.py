"""Advice on λ before and after a training."""

import re
from functools import cache

import pytest
import torch

import resnet_prune
from netslim import Graph
from runs import command, train
from utils.methods.base import TrainingSetup
from utils.methods.lp_admm import LpAdmm
from utils.methods.slimming import ProximalSlimming, Subgradient, shrinkage
from utils.network import fresh
from utils.paper.settings import XI_INIT, recipe, schedule

RESNET = ["--arch", "resnet", "--depth", 11, "--name", "net"]
NO_ZEROS = {"gamma": 0, "xi": 0}


@cache
def graph() -> Graph:
    return fresh("vgg", 11, 2, 32).graph


def advice(
    lambda_: float,
    epochs: int,
    zeros: dict[str, int] | None = None,
    collapse: str = "",
    momentum: float = 0.9,
    **options: object,
) -> str:
    """Returns the warnings before a training, or with ``zeros`` the verdict after it."""
    options = {"beta": 100.0, "xi_init": XI_INIT, **options}
    method = ProximalSlimming(graph(), lambda_, **options)
    setup = TrainingSetup(schedule(epochs, 50), momentum, recipe("vgg", 11))
    if zeros is None:
        return " ".join(method.warnings(setup))
    return method.verdict(zeros, collapse, setup)


@pytest.mark.parametrize(
    ("lambda_", "epochs", "zeros", "collapse", "message"),
    [
        (0.01, 2, {"gamma": 50, "xi": 100}, "", ""),
        (0.01, 2, {"gamma": 49, "xi": 100}, "", "only 49 γ yet: train for more epochs, raise"),
        (0.01, 2, {"gamma": 50, "xi": 100}, "a layer is empty", "empty: λ = 0.01 was too large"),
        (0.01, 2, NO_ZEROS, "", "no ξ is 0: λ = 0.01 was too small"),
        (0.01, 2, NO_ZEROS, "chance", "chance; no ξ is 0: λ = 0.01 was too small"),
        (0.09, 100, NO_ZEROS, "", "train for more epochs"),
        (0.004, 40, {"gamma": 9, "xi": 9}, "x", "too large; try a smaller --lambda"),
    ],
)
def test_the_verdict_of_proximal_slimming(lambda_, epochs, zeros, collapse, message):
    text = advice(lambda_, epochs, zeros, collapse)
    assert message in text and bool(message) == bool(text)


@pytest.mark.parametrize("kind", [Subgradient, LpAdmm])
def test_the_verdict_of_methods_without_xi(kind):
    method, setup = kind(graph(), 0.1), TrainingSetup([], 0.9, recipe("vgg", 11))
    assert method.verdict({"gamma": 0}, "", setup) == ""
    assert "too large" in method.verdict({"gamma": 0}, "x", setup)


def test_the_advised_lambda_is_the_same_before_and_after_and_reaches_zero():
    texts = [advice(0.01, 60), advice(0.01, 60, NO_ZEROS)]
    texts += [advice(0.2, 60), advice(0.2, 60, {"gamma": 9, "xi": 99}, "every ξ of a is 0")]
    (advised,) = {re.search(r"try --lambda (\S+),", text)[1] for text in texts}
    reach = shrinkage(float(advised), 100.0, schedule(60, 50))
    assert reach == pytest.approx(2 * 0.47, rel=0.05)
    assert advice(float(advised), 60) == ""


def test_more_epochs_are_advised_instead_of_a_lambda_above_20_times_the_papers():
    texts = [advice(0.0045, 4), advice(0.0045, 4, NO_ZEROS)]
    texts += [advice(27, 4), advice(27, 4, {"gamma": 0, "xi": 2752}, "every ξ of a is 0")]
    (times,) = {re.search(r"train for (\d+) times as many epochs", text)[1] for text in texts}
    assert not any("try --lambda" in text for text in texts)
    advised = re.search(r"try --lambda (\S+),", advice(0.0045, 4 * int(times)))
    assert 0.05 < float(advised[1]) <= 0.09
    assert "try --lambda" not in advice(0.0045, 2 * int(times))


@pytest.mark.parametrize(
    ("lambda_", "options", "message"),
    [
        (0.085, {}, ""),
        (0.085, {"beta": 0.1}, "too few steps for γ = 0"),
        (0.085, {"momentum": 0.99}, "too few steps for γ = 0"),
        (0.037, {}, ""),  # enough for ℓ1, whose way to 0 is shorter
        (0.037, {"penalty": "mcp"}, "ξ starts at"),
        (0.085, {"penalty": "mcp"}, ""),
        (10, {"penalty": "mcp", "shape": 0.4}, "mcp is flat from 0.4 on, where 2752 of 2752 ξ"),
    ],
)
def test_a_warning_tells_if_gamma_or_xi_cannot_become_zero(lambda_, options, message):
    text = advice(lambda_, 60, **options)
    assert message in text and bool(message) == bool(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-sr --lambda 27 --beta 1 --epochs 2", r"every ξ of \S+ and of 9 more layers is 0.*large"),
        ("-sr --lambda 0.001 --epochs 1", "too small"),
        ("--epochs 1", ""),
    ],
)
def test_a_training_ends_with_its_verdict(flags, message, tmp_path, pictures, capsys):
    assert train(tmp_path, pictures, *RESNET, *flags.split()) == 0
    *_, line, following = capsys.readouterr().out.splitlines()
    assert following.startswith("next: ") and line.startswith("verdict: ") == bool(message)
    assert not message or re.search(message, line)
    if message != "too small":
        return
    # Pruning advises a larger λ only if no ξ is zero.
    (path,) = tmp_path.glob("*/checkpoint.pth.tar")
    for zeros in (0, 10):
        content = torch.load(path, weights_only=True)
        content["method"]["xi"][:zeros] = 0
        torch.save(content, path)
        assert command(resnet_prune, "--model", path, "--no-cuda", "--name", f"net{zeros}") == 0
        err = capsys.readouterr().err
        assert ("larger --lambda" in err) == (zeros == 0)
        assert zeros == 0 or ("xi" in err and "10" in err)
