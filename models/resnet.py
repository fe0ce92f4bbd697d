"""Pre-activation bottleneck ResNet of depth 9n + 2 for 32×32 pictures (He et al., 2016)."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from models.channel_selection import ChannelSelection, Stream
from models.surgery import BatchNorm, Slimmable, State, Wiring, offset

EXPANSION = 4
PLANES = (16, 32, 64)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions, a batch norm and a ReLU before each, and a shortcut.

    Reads ``width`` channels of a residual stream and writes ``out``; where it does not ``begin``
    a stage, it adds to what it reads. ``kept`` counts the channels that each of the three batch
    norms works on.
    """

    def __init__(
        self, width: int, out: int, stride: int, kept: Sequence[int], begins: bool
    ) -> None:
        super().__init__()
        self.bn1 = BatchNorm(kept[0])
        self.select = ChannelSelection(width, kept[0])
        self.conv1 = nn.Conv2d(kept[0], kept[1], 1, bias=False)
        self.bn2 = BatchNorm(kept[1])
        self.conv2 = nn.Conv2d(kept[1], kept[2], 3, stride, padding=1, bias=False)
        self.bn3 = BatchNorm(kept[2])
        self.conv3 = nn.Conv2d(kept[2], out, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if begins:
            self.downsample = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.relu(self.bn1(self.select(x))))
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return out + (x if self.downsample is None else self.downsample(x))


class ResNet(Slimmable):
    """``cfg``: three batch norms a block, and the last one.

    Channels of the last stage's stream can go. The others are read whole, by a downsampling.
    """

    def __init__(self, num_classes: int, cfg: Sequence[int], **streams: Sequence[int]) -> None:
        super().__init__(num_classes, cfg)
        blocks, width = len(cfg) // 9, PLANES[0]
        self.stream3 = Stream({"stream3": PLANES[-1] * EXPANSION}, streams.get("stream3"))
        outs = [planes * EXPANSION for planes in PLANES[:-1]] + [self.stream3.width]
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        layers = [nn.Sequential() for _ in PLANES]
        for i in range(3 * blocks):
            out, kept = outs[i // blocks], cfg[3 * i : 3 * i + 3]
            stride = 2 if i in (blocks, 2 * blocks) else 1
            layers[i // blocks].append(Bottleneck(width, out, stride, kept, i % blocks == 0))
            width = out
        self.layer1, self.layer2, self.layer3 = layers
        self.bn = BatchNorm(cfg[-1])
        self.select = ChannelSelection(width, cfg[-1])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(cfg[-1], num_classes)

    @staticmethod
    def full_cfg(depth: int) -> list[int]:
        blocks, rest = divmod(depth - 2, 9)
        if rest or not 1 <= blocks <= 111:
            known = "9n + 2 (11, 20, 56, 110, 164, ..., 1001)"
            raise ValueError(f"resnet has no depth {depth}: choose {known}")
        cfg, width = [], PLANES[0]
        for planes in PLANES:
            for _ in range(blocks):
                cfg += [width, planes, planes]
                width = planes * EXPANSION
        return [*cfg, width]

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.avgpool(self.relu(self.bn(self.select(x))))
        return self.fc(x.flatten(1))

    def _blocks(self) -> Iterator[tuple[str, Bottleneck]]:
        return ((n, m) for n, m in self.named_modules() if isinstance(m, Bottleneck))

    def wiring(self) -> Wiring:
        wiring: Wiring = {"conv1": (None, None), "select": ("bn", "stream3"), "fc": (None, "bn")}
        for name, block in self._blocks():
            bn1, bn2, bn3 = (f"{name}.bn{i}" for i in (1, 2, 3))
            writes = "stream3" if name.startswith("layer3") else None
            wiring |= {
                f"{name}.select": (bn1, None if block.downsample else writes),
                f"{name}.conv1": (bn2, bn1),
                f"{name}.conv2": (bn3, bn2),
                f"{name}.conv3": (writes, bn3),
            }
            if block.downsample is not None:
                wiring[f"{name}.downsample.0"] = writes, None
        return wiring

    def offsets(self, emitted: Mapping[str, Tensor]) -> State:
        offsets = State()
        # What the slim network's residual stream lacks, all over the picture.
        missing = self.conv1.weight.new_zeros(self.conv1.out_channels)
        for name, block in self._blocks():
            bn1, bn2, bn3 = (f"{name}.bn{i}" for i in (1, 2, 3))
            offsets[f"{bn1}.running_mean"] = -missing[block.select.positions()]
            offsets[f"{bn2}.running_mean"] = -offset(block.conv1, emitted[bn1])
            offsets[f"{bn3}.running_mean"] = -offset(block.conv2, emitted[bn2])
            if block.downsample and isinstance(conv := block.downsample[0], nn.Conv2d):
                missing = offset(conv, missing)
            missing = missing + offset(block.conv3, emitted[bn3])
        offsets["bn.running_mean"] = -missing[self.select.positions()]
        return {**offsets, "fc.bias": self.fc.weight @ emitted["bn"]}
