"""Pruning of single weights, and training in which zeros stay zero."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from main import train_step
from models import build_model
from netslim.weights import Compression, weights
from steps import make_step
from utils.methods.base import Method
from utils.methods.masks import masking, zero_smallest
from utils.methods.sas_admm import SasAdmm
from utils.paper.settings import SAS
from utils.training.step import Step


@pytest.mark.parametrize(
    ("depth", "ratio", "total", "kept", "factor", "factor_all"),
    [  # as the SAS-ADMM papers count
        (32, 0.85, 461_872, 69_839, "6.6134", "6.4358"),
        (56, 0.9, 848_944, 85_500, "9.9292", "9.5231"),
    ],
)
def test_published_compression_factors(depth, ratio, total, kept, factor, factor_all):
    model = build_model("resnet-basic", depth, 10)
    mask = zero_smallest(model, ratio)
    found = Compression.of(model)
    assert (found.weights, found.kept, int(mask.sum())) == (total, kept, kept)
    assert (f"{found.factor:.4f}", f"{found.factor_all:.4f}") == (factor, factor_all)


def test_the_smallest_weights_of_each_convolution_are_zeroed_and_none_of_linear_layers():
    model = nn.Sequential(nn.Conv2d(1, 10, 1, bias=False), nn.Flatten(), nn.Linear(10, 1))
    model[0].weight.data = torch.tensor([3, -1, 4, 1, -5, 9, -2, 6, 0.5, 8]).view(10, 1, 1, 1)
    mask = zero_smallest(model, 0.49)  # ⌊4.9⌋
    expected = [3, 0, 4, 0, -5, 9, 0, 6, 0, 8]
    assert model[0].weight.flatten().tolist() == expected
    assert mask.tolist() == [x != 0 for x in expected] + [True] * 10
    assert zero_smallest(model, 0.49).equal(mask)  # zeros are the smallest
    for width, ratio, zeros in ((8, 0.5, 4), (127, 0.85, 107), (100, 0.29, 29)):
        nn.init.ones_((layer := nn.Conv1d(1, width, 1, bias=False)).weight)
        assert int((~zero_smallest(nn.Sequential(layer), ratio)).sum()) == zeros


def test_linear_layers_are_pruned_if_they_have_most_of_the_weights():
    with torch.device("meta"):
        sizes = [w.numel() for w in weights(torchvision.models.alexnet()).values()]
    kept = sum(n - math.floor(0.9522 * n) for n in sizes)
    assert f"{sum(sizes) / kept:.1f}" == "20.9"  # as published for AlexNet
    for in_channels, zeros in ((1, 10 + 300), (30, 300)):
        model = nn.Sequential(nn.Conv1d(in_channels, 20, 1), nn.Linear(20, 30))
        assert int((~zero_smallest(model, 0.5)).sum()) == zeros


def zeros_of(step: Step) -> Tensor:
    return torch.cat([w.detach().flatten() for w in weights(step.model).values()]) == 0


SAS_ADMM = {name: value for name, value in vars(SAS).items() if name != "batch_size"}


def trained(kind: type[Method], **options: float) -> Step:
    step = make_step(method=lambda graph: kind(graph, **options))
    step.method.begin_epoch(0)
    for batch_index in step.batches.epoch_indices(0):
        train_step(step, batch_index)
    step.method.end_epoch(0.1)
    return step


@pytest.mark.parametrize(("kind", "options"), [(Method, {}), (SasAdmm, SAS_ADMM)])
def test_pruned_weights_stay_exactly_zero(kind, options):
    """Under Nesterov momentum and weight decay, too; not without the mask of the gradients."""
    masked = masking(kind, 0.7)
    step = trained(masked, **options)
    assert torch.equal(zeros_of(step), ~step.method.mask)
    assert int(zeros_of(step).sum()) > 10_000
    masked.before_step = kind.before_step
    assert zeros_of(trained(masked, **options)).sum() == 0
