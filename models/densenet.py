"""DenseNet of depth 3n + 4 for 32×32 pictures: growth 12, no bottleneck, no compression."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.channel_selection import ChannelSelection

GROWTH = 12
STEM = 2 * GROWTH


def full_cfg(depth: int) -> list[int]:
    """Widths of the unpruned network's batch norms: n layers and the batch norm after each block.

    Raises ValueError unless ``depth`` is 3n + 4 with n from 1 to 82.
    """
    if not 7 <= depth <= 250 or (depth - 4) % 3:
        raise ValueError(f"densenet has no depth {depth}: choose 3n + 4 (7, 10, 22, 40, ..., 250)")
    layers = (depth - 4) // 3
    return [STEM + GROWTH * (block * layers + i) for block in range(3) for i in range(layers + 1)]


class DenseLayer(nn.Module):
    """Append to the stream ``GROWTH`` channels computed from ``kept`` of its ``width``."""

    def __init__(self, width: int, kept: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(kept)
        self.select = ChannelSelection(width, kept)
        self.conv1 = nn.Conv2d(kept, GROWTH, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv1(self.relu(self.bn1(self.select(x))))), 1)


class Transition(nn.Module):
    """1×1 convolution from ``kept`` channels back to the stream's ``width``, and a 2×2 mean."""

    def __init__(self, width: int, kept: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(kept)
        self.select = ChannelSelection(width, kept)
        self.conv1 = nn.Conv2d(kept, width, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(self.relu(self.bn1(self.select(x)))), 2)


class DenseNet(nn.Module):
    """[n, 3, 32, 32] pictures to [n, num_classes] logits; ``cfg`` as from :func:`full_cfg`."""

    def __init__(self, depth: int, num_classes: int, cfg: Sequence[int]) -> None:
        super().__init__()
        layers = (depth - 4) // 3
        kept = iter(cfg)
        width = STEM
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        for block in (1, 2, 3):
            dense = nn.Sequential()
            for _ in range(layers):
                dense.append(DenseLayer(width, next(kept)))
                width += GROWTH
            self.add_module(f"dense{block}", dense)
            if block < 3:
                self.add_module(f"trans{block}", Transition(width, next(kept)))
        self.bn = nn.BatchNorm2d(cfg[-1])
        self.select = ChannelSelection(width, cfg[-1])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(cfg[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.trans2(self.dense2(x))
        x = self.avgpool(self.relu(self.bn(self.select(self.dense3(x)))))
        return self.fc(x.flatten(1))
