"""Networks that are traced: what can go is found, what stays is named, slim is masked."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models import build_model, named, surgery
from models.surgery import all_channels, norms, together
from models.traced import slim, slimmable

NAMED = {  # how many channels can go, of all that batch norms have
    "resnet18": (1_920, 4_800),
    "resnet50": (7_616, 26_560),
    "vgg16_bn": (4_224, 4_224),
    "mobilenet_v2": (15_552, 17_056),
}


class Part(nn.Module):
    """A piece of a random network. ``goes``: batch norms whose channels can go; ``last``: those
    that it depends on what comes next; ``reads_alone``: whether only layers read its input."""

    goes: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    reads_alone = True


def conv(width: int, out: int, kernel: int, padded: bool, **more: object) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, padding=kernel // 2 * padded, **more)


ACTS = {
    "ReLU": lambda: nn.ReLU(),
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "ReLU6": lambda: nn.ReLU6(),
}
POOLS = {
    "none": lambda padded: nn.Identity(),
    "max": lambda padded: nn.MaxPool2d(2, 1, padding=1),
    "mean": lambda padded: nn.AvgPool2d(3, 1, padding=int(padded)),
    "dropout": lambda padded: nn.Dropout(0.3),
}


class Chain(Part):
    last = ("bn",)

    def __init__(self, draw, width, out, padded):
        super().__init__()
        kernel = draw(st.sampled_from((1, 3)))
        self.conv = conv(width, out, kernel, padded, bias=draw(st.booleans()))
        self.bn = nn.BatchNorm2d(out)
        self.act = ACTS[draw(st.sampled_from(sorted(ACTS)))]()
        self.pool = POOLS[draw(st.sampled_from(sorted(POOLS)))](padded)

    def forward(self, x):
        return self.pool(self.act(self.bn(self.conv(x))))


class Functional(Chain):
    """The same in functions and methods."""

    def forward(self, x):
        x = self.bn(self.conv(x)).relu_()
        return F.dropout(F.max_pool2d(x, 2, 1, padding=1), 0.2, self.training)


class Residual(Part):
    goes, reads_alone = ("bn1",), False

    def __init__(self, draw, width, out, padded):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 1)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, width, 1, bias=draw(st.booleans()))
        self.bn2 = nn.BatchNorm2d(width) if draw(st.booleans()) else nn.Identity()

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu6(self.bn1(self.conv1(x))))))


class Depthwise(Part):
    """Two of them behind one another, with or without a layer that reads the last one."""

    def __init__(self, draw, width, out, padded):
        super().__init__()
        bias = draw(st.booleans())
        self.conv1, self.bn1 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2 = conv(out, out, 3, padded, groups=out, bias=bias)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv3 = conv(out, out, 1, padded, groups=out, bias=bias)
        self.bn3 = nn.BatchNorm2d(out)
        tied = ("bn1", "bn2", "bn3")
        projects = draw(st.booleans())
        self.project = nn.Conv2d(out, width, 1) if projects else nn.Identity()
        self.goes, self.last = (tied, ()) if projects else ((), tied)

    def forward(self, x):
        x = F.relu6(self.bn2(self.conv2(F.relu6(self.bn1(self.conv1(x))))))
        return self.project(F.relu(self.bn3(self.conv3(x))))


class Fork(Part):
    """Two layers read a batch norm, and what they make is joined: that cannot go."""

    goes = ("bn1",)

    def __init__(self, draw, width, out, padded):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 1), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = conv(out, out, 3, padded), nn.BatchNorm2d(out)
        self.conv3, self.bn3 = conv(out, out, 3, padded), nn.BatchNorm2d(out)
        self.joins = draw(st.sampled_from(("add", "cat", "mul")))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x, y = F.relu(self.bn2(self.conv2(x))), F.relu(self.bn3(self.conv3(x)))
        if self.joins == "cat":
            return torch.cat((x, y), 1)
        return x + y if self.joins == "add" else x * y


class Odd(Part):
    """Its batch norm cannot go."""

    def __init__(self, draw, width, out, padded):
        super().__init__()
        self.kind = draw(st.sampled_from(("sigmoid", "direct", "grouped", "twice", "shifted")))
        groups = 2 if self.kind == "grouped" else 1
        self.pair = nn.Conv2d(width, 2 * width, 1)
        self.conv = nn.Conv2d(2 * width, 2 * out, 1, groups=groups)
        self.bn = nn.BatchNorm2d(2 * out)
        self.after = nn.Conv2d(2 * out, 2 * out, 1)
        self.shift = nn.Parameter(torch.randn(1))

    def forward(self, x):
        x = self.bn(self.conv(self.pair(x)))
        if self.kind == "sigmoid":
            return self.after(x.sigmoid())
        if self.kind == "direct":
            return self.after(x)
        if self.kind == "twice":
            return self.after(self.after(x.relu()))
        return self.after(x.relu() + self.shift if self.kind == "shifted" else x.relu())


class Head(Part):
    def __init__(self, draw, width, out, padded):
        super().__init__()
        self.how = draw(st.sampled_from(("flatten", "view", "mean", "pool", "Flatten")))
        pixels = 9 if self.how != "mean" else 1
        self.flatten = nn.Flatten()
        if draw(st.booleans()):
            self.fc1, self.bn = nn.Linear(width * pixels, out), nn.BatchNorm1d(out)
            self.fc2 = nn.Linear(out, 3, bias=draw(st.booleans()))
            self.goes = ("bn",)
        else:
            self.fc1 = nn.Linear(width * pixels, 3)

    def forward(self, x):
        if self.how == "mean":
            x = x.mean((2, 3))
        else:
            x = F.adaptive_avg_pool2d(x, 3)
            if self.how == "view":
                x = x.view(x.shape[0], -1)
            elif self.how == "Flatten":
                x = self.flatten(x)
            else:
                x = torch.flatten(x, 1)
        x = self.fc1(x)
        return self.fc2(F.relu(self.bn(x))) if self.goes else x


class Net(nn.Module):
    """A user's network."""

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x, unused=None):
        for part in self.parts:
            x = part(x)
        return x if unused is None else x + unused


@st.composite
def networks(draw, padded: bool) -> tuple[Net, set[str]]:
    """A network for [n, 3, 20, 20], and the batch norms of it whose channels can go."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    parts, x, expected = list[Part](), torch.zeros(1, 3, 20, 20), set[str]()
    kinds = [Chain, Functional, Residual, Depthwise, Fork, Odd]
    count = draw(st.integers(1, 4))
    for i in range(count + 1):
        kind = Head if i == count else draw(st.sampled_from(kinds))
        part = kind(draw, x.shape[1], draw(st.integers(2, 5)), padded)
        if part.reads_alone and parts:
            expected |= {f"parts.{i - 1}.{name}" for name in parts[-1].last}
        expected |= {f"parts.{i}.{name}" for name in part.goes}
        parts.append(part)
        x = part.eval()(x)
    return randomise(Net(parts)).double().eval(), expected


@torch.no_grad()
def randomise(net: nn.Module) -> nn.Module:
    for bn in net.modules():
        if isinstance(bn, nn.BatchNorm1d | nn.BatchNorm2d):
            bn.weight.uniform_(-1.5, 1.5)
            bn.bias.uniform_(-0.5, 0.5)
            bn.running_mean.normal_(0, 0.3)
            bn.running_var.uniform_(0.5, 2)
    return net


@torch.no_grad()
def kill(net: nn.Module, low: float, high: float, silent: bool) -> list[Tensor]:
    """γ = 0 and a bias from ``low`` to ``high`` in about half of what can go; the masks.

    To be ``silent``, all must that go together: an alive one behind a dead one emits a constant.
    """
    masks = [torch.rand(bn.num_features) < 0.5 for bn in norms(net).values()]
    for mask in masks:
        mask[torch.randint(len(mask), ())] = True
    masks = together(net, masks) if silent else masks
    for bn, mask in zip(norms(net).values(), masks, strict=True):
        bn.weight[~mask] = 0
        bn.bias[~mask] = torch.empty_like(bn.bias).uniform_(low, high)[~mask]
    return masks


def furthest(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Largest difference of an answer, as a share of the largest answer."""
    with torch.no_grad():
        answers = one(x), other(x)
    return ((answers[0] - answers[1]).abs().max() / answers[0].abs().max().clamp(min=1)).item()


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


def chain(before: nn.Module, *after: nn.Module, **more: object) -> nn.Sequential:
    """A batch norm of 4 channels, number 1, between other layers."""
    return nn.Sequential(before, nn.BatchNorm2d(4, **more), *after)


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


def CONV():
    return nn.Conv2d(3, 4, 1)


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


READ = nn.ReLU(), nn.Conv2d(4, 2, 1)
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


def half(net: nn.Module, example: Tensor, x: Tensor | None = None) -> nn.Module:
    """``net`` with half of its batch norms' channels silent, and slim: the answers are the same."""
    view = slimmable(randomise(net.double()).eval(), example)
    assert norms(view)
    small = slim(net, kill(view, -1, 0, silent=True), example)
    assert furthest(net, small, torch.randn_like(example).double() if x is None else x) < 1e-10
    return small


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


def test_what_is_kept_from_training_or_from_gradients_stays_so():
    net = chain(CONV(), *READ, nn.BatchNorm2d(2)).train()
    net[4].eval()
    net[0].weight.requires_grad_(False)
    small = slim(net, [torch.tensor([True, False, True, True])], torch.zeros(2, 3, 6, 6))
    assert [m.training for m in small] == [True, True, True, True, False]
    assert [p.requires_grad for p in small.parameters()] == [False, *[True] * 7]


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
