"""The benchmark: training against a plain PyTorch loop."""

import re

import pytest
import torch

from utils import console
from utils.bench import __main__ as bench
from utils.data.datasets import load_dataset
from utils.flags.config import Config

SETTINGS = {"arch": "resnet", "depth": 11, "method": "proximal", "batch_size": 8}


def test_prints_seconds_and_ratio(capsys):
    flags = "--networks resnet-11 --subset 16 --batch-size 8 --repeats 1 --no-cuda"
    assert console.run(bench.main, flags.split()) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"loop ([\d.]+) s .* here ([\d.]+) s .* ratio ([\d.]+)", line)
    assert all(float(number) > 0 for number in found.groups())


def test_both_loops_train_from_the_same_weights():
    data = load_dataset("shapes", None, 64, 16)
    training = bench.Training(Config.from_dict(SETTINGS), data, torch.device("cpu"))
    models = [training.trainer.step.model, training.model]
    weights = [model.conv1.weight.detach() for model in models]
    before = weights[0].clone()
    assert torch.equal(*weights)
    xi = training.proximal_update.xi[0].clone()
    training.epoch()
    assert not torch.equal(weights[0], before) and torch.equal(weights[1], before)
    training.plain_epoch()
    assert all(weight.isfinite().all() for weight in weights)
    assert not torch.equal(weights[1], before)
    assert not torch.equal(training.proximal_update.xi[0], xi)


@pytest.mark.parametrize("name", ["vgg", "vgg-12", "lenet-5", "resnet-x"])
def test_rejects_unknown_networks(name, capsys):
    assert console.run(bench.main, ["--networks", name, "--no-cuda"]) == 2
    assert f"--networks {name}" in capsys.readouterr().err
