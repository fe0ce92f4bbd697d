"""What can go of a network is found in its code, and what stays is named, with the reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import named
from models.surgery import norms
from models.traced import slim, slimmable
from own_networks import CONV, READ, chain, furthest, half


class Own(nn.Module):
    """A forward pass of one's own around a chain."""

    def __init__(self, forward):
        super().__init__()
        self.net = chain(CONV(), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.fc = nn.Linear(2 * 36, 3)
        self.alone = nn.Conv2d(4, 2, 1)
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


class Branching(nn.Module):
    """Code that cannot be traced, in the middle of some that can."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(x) if x.sum() > 0 else x


class Louder(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def shared() -> nn.Module:
    net = chain(CONV(), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    net[5].weight = net[3].weight
    return net


def hooked() -> nn.Module:
    net = chain(CONV(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    net[0].register_forward_hook(lambda *_: None)
    return net


def weighs(self: Own, x: Tensor) -> Tensor:
    return self.net(x) * self.net[0].weight.sum()


def in_training(self: Own, x: Tensor) -> Tensor:
    x = self.net[2](self.net[1](self.net[0](x)))
    return self.net[3](x) + (self.alone(x) if self.training else 0)


def read_before(self: Own, x: Tensor) -> Tensor:
    x = self.net[0](x)
    return self.net[3](self.net[2](self.net[1](x))) + x[:, :2]


def fixed_view(self: Own, x: Tensor) -> Tensor:
    x = self.net[2](self.net[1](self.net[0](x)))
    return x.view(-1, 4 * 36)[:, :72] @ self.fc.weight.T


STAY = {  # why batch norm number 1 stays
    "not one layer": lambda: (chain(nn.Sequential(CONV(), nn.ReLU()), *READ), "(ReLU)"),
    "its input is read": lambda: (Own(read_before), "net.0 feeds something else, too"),
    "transposed": lambda: (chain(nn.ConvTranspose2d(3, 4, 1), *READ), "(ConvTranspose2d)"),
    "grouped": lambda: (
        chain(CONV(), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2)), "3 is a grouped convolution"),
    "depthwise, unpaired": lambda: (
        chain(CONV(), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4)), "makes cannot go"),
    "depthwise first": lambda: (
        chain(nn.Conv2d(4, 4, 1, groups=4), *READ), "reads cannot go"),
    "sigmoid": lambda: (chain(CONV(), nn.Sigmoid(), READ[1]), "2 (Sigmoid), not a ReLU or ReLU6"),
    "pool first": lambda: (chain(CONV(), nn.MaxPool2d(2), *READ), "2 (MaxPool2d), not a ReLU"),
    "the answer": lambda: (chain(CONV(), nn.ReLU()), "the network's answer reads it"),
    "leaky": lambda: (chain(CONV(), nn.ReLU(), nn.LeakyReLU(), READ[1]), "3 (LeakyReLU) reads it"),
    "alpha dropout": lambda: (
        chain(CONV(), nn.ReLU(), nn.AlphaDropout(), READ[1]), "(AlphaDropout) reads it"),
    "a sum over pixels": lambda: (
        chain(CONV(), nn.ReLU(), nn.AvgPool2d(2, divisor_override=1), READ[1]), "(AvgPool2d)"),
    "along another axis": lambda: (
        chain(CONV(), nn.ReLU(), nn.Linear(6, 2)), "3 works along another axis"),
    "no statistics": lambda: (
        chain(CONV(), *READ, track_running_stats=False), "it keeps no statistics"),
    "not torch's": lambda: (nn.Sequential(CONV(), Louder(4), *READ), "no batch norm of torch's"),
    "twice": lambda: (Own(lambda s, x: s.net(x) + s.net(-x)), "net.1 is called more than once"),
    "shared": lambda: (shared(), "the weights of 3 are used elsewhere, too"),
    "weights in code": lambda: (Own(weighs), "the weights of net.0 are used elsewhere, too"),
    "hooks": lambda: (hooked(), "0 (Conv2d with hooks)"),
    "training": lambda: (Own(in_training), "training and evaluation do not read it alike"),
    "a width in code": lambda: (Own(fixed_view), "'view' reads it"),
    "code": lambda: (
        nn.Sequential(CONV(), Branching()), "the code of 1 cannot be traced (symbolically traced"),
    "all code": lambda: (Own(lambda s, x: s.net(x) if x.sum() else x), "the code of the network"),
}  # fmt: skip


@pytest.mark.parametrize("case", STAY)
def test_what_cannot_go_stays_and_it_is_said_why(case):
    net, why = STAY[case]()
    channels = 4 if case == "depthwise first" else 3
    view = slimmable(net, torch.zeros(2, channels, 6, 6))
    (name,) = view.stays()
    assert why in view.stays()[name] and not norms(view)
    assert furthest(net.eval(), slim(net, [], torch.zeros(2, channels, 6, 6)),
                    torch.randn(2, channels, 6, 6)) == 0  # fmt: skip


class Unseen(nn.Module):
    """Calls a layer that has another name, too, in code that cannot be traced."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


def test_what_is_called_by_another_name_where_it_is_not_seen_stays():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = chain(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
            self.first = chain(CONV(), *READ)
            self.outer = Unseen(self.inner)

        def forward(self, x):
            return self.outer(self.first(x))

    stays = slimmable(Net(), torch.zeros(1, 3, 6, 6)).stays()
    assert stays == {"inner.1": "inner.1 is called in code that cannot be traced"}


def test_a_mean_over_an_axis_that_is_computed_is_not_gone_through():
    net = Own(lambda self, x: self.net[2](self.net[1](self.net[0](x))).mean(x.dim() - 1))
    assert "'mean' reads it" in slimmable(net, torch.zeros(1, 3, 6, 6)).stays()["net.1"]


def test_what_the_code_keeps_of_a_forward_pass_is_no_hindrance():
    def keeps(self, x):
        self.maps = self.net[1](self.net[0](x))
        self.seen = {"all": [self.maps, self.net[2](self.maps)]}
        return self.net[3](self.seen["all"][1])

    net, example = Own(keeps), torch.zeros(2, 3, 6, 6)
    net(example)
    assert not net.maps.is_leaf
    half(net, example)


class Words(nn.Module):
    """Reads numbers of words, and asks for the whole shape of its maps."""

    def __init__(self):
        super().__init__()
        self.words, self.conv = nn.Embedding(9, 3), nn.Conv1d(3, 4, 3)
        self.bn, self.fc = nn.BatchNorm1d(4), nn.Linear(20, 2)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(self.words(x).transpose(1, 2))))
        count, _, length = x.shape
        return self.fc(x.reshape(count, -1)) / length


def test_an_example_may_be_of_numbers():
    half(Words(), torch.arange(7)[None], torch.randint(9, (3, 7)))


class Scaled(nn.Module):
    """Code that cannot be traced, and a weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x):
        x = self.scale * x
        return x if x.sum() > 0 else -x


def test_a_weight_that_is_read_in_code_that_cannot_be_traced_may_be_read_elsewhere():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.odd = chain(CONV(), nn.ReLU(), nn.Conv2d(4, 2, 1)), Scaled()

        def forward(self, x):
            return self.odd(self.net(x)) * self.odd.scale

    half(Net(), torch.zeros(2, 3, 6, 6))


@pytest.mark.parametrize("name", ["chains", "offsets"])
def test_names_that_it_needs_itself_are_refused_in_one_line(name):
    net = chain(CONV(), *READ)
    net.add_module(name, nn.Identity())
    with pytest.raises(ValueError, match=f"^the network has an attribute {name}: .*another name"):
        slimmable(net, torch.zeros(1, 3, 6, 6))


def test_a_batch_norm_that_is_not_called_stays():
    net = Own(lambda self, x: self.alone(x))
    stays = slimmable(net, torch.zeros(1, 4, 6, 6)).stays()
    assert stays == {"net.1": "net.1 is called by nothing"}


def test_an_example_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"cannot take \(1, 4, 6, 6\): .+") as raised:
        slimmable(chain(CONV(), *READ), torch.zeros(1, 4, 6, 6))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", named.DEPTHS)
def test_the_smallest_pictures_are_those_that_a_network_takes(name):
    """And no batch norm is seen in alexnet."""
    least = named.SMALLEST.get(name, 32)
    assert bool(norms(named.full(name, least))) == (name != "alexnet")
    if name.startswith(("vgg", "alex")):  # the others take pictures of any size
        with pytest.raises(ValueError, match="cannot take"):
            named.full(name, least - 1)
