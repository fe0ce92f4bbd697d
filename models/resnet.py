"""Pre-activation bottleneck ResNet of depth 9n + 2 for 32×32 images (He et al., 2016)."""

from torch import Tensor, nn

from models.registry import register

EXPANSION = 4
PLANES = (16, 32, 64)
DEPTHS = "9n + 2 (11, 20, 56, 110, 164, ..., 1001)"


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions, each after a batch norm and a ReLU, and a shortcut.

    The first block of a stage projects the shortcut to ``EXPANSION * planes`` channels.
    """

    def __init__(self, width: int, planes: int, stride: int, first: bool) -> None:
        super().__init__()
        out = planes * EXPANSION
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if first:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return out + (x if self.downsample is None else self.downsample(x))


@register("resnet", depth=164, depths=DEPTHS, family="resnet")
class ResNet(nn.Module):
    """Three stages of n bottlenecks."""

    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 9)
        if rest or not 1 <= blocks <= 111:
            raise ValueError(f"resnet has no depth {depth}: choose {DEPTHS}")
        width = PLANES[0]
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        stages = []
        for stage, planes in enumerate(PLANES):
            layers = []
            for i in range(blocks):
                stride = 2 if i == 0 and stage > 0 else 1
                layers.append(Bottleneck(width, planes, stride, first=i == 0))
                width = planes * EXPANSION
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.avgpool(self.relu(self.bn(x)))
        return self.fc(x.flatten(1))
