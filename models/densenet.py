"""DenseNet of depth 3n + 4 for 32×32 images: growth 12, no bottleneck, no compression."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.registry import register

GROWTH = 12
STEM = 2 * GROWTH
DEPTHS = "3n + 4 (7, 10, 22, 40, ..., 250)"


class DenseLayer(nn.Module):
    """Batch norm, ReLU, convolution; ``out`` channels are appended to the ``width`` input ones."""

    def __init__(self, width: int, out: int = GROWTH, kernel: int = 3) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def new_channels(self, x: Tensor) -> Tensor:
        return self.conv1(self.relu(self.bn1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.new_channels(x)), 1)


class Transition(DenseLayer):
    """Batch norm, ReLU, 1×1 convolution, 2×2 average pooling."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.new_channels(x), 2)


@register("densenet", depth=40, depths=DEPTHS, family="densenet")
class DenseNet(nn.Module):
    """Three dense blocks of n layers with transitions between them."""

    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        layers, rest = divmod(depth - 4, 3)
        if rest or not 1 <= layers <= 82:
            raise ValueError(f"densenet has no depth {depth}: choose {DEPTHS}")
        self.conv1 = nn.Conv2d(3, STEM, 3, padding=1, bias=False)
        width, parts = STEM, list[nn.Module]()
        for block in range(3):
            if block:
                parts.append(Transition(width))
            parts.append(nn.Sequential(*(DenseLayer(width + GROWTH * i) for i in range(layers))))
            width += GROWTH * layers
        self.dense1, self.trans1, self.dense2, self.trans2, self.dense3 = parts
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.trans2(self.dense2(x))
        x = self.avgpool(self.relu(self.bn(self.dense3(x))))
        return self.fc(x.flatten(1))
