"""netslim.choice.limit: masks that keep layers, shares and multiples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import netslim
from netslim.choice import limit
from netslim.surgery import plan_removal


def layers(width: int, groups: int = 1, padding: int = 1) -> list[nn.Module]:
    norm = nn.BatchNorm2d(width)
    nn.init.uniform_(norm.weight, 0.1, 1)
    nn.init.normal_(norm.bias)
    inputs = width if groups > 1 else 3
    return [nn.Conv2d(inputs, width, 3, padding=padding, groups=groups), norm, nn.ReLU()]


def model(width: int) -> nn.Sequential:
    """A depthwise pair and a padded convolution, which needs carriers."""
    head = [nn.Conv2d(width, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers(width), *layers(width, width), *head).eval()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 20), st.integers(1, 9), st.sampled_from([0, 0.29, 0.5, 1]), st.integers(0, 99)
)
def test_the_pruned_widths_obey_the_limits(width, round_to, share, seed):
    torch.manual_seed(seed)
    graph = netslim.analyze(model(width), torch.randn(1, 3, 8, 8))
    keep = {name: torch.rand(width) < 0.3 for name in graph.norms}
    before = plan_removal(graph, keep).keep
    limited = limit(graph, keep, round_to=round_to, minimum={"1": share})
    removal = plan_removal(graph, limited)
    kept = {name: int(mask.sum()) for name, mask in removal.keep.items()}
    assert all(bool((limited[name] | ~keep[name]).all()) for name in keep)
    carriers = int((removal.keep["1"] & removal.carriers[graph.norm_classes("1")]).sum())
    assert kept["1"] - carriers >= share * width
    for name, count in kept.items():
        wide_enough = -(-int(before[name].sum()) // round_to) * round_to <= width
        assert count % round_to == 0 or not wide_enough or count > width - round_to
        assert count >= int(before[name].sum())
        if not share:
            assert count <= -(-int(before[name].sum()) // round_to) * round_to


def test_the_largest_factors_are_kept_and_of_equal_ones_the_larger_bias():
    conv = nn.Conv2d(3, 6, 3)
    sequence = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3))
    sequence[1].weight.data = torch.tensor([0.1, -0.9, 0.5, 0.5, 0.3, 1.0])
    sequence[1].bias.data = torch.tensor([0, 0, -1, 1.0, 0, 0])
    graph = netslim.analyze(sequence, torch.randn(1, 3, 8, 8))
    keep = {"1": torch.arange(6) == 0}

    def kept(**limits) -> list[int]:
        return limit(graph, keep, **limits)["1"].nonzero().flatten().tolist()

    assert kept(round_to=2) == [0, 5]
    assert kept(round_to=3) == [0, 1, 5]
    assert kept(round_to=4) == [0, 1, 3, 5]
    assert kept(round_to=7) == [0]  # the layer is not as wide
    assert kept(minimum={"*": 0.4}) == [0, 1, 5]
    assert kept(minimum={"*": 0.5, "1": 0.1}) == [0, 1, 5]  # the larger share counts
    assert kept(skip=["1"]) == kept(skip=["?"], round_to=4) == [*range(6)]
    assert keep["1"].sum() == 1  # the argument is not changed
    with pytest.raises(ValueError, match="called bn: there are 1"):
        limit(graph, keep, skip=["bn"])
    with pytest.raises(ValueError, match="no channel of '2' can be removed: there is no"):
        limit(graph, {"2": keep["1"]})


def test_a_layer_that_keep_does_not_name_keeps_all_channels_unless_it_shares_them():
    torch.manual_seed(0)
    graph = netslim.analyze(model(8), torch.randn(1, 3, 8, 8))
    keep = {"1": torch.arange(8) < 2}
    half = limit(graph, keep, minimum={"4": 0.5})  # the depthwise layer loses those of "1"
    assert half.keys() == {"1"}
    removal = plan_removal(graph, half)
    assert int((removal.keep["4"] & ~removal.carriers[graph.norm_classes("4")]).sum()) >= 4
    assert limit(graph, keep, skip=["4"])["1"].all()
    apart = nn.Sequential(*layers(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    graph = netslim.analyze(apart.eval(), torch.randn(1, 3, 8, 8))
    assert torch.equal(limit(graph, keep, skip=["4"], minimum={"4": 0.5})["1"], keep["1"])
