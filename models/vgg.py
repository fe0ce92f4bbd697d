"""VGG with batch norm for 32×32 images (Simonyan & Zisserman, as in network slimming)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.registry import register

M = "M"  # 2×2 max-pooling
WIDTHS: dict[int, tuple[int | str, ...]] = {
    11: (64, M, 128, M, 256, 256, M, 512, 512, M, 512, 512),
    13: (64, 64, M, 128, 128, M, 256, 256, M, 512, 512, M, 512, 512),
    16: (64, 64, M, 128, 128, M, *(256,) * 3, M, *(512,) * 3, M, *(512,) * 3),
    19: (64, 64, M, 128, 128, M, *(256,) * 4, M, *(512,) * 4, M, *(512,) * 4),
}


@register("vgg", depth=19, depths="11, 13, 16 or 19", family="vgg")
class VGG(nn.Module):
    """3×3 convolutions with batch norm and ReLU, 2×2 max-pooling, and a linear classifier."""

    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        if depth not in WIDTHS:
            raise ValueError(f"vgg has no depth {depth}: choose 11, 13, 16 or 19")
        layers, width = list[nn.Module](), 3
        for out in WIDTHS[depth]:
            if isinstance(out, str):
                layers.append(nn.MaxPool2d(2))
            else:
                conv = nn.Conv2d(width, out, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                width = out
        self.feature = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.avg_pool2d(self.feature(x), 2).flatten(1))
