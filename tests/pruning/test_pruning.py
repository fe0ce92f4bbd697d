"""Masks, and the surgery: a slim network computes what the masked one does."""

import copy
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import netslim
from models import ARCHITECTURES, build_model
from utils.methods.base import count_of, is_zero
from utils.network import Network, fresh, restore, with_weights
from utils.pruning.plan import apply_plan, filter_sizes, plan

NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 10), ("resnet-basic", 8)]
DEPTHS = {"vgg": (11, 13), "resnet": (11, 20), "densenet": (7, 10, 13), "resnet-basic": (8, 20)}


def masks_of(
    gammas: list[list[float]], biases: list[list[float]] | None = None, percent: float = 0
):
    norms = [norm(gamma) for gamma in gammas]
    for bn, bias in zip(norms, biases or [], strict=biases is not None):
        bn.bias.data = torch.tensor(bias)
    zeros = is_zero(torch.cat([bn.weight for bn in norms]))
    masks = plan(norms, zeros, count_of(percent, len(zeros)))
    return [mask.int().tolist() for mask in masks]


def norm(gamma: list[float]) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(len(gamma))
    bn.weight.data = torch.tensor(gamma)
    return bn


def dropped(network: Network, masks: list[torch.Tensor]) -> Network:
    """The network with γ = bias = 0 in the removed channels."""
    masked = with_weights(network, copy.deepcopy(network.model))
    apply_plan(layers_of(masked), masks, torch.zeros_like(torch.cat(masks)))
    return masked


def layers_of(network: Network) -> list[nn.BatchNorm2d]:
    return [network.model.get_submodule(name) for name in network.norms]


def slim(network: Network, masks: list[torch.Tensor]) -> Network:
    """What ``masks`` keep; streams stay whole."""
    return network.remove(network.plan(masks, streams=False))


def test_percent_0_prunes_the_zeros_only():
    assert masks_of([[0.0, 1e-30, -0.5], [0.0, 0.2]]) == [[0, 1, 1], [0, 1]]
    assert masks_of([[0.3, -0.1], [0.2, 0.4]]) == [[1, 1], [1, 1]]


def test_a_subnormal_gamma_is_zero():
    assert masks_of([[1e-39, -2.8e-44, 0.5]]) == [[0, 0, 1]]


def test_percent_prunes_the_smallest_over_all_layers():
    gammas = [[0.1, -0.2, 0.3, 0.4], [-0.5, 0.6, 0.2, 0.8]]
    assert masks_of(gammas, percent=0.124) == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert masks_of(gammas, percent=0.125) == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert masks_of(gammas, percent=0.25) == [[0, 1, 1, 1], [1, 1, 0, 1]]  # one of two 0.2
    assert masks_of(gammas, percent=0.5) == [[0, 0, 0, 1], [1, 1, 0, 1]]


def test_of_equally_large_ones_the_smaller_bias_goes_and_then_the_one_further_behind():
    gammas, biases = [[0.5] * 4, [0.5] * 2], [[0.0, -0.1, 0.0, 0.2], [0.0, 0.0]]
    zeros = torch.zeros(6, dtype=torch.bool)
    layers = [norm(gamma) for gamma in gammas]
    for bn, bias in zip(layers, biases, strict=True):
        bn.bias.data = torch.tensor(bias)
    order = []
    for count in range(1, 7):
        gone = (~torch.cat(plan(layers, zeros, count))).nonzero().flatten().tolist()
        order += sorted(set(gone) - set(order))
        assert set(order) == set(gone), "what is gone of fewer is gone of more"
    assert order == [1, 2, 5, 0]  # and each layer keeps one: 3 of the largest bias, 4 in front


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_never_more_go_than_was_asked_for_or_are_zero(data):
    """However many are equal, with layers that go together and without."""
    widths = data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=4))
    widths[1] = widths[0]
    ties = data.draw(st.sampled_from([(), [(0, 1)]]))
    few = st.sampled_from([0.0, 0.25, 0.5])
    layers = [norm(data.draw(st.lists(few, min_size=n, max_size=n))) for n in widths]
    for bn in layers:
        n = len(bn.bias)
        bn.bias.data = torch.tensor(data.draw(st.lists(few, min_size=n, max_size=n)))
    total = sum(widths)
    zeros = torch.tensor(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)))
    floor = data.draw(st.sampled_from([0.0, 0.5]))
    before = None
    for count in range(total + 1):
        masks = plan(layers, zeros, count, floor=floor, ties=ties)
        for tie in ties:
            both = masks[tie[0]] & masks[tie[1]]
            assert both.any()
            masks[tie[0]] = masks[tie[1]] = both
        dead = list(zeros.split(widths))
        for tie in ties:
            dead[tie[0]] = dead[tie[1]] = dead[tie[0]] | dead[tie[1]]
        kept = torch.cat(masks)
        gone = int((~kept).sum())
        assert gone <= max(count, int(torch.cat(dead).sum()))
        if not floor and count == total // 2 and gone < count:  # less only where it must be
            assert any(int(mask.sum()) == 1 for mask in masks) or ties
        # More never keeps more of a layer: what a target's binary search rests on.
        left = [int(mask.sum()) for mask in masks]
        assert before is None or all(a >= b for a, b in zip(before, left, strict=True))
        before = left


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


def test_keep_one_goes_by_gamma_under_a_mask_of_xi_too():
    bn = norm([0.1, 0.9, 0.0])
    bn.bias.data = torch.tensor([2.0, -1.0, 3.0])
    assert plan([bn], torch.ones(3, dtype=torch.bool))[0].tolist() == [0, 1, 0]


def test_every_layer_keeps_its_floor_survivors_first_then_the_largest():
    layers = [norm([0.9, 0.1, 0.2, 0.3]), norm([0.0, 0.0, 0.0, 0.0])]
    layers[1].bias.data = torch.tensor([-1.0, 2.0, 1.0, -2.0])
    zeros = torch.tensor([True, False, False, True, *[True] * 4])

    def masks(count: int, floor: float) -> list[list[int]]:
        return [mask.int().tolist() for mask in plan(layers, zeros, count, floor=floor)]

    assert masks(0, 0.49) == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert masks(7, 0.5) == [[1, 0, 1, 0], [0, 1, 1, 0]]  # 0.2 survived, 0.9 did not
    assert masks(7, 0.75) == [[1, 0, 1, 1], [1, 1, 1, 0]]
    assert masks(8, 1.0) == [[1] * 4] * 2


def test_a_floor_goes_by_what_the_pruning_goes_by():
    """By filters' norms, where there are such: the channel of the largest filter stays."""
    layers = [norm([0.9, 0.1, 0.2, 0.3]), norm([0.5, 0.7, 0.6, 0.4])]
    sizes = torch.tensor([0.0, 0.3, 1.0, 0.6, *[torch.inf] * 4])  # the second one's is a stream

    def masks(zeros: list[bool], floor: float) -> list[list[int]]:
        found = plan(layers, torch.tensor(zeros), 4, sizes, floor)
        return [mask.int().tolist() for mask in found]

    assert masks([False] * 8, 0.0) == [[0, 0, 1, 0], [1] * 4]
    assert masks([False] * 8, 0.5) == [[0, 0, 1, 1], [1] * 4]
    assert masks([False] * 4 + [True, True, False, True], 0.5)[1] == [0, 1, 1, 0]


def test_channels_that_go_together_count_by_the_smallest_and_stay_together():
    gammas = [[0.1, 0.9, 0.8, 0.7], [0.6, 0.2, 0.7, 0.5], [0.3, 0.15, 1.0]]
    layers = [norm(gamma) for gamma in gammas]
    none = torch.zeros(11, dtype=torch.bool)

    def kept(zeros: torch.Tensor, count: int, floor: float = 0.0) -> list[list[int]]:
        masks = plan(layers, zeros, count, floor=floor, ties=[(0, 1)])
        together = [masks[0] & masks[1], masks[2]]
        return [mask.nonzero().flatten().tolist() for mask in together]

    assert kept(none, 2) == [[1, 2, 3], [0, 1, 2]]
    assert kept(none, 3) == [[1, 2, 3], [0, 2]]  # without ties 0.2 would be the third
    assert kept(none, 4) == [[1, 2, 3], [0, 2]]  # of the pair of 0.2 only one was asked for
    assert kept(none, 5) == [[2, 3], [0, 2]]
    assert kept(none, 11) == [[2], [2]]  # the same one of both
    assert kept(none, 11, 0.5) == [[2, 3], [2]]
    assert kept(none.index_fill(0, torch.tensor([2, 4, 5, 7]), True), 0) == [[2], [0, 1, 2]]
    for bn, biases in zip(layers, [[0.0, 1.0, 2.0, 3.0], [4.0, 3.0, 5.0, 1.0]], strict=False):
        bn.bias.data = torch.tensor(biases)
        bn.weight.data.zero_()
    zeros = none.index_fill(0, torch.arange(8), True)
    assert kept(zeros, 0)[0] == [2]  # what comes last is what is read
    # What only goes along is not small itself: what it emits then is folded.
    assert plan([norm([0.0, 1.0]), norm([1.0, 1.0])], zeros[7:], ties=[(0, 1)])[1].all()


@pytest.mark.parametrize(("arch", "depth"), [("vgg", 11), ("resnet", 11)])
def test_filters_are_compared_by_their_norms_scaled_in_every_layer(arch, depth):
    torch.manual_seed(0)
    network = fresh(arch, depth, 2, 32)
    layers = layers_of(network)
    flat = filter_sizes(network)
    sizes = flat.split(network.widths)
    modules = dict(network.model.named_modules())
    # The convolution right before a batch norm is the one that makes its channels, in these.
    before = {
        "vgg": lambda n: f"feature.{int(n.split('.')[1]) - 1}",
        "resnet": lambda n: {"bn2": n[:-3] + "conv1", "bn3": n[:-3] + "conv2"}.get(n[-3:]),
    }
    streams = 0
    for (name, bn), size in zip(network.norms.items(), sizes, strict=True):
        if maker := before[arch](name):
            norm = modules[maker].weight.abs().sum((1, 2, 3))
            scaled = (norm - norm.min()) / (norm.max() - norm.min())
            torch.testing.assert_close(size, scaled.detach())
        else:
            assert size.isinf().all() and len(size) == bn.num_features
            streams += 1
    assert streams == {"vgg": 0, "resnet": 4}[arch]
    own = int(flat.isfinite().sum())
    masks = plan(layers, torch.zeros_like(flat, dtype=torch.bool), own // 2, flat)
    assert int((~torch.cat(masks)).sum()) == own // 2
    for mask, size in zip(masks, sizes, strict=True):
        assert mask[size.argmax()]
        assert (size[~mask] <= size[mask].min()).all()


def randomise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)


def random_masks(network: Network, share: float) -> list[torch.Tensor]:
    masks = [torch.rand(width) < share for width in network.widths]
    for mask in masks:
        mask[torch.randint(len(mask), ())] |= not mask.any()
    return masks


analyzed = cache(lambda arch, depth: fresh(arch, depth, 3, 32))


@st.composite
def networks(draw):
    """A network of random depth, maybe pruned before, with random content, and random masks."""
    arch = draw(st.sampled_from(sorted(ARCHITECTURES)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    depth = draw(st.sampled_from(DEPTHS[arch]))
    network = with_weights(analyzed(arch, depth), build_model(arch, depth, 3).eval())
    if draw(st.booleans()):
        before = random_masks(network, draw(st.floats(0.02, 1)))
        network = network.remove(network.plan(before, streams=draw(st.booleans())))
    randomise(network.model)
    masks = []
    for bn in network.norms.values():
        kind = draw(st.sampled_from(("some", "one", "all", "empty")))
        share = {"some": draw(st.floats(0.05, 0.95)), "all": 1.0}.get(kind, 0.0)
        mask = torch.rand(bn.num_features) < share
        if kind == "empty":  # what keep-one leaves of it
            mask[bn.bias.argmax()] = True
        elif not mask.any():
            mask[torch.randint(bn.num_features, ())] = True
        masks.append(mask)
    return network, masks


@settings(max_examples=30, deadline=None)
@given(networks())
def test_slim_computes_what_masked_does(case):
    network, masks = case
    before = copy.deepcopy(network.model.state_dict())
    masked = dropped(network, masks)
    small = slim(masked, masks)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, actual = (n.model.double()(x.double()) for n in (masked, small))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[k], v) for k, v in network.model.state_dict().items())

    again = restore(small.model.state_dict())
    kept = iter(int(mask.sum()) for mask in masks)
    cfg = [w if w == "M" else next(kept) for w in network.cfg]
    assert small.cfg == cfg and str(again.model) == str(small.model)
    assert (again.arch, again.depth, again.num_classes) == (network.arch, network.depth, 3)
    state, read = small.model.state_dict(), again.model.state_dict()
    assert state.keys() == read.keys()
    assert all(torch.equal(read[key], value.to(read[key])) for key, value in state.items())


@settings(max_examples=15, deadline=None)
@given(networks(), st.data())
def test_pruning_twice_is_pruning_once(case, data):
    """Surgery on a slim network selects from what the first surgery selected."""
    network, masks = case
    once = slim(dropped(network, masks), masks)
    seconds = []
    for mask in masks:
        second = torch.rand(int(mask.sum())) < data.draw(st.floats(0, 1))
        second[0] = True
        seconds.append(second)
    twice = slim(dropped(once, seconds), seconds)
    both = [mask.clone() for mask in masks]
    for mask, second in zip(both, seconds, strict=True):
        mask[mask.clone()] = second
    state = twice.model.state_dict()
    at_once = slim(dropped(network, both), both).model.state_dict()
    assert state.keys() == at_once.keys()
    assert all(torch.equal(state[k], v) for k, v in at_once.items())


@pytest.mark.parametrize(
    ("arch", "depth"), [("vgg", 11), ("resnet", 20), ("densenet", 10), ("resnet-basic", 8)]
)
def test_masking_dead_channels_changes_no_bit(arch, depth):
    torch.manual_seed(0)
    network = fresh(arch, depth, 10, 32)
    network.model.eval()
    norms = layers_of(network)
    with torch.no_grad():
        for bn in norms:
            dead = torch.rand(bn.num_features) < 0.5
            bn.weight.masked_fill_(dead, 0)
            bn.bias.uniform_(-1, 1)
            bn.bias[dead] = -bn.bias[dead].abs()
    zeros = is_zero(torch.cat([bn.weight for bn in norms]))
    masked = with_weights(network, copy.deepcopy(network.model))
    masks = plan(norms, zeros)
    apply_plan(layers_of(masked), masks, zeros)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.model(x), masked.model(x))
    assert sum(int((~mask).sum()) for mask in masks) > 0.4 * sum(map(len, masks))


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_gradients_of_the_surviving_weights_agree(arch, depth):
    torch.manual_seed(0)
    network = fresh(arch, depth, 10, 32)
    network.model.double().eval()
    masks = [torch.rand(width) < 0.6 for width in network.widths]
    for mask in masks:
        mask[0] = True
    network = dropped(network, masks)
    removal = network.plan(masks, streams=False)
    small = network.remove(removal)
    x, labels = torch.randn(4, 3, 32, 32).double(), torch.arange(4)
    for each in (network, small):
        nn.functional.cross_entropy(each.model(x), labels).backward()
    # What stays of the gradients must be the slim network's gradients.
    whole = dict(network.model.named_parameters())
    for name, parameter in small.model.named_parameters():
        full = removal.full_name(name)
        torch.testing.assert_close(parameter.grad, removal.part(full, whole[full].grad), msg=name)


@settings(max_examples=25, deadline=None)
@given(networks())
def test_constants_of_removed_channels_are_folded_into_what_follows(case):
    """Removed channels emit ReLU(bias); slim gives the same answers."""
    network, masks = case
    network.model.double()
    apply_plan(layers_of(network), masks, torch.ones_like(torch.cat(masks)))
    small = slim(network, masks)
    x = torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        torch.testing.assert_close(small.model(x), network.model(x), rtol=1e-9, atol=1e-9)


def test_a_dropped_channel_is_not_folded():
    """What --percent removes alive goes with its bias, as in original network slimming."""
    bn = nn.BatchNorm2d(3)
    nn.init.ones_(bn.bias)
    masks, zeros = [torch.tensor([True, False, False])], torch.tensor([False, True, False])
    apply_plan([bn], masks, zeros)
    assert bn.weight.tolist() == [1, 0, 0]
    assert bn.bias.tolist() == [1, 1, 0]


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_what_is_cut_can_be_put_back(arch, depth):
    torch.manual_seed(0)
    network = fresh(arch, depth, 10, 32)
    masks = [torch.rand(width) < 0.5 for width in network.widths]
    for mask in masks:
        mask[0] = True
    before = copy.deepcopy(network.model.state_dict())
    removal = network.plan(masks, streams=False)
    small = network.remove(removal).model.state_dict()
    names = {key: removal.full_name(key) for key in small if not key.endswith("select.index")}
    assert set(names.values()) == before.keys()
    part = {key: removal.part(full, before[full]) + 1 for key, full in names.items()}
    assert all(part[key].shape == small[key].shape for key in part)
    removal.put_back(part, network.model.state_dict())
    for key, value in network.model.state_dict().items():
        there = torch.ones_like(value, dtype=torch.bool)
        for axis, kept in enumerate(removal.index.get(key, ())):
            stays = torch.zeros(value.shape[axis], dtype=torch.bool).index_fill(0, kept, True)
            there &= stays.view(-1, *[1] * (value.dim() - 1 - axis))
        assert torch.equal(value, torch.where(there, before[key] + 1, before[key]))


def test_a_constant_is_folded_exactly_whatever_the_border_of_a_convolution():
    torch.manual_seed(0)
    for padding, stride, dilation, pixels in product(range(3), (1, 2, 3), (1, 2), (2, 3, 5, 8)):
        if pixels + 2 * padding < 2 * dilation + 1:
            continue  # there is no output
        conv = nn.Conv2d(4, 4, 3, stride, padding, dilation, bias=False)
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), conv)
        model.append(nn.BatchNorm2d(4)).double().eval()
        with torch.no_grad():
            model[1].weight[:3] = 0
            model[1].bias.copy_(torch.tensor([1.0, 1, 1, 0]) * torch.rand(4))
        x, mask = torch.randn(2, 3, pixels, pixels).double(), torch.arange(4) == 3
        small, report = netslim.prune(model, {"1": mask}, x)
        assert report.carriers == (padding > 0) and report.removed == 3 - report.carriers
        torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_masks_of_other_batch_norms_are_refused_in_one_line():
    network = fresh("resnet", 11, 10, 32)
    masks = [torch.ones(width, dtype=torch.bool) for width in network.widths]
    for wrong in (masks[1:], [masks[0][:1], *masks[1:]]):
        with pytest.raises(ValueError, match=r"shorter|the mask of layer1.0.bn1 is") as raised:
            network.plan(wrong)
        assert "\n" not in str(raised.value)
