"""The published results of Lp slimming (Ji et al.) and of SAS-ADMM, and recipes for them.

Those of Lp slimming are from the images of tables in their repository. Their FLOPs are
multiply-adds with linear biases, 2 per input element of a batch norm, and pooling modules.
"""

from typing import Any, NamedTuple

LP = "lp-admm"  # the method
# Architecture, depth, data set. Their CIFAR ResNets have basic blocks.
LP_NETWORKS = {
    "VGG-16": ("vgg", 16, "cifar10"),
    "ResNet-56": ("resnet-basic", 56, "cifar10"),
    "ResNet-110": ("resnet-basic", 110, "cifar10"),
    "ResNet-50": ("resnet50", 50, "imagenet"),
}
LP_BASE = {"VGG-16": 93.96}  # accuracy of the unpruned model, if published
# Their program's fine-tuning, except schedule and epochs.
LP_TUNING: dict[str, Any] = {"lr": 0.01, "warmup": 5, "label_smoothing": 0.1, "batch_size": 256,
                             "weight_decay": 5e-4}  # fmt: skip
# Our choice where nothing is published, as for ImageNet.
LP_TRAINING = {"ResNet-50": {"epochs": 90, "batch_size": 256}}
LP_SCHEDULE, LP_EPOCHS = "cosine", 100


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


LP_CLAIMS = {
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
LP_RECIPES = {
    "lp16": ("VGG-16", LP_CLAIMS["VGG-16"][4]),
    "lp56": ("ResNet-56", LP_CLAIMS["ResNet-56"][4]),
    "lp110": ("ResNet-110", LP_CLAIMS["ResNet-110"][4]),
    "lp50": ("ResNet-50", LP_CLAIMS["ResNet-50"][3]),
}

# Architecture, depth, data set: published compression factor of the weights (no accuracy is).
SAS_PUBLISHED = {
    ("resnet-basic", 32, "cifar10"): 6.61,
    ("resnet-basic", 56, "cifar10"): 9.93,
    ("alexnet", 8, "imagenet"): 20.9,
}
# Flags of the training, pruned share of the weights, flags of the retraining. The program has
# settings for ResNet-32 only; the other shares give the published factors (9.9292 and 20.92). 1,000
# inner steps make some 90 epochs of ImageNet; AlexNet, without batch norm, diverges at lr 0.1.
SAS_RECIPES: dict[str, tuple[dict[str, Any], float, dict[str, Any]]] = {
    "sas32": ({"arch": "resnet-basic", "depth": 32, "dataset": "cifar10"}, 0.85, {}),
    "sas56": ({"arch": "resnet-basic", "depth": 56, "dataset": "cifar10"}, 0.9, {}),
    "sasalex": (
        {"arch": "alexnet", "dataset": "imagenet", "inner": 1000},
        0.9522,
        {"epochs": 90, "lr": 0.01, "batch_size": 256},
    ),
}
