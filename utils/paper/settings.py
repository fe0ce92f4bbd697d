"""The paper's settings (section 5.1)."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

EPOCHS = 160
LEARNING_RATE = 0.1
BATCH_SIZE = 64
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
STEPS = 782  # mini-batches of 64 per epoch of CIFAR's 50,000 images
XI_INIT = (0.47, 0.50)

# Retraining after SAS-ADMM's pruning of weights, by SGD and by SAS-ADMM.
RETRAINING: dict[str, Any] = {"epochs": 200, "batch_size": 128, "nesterov": False}
SAS_RETRAINING: dict[str, Any] = {"s": 0.0, "average_from": 151}

Schedule = list[tuple[int, float]]  # (mini-batches, learning rate) of every epoch


def drops(epochs: int, warmup: int = 0) -> tuple[int, int]:
    """Returns the epochs, from 0, at which the learning rate drops to a tenth and a hundredth.

    ⌊epochs/2⌋ and ⌊3·epochs/4⌋ as in the paper, but later, maybe beyond the last epoch, if that
    leaves no epoch at the full rate after the ``warmup``, or none at a tenth.
    """
    first = max(epochs // 2, warmup + 1)
    return first, max(3 * epochs // 4, first + 1)


def learning_rate(
    epoch: int, epochs: int, initial: float = LEARNING_RATE, shape: str = "step", warmup: int = 0
) -> float:
    """Returns the learning rate of an epoch, counted from 0.

    Args:
        shape: "step": ×0.1 at each of :func:`drops`; "cosine": from ``initial`` towards 0.
        warmup: number of first epochs in which the rate rises to ``initial`` in equal steps.
    """
    if epoch < warmup:
        initial *= (epoch + 1) / (warmup + 1)
    if shape == "cosine":
        done = max(epoch - warmup, 0) / (epochs - warmup)
        return initial * (1 + math.cos(math.pi * done)) / 2
    return initial / 10 ** sum(epoch >= drop for drop in drops(epochs, warmup))


def schedule(epochs: int = EPOCHS, steps: int = STEPS) -> Schedule:
    """Returns the paper's schedule for ``epochs`` of ``steps`` mini-batches each."""
    return [(steps, learning_rate(epoch, epochs)) for epoch in range(epochs)]


class Recipe(NamedTuple):
    """λ and β of proximal slimming, and λ of original slimming (from its own paper)."""

    lambda_: float
    beta: float
    subgradient_lambda: float


def recipe(arch: str, depth: int) -> Recipe:
    """Returns the paper's settings for the architecture, or for the nearest one it has."""
    if arch.startswith("vgg"):
        return Recipe(lambda_=0.0045, beta=100.0, subgradient_lambda=1e-4)
    if arch == "densenet":
        return Recipe(lambda_=0.004, beta=100.0, subgradient_lambda=1e-5)
    beta = 0.25 if arch == "resnet" and depth >= 164 else 1.0
    return Recipe(lambda_=0.002, beta=beta, subgradient_lambda=1e-5)


@dataclass(frozen=True)
class SasRecipe:
    """SAS-ADMM's settings for ResNet-32 on CIFAR-10, the only ones in its program."""

    lambda_: float = 1e-4
    beta: float = 0.04
    outer: int = 190
    inner: int = 50
    k0: int = 50
    q: float = 1.1
    v: float = 25.0
    average_from: int = 170
    batch_size: int = 256


SAS = SasRecipe()
