"""The published results of Lp slimming (Ji et al.), and their fine-tuning.

From the images of tables in their repository. Their FLOPs are multiply-adds
with linear biases, 2 per input element of a batch norm, and pooling modules.
"""

from typing import Any, NamedTuple

METHOD = "lp-admm"
# Architecture, depth, data set. Their CIFAR ResNets have basic blocks.
NETWORKS = {
    "VGG-16": ("vgg", 16, "cifar10"),
    "ResNet-56": ("resnet-basic", 56, "cifar10"),
    "ResNet-110": ("resnet-basic", 110, "cifar10"),
    "ResNet-50": ("resnet50", 50, "imagenet"),
}
BASE = {"VGG-16": 93.96}  # accuracy of the unpruned model, if published
# Their program's fine-tuning, except schedule and epochs.
TUNING: dict[str, Any] = {"lr": 0.01, "warmup": 5, "label_smoothing": 0.1, "batch_size": 256,
                          "weight_decay": 5e-4}  # fmt: skip


# Our choice where nothing is published, as for ImageNet.
TRAINING = {"ResNet-50": {"epochs": 90, "batch_size": 256}}
SCHEDULE, EPOCHS = "cosine", 100


class Claim(NamedTuple):
    """A published row: top-1 accuracy, percent of FLOPs and parameters pruned, fine-tuning.

    For ResNet-50, top-5 accuracy is published, but neither parameters nor fine-tuning.
    """

    accuracy: float
    flops: float
    parameters: float | None = None
    schedule: str | None = None
    epochs: int | None = None
    top5: float | None = None


CLAIMS = {
    "VGG-16": [
        Claim(93.50, 60.6, 82.2, "step", 100),
        Claim(93.67, 60.6, 82.2, "step", 300),
        Claim(94.36, 60.6, 82.2, "cosine", 350),
        Claim(93.84, 60.6, 82.2, "cosine", 400),
        Claim(93.91, 66.9, 83.7, "cosine", 350),
        Claim(93.92, 66.9, 83.7, "cosine", 400),
        Claim(93.36, 82.0, 94.7, "step", 300),
    ],
    "ResNet-56": [
        Claim(93.41, 58.6, 49.8, "step", 300),
        Claim(93.98, 58.6, 49.8, "cosine", 350),
        Claim(92.27, 66.5, 60.3, "step", 100),
        Claim(93.18, 66.5, 60.3, "step", 300),
        Claim(93.53, 67.3, 61.5, "cosine", 350),
        Claim(92.45, 74.4, 70.7, "cosine", 400),
        Claim(91.88, 77.8, 75.9, "step", 300),
        Claim(91.85, 81.3, 80.6, "cosine", 300),
    ],
    "ResNet-110": [
        Claim(93.97, 52.9, 45.0, "step", 100),
        Claim(94.48, 52.9, 45.0, "cosine", 400),
        Claim(94.37, 56.2, 54.3, "step", 300),
        Claim(94.01, 65.1, 61.7, "step", 300),
        Claim(94.39, 65.1, 61.7, "cosine", 350),
        Claim(93.69, 72.0, 70.6, "cosine", 400),
        Claim(93.37, 78.7, 79.8, "cosine", 350),
    ],
    "ResNet-50": [
        Claim(75.17, 44.4, top5=92.35),
        Claim(76.47, 46.1, top5=93.16),
        Claim(76.06, 46.1, top5=92.91),
        Claim(75.45, 62.4, top5=92.30),
        Claim(73.26, 63.7, top5=91.27),
    ],
}
# The row that each recipe reproduces: on CIFAR, fine-tuned by a cosine of 350 epochs.
RECIPES = {
    "lp16": ("VGG-16", CLAIMS["VGG-16"][4]),
    "lp56": ("ResNet-56", CLAIMS["ResNet-56"][4]),
    "lp110": ("ResNet-110", CLAIMS["ResNet-110"][4]),
    "lp50": ("ResNet-50", CLAIMS["ResNet-50"][3]),
}
