"""Recalibration of batch-norm statistics."""

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from utils.data.batches import Batches

IMAGES = 2000


def recalibrate_bn(model: nn.Module, batches: Batches) -> None:
    """Recomputes the running statistics from IMAGES random training images, not augmented.

    The images depend on the seed alone. Computes in float32; ``model`` keeps its mode.
    """
    with torch.no_grad():
        update_bn(batches.sample(IMAGES), model)
