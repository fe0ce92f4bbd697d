"""Networks that are traced: slim is masked."""

import copy

import pytest
import torch
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import build_model, named, surgery
from models.surgery import all_channels, norms, together
from models.traced import slim, slimmable
from own_networks import CONV, READ, Net, chain, furthest, half, kill, networks, randomise

NAMED = {  # how many channels can go, of all that batch norms have
    "resnet18": (1_920, 4_800),
    "resnet50": (7_616, 26_560),
    "vgg16_bn": (4_224, 4_224),
    "mobilenet_v2": (15_552, 17_056),
}


@pytest.mark.parametrize("constants", [False, True])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_slim_network_computes_what_the_masked_one_does_and_the_rest_stays(constants, data):
    """Silent channels exactly anywhere; constants, some above 6, where nothing is padded."""
    net, expected = data.draw(networks(padded=not constants))
    example, x = torch.zeros(1, 3, 20, 20), torch.randn(3, 3, 20, 20, dtype=torch.double)
    view = slimmable(net, example)
    assert norms(view).keys() == expected
    every = {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}
    assert view.stays().keys() == every - expected
    assert all(why and "\n" not in why for why in view.stays().values())
    masks = kill(view, *((0, 8) if constants else (-1, 0)), silent=not constants)
    before = copy.deepcopy(net.state_dict())
    small = slim(net, masks, example)
    assert type(small) is Net and type(net) is Net
    assert all(torch.equal(before[key], x) for key, x in net.state_dict().items())
    assert furthest(net, small, x) < 1e-10
    left = dict(zip(norms(view), together(view, masks), strict=True))
    for name, mask in left.items():
        assert small.get_submodule(name).num_features == mask.sum()
    assert small.train()(x).shape == net(x).shape
    # In two steps it is the same.
    first = [mask | (torch.rand(len(mask)) < 0.5) for mask in masks]
    rest = [mask[left] for mask, left in zip(masks, together(view, first), strict=True)]
    assert furthest(net, surgery.slim(surgery.slim(view, first), rest), x) < 1e-10


def test_a_channel_that_is_needed_would_be_missed():
    """The control of the one above."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    net, x = randomise(nn.Sequential(*layers)).eval(), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        net[1].bias.abs_()
    mask = torch.tensor([True, False, True, True])
    assert furthest(net, slim(net, [mask], x), x) > 1e-3


class Twofold(nn.Module):
    """Layers, and weights of the head, that have two names."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn, self.conv2 = CONV(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False)
        self.layers = nn.ModuleList([self.conv2, self.bn, self.conv1])
        self.one, self.other = (nn.Linear(72, 5, bias=False) for _ in range(2))
        self.other.weight = self.one.weight

    def forward(self, x):
        x = self.conv2(self.bn(self.conv1(x)).relu()).flatten(1)
        return self.one(x) + 2 * self.other(x)


def test_what_has_two_names_has_two_in_the_slim_network():
    net, example = Twofold(), torch.zeros(2, 3, 6, 6)
    small = half(net, example)
    assert list(small.layers) == [small.conv2, small.bn, small.conv1]
    assert small.other.weight is small.one.weight and small.conv2.bias is None
    assert all(p.requires_grad for p in small.parameters())
    with torch.no_grad():
        net.bn.bias[net.bn.weight == 0] = 1  # its constant becomes a bias, with two names too
    small = slim(net, [net.bn.weight != 0], example)
    x = torch.randn(2, 3, 6, 6).double()
    assert small.layers[0].bias is small.conv2.bias and furthest(net, small, x) < 1e-10


def test_what_is_kept_from_training_or_from_gradients_stays_so():
    net = chain(CONV(), *READ, nn.BatchNorm2d(2)).train()
    net[4].eval()
    net[0].weight.requires_grad_(False)
    small = slim(net, [torch.tensor([True, False, True, True])], torch.zeros(2, 3, 6, 6))
    assert [m.training for m in small] == [True, True, True, True, False]
    assert [p.requires_grad for p in small.parameters()] == [False, *[True] * 7]


def cut_by_torch_pruning(net: nn.Module, view: nn.Module, masks: list[Tensor], x: Tensor) -> None:
    graph = tp.DependencyGraph().build_dependency(net, x)
    behind = {name for tie in view.ties() for name in tie[1:]}
    for name, mask in zip(norms(view), together(view, masks), strict=True):
        if name not in behind and not mask.all():
            gone = (~mask).nonzero().flatten().tolist()
            bn = net.get_submodule(name)
            graph.get_pruning_group(bn, tp.prune_batchnorm_out_channels, gone).prune()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_torchvisions_networks_slim_are_masked_and_what_torch_pruning_cuts(name):
    torch.manual_seed(0)
    view = build_model(name, named.DEPTHS[name], 10, size=64)
    can_go, every = NAMED[name]
    assert sum(bn.num_features for bn in norms(view).values()) == can_go
    assert all_channels(view) == every
    randomise(view.eval())
    # Torch-Pruning folds no constants.
    masks, x = kill(view, -1, 0, silent=True), torch.randn(2, 3, 64, 64)
    small = surgery.slim(view, masks)
    assert furthest(view, small, x) < 1e-5
    cut_by_torch_pruning(view, view, masks, x)  # in place
    assert furthest(view, small, x) < 1e-5
    theirs, ours = view.state_dict(), small.state_dict()
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value)
