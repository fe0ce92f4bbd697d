"""Cut the channels with zero scaling factors out of a VGG.

python vgg_prune.py --model logs/proximal_vgg_19_cifar10checkpoint.pth.tar
"""

import sys
from collections.abc import Sequence

from torch import Tensor, nn

from models.vgg import VGG
from utils.cli import run
from utils.folder import SIZE
from utils.prune_command import prune
from utils.pruning import constants, copy_batch_norm, copy_conv, copy_linear, offset


def slim(model: VGG, masks: Sequence[Tensor]) -> VGG:
    """A new VGG of the kept channels only; ``model`` stays as it is.

    ``masks`` has one bool tensor per batch norm, True where a channel is kept, at least one each.
    Removed channels are taken as γ = 0; the ReLU(bias) they emit is folded into what follows,
    exactly but at the border of the maps (of 2×2 maps, which have nothing else, in the mean). Where
    they emit 0, both networks compute the same.
    """
    masks = [mask.to(model.classifier.weight.device) for mask in masks]
    kept = iter(masks)
    cfg = [
        "M" if isinstance(layer, nn.MaxPool2d) else int(next(kept).sum())
        for layer in model.feature
        if isinstance(layer, nn.MaxPool2d | nn.BatchNorm2d)
    ]
    small = VGG(model.classifier.out_features, cfg).to(model.classifier.weight)
    kept = iter(masks)
    into, out, size = None, next(kept), SIZE  # all three colours
    emitted = model.classifier.weight.new_zeros(3)
    for old, new in zip(model.feature, small.feature, strict=True):
        if isinstance(old, nn.Conv2d):
            copy_conv(old, new, out, into)
            missing = offset(old, emitted, size)
        elif isinstance(old, nn.MaxPool2d):
            size //= 2
        elif isinstance(old, nn.BatchNorm2d):
            copy_batch_norm(old, new, out, missing)
            emitted = constants(old, out)
            into, out = out, next(kept, out)
    copy_linear(model.classifier, small.classifier, into, emitted)
    return small.train(model.training)


def main(argv: list[str] | None = None) -> None:
    prune("vgg", "vggnet", slim, argv)


if __name__ == "__main__":
    sys.exit(run(main))
