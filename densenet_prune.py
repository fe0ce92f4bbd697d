"""Cut the channels with zero scaling factors out of a DenseNet.

python densenet_prune.py --model logs/proximal_densenet_40_cifar10checkpoint.pth.tar
"""

import sys
from collections.abc import Sequence

from torch import Tensor

from models.densenet import DenseLayer, DenseNet, Transition
from utils.cli import run
from utils.prune_command import prune
from utils.pruning import copy_batch_norm, copy_conv, copy_linear, copy_selection


def slim(model: DenseNet, masks: Sequence[Tensor]) -> DenseNet:
    """A new DenseNet of the kept channels only; ``model`` stays as it is.

    ``masks`` has one bool tensor per batch norm, True where a channel is kept, at least one each.
    The dense stream keeps its width: a mask only chooses what its layer reads of it.
    Where every removed channel has γ = bias = 0 both compute the same, to rounding.
    """
    depth = 3 * len(model.dense1) + 4
    small = DenseNet(depth, model.fc.out_features, [int(mask.sum()) for mask in masks])
    copy_conv(model.conv1, small.conv1, None, None)
    *of_layers, last = masks
    readers = [
        (m, s)
        for m, s in zip(model.modules(), small.modules(), strict=True)
        if isinstance(m, DenseLayer | Transition)
    ]
    for (old, new), kept in zip(readers, of_layers, strict=True):
        copy_selection(old.select, new.select, kept)
        copy_batch_norm(old.bn1, new.bn1, kept)
        copy_conv(old.conv1, new.conv1, None, kept)
    copy_selection(model.select, small.select, last)
    copy_batch_norm(model.bn, small.bn, last)
    copy_linear(model.fc, small.fc, last)
    return small.to(model.fc.weight).train(model.training)


def main(argv: list[str] | None = None) -> None:
    prune("densenet", "densenet", slim, argv)


if __name__ == "__main__":
    sys.exit(run(main))
