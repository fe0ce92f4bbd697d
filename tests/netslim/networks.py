"""Random small networks of the blocks that architectures are made of."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from checks import disturb
from torch import Tensor, nn

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    *(nn.ReLU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.GELU, nn.Identity),
    lambda: nn.LeakyReLU(0.1),
    nn.PReLU,
]
SILENT: list[Callable[[], nn.Module]] = [nn.ReLU, nn.SiLU, nn.GELU, nn.Identity, nn.ReLU6]


class Around(nn.Module):
    """A block ``inner``, and what is done with its input and output."""

    def __init__(self, inner: nn.Module, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.inner, x)


def residual(f: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x + f(x))


def identity_path(f: nn.Module, x: Tensor) -> Tensor:
    return f(x).add_(x)


def dense(f: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([x, f(x)], 1)


def half(f: nn.Module, x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return torch.cat([left, f(right)], 1)


def gate(f: nn.Module, x: Tensor) -> Tensor:
    return x * torch.sigmoid(f(x))


def twice(f: nn.Module, x: Tensor) -> Tensor:
    return f(f(x))


def shuffle(f: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def padded_shortcut(f: nn.Module, x: Tensor) -> Tensor:
    out = f(x)
    return out + F.pad(x, (0, 0, 0, 0, 0, out.size(1) - x.size(1)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


class Parts(nn.Module):
    """Splits its channels at ints that are its own, and has a convolution for one part."""

    def __init__(self, channels: int, how: str, conv: nn.Module) -> None:
        super().__init__()
        self.channels, self.sizes, self.how = channels, [2, channels - 2], how
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "halves":
            left, right = x.split(self.channels // 2, 1)
        elif self.how == "list":
            left, right = x.split(self.sizes, 1)
        else:
            left, right = x[:, : self.sizes[0]], x[:, self.sizes[0] :]
        return torch.cat([right, self.conv(left)], 1)


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def build(seed: int, silent: bool, padded: bool) -> nn.Sequential:
    """Takes [n, 3, 8, 8], in float64 and evaluation mode.

    ``silent``: activations give 0 for 0. ``padded``: convolutions have a zero padding.
    """
    draw = random.Random(seed)
    torch.manual_seed(seed)

    def conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Conv2d:
        padding = kernel // 2 if padded else 0
        bias = draw.random() < 0.4
        return nn.Conv2d(inputs, outputs, kernel, padding=padding, groups=groups, bias=bias)

    def act() -> nn.Module:
        return draw.choice(SILENT if silent else ACTIVATIONS)()

    def unit(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> list[nn.Module]:
        return [conv(inputs, outputs, kernel, groups), nn.BatchNorm2d(outputs), act()]

    def before(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(inputs), act(), conv(inputs, outputs, 1)]

    kernel = 3 if padded else 1
    c = draw.choice([4, 8])
    layers: list[nn.Module] = unit(3, c, kernel)
    for _ in range(draw.randint(1, 4)):
        kind = draw.randrange(18)
        sequence: Callable[..., nn.Module] = nn.Sequential
        if kind == 0:
            o = draw.choice([4, 6, 8])
            layers += unit(c, o, 3 if len(layers) == 3 else 1)
            c = o
        elif kind == 1:
            block = sequence(*unit(c, 6, kernel), conv(6, c, 1), nn.BatchNorm2d(c))
            layers.append(Around(block, residual))
        elif kind == 2:
            layers.append(Around(sequence(*before(c, c)), identity_path))
        elif kind == 3:
            layers.append(Around(sequence(*before(c, 4)), dense))
            c += 4
        elif kind == 4:
            layers.append(Around(sequence(*unit(c // 2, c // 2, kernel)), half))
        elif kind == 5:
            layers.append(Around(nn.Identity(), shuffle))
        elif kind == 6:
            layers.append(SqueezeExcite(c))
        elif kind == 7:
            pools = [nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1), nn.Upsample(scale_factor=2)]
            layers.append(draw.choice(pools))
        elif kind == 8:
            layers += unit(c, c, 3 if padded else 1, groups=c)
        elif kind == 9:
            layers.append(conv(c, c, kernel, groups=c))
        elif kind == 10:
            layers += unit(c, 2 * c, 1, groups=2)
            c *= 2
        elif kind == 11:
            layers += [nn.ConvTranspose2d(c, 6, 2, 2), nn.BatchNorm2d(6), act()]
            c = 6
        elif kind == 12:
            layers.append(Around(sequence(*unit(c, c, kernel)), gate))
        elif kind == 13:
            layers.append(Around(sequence(*unit(c, c, kernel)), twice))
        elif kind == 14:
            layers.append(LayerScale(c))
        elif kind == 15:
            layers.append(Around(sequence(*unit(c, c + 2, kernel)), padded_shortcut))
            c += 2
        elif kind == 16:
            layers.append(nn.ConvTranspose2d(c, c, 2, 2, groups=c))
        elif kind == 17:
            how = draw.choice(["halves", "list", "slices"])
            part = c // 2 if how == "halves" else 2
            layers.append(Parts(c, how, sequence(*unit(part, part, kernel))))
    layers.append(conv(c, 5, 1))
    head = draw.randrange(3)
    if head == 1:
        layers += [nn.BatchNorm2d(5), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)]
    elif head == 2:
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 7)]
        layers += [nn.BatchNorm1d(7), act(), nn.Linear(7, 2)]
    model = nn.Sequential(*layers).double()
    disturb(model)
    return model.eval()
