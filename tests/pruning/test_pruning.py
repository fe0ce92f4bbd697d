"""Masks, and the surgery: a slim network computes what the masked one does."""

import copy
import importlib
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import ARCHITECTURES, build_model, family, full_cfg, restore
from models.surgery import norms, offset, put_back, whereabouts
from utils.methods.base import batch_norms, count_of, is_zero
from utils.pruning.plan import apply_plan, filter_sizes, plan

SLIM = {a: importlib.import_module(f"{family(a)}_prune").slim for a in ARCHITECTURES}
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


def dropped(model: nn.Module, masks: list[torch.Tensor]) -> nn.Module:
    """The model with γ = bias = 0 in the removed channels."""
    masked = copy.deepcopy(model)
    apply_plan(masked, masks, torch.zeros_like(torch.cat(masks)))
    return masked


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
    model = build_model(arch, depth, 2)
    layers = list(norms(model).values())
    flat = filter_sizes(model)
    sizes = flat.split([bn.num_features for bn in layers])
    modules = dict(model.named_modules())
    # The convolution right before a batch norm is the one that makes its channels, in these.
    before = {
        "vgg": lambda n: f"feature.{int(n.split('.')[1]) - 1}",
        "resnet": lambda n: {"bn2": n[:-3] + "conv1", "bn3": n[:-3] + "conv2"}.get(n[-3:]),
    }
    streams = 0
    for (name, bn), size in zip(norms(model).items(), sizes, strict=True):
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
    masked = dropped(model, masks)
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
    assert restore(slim.state_dict()).model.cfg == cfg


@settings(max_examples=15, deadline=None)
@given(networks(), st.data())
def test_pruning_twice_is_pruning_once(case, data):
    """Surgery on a slim network selects from what the first surgery selected."""
    arch, _, model, masks = case
    once = SLIM[arch](dropped(model, masks), masks)
    seconds = []
    for mask in masks:
        second = torch.rand(int(mask.sum())) < data.draw(st.floats(0, 1))
        second[0] = True
        seconds.append(second)
    twice = SLIM[arch](dropped(once, seconds), seconds)
    both = [mask.clone() for mask in masks]
    for mask, second in zip(both, seconds, strict=True):
        mask[mask.clone()] = second
    at_once = SLIM[arch](dropped(model, both), both)
    state = twice.state_dict()
    assert all(torch.equal(state[k], v) for k, v in at_once.state_dict().items())


@pytest.mark.parametrize(
    ("arch", "depth"), [("vgg", 11), ("resnet", 20), ("densenet", 10), ("resnet-basic", 8)]
)
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
    masked, zeros = copy.deepcopy(model), is_zero(torch.cat([bn.weight for bn in norms]))
    masks = plan(norms, zeros)
    apply_plan(masked, masks, zeros)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), masked(x))
    assert sum(int((~mask).sum()) for mask in masks) > 0.4 * sum(map(len, masks))


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_gradients_of_the_surviving_weights_agree(arch, depth):
    torch.manual_seed(0)
    model = build_model(arch, depth, 10).double().eval()
    masks = [torch.rand(bn.num_features) < 0.6 for bn in batch_norms(model)]
    for mask in masks:
        mask[0] = True
    model = dropped(model, masks)
    slim = SLIM[arch](model, masks)
    x, labels = torch.randn(4, 3, 32, 32).double(), torch.arange(4)
    for network in (model, slim):
        nn.functional.cross_entropy(network(x), labels).backward()
    # The surgery applied to the gradients must give the slim network's gradients.
    gradients = copy.deepcopy(model)
    for parameter, source in zip(gradients.parameters(), model.parameters(), strict=True):
        parameter.data.copy_(source.grad)
    expected = dict(SLIM[arch](gradients, masks).named_parameters())
    for name, parameter in slim.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].data, msg=name)


def one_by_one(model: nn.Module) -> None:
    """Make every 3×3 convolution act as a 1×1 one, so that no border is."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            centre = module.weight.data[:, :, 1, 1].clone()
            module.weight.data.zero_()
            module.weight.data[:, :, 1, 1] = centre


@settings(max_examples=40, deadline=None)
@given(networks())
def test_constants_of_removed_channels_are_folded_into_what_follows(case):
    """Removed channels emit ReLU(bias); without borders, slim gives the same answers."""
    arch, _, model, masks = case
    one_by_one(model)
    model = model.double()
    apply_plan(model, masks, torch.ones_like(torch.cat(masks)))
    slim = SLIM[arch](model, masks)
    x = torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        torch.testing.assert_close(slim(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_with_3x3_convolutions_folding_is_exact_inside_the_border(arch, depth):
    """What the first convolution behind removed channels gives differs at the border only."""
    torch.manual_seed(0)
    model = build_model(arch, depth, 3).double().eval()
    with torch.no_grad():
        for bn in batch_norms(model):
            bn.bias.uniform_(-0.5, 1)
    masks = [torch.ones(bn.num_features, dtype=torch.bool) for bn in batch_norms(model)]
    layer = 1 if arch == "resnet" else 0  # its channels go into a 3×3 convolution
    masks[layer][::2] = False
    apply_plan(model, masks, torch.ones_like(torch.cat(masks)))
    slim = SLIM[arch](model, masks)
    # The next batch norm takes in that convolution's output; DenseNet's, after the stream.
    seen = []
    for network in (model, slim):
        norm = batch_norms(network)[layer + 1]
        if arch == "resnet-basic":  # the block's other one, whose own channels stay
            norm = network.layer1[0].bn2
        norm.register_forward_hook(lambda _, inputs, output: seen.append(output.detach()))
        with torch.no_grad():
            network(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double())
    difference = (seen[0] - seen[1]).abs().amax((0, 1))
    assert difference[1:-1, 1:-1].max() < 1e-12
    assert difference[0].max() > 1e-6, "the border is where folding is not exact"


def test_a_dropped_channel_is_not_folded():
    """What --percent removes alive goes with its bias, as in original network slimming."""
    bn = nn.BatchNorm2d(3)
    nn.init.ones_(bn.bias)
    masks, zeros = [torch.tensor([True, False, False])], torch.tensor([False, True, False])
    apply_plan(bn, masks, zeros)
    assert bn.weight.tolist() == [1, 0, 0]
    assert bn.bias.tolist() == [1, 1, 0]


def test_on_maps_that_are_all_border_folding_is_exact_in_the_mean():
    """2×2 maps, VGG's last: the convolution behind removed channels gives the same mean."""
    torch.manual_seed(0)
    model = build_model("vgg", 11, 10)
    norms = batch_norms(model)
    masks = [torch.ones_like(bn.weight, dtype=torch.bool) for bn in norms]
    masks[-2][::2] = False
    with torch.no_grad():
        norms[-2].weight[::2] = 0
        norms[-2].bias.fill_(0.5)
    networks = [model.eval(), SLIM["vgg"](model, masks)]
    outputs, pictures = [], torch.randn(4, 3, 32, 32)
    for network in networks:
        last = [m for m in network.feature if isinstance(m, torch.nn.BatchNorm2d)][-1]
        last.register_forward_hook(
            lambda bn, inputs, out: outputs.append(inputs[0] - bn.running_mean[:, None, None])
        )
        network(pictures)
    whole, slim = outputs
    assert whole.shape[-1] == 2
    torch.testing.assert_close(slim.mean((2, 3)), whole.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(slim, whole, atol=1e-3)


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_what_is_cut_can_be_put_back(arch, depth):
    torch.manual_seed(0)
    model = build_model(arch, depth, 10)
    masks = [torch.rand(bn.num_features) < 0.5 for bn in norms(model).values()]
    for mask in masks:
        mask[0] = True
    index, before = whereabouts(model, masks), copy.deepcopy(model.state_dict())
    part = {k: v[index[k]] + 1 for k, v in before.items()}
    small = SLIM[arch](model, masks).state_dict()
    assert part.keys() >= {key for key in small if not key.endswith("select.index")}
    put_back(part, model.state_dict(), index)
    for key, value in model.state_dict().items():
        there = torch.zeros_like(value, dtype=torch.bool)
        there[index[key]] = True
        assert torch.equal(value, torch.where(there, before[key] + 1, before[key]))


def test_a_constant_is_folded_as_outputs_feel_it_whose_taps_are_all_inside_or_else_in_the_mean():
    torch.manual_seed(0)
    both = set()
    for padding, stride, dilation, pixels in product(range(3), (1, 2, 3), (1, 2), range(2, 9)):
        if pixels + 2 * padding < 2 * dilation + 1:
            continue  # there is no output
        how = {"padding": padding, "stride": stride, "dilation": dilation, "bias": False}
        conv, taps, constants = nn.Conv2d(3, 4, 3, **how), nn.Conv2d(1, 1, 3, **how), torch.rand(3)
        with torch.no_grad():
            out = conv(constants[:, None, None].expand(3, pixels, pixels)[None])[0]
            taps.weight.fill_(1)
            whole = taps(torch.ones(1, 1, pixels, pixels))[0, 0] == 9
            expected = out[:, whole][:, 0] if whole.any() else out.mean((1, 2))
            torch.testing.assert_close(offset(conv, constants, (pixels, pixels)), expected)
        both.add(bool(whole.any()))
    assert both == {True, False}


def test_masks_of_other_batch_norms_are_refused_in_one_line():
    model = build_model("resnet", 11, 10)
    masks = [torch.ones(bn.num_features, dtype=torch.bool) for bn in batch_norms(model)]
    for wrong in (masks[1:], [masks[0][:1], *masks[1:]]):
        with pytest.raises(ValueError, match=r"^these are not masks of .*") as raised:
            SLIM["resnet"](model, wrong)
        assert "\n" not in str(raised.value)
