"""The benchmark: training against the released program's structure."""

import re

import pytest
import torch

from models import build_model
from utils import console
from utils.bench import __main__ as bench
from utils.bench.released import ReleasedProgram
from utils.data.datasets import load_dataset
from utils.methods.slimming import ProximalSlimming
from utils.network import fresh
from utils.paper.accounting import selecting_norms

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", ["proximal", "sas-admm"])
def test_prints_seconds_and_ratio(method, capsys):
    flags = f"--networks resnet-11 --subset 16 --batch-size 8 --repeats 1 --no-cuda --method {method}"
    assert console.run(bench.main, flags.split()) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"structure ([\d.]+) s, here ([\d.]+) s .* ratio ([\d.]+)", line)
    assert all(float(number) > 0 for number in found.groups())


def test_trains_the_weights():
    training = bench.Training("resnet", 11, load_dataset("shapes", None, 16, 16), 8, CPU, "lp-admm")
    weight = training.trainer.step.model.conv1.weight.detach()
    before = weight.clone()
    training.epoch()
    assert weight.isfinite().all() and not torch.equal(weight, before)


@pytest.mark.parametrize("name", ["vgg", "vgg-12", "lenet-5", "resnet-x"])
def test_rejects_unknown_networks(name, capsys):
    assert console.run(bench.main, ["--networks", name, "--no-cuda"]) == 2
    assert f"--networks {name}" in capsys.readouterr().err


def test_released_program_has_the_same_proximal_steps():
    data = load_dataset("shapes", None, 16, 16)
    released = ReleasedProgram("resnet", 11, data, 8, CPU)
    update, settings = released.proximal_update, released.proximal_update.paper
    graph = fresh("resnet", 11, len(data.classes), 32).graph
    method = ProximalSlimming(graph, settings.lambda_, settings.beta, model=released.model)
    method.xi.copy_(torch.cat(update.xi))
    for _ in range(5):
        gamma = method.read().clone()
        method.step(0.1)
        ours = method.read().clone()
        method.write(gamma)
        update(10.0)
        torch.testing.assert_close(method.read(), ours, rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.cat(update.xi), method.xi, rtol=1e-6, atol=1e-9)
        method.write(ours)


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 11), ("densenet", 7)])
def test_released_program_gathers_and_trains(arch, depth):
    data = load_dataset("shapes", None, 64, 16)
    torch.manual_seed(0)
    released = ReleasedProgram(arch, depth, data, 16, CPU)
    model = build_model(arch, depth, len(data.classes))
    model.load_state_dict(released.model.state_dict())
    images = torch.randn(4, 3, 32, 32)
    with torch.profiler.profile() as profile:
        assert torch.equal(released.model(images), model(images))
    gathers = sum(event.count for event in profile.key_averages() if event.key == "aten::index")
    assert gathers == len(selecting_norms(arch, model)) > 0
    losses = [released.epoch() for _ in range(4)]
    assert losses[-1] < losses[0]
