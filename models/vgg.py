"""VGG with batch norm for 32×32 pictures (Simonyan & Zisserman, as in network slimming)."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.surgery import BatchNorm, Slimmable, State, Wiring, offset

SIZE = 32  # pixels of a picture's side
M = "M"  # a 2×2 max-pool
WIDTHS: dict[int, tuple[int | str, ...]] = {
    11: (64, M, 128, M, 256, 256, M, 512, 512, M, 512, 512),
    13: (64, 64, M, 128, 128, M, 256, 256, M, 512, 512, M, 512, 512),
    16: (64, 64, M, 128, 128, M, *(256,) * 3, M, *(512,) * 3, M, *(512,) * 3),
    19: (64, 64, M, 128, 128, M, *(256,) * 4, M, *(512,) * 4, M, *(512,) * 4),
}


class VGG(Slimmable):
    """Convolution, batch norm, ReLU."""

    def __init__(self, num_classes: int, cfg: Sequence[int | str]) -> None:
        super().__init__(num_classes, cfg)
        layers, width = list[nn.Module](), 3
        for out in cfg:
            if isinstance(out, str):
                layers.append(nn.MaxPool2d(2))
            else:
                conv = nn.Conv2d(width, out, 3, padding=1, bias=False)
                layers += [conv, BatchNorm(out), nn.ReLU(inplace=True)]
                width = out
        self.feature = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    @staticmethod
    def full_cfg(depth: int) -> Sequence[int | str]:
        if depth not in WIDTHS:
            raise ValueError(f"vgg has no depth {depth}: choose 11, 13, 16 or 19")
        return WIDTHS[depth]

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.avg_pool2d(self.feature(x), 2).flatten(1))

    def wiring(self) -> Wiring:
        wiring, reads = Wiring(), None
        for i, layer in enumerate(self.feature):
            if isinstance(layer, nn.Conv2d):
                writes = f"feature.{i + 1}"
                wiring[f"feature.{i}"] = writes, reads
                reads = writes
        return {**wiring, "classifier": (None, reads)}

    def offsets(self, emitted: Mapping[str, Tensor]) -> State:
        offsets, constants, size = State(), self.classifier.weight.new_zeros(3), SIZE
        for i, layer in enumerate(self.feature):
            if isinstance(layer, nn.Conv2d):
                # Maps of 2×2 are nothing but border: there the constants count in the mean.
                writes = f"feature.{i + 1}"
                offsets[f"{writes}.running_mean"] = -offset(layer, constants, (size, size))
                constants = emitted[writes]
            elif isinstance(layer, nn.MaxPool2d):
                size //= 2
        return {**offsets, "classifier.bias": self.classifier.weight @ constants}
