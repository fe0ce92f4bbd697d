"""The pruned model of the repository computes what its README says."""

import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from utils.cost import cost
from utils.files import checkpoint

FOLDER = Path(__file__).parents[2] / "models" / "pretrained"
README = (FOLDER / "README.md").read_text()
CORRECT = 845  # of the first 100 test images of each class


@pytest.fixture(scope="module")
def pretrained() -> checkpoint.Checkpoint:
    return checkpoint.load(FOLDER / "resnet_basic_20_half.pth.tar")


def test_it_has_the_size_of_its_readme(pretrained):
    network = pretrained.network
    counted = cost(network.model)
    for name, number in (("parameters", counted.parameters), ("FLOPs", counted.flops)):
        assert re.search(rf"^\| {name}.* \| {number:,} \|$", README, re.MULTILINE)
    assert sum(network.widths) == 130


@pytest.mark.skipif("CIFAR10_JPEG" not in os.environ, reason="needs the images")
@torch.no_grad()
def test_it_has_its_accuracy(pretrained):
    correct = 0
    for label, name in enumerate(pretrained.classes):
        files = sorted(Path(os.environ["CIFAR10_JPEG"], "test", name).iterdir())[:100]
        images = torch.stack([pil_to_tensor(Image.open(file)) for file in files]) / 255
        logits = pretrained.network.model.eval()(normalize(images, *pretrained.norm))
        correct += int((logits.argmax(1) == label).sum())
    assert abs(correct - CORRECT) <= 1
