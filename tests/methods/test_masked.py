"""Cutting weights, and retraining in which zeros stay zero."""

import copy
import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from models import build_model
from netslim.weights import Compression, weights
from steps import make_step
from utils.methods.base import Method
from utils.methods.masks import masking, zero_smallest
from utils.methods.sas_admm import SasAdmm
from utils.paper.settings import SAS
from utils.training.step import Step

# Section 1.4 of the SAS-ADMM papers' accounting: depth, share, weights, weights left, the factor of
# weights and that of all parameters.
COUNTS = [
    (20, 0.85, 268_336, "6.5764", "6.3932"),
    (32, 0.85, 461_872, "6.6134", "6.4358"),
    (44, 0.85, 655_408, "6.6287", "6.4534"),
    (56, 0.85, 848_944, "6.6370", "6.4630"),
    (110, 0.85, 1_719_856, "6.6513", "6.4796"),
    (20, 0.9, 268_336, "9.7861", "9.3634"),
    (32, 0.9, 461_872, "9.8733", "9.4606"),
    (44, 0.9, 655_408, "9.9094", "9.5009"),
    (56, 0.9, 848_944, "9.9292", "9.5231"),
    (110, 0.9, 1_719_856, "9.9632", "9.5612"),
]


@pytest.mark.parametrize(("depth", "ratio", "total", "factor", "of_all"), COUNTS)
def test_compression_factors_come_out_to_the_digit(depth, ratio, total, factor, of_all):
    model = build_model("resnet-basic", depth, 10)
    zero_smallest(model, ratio)
    found = Compression.of(model)
    assert found.weights == total
    assert (f"{found.factor:.4f}", f"{found.factor_all:.4f}") == (factor, of_all)


def test_what_is_left_of_resnet_32_and_56():
    for depth, ratio, left in ((32, 0.85, 69_839), (56, 0.9, 85_500)):
        model = build_model("resnet-basic", depth, 10)
        assert int(zero_smallest(model, ratio).sum()) == left == Compression.of(model).kept


def test_each_convolutions_smallest_go_and_no_linear_layers():
    model = nn.Sequential(nn.Conv2d(1, 10, 1, bias=False), nn.Flatten(), nn.Linear(10, 1))
    model[0].weight.data = torch.tensor([3, -1, 4, 1, -5, 9, -2, 6, 0.5, 8]).view(10, 1, 1, 1)
    mask = zero_smallest(model, 0.49)  # ⌊4.9⌋
    assert model[0].weight.flatten().tolist() == [3, 0, 4, 0, -5, 9, 0, 6, 0, 8]
    assert mask.tolist() == [True, False, True, False, True, True, False, True, False, True] + (
        [True] * 10
    )
    assert zero_smallest(copy.deepcopy(model), 0.49).equal(mask), "zeros are the smallest"


def test_equal_weights_are_cut_by_number():
    model = nn.Conv1d(1, 8, 1, bias=False)
    nn.init.ones_(model.weight)
    assert int(zero_smallest(nn.Sequential(model), 0.5).sum()) == 4


def test_a_share_is_of_the_count_and_not_a_percentile():
    model = nn.Sequential(nn.Conv1d(1, 127, 1, bias=False))
    assert int((~zero_smallest(model, 0.85)).sum()) == 107  # ⌊107.95⌋


def test_linear_layers_are_cut_where_they_have_most_of_the_weights():
    """20.9 times fewer, as the SAS-ADMM paper claims of an AlexNet."""
    with torch.device("meta"):
        sizes = [w.numel() for w in weights(torchvision.models.alexnet()).values()]
    kept = sum(n - math.floor(0.9522 * n) for n in sizes)
    assert f"{sum(sizes) / kept:.1f}" == "20.9"
    model = nn.Sequential(nn.Conv1d(1, 20, 1), nn.Linear(20, 30))
    assert int((~zero_smallest(model, 0.5)).sum()) == 10 + 300
    model = nn.Sequential(nn.Conv1d(30, 20, 1), nn.Linear(20, 30))
    assert int((~zero_smallest(model, 0.5)).sum()) == 300


def zeros_of(step: Step) -> Tensor:
    return torch.cat([w.detach().flatten() for w in weights(step.model).values()]) == 0


# With its settings in the papers.
SAS_ADMM = {name: value for name, value in vars(SAS).items() if name != "batch_size"}


def trained(kind: type[Method], **options: float) -> Step:
    step = make_step(method=lambda graph: kind(graph, **options))
    for epoch in range(3):
        step.method.begin(epoch)
        for where in step.batches.epoch_indices(epoch):
            step.launch(where)
        step.method.end_epoch(0.1)
    return step


@pytest.mark.parametrize("kind", [Method, SasAdmm])
def test_what_was_cut_stays_exactly_zero(kind):
    """Under Nesterov momentum and weight decay, too."""
    step = trained(masking(kind, 0.7), **(SAS_ADMM if kind is SasAdmm else {}))
    assert torch.equal(zeros_of(step), ~step.method.mask)
    assert int(zeros_of(step).sum()) > 10_000


def test_unmasked_gradients_bring_it_back():
    kind = masking(Method, 0.7)
    kind.before_step = Method.before_step
    assert zeros_of(trained(kind)).sum() == 0


def test_momentum_from_before_the_cut_would_bring_it_back():
    step = make_step(method=masking(Method, 0.7))
    for parameter in weights(step.model).values():
        step.optimizer.state[parameter]["momentum_buffer"].fill_(1)
    step.launch(step.batches.epoch_indices(0)[0])
    assert zeros_of(step).sum() == 0
