"""The benchmark of training against a plain PyTorch loop."""

import re

import pytest
import torch

from utils import console
from utils.bench import __main__ as bench


def test_both_loops_train_from_the_same_weights(monkeypatch, capsys):
    loops, weights = [], []
    for name in ("plain_epoch", "epoch"):
        monkeypatch.setattr(bench.Training, name, watched(name, loops, weights))
    flags = "--networks resnet-11 --subset 16 --batch-size 8 --repeats 1 --no-cuda"
    assert console.run(bench.main, flags.split()) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"loop ([\d.]+) s .* here ([\d.]+) s .* ratio ([\d.]+)", line)
    assert all(float(number) > 0 for number in found.groups())
    assert loops == ["plain_epoch", "epoch"] * 2  # a warm-up and a measurement, in turn
    (plain, ours), (plain_after, same), (_, ours_after), _ = weights
    assert torch.equal(plain, ours) and torch.equal(ours, same)
    assert all(x.isfinite().all() for pair in weights for x in pair)
    assert not torch.equal(plain_after, plain) and not torch.equal(ours_after, ours)


def watched(name, loops, weights):
    """Returns the method that first notes its name, and weights of both models."""
    epoch = getattr(bench.Training, name)

    def wrapper(self):
        loops.append(name)
        models = self.model, self.trainer.step.model
        weights.append([model.conv1.weight.detach().clone() for model in models])
        epoch(self)

    return wrapper


@pytest.mark.parametrize("name", ["vgg-12", "resnet-x"])
def test_rejects_unknown_networks(name, capsys):
    assert console.run(bench.main, ["--networks", name, "--no-cuda"]) == 2
    assert f"--networks {name}" in capsys.readouterr().err
