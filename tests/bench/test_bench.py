"""The benchmark compares like with like, and prints what it found."""

import re
import subprocess
import sys

import pytest
import torch

from models import build_model
from runs import ROOT
from utils import console
from utils.bench import __main__ as bench
from utils.bench.released import Reference
from utils.bench.training import Ours
from utils.data.datasets import load_dataset
from utils.methods.slimming import ProximalSlimming
from utils.network import fresh
from utils.paper.accounting import selecting_norms

CPU = torch.device("cpu")


def test_training_is_timed_beside_the_reference():
    flags = "--networks resnet-11 --subset 16 --batch-size 8 --repeats 2 --no-cuda".split()
    done = subprocess.run(
        [sys.executable, "-m", "utils.bench", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    header, _, row = done.stdout.splitlines()[-3:]
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    here, there = float(cells["here, s"]), float(cells["reference, s"])
    assert here > 0
    assert there > 0
    assert float(re.match(r"[\d.]+", cells["ratio"])[0]) > 0
    assert "nan" not in row


@pytest.mark.parametrize("method", ["lp-admm", "sas-admm"])
def test_each_method_is_timed_as_it_trains(method):
    data = load_dataset("shapes", None, 16, 16)
    ours = Ours("resnet", 11, data, 8, CPU, method)
    weight = ours.run.step.model.conv1.weight.detach()
    before = weight.clone()
    ours.epoch()
    assert weight.isfinite().all() and not torch.equal(weight, before)
    assert ours.figures()["update"] > 0


@pytest.mark.parametrize("name", ["vgg", "vgg-12", "lenet-5", "resnet-x"])
def test_a_network_that_is_none_is_named(name, capsys):
    assert console.run(bench.main, ["--networks", name, "--no-cuda"]) == 2
    assert name in capsys.readouterr().err.splitlines()[-1]


def test_the_reference_does_the_same_steps_2_and_3():
    data = load_dataset("shapes", None, 16, 16)
    reference = Reference("resnet", 11, data, 8, CPU)
    update = reference.proximal_update
    graph = fresh("resnet", 11, len(data.classes), 32).graph
    paper = update.paper
    method = ProximalSlimming(graph, paper.lambda_, paper.beta, model=reference.model)
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
def test_the_reference_gathers_and_computes_the_same(arch, depth):
    data = load_dataset("shapes", None, 16, 16)
    reference = Reference(arch, depth, data, 8, CPU).model
    model = build_model(arch, depth, len(data.classes))
    model.load_state_dict(reference.state_dict())
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(reference(x), model(x))
    with torch.profiler.profile() as profile:
        reference(x)
    gathers = sum(event.count for event in profile.key_averages() if event.key == "aten::index")
    assert gathers == len(selecting_norms(arch, model)) > 0


def test_the_reference_trains():
    data = load_dataset("shapes", None, 64, 16)
    torch.manual_seed(0)
    reference = Reference("resnet", 11, data, 16, CPU)
    losses = [reference.epoch() for _ in range(4)]
    assert losses[-1] < losses[0]
