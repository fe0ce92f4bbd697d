"""Cut the channels with zero scaling factors out of a DenseNet.

python densenet_prune.py --model logs/proximal_densenet_40_cifar10checkpoint.pth.tar
"""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from models.densenet import DenseLayer, DenseNet, Transition
from utils.cli import run
from utils.prune_command import prune
from utils.pruning import (
    constants,
    copy_batch_norm,
    copy_conv,
    copy_linear,
    copy_selection,
    offset,
)


def slim(model: DenseNet, masks: Sequence[Tensor]) -> DenseNet:
    """A new DenseNet of the kept channels only; ``model`` stays as it is.

    ``masks`` has one bool tensor per batch norm, True where a channel is kept, at least one each.
    The dense stream keeps its width: a mask only chooses what its layer reads of it.
    Removed channels are taken as γ = 0; the ReLU(bias) they emit is folded into what follows,
    exactly but at the border of 3×3 convolutions. Where they emit 0, both compute the same.
    """
    masks = [mask.to(model.fc.weight.device) for mask in masks]
    depth = 3 * len(model.dense1) + 4
    cfg = [int(mask.sum()) for mask in masks]
    small = DenseNet(depth, model.fc.out_features, cfg).to(model.fc.weight)
    copy_conv(model.conv1, small.conv1, None, None)
    *of_layers, last = masks
    readers = [
        (old, new)
        for old, new in zip(model.modules(), small.modules(), strict=True)
        if isinstance(old, DenseLayer | Transition)
    ]
    # What the slim network's dense stream lacks, all over the picture.
    missing = model.conv1.weight.new_zeros(model.conv1.out_channels)
    for (old, new), kept in zip(readers, of_layers, strict=True):
        copy_selection(old.select, new.select, kept)
        copy_batch_norm(old.bn1, new.bn1, kept, missing[old.select.positions()])
        copy_conv(old.conv1, new.conv1, None, kept)
        written = offset(old.conv1, constants(old.bn1, kept))
        # A layer appends to the stream; a transition writes it anew, and its mean keeps constants.
        missing = torch.cat((missing, written)) if isinstance(old, DenseLayer) else written
    copy_selection(model.select, small.select, last)
    copy_batch_norm(model.bn, small.bn, last, missing[model.select.positions()])
    copy_linear(model.fc, small.fc, last, constants(model.bn, last))
    return small.train(model.training)


def main(argv: list[str] | None = None) -> None:
    prune("densenet", "densenet", slim, argv)


if __name__ == "__main__":
    sys.exit(run(main))
