"""The published results of SAS-ADMM, and recipes for them."""

from typing import Any

# Architecture, depth, data set: published compression factor of the weights (no accuracy is).
PUBLISHED = {
    ("resnet-basic", 32, "cifar10"): 6.61,
    ("resnet-basic", 56, "cifar10"): 9.93,
    ("alexnet", 8, "imagenet"): 20.9,
}
# Flags of the training, pruned share of the weights, flags of the retraining. The program has
# settings for ResNet-32 only; the other shares give the published factors (9.9292 and 20.92). 1,000
# inner steps make some 90 epochs of ImageNet; AlexNet, without batch norm, diverges at lr 0.1.
RECIPES: dict[str, tuple[dict[str, Any], float, dict[str, Any]]] = {
    "sas32": ({"arch": "resnet-basic", "depth": 32, "dataset": "cifar10"}, 0.85, {}),
    "sas56": ({"arch": "resnet-basic", "depth": 56, "dataset": "cifar10"}, 0.9, {}),
    "sasalex": (
        {"arch": "alexnet", "dataset": "imagenet", "inner": 1000},
        0.9522,
        {"epochs": 90, "lr": 0.01, "batch_size": 256},
    ),
}
