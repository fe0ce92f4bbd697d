"""ResNet of depth 6n + 2 with basic blocks for 32×32 images (He et al., 2015, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.registry import register

PLANES = (16, 32, 64)
DEPTHS = "6n + 2 (8, 20, 32, 44, 56, 110, ..., 1202)"


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norms, and a shortcut without parameters."""

    def __init__(self, width: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.new_channels = stride, planes - width

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.new_channels:  # option A: subsampled, padded with zero channels
            x = x[:, :, :: self.stride, :: self.stride]
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return self.relu(out + x)


@register("resnet-basic", depth=32, depths=DEPTHS, family="resnet")
class ResNetBasic(nn.Module):
    """Three stages of n basic blocks."""

    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or not 1 <= blocks <= 200:
            raise ValueError(f"resnet-basic has no depth {depth}: choose {DEPTHS}")
        width = PLANES[0]
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        for stage, planes in enumerate(PLANES):
            layers = []
            for i in range(blocks):
                layers.append(BasicBlock(width, planes, 2 if i == 0 and stage > 0 else 1))
                width = planes
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))
