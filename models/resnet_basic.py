"""ResNet of depth 6n + 2 with basic blocks for 32×32 pictures (He et al., 2015, section 4.2)."""

from collections.abc import Iterator, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.surgery import BatchNorm, Slimmable, State, Wiring, offset

PLANES = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, a batch norm behind each, and a shortcut without parameters.

    ``kept`` counts the channels between the two convolutions; those of the stream all stay.
    """

    def __init__(self, width: int, planes: int, stride: int, kept: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, kept, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm(kept)
        self.conv2 = nn.Conv2d(kept, planes, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.more = stride, planes - width

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.more:  # option A: every other pixel, zeros for more channels
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return self.relu(out + x)


class ResNetBasic(Slimmable):
    """``cfg``: the inner channels of every block."""

    def __init__(self, num_classes: int, cfg: Sequence[int]) -> None:
        super().__init__(num_classes, cfg)
        blocks = len(cfg) // 3
        self.conv1 = nn.Conv2d(3, PLANES[0], 3, padding=1, bias=False)
        self.bn1 = BatchNorm(PLANES[0])
        self.relu = nn.ReLU(inplace=True)
        width = PLANES[0]
        layers = [nn.Sequential() for _ in PLANES]
        for i, kept in enumerate(cfg):
            planes = PLANES[i // blocks]
            stride = 2 if i in (blocks, 2 * blocks) else 1
            layers[i // blocks].append(BasicBlock(width, planes, stride, kept))
            width = planes
        self.layer1, self.layer2, self.layer3 = layers
        self.linear = nn.Linear(width, num_classes)

    @staticmethod
    def full_cfg(depth: int) -> list[int]:
        blocks, rest = divmod(depth - 2, 6)
        if rest or not 1 <= blocks <= 200:
            known = "6n + 2 (8, 20, 32, 44, 56, 110, ..., 1202)"
            raise ValueError(f"resnet-basic has no depth {depth}: choose {known}")
        return [planes for planes in PLANES for _ in range(blocks)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))

    def _blocks(self) -> Iterator[tuple[str, BasicBlock]]:
        return ((n, m) for n, m in self.named_modules() if isinstance(m, BasicBlock))

    def wiring(self) -> Wiring:
        # The stem's batch norm and each block's bn2 write the stream, whose width stays.
        wiring: Wiring = {name: (None, None) for name in ("conv1", "bn1", "linear")}
        for name, _ in self._blocks():
            wiring |= {
                f"{name}.conv1": (f"{name}.bn1", None),
                f"{name}.conv2": (None, f"{name}.bn1"),
                f"{name}.bn2": (None, None),
            }
        return wiring

    def offsets(self, emitted: Mapping[str, Tensor]) -> State:
        return {
            f"{name}.bn2.running_mean": -offset(block.conv2, emitted[f"{name}.bn1"])
            for name, block in self._blocks()
        }
