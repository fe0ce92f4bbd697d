"""SAS-ADMM on real pictures: a ResNet-8 with basic blocks at 16×16, beside the plain way.

``PYTHONPATH=. python tests/methods/test_sas_pictures.py 1 2 3``, where CIFAR10_JPEG names the
folder of the pictures, prints all of it for these seeds.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import netslim
from models import build_model
from netslim.weights import Compression
from utils.data.batches import crop_and_flip
from utils.data.datasets import load_dataset
from utils.methods.base import Method
from utils.methods.masks import masking, zero_smallest
from utils.methods.sas_admm import SasAdmm
from utils.paper.settings import SAS, learning_rate

BATCH, PICTURES, EPOCHS = 32, 2000, 6
SETTINGS = {name: value for name, value in vars(SAS).items() if name != "batch_size"}
PLACE = os.environ.get("CIFAR10_JPEG")


class Trial:
    """Training and testing with nothing of the program around the methods."""

    def __init__(self, seed: int) -> None:
        data = load_dataset("cifar10", Path(PLACE or ""), PICTURES, PICTURES)
        self.train, self.test = data.train, data.test
        self.mean, self.std = torch.tensor(data.mean), torch.tensor(data.std)
        self.random = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)

    def inputs(self, images: Tensor) -> Tensor:
        x = images.float().div(255).sub(self.mean).div(self.std).permute(0, 3, 1, 2)
        return F.avg_pool2d(x, 2)

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        top, left = torch.randint(9, (2, len(chosen)), generator=self.random)
        flip = torch.randint(2, (len(chosen),), generator=self.random).bool()
        images = crop_and_flip(self.train.images[chosen], top, left, flip)
        return self.inputs(images), self.train.labels[chosen]

    def retake(self, model: nn.Module) -> None:
        with torch.no_grad():
            update_bn((self.inputs(x) for x in self.train.images.split(250)), model)

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        model.eval()
        logits = torch.cat([model(self.inputs(x)) for x in self.test.images.split(500)])
        model.train()
        return 100 * (logits.argmax(1) == self.test.labels).double().mean().item()

    def by_sgd(self, model: nn.Module, kind: type[Method] = Method, nesterov=True) -> None:
        method = kind(analyzed(model))
        optimizer = torch.optim.SGD(
            model.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=nesterov
        )
        for epoch in range(EPOCHS):
            optimizer.param_groups[0]["lr"] = learning_rate(epoch, EPOCHS)
            for chosen in torch.randperm(PICTURES, generator=self.random).split(BATCH):
                images, labels = self.batch(chosen)
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                method.before_step()
                optimizer.step()

    def by_sas(self, model: nn.Module, outer: int, k0: int, kind=SasAdmm, **options) -> SasAdmm:
        settings = {**SETTINGS, "inner": 25, "k0": k0, **options}
        method = kind(analyzed(model), **settings)
        for epoch in range(outer):
            method.begin(epoch)
            for _ in range(method.steps(epoch)):
                images, labels = self.batch(
                    torch.randint(PICTURES, (BATCH,), generator=self.random)
                )
                model.zero_grad()
                method.before_forward()
                F.cross_entropy(model(images), labels).backward()
                method.before_step()
                method.step(0.1)
            method.end_epoch(0.1)
        with method.solution(lambda: self.retake(model)):
            return method


def analyzed(model: nn.Module) -> netslim.Graph:
    return netslim.analyze(model, torch.zeros(2, 3, 16, 16))


def zeros(model: nn.Module) -> int:
    found = Compression.of(model)
    return found.weights - found.kept


def fresh() -> nn.Module:
    """With the initial values of SAS-ADMM, for either way."""
    model = build_model("resnet-basic", 8, 10)
    SasAdmm.initialise(model)
    return model.train()


def thawed(model: nn.Module) -> nn.Module:
    """Another one with its weights, all of which train."""
    other = fresh()
    other.load_state_dict(model.state_dict())
    return other


def by_sas_admm(seed: int, again: bool) -> dict[str, float]:
    """SAS-ADMM, cut by 85 %, retrained by SGD; and by SAS-ADMM ``again``."""
    trial, model = Trial(seed), fresh()
    trial.by_sas(model, 12, 8, average_from=10)
    found = {"SAS": trial.accuracy(model)}
    small = thawed(model)
    zero_smallest(small, 0.85)
    found["cut"] = trial.accuracy(small)
    trial.retake(small)
    found["cut, statistics retaken"] = trial.accuracy(small)
    retrained = thawed(model)
    trial.by_sgd(retrained, masking(Method, 0.85), nesterov=False)
    found["retrained by SGD"] = trial.accuracy(retrained)
    found["zeros, SGD"] = zeros(retrained)
    if again:
        trial.by_sas(model, 6, 4, masking(SasAdmm, 0.85), lambda_=0, average_from=5)
        found["retrained by SAS"] = trial.accuracy(model)
        found["zeros, SAS"] = zeros(model)
    return found


def control(seed: int) -> dict[str, float]:
    """Plain training as long, cut by 85 %, retrained."""
    trial, model = Trial(seed), fresh()
    trial.by_sgd(model)
    found = {"dense SGD": trial.accuracy(model)}
    trial.by_sgd(model, masking(Method, 0.85), nesterov=False)
    return found | {"dense SGD, cut and retrained": trial.accuracy(model)}


@pytest.mark.skipif(PLACE is None, reason="CIFAR10_JPEG names no folder of pictures")
def test_it_learns_and_what_is_cut_is_learnt_again():
    """Bands about what was seen, 5 points either way."""
    found = by_sas_admm(1, again=False)
    seen = {"SAS": 37.9, "cut, statistics retaken": 25.7, "retrained by SGD": 40.9}
    assert {name: found[name] for name in seen} == pytest.approx(seen, abs=5)
    assert found["cut"] < found["cut, statistics retaken"]
    assert found["cut, statistics retaken"] < found["SAS"] - 5, "cutting costs nothing"
    assert found["retrained by SGD"] > found["cut, statistics retaken"] + 12
    assert found["zeros, SGD"] == 63_033


if __name__ == "__main__":
    for seed in map(int, sys.argv[1:]):
        for name, value in (by_sas_admm(seed, again=True) | control(seed)).items():
            print(f"{seed}  {name:<30} {value:g}", flush=True)
