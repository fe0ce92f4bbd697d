"""Masks, and the surgery: a slim network computes what the masked one does."""

import copy
import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import build_model, full_cfg, restore
from utils.pruning import apply_masks, prune_masks
from utils.slimming import batch_norms

SLIM = {a: importlib.import_module(f"{a}_prune").slim for a in ("vgg", "resnet", "densenet")}
DEPTHS = {"vgg": (11, 13), "resnet": (11, 20), "densenet": (7, 10, 13)}


def masks_of(
    gammas: list[list[float]], biases: list[list[float]] | None = None, percent: float = 0
):
    if biases is None:
        biases = [[0.0] * len(gamma) for gamma in gammas]
    tensors = [[torch.tensor(x) for x in xs] for xs in (gammas, biases)]
    return [mask.int().tolist() for mask in prune_masks(*tensors, percent)]


def test_percent_0_prunes_the_zeros_only():
    assert masks_of([[0.0, 1e-30, -0.5], [0.0, 0.2]]) == [[0, 1, 1], [0, 1]]
    assert masks_of([[0.3, -0.1], [0.2, 0.4]]) == [[1, 1], [1, 1]]


def test_a_subnormal_gamma_is_zero():
    assert masks_of([[1e-39, -2.8e-44, 0.5]]) == [[0, 0, 1]]


def test_percent_prunes_the_smallest_over_all_layers_and_ties_with_the_last():
    gammas = [[0.1, -0.2, 0.3, 0.4], [-0.5, 0.6, 0.2, 0.8]]
    assert masks_of(gammas, percent=0.124) == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert masks_of(gammas, percent=0.125) == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert masks_of(gammas, percent=0.25) == [[0, 0, 1, 1], [1, 1, 0, 1]]  # two are 0.2
    assert masks_of(gammas, percent=0.5) == [[0, 0, 0, 1], [1, 1, 0, 1]]


def test_zeros_count_towards_percent():
    assert masks_of([[0.0, 0.0, 0.3, 0.4]], percent=0.5) == [[0, 0, 1, 1]]
    assert masks_of([[0.0, 0.0, 0.3, 0.4]], percent=0.75) == [[0, 0, 0, 1]]


def test_percent_is_taken_exactly():
    """0.29 × 100 is 28.999… in binary floating point, and 29 channels to the user."""
    gammas = [[(i + 1) / 100 for i in range(100)]]
    assert sum(masks_of(gammas, percent=0.29)[0]) == 71


def test_an_empty_layer_keeps_its_largest_gamma_or_else_its_largest_bias():
    assert masks_of([[0.1, -0.3, 0.2], [1.0]], percent=1) == [[0, 1, 0], [1]]
    assert masks_of([[0.0, 0.0, 0.0]], [[-3.0, -1.0, -2.0]]) == [[0, 1, 0]]
    assert masks_of([[0.0, 1e-40, 0.0]], [[-3.0, -4.0, 2.0]]) == [[0, 0, 1]]


@pytest.mark.parametrize("percent", [-0.1, 1.1, float("nan")])
def test_a_percent_out_of_range_is_refused(percent):
    with pytest.raises(ValueError, match="percent"):
        masks_of([[1.0]], percent=percent)


@st.composite
def networks(draw):
    """A network of random depth and cfg with random weights and statistics, and random masks."""
    arch = draw(st.sampled_from(sorted(SLIM)))
    depth = draw(st.sampled_from(DEPTHS[arch]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    cfg = full_cfg(arch, depth)
    if draw(st.booleans()):  # one that has been pruned before
        share = draw(st.floats(0.02, 1))
        cfg = [w if w == "M" else max(1, round(w * share)) for w in cfg]
    model = build_model(arch, depth, 3, cfg).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
        index = getattr(module, "index", None)
        if index is not None:
            index.copy_(torch.randperm(module.channels)[: len(index)].sort().values)
    masks = []
    for bn in batch_norms(model):
        kind = draw(st.sampled_from(("some", "one", "all", "empty")))
        share = {"some": draw(st.floats(0.05, 0.95)), "all": 1.0}.get(kind, 0.0)
        mask = torch.rand(bn.num_features) < share
        if kind == "empty":  # what keep-one leaves of it
            mask[bn.bias.argmax()] = True
        elif not mask.any():
            mask[torch.randint(bn.num_features, ())] = True
        masks.append(mask)
    return arch, depth, model, masks


@settings(max_examples=60, deadline=None)
@given(networks())
def test_slim_computes_what_masked_does(case):
    arch, depth, model, masks = case
    before = copy.deepcopy(model.state_dict())
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    slim = SLIM[arch](masked, masks)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, actual = masked.double()(x.double()), slim.double()(x.double())
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    kept = iter(int(mask.sum()) for mask in masks)
    cfg = [w if w == "M" else next(kept) for w in full_cfg(arch, depth)]
    same = build_model(arch, depth, 3, cfg)
    assert {k: v.shape for k, v in same.state_dict().items()} == {
        k: v.shape for k, v in slim.state_dict().items()
    }
    assert restore(slim.state_dict()).cfg == cfg


@settings(max_examples=15, deadline=None)
@given(networks(), st.data())
def test_pruning_twice_is_pruning_once(case, data):
    """Surgery on a slim network selects from what the first surgery selected."""
    arch, _, model, masks = case
    apply_masks(model, masks)
    once = SLIM[arch](model, masks)
    seconds = []
    for mask in masks:
        second = torch.rand(int(mask.sum())) < data.draw(st.floats(0, 1))
        second[0] = True
        seconds.append(second)
    apply_masks(once, seconds)
    twice = SLIM[arch](once, seconds)
    both = [mask.clone() for mask in masks]
    for mask, second in zip(both, seconds, strict=True):
        mask[mask.clone()] = second
    apply_masks(model, both)
    at_once = SLIM[arch](model, both)
    state = twice.state_dict()
    assert all(torch.equal(state[k], v) for k, v in at_once.state_dict().items())


@pytest.mark.parametrize(("arch", "depth"), [("vgg", 11), ("resnet", 20), ("densenet", 10)])
def test_masking_dead_channels_changes_no_bit(arch, depth):
    torch.manual_seed(0)
    model = build_model(arch, depth, 10).eval()
    with torch.no_grad():
        for bn in batch_norms(model):
            dead = torch.rand(bn.num_features) < 0.5
            bn.weight.masked_fill_(dead, 0)
            bn.bias.uniform_(-1, 1)
            bn.bias[dead] = -bn.bias[dead].abs()
    norms = batch_norms(model)
    masks = prune_masks([bn.weight for bn in norms], [bn.bias for bn in norms])
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), masked(x))
    assert sum(int((~mask).sum()) for mask in masks) > 0.4 * sum(map(len, masks))


@pytest.mark.parametrize(("arch", "depth"), [("vgg", 11), ("resnet", 11), ("densenet", 10)])
def test_gradients_of_the_surviving_weights_agree(arch, depth):
    torch.manual_seed(0)
    model = build_model(arch, depth, 10).double().eval()
    masks = [torch.rand(bn.num_features) < 0.6 for bn in batch_norms(model)]
    for mask in masks:
        mask[0] = True
    apply_masks(model, masks)
    slim = SLIM[arch](model, masks).double()
    x, labels = torch.randn(4, 3, 32, 32).double(), torch.arange(4)
    for network in (model, slim):
        nn.functional.cross_entropy(network(x), labels).backward()
    # The surgery applied to the gradients must give the slim network's gradients.
    gradients = copy.deepcopy(model)
    for parameter, source in zip(gradients.parameters(), model.parameters(), strict=True):
        parameter.data.copy_(source.grad)
    expected = dict(SLIM[arch](gradients, masks).double().named_parameters())
    for name, parameter in slim.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].data, msg=name)
