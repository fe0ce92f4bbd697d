"""Which channels are kept: by zeros, share, floor, ties, and filter norms."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from utils.methods.base import count_of, is_zero
from utils.network import fresh
from utils.pruning.plan import apply_plan, filter_sizes, plan


def norm(gamma: list[float], bias: list[float] | None = None) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(len(gamma))
    bn.weight.data = torch.tensor(gamma)
    if bias is not None:
        bn.bias.data = torch.tensor(bias)
    return bn


def masks_of(
    norms: list[nn.BatchNorm2d],
    zeros: Sequence[bool],
    count: int,
    *,
    scores: Tensor | None = None,
    floor: float = 0.0,
    ties: Sequence[tuple[int, int]] = (),
) -> list[Tensor]:
    scores = torch.cat([bn.weight for bn in norms]).abs() if scores is None else scores
    return plan(norms, torch.tensor(zeros), count, scores, floor, ties)


def kept(norms: list[nn.BatchNorm2d], zeros: list[bool], count: int, **more) -> list[list[int]]:
    return [mask.int().tolist() for mask in masks_of(norms, zeros, count, **more)]


TWO = [[0.1, -0.2, 0.3, 0.4], [-0.5, 0.6, 0.2, 0.8]]
SHARES = [
    ([[0.0, 1e-30, -0.5], [0.0, 0.2]], 0, [[0, 1, 1], [0, 1]]),
    ([[0.3, -0.1], [0.2, 0.4]], 0, [[1, 1], [1, 1]]),
    ([[1e-39, -2.8e-44, 0.5]], 0, [[0, 0, 1]]),  # subnormal numbers are zero
    (TWO, 0.124, [[1, 1, 1, 1], [1, 1, 1, 1]]),
    (TWO, 0.125, [[0, 1, 1, 1], [1, 1, 1, 1]]),
    (TWO, 0.25, [[0, 1, 1, 1], [1, 1, 0, 1]]),  # one of two 0.2
    (TWO, 0.5, [[0, 0, 0, 1], [1, 1, 0, 1]]),
    ([[0.0, 0.0, 0.3, 0.4]], 0.5, [[0, 0, 1, 1]]),  # zeros count
    ([[0.0, 0.0, 0.3, 0.4]], 0.75, [[0, 0, 0, 1]]),
    ([[0.1, -0.3, 0.2], [1.0]], 1, [[0, 1, 0], [1]]),  # every layer keeps one
]


@pytest.mark.parametrize(("gammas", "percent", "expected"), SHARES)
def test_zeros_and_the_smallest_factors_of_all_layers_are_removed(gammas, percent, expected):
    norms = [norm(gamma) for gamma in gammas]
    zeros = is_zero(torch.cat([bn.weight for bn in norms]))
    assert kept(norms, zeros.tolist(), count_of(percent, len(zeros))) == expected
    assert count_of(0.29, 100) == 29  # 0.29 × 100 is 28.999… in binary floating point


@pytest.mark.parametrize(
    ("gamma", "bias", "expected"),
    [
        ([0.0, 0.0, 0.0], [-3.0, -1.0, -2.0], [0, 1, 0]),
        ([0.0, 1e-40, 0.0], [-3.0, -4.0, 2.0], [0, 0, 1]),
        ([0.1, 0.9, 0.0], [2.0, -1.0, 3.0], [0, 1, 0]),  # all zero by another mask
    ],
)
def test_an_empty_layer_keeps_its_largest_gamma_or_else_its_largest_bias(gamma, bias, expected):
    assert kept([norm(gamma, bias)], [True] * 3, 0) == [expected]


def test_equal_factors_are_removed_by_bias_and_then_from_the_end():
    norms = [norm([0.5] * 4, [0.0, -0.1, 0.0, 0.2]), norm([0.5] * 2, [0.0, 0.0])]
    order: list[int] = []
    for count in range(1, 7):
        masks = torch.cat(masks_of(norms, [False] * 6, count))
        removed = (~masks).nonzero().flatten().tolist()
        order += sorted(set(removed) - set(order))
        assert set(order) == set(removed)
    assert order == [1, 2, 5, 0]  # each layer keeps one: 3 has the largest bias, 4 comes first


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_never_more_channels_are_removed_than_asked_for_or_zero(data):
    widths = data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=4))
    widths[1] = widths[0]
    ties = data.draw(st.sampled_from([(), [(0, 1)]]))
    few = st.sampled_from([0.0, 0.25, 0.5])
    lists = [st.lists(few, min_size=n, max_size=n) for n in widths]
    norms = [norm(data.draw(values), data.draw(values)) for values in lists]
    total = sum(widths)
    zeros = data.draw(st.lists(st.booleans(), min_size=total, max_size=total))
    floor = data.draw(st.sampled_from([0.0, 0.5]))
    before = None
    for count in range(total + 1):
        masks = masks_of(norms, zeros, count, floor=floor, ties=ties)
        dead = list(torch.tensor(zeros).split(widths))
        for i, j in ties:
            masks[i] = masks[j] = masks[i] & masks[j]
            dead[i] = dead[j] = dead[i] | dead[j]
        removed = int((~torch.cat(masks)).sum())
        assert removed <= max(count, int(torch.cat(dead).sum()))
        if not floor and count == total // 2 and removed < count:
            assert any(int(mask.sum()) == 1 for mask in masks) or ties
        left = [int(mask.sum()) for mask in masks]
        assert min(left) > 0
        # A target's binary search needs this.
        assert before is None or all(a >= b for a, b in zip(before, left, strict=True))
        before = left


@pytest.mark.parametrize(
    ("count", "floor", "expected"),
    [
        (0, 0.49, [[0, 1, 1, 0], [0, 1, 0, 0]]),
        (7, 0.5, [[1, 0, 1, 0], [0, 1, 1, 0]]),  # 0.2 was to be kept, 0.9 not
        (7, 0.75, [[1, 0, 1, 1], [1, 1, 1, 0]]),
        (8, 1.0, [[1] * 4] * 2),
    ],
)
def test_every_layer_keeps_its_floor(count, floor, expected):
    norms = [norm([0.9, 0.1, 0.2, 0.3]), norm([0.0] * 4, [-1.0, 2.0, 1.0, -2.0])]
    assert kept(norms, [True, False, False, True, *[True] * 4], count, floor=floor) == expected


def test_a_floor_goes_by_the_criterion():
    norms = [norm([0.9, 0.1, 0.2, 0.3]), norm([0.5, 0.7, 0.6, 0.4])]
    scores = torch.tensor([0.0, 0.3, 1.0, 0.6, *[torch.inf] * 4])  # the second one reads a stream
    none, some = [False] * 8, [False] * 4 + [True, True, False, True]
    assert kept(norms, none, 4, scores=scores) == [[0, 0, 1, 0], [1] * 4]
    assert kept(norms, none, 4, scores=scores, floor=0.5) == [[0, 0, 1, 1], [1] * 4]
    assert kept(norms, some, 4, scores=scores, floor=0.5)[1] == [0, 1, 1, 0]


def test_tied_channels_have_the_smallest_factor_and_are_kept_together():
    norms = [norm(g) for g in ([0.1, 0.9, 0.8, 0.7], [0.6, 0.2, 0.7, 0.5], [0.3, 0.15, 1.0])]

    def kept(zeros: list[int], count: int, floor: float = 0.0) -> list[list[int]]:
        masks = masks_of(norms, [i in zeros for i in range(11)], count, floor=floor, ties=[(0, 1)])
        return [mask.nonzero().flatten().tolist() for mask in (masks[0] & masks[1], masks[2])]

    assert kept([], 2) == [[1, 2, 3], [0, 1, 2]]
    assert kept([], 3) == kept([], 4) == [[1, 2, 3], [0, 2]]  # a pair counts twice
    assert kept([], 5) == [[2, 3], [0, 2]]
    assert kept([], 11) == [[2], [2]]
    assert kept([], 11, 0.5) == [[2, 3], [2]]
    assert kept([2, 4, 5, 7], 0) == [[2], [0, 1, 2]]
    for bn, bias in zip(norms, ([0.0, 1, 2, 3], [4.0, 3, 5, 1]), strict=False):
        bn.weight.data.zero_()
        bn.bias.data = torch.tensor(bias)
    assert kept([*range(8)], 0)[0] == [2]  # by the last bias of the tie


def test_filters_are_compared_by_their_norms_scaled_in_every_layer():
    network, writers = fresh("resnet", 11, 2, 32), {"bn2": "conv1", "bn3": "conv2"}
    sizes = filter_sizes(network).split(network.widths)
    for name, size in zip(network.norms, sizes, strict=True):
        block, _, last = name.rpartition(".")
        if last in writers:
            layer = network.model.get_submodule(f"{block}.{writers[last]}")
            norms = layer.weight.detach().abs().sum((1, 2, 3))
            scaled = (norms - norms.min()) / (norms.max() - norms.min())
            torch.testing.assert_close(size, scaled)
        else:  # a stream
            assert size.isinf().all()


def test_only_zeros_keep_their_bias():
    bn = norm([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    apply_plan([bn], [torch.tensor([True, False, False])], torch.tensor([False, True, False]))
    assert (bn.weight.tolist(), bn.bias.tolist()) == ([1, 0, 0], [1, 1, 0])
