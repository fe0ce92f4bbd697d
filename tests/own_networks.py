"""Networks of a user's: pieces to draw random ones from, and what is asked of them."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from models.surgery import norms, together
from models.traced import slim, slimmable


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


def chain(before: nn.Module, *after: nn.Module, **more: object) -> nn.Sequential:
    """A batch norm of 4 channels, number 1, between other layers."""
    return nn.Sequential(before, nn.BatchNorm2d(4, **more), *after)


def CONV():
    return nn.Conv2d(3, 4, 1)


READ = nn.ReLU(), nn.Conv2d(4, 2, 1)


def half(net: nn.Module, example: Tensor, x: Tensor | None = None) -> nn.Module:
    """``net`` with half of its batch norms' channels silent, and slim: the answers are the same."""
    view = slimmable(randomise(net.double()).eval(), example)
    assert norms(view)
    small = slim(net, kill(view, -1, 0, silent=True), example)
    assert furthest(net, small, torch.randn_like(example).double() if x is None else x) < 1e-10
    return small
