"""Cut the channels with zero scaling factors out of a pre-activation ResNet.

python resnet_prune.py --model logs/proximal_resnet_164_cifar10checkpoint.pth.tar
"""

import sys
from collections.abc import Sequence

from torch import Tensor

from models.resnet import Bottleneck, ResNet
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


def slim(model: ResNet, masks: Sequence[Tensor]) -> ResNet:
    """A new ResNet of the kept channels only; ``model`` stays as it is.

    ``masks`` has one bool tensor per batch norm, True where a channel is kept, at least one each.
    The residual stream keeps its width: a block's first mask only chooses what the block reads.
    Removed channels are taken as γ = 0; the ReLU(bias) they emit is folded into what follows,
    exactly but at the border of 3×3 convolutions. Where they emit 0, both compute the same.
    """
    masks = [mask.to(model.fc.weight.device) for mask in masks]
    depth = 9 * len(model.layer1) + 2
    cfg = [int(mask.sum()) for mask in masks]
    small = ResNet(depth, model.fc.out_features, cfg).to(model.fc.weight)
    copy_conv(model.conv1, small.conv1, None, None)
    *of_blocks, last = masks
    blocks = [
        (old, new)
        for old, new in zip(model.modules(), small.modules(), strict=True)
        if isinstance(old, Bottleneck)
    ]
    # What the slim network's residual stream lacks, all over the picture.
    missing = model.conv1.weight.new_zeros(model.conv1.out_channels)
    for (old, new), kept in zip(blocks, zip(*[iter(of_blocks)] * 3, strict=True), strict=True):
        kept1, kept2, kept3 = kept
        copy_selection(old.select, new.select, kept1)
        copy_batch_norm(old.bn1, new.bn1, kept1, missing[old.select.positions()])
        copy_conv(old.conv1, new.conv1, kept2, kept1)
        copy_batch_norm(old.bn2, new.bn2, kept2, offset(old.conv1, constants(old.bn1, kept1)))
        copy_conv(old.conv2, new.conv2, kept3, kept2)
        copy_batch_norm(old.bn3, new.bn3, kept3, offset(old.conv2, constants(old.bn2, kept2)))
        copy_conv(old.conv3, new.conv3, None, kept3)
        if old.downsample is not None:
            copy_conv(old.downsample[0], new.downsample[0], None, None)
            missing = offset(old.downsample[0], missing)
        missing = missing + offset(old.conv3, constants(old.bn3, kept3))
    copy_selection(model.select, small.select, last)
    copy_batch_norm(model.bn, small.bn, last, missing[model.select.positions()])
    copy_linear(model.fc, small.fc, last, constants(model.bn, last))
    return small.train(model.training)


def main(argv: list[str] | None = None) -> None:
    prune("resnet", "ResNet", slim, argv)


if __name__ == "__main__":
    sys.exit(run(main))
