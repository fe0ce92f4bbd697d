"""Batch norms' running statistics for weights that they were not gathered with."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from utils.data.batches import Batches

PICTURES = 2000


def retake(model: nn.Module, batches: Batches) -> None:
    """Set the statistics to their means over the first PICTURES training pictures, as they are.

    In float32, whatever the training's precision. ``model`` ends in the mode it was in.
    """

    def pictures() -> Iterator[Tensor]:
        left = PICTURES
        for images, _ in batches.in_order():
            yield images[:left]
            left -= len(images)
            if left <= 0:
                return

    with torch.no_grad():
        update_bn(pictures(), model)
