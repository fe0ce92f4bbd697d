"""Which channels go, by their scaling factors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utils.methods.base import AnyBatchNorm, batch_norms, is_zero


@torch.no_grad()
def plan(norms: Sequence[AnyBatchNorm], zeros: Tensor, count: int = 0) -> list[Tensor]:
    """Masks: a bool tensor for each of the batch ``norms``, True where a channel is kept.

    Prunes all ``zeros`` (bool, over all channels), and the ``count`` smallest |γ| over all layers,
    zeros being the first. Whatever ties with the last of them goes with it. A layer in which
    nothing survives keeps one channel: that of the largest |γ| or, if all are zero, of the largest
    bias.
    """
    size = torch.cat([bn.weight for bn in norms]).abs().masked_fill(zeros, 0)
    threshold = size.kthvalue(count).values if count else -1.0
    masks = (~zeros & (size > threshold)).split([len(bn.weight) for bn in norms])
    for bn, mask in zip(norms, masks, strict=True):
        if not mask.any():
            mask[(bn.bias if is_zero(bn.weight).all() else bn.weight.abs()).argmax()] = True
    return list(masks)


@torch.no_grad()
def apply_plan(model: nn.Module, masks: Sequence[Tensor], zeros: Tensor) -> None:
    """Mask in place: γ = 0 for removed channels, and no bias for those dropped while alive.

    Those of ``zeros``, where γ (or ξ) is zero, keep their bias: they emit a constant.
    """
    parts = zeros.split([len(mask) for mask in masks])
    for bn, mask, zero in zip(batch_norms(model), masks, parts, strict=True):
        bn.weight.mul_(mask)
        bn.bias.mul_(mask | zero)
