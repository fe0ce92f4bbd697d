"""Lp-ADMM on real pictures: zeros of z appear, and masking them costs next to nothing.

``PYTHONPATH=. python tests/methods/test_lp_on_pictures.py 1 2 3``, where CIFAR10_JPEG names the
folder of the pictures, prints the runs of these seeds, and baselines.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netslim
from netslim import Graph
from utils.data.datasets import load_dataset
from utils.methods.base import Method
from utils.methods.lp_admm import LpAdmm

WIDTHS, EPOCHS, BATCH = (16, 32, 32, 64), 12, 32


def pictures() -> list[tuple[Tensor, Tensor]]:
    """2,000 training and 1,000 test pictures at 16×16."""
    data = load_dataset("cifar10", Path(os.environ["CIFAR10_JPEG"]), 2000, 1000)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    scaled = [(((p.images / 255 - mean) / std), p.labels) for p in (data.train, data.test)]
    return [(F.avg_pool2d(images.movedim(3, 1), 2), labels) for images, labels in scaled]


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for i, out in enumerate(WIDTHS):
        layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i < 2 else []
        width = out
        nn.init.constant_(layers[-2 - (i < 2)].weight, 0.5)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * (model.eval()(images).argmax(1) == labels).double().mean().item()


def train(make: Callable[[Graph], Method], seed: int) -> tuple[float, float, dict[str, int]]:
    """Accuracy in percent, and with γ := 0 where z = 0; how many of the factors are zero."""
    (images, labels), tests = pictures()
    torch.manual_seed(seed)
    model = network()
    method = make(netslim.analyze(model, images[:2]))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True)
    for epoch in range(EPOCHS):
        lr = 0.1 if epoch < 0.8 * EPOCHS else 0.01
        optimizer.param_groups[0]["lr"] = lr
        model.train()
        for where in torch.randperm(len(labels)).split(BATCH):
            F.cross_entropy(model(images[where]), labels[where]).backward()
            method.before_step()
            optimizer.step()
            method.step(lr)
            optimizer.zero_grad()
        method.end_epoch(lr)
    whole, zeros = accuracy(model, *tests), method.zero_counts()
    method.write(method.read().masked_fill(method.factor(method.pruned_by) == 0, 0))
    return whole, accuracy(model, *tests), zeros


def epochwise(graph: Graph) -> LpAdmm:
    return LpAdmm(graph, 0.012, rho=0.05)


def stepwise(graph: Graph) -> LpAdmm:
    return LpAdmm(graph, 0.008, rho=1.0, z_every=1)


@pytest.mark.skipif(
    "CIFAR10_JPEG" not in os.environ, reason="CIFAR10_JPEG does not name a folder of the pictures"
)
@pytest.mark.parametrize(("make", "low", "high"), [(epochwise, 50, 110), (stepwise, 45, 90)])
def test_zeros_of_z_can_be_masked(make, low, high):
    whole, masked, zeros = train(make, 1)
    assert low <= zeros["z"] <= high and zeros["gamma"] == 0
    assert whole > 30 and masked >= whole - 2.5


if __name__ == "__main__":
    for seed in map(int, sys.argv[1:]):
        for make in (Method, epochwise, stepwise):
            print(make.__name__, seed, *train(make, seed), flush=True)
