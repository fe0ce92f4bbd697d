"""Batch norms' running statistics for weights that they were not gathered with."""

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from utils.data.batches import Batches

IMAGES = 2000


def recalibrate_bn(model: nn.Module, batches: Batches) -> None:
    """Set the statistics to their means over IMAGES training images at random, not augmented.

    The images are a function of the seed alone: in every process, epoch and after a resume the
    same. In float32, whatever the training's precision. ``model`` ends in the mode it was in.
    """
    with torch.no_grad():
        update_bn(batches.sample(IMAGES), model)
