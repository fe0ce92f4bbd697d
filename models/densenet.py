"""DenseNet of depth 3n + 4 for 32×32 pictures: growth 12, no bottleneck, no compression."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.channel_selection import ChannelSelection, Stream
from models.surgery import BatchNorm, Slimmable, State, Wiring, offset

GROWTH = 12
STEM = 2 * GROWTH


class DenseLayer(nn.Module):
    """Append to the stream ``out`` channels computed from ``kept`` of its ``width``."""

    def __init__(self, width: int, kept: int, out: int = GROWTH, kernel: int = 3) -> None:
        super().__init__()
        self.bn1 = BatchNorm(kept)
        self.select = ChannelSelection(width, kept)
        self.conv1 = nn.Conv2d(kept, out, kernel, padding=kernel // 2, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def computed(self, x: Tensor) -> Tensor:
        return self.conv1(self.relu(self.bn1(self.select(x))))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.computed(x)), 1)


class Transition(DenseLayer):
    """1×1 convolution from ``kept`` channels to ``out``, which begin a stream, and a 2×2 mean."""

    def __init__(self, width: int, kept: int, out: int) -> None:
        super().__init__(width, kept, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.computed(x), 2)


class DenseNet(Slimmable):
    """``cfg``: of each block, the batch norms of its layers and the one after it.

    Each block has a stream, which the stem or a transition begins and its layers append to.
    """

    def __init__(self, num_classes: int, cfg: Sequence[int], **streams: Sequence[int]) -> None:
        super().__init__(num_classes, cfg)
        layers, kept, parts = len(cfg) // 3 - 1, iter(cfg), list[nn.Module]()
        first, written = {"conv1": STEM}, list[Stream]()
        for block in (1, 2, 3):
            wrote = first | {f"dense{block}.{i}": GROWTH for i in range(layers)}
            written.append(Stream(wrote, streams.get(f"stream{block}")))
            first = {f"trans{block}": sum(wrote.values())}
        self.stream1, self.stream2, self.stream3 = written
        self.conv1 = nn.Conv2d(3, self.stream1.parts["conv1"], 3, padding=1, bias=False)
        for block, stream in enumerate(written):
            width, *appended = stream.parts.values()
            if block:
                parts.append(Transition(written[block - 1].width, next(kept), width))
            dense = nn.Sequential()
            for out in appended:
                dense.append(DenseLayer(width, next(kept), out))
                width += out
            parts.append(dense)
        self.dense1, self.trans1, self.dense2, self.trans2, self.dense3 = parts
        self.bn = BatchNorm(cfg[-1])
        self.select = ChannelSelection(self.stream3.width, cfg[-1])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(cfg[-1], num_classes)

    @staticmethod
    def full_cfg(depth: int) -> list[int]:
        layers, rest = divmod(depth - 4, 3)
        if rest or not 1 <= layers <= 82:
            known = "3n + 4 (7, 10, 22, 40, ..., 250)"
            raise ValueError(f"densenet has no depth {depth}: choose {known}")
        return [STEM + GROWTH * (part * layers + i) for part in range(3) for i in range(layers + 1)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.trans2(self.dense2(x))
        x = self.avgpool(self.relu(self.bn(self.select(self.dense3(x)))))
        return self.fc(x.flatten(1))

    def _readers(self) -> Iterator[tuple[str, DenseLayer]]:
        return ((n, m) for n, m in self.named_modules() if isinstance(m, DenseLayer))

    def wiring(self) -> Wiring:
        wiring: Wiring = {"conv1": ("conv1", None), "select": ("bn", "stream3"), "fc": (None, "bn")}
        for name, _ in self._readers():
            bn1, stream = f"{name}.bn1", f"stream{name[5]}"  # dense1.0, trans1
            wiring |= {f"{name}.select": (bn1, stream), f"{name}.conv1": (name, bn1)}
        return wiring

    def offsets(self, emitted: Mapping[str, Tensor]) -> State:
        offsets = State()
        # What the slim network's dense stream lacks, all over the picture.
        missing = self.conv1.weight.new_zeros(self.conv1.out_channels)
        for name, reader in self._readers():
            offsets[f"{name}.bn1.running_mean"] = -missing[reader.select.positions()]
            written = offset(reader.conv1, emitted[f"{name}.bn1"])
            # A layer appends to the stream; a transition writes it anew: its mean keeps constants.
            rewrites = isinstance(reader, Transition)
            missing = written if rewrites else torch.cat((missing, written))
        offsets["bn.running_mean"] = -missing[self.select.positions()]
        return {**offsets, "fc.bias": self.fc.weight @ emitted["bn"]}
