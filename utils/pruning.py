"""Which channels go, by their scaling factors, and how their neighbours' tensors shrink."""

from collections.abc import Sequence
from decimal import Decimal

import torch
from torch import Tensor, nn

from models.channel_selection import ChannelSelection
from utils.slimming import TINY, batch_norms


def prune_masks(
    gammas: Sequence[Tensor], biases: Sequence[Tensor], percent: float = 0.0
) -> list[Tensor]:
    """Which channels survive: one bool tensor per batch norm, True where the channel is kept.

    All zero γ go (a subnormal γ is zero), and the k = ⌊percent · total⌋ smallest |γ| over all
    layers, with whatever ties with the k-th. A layer in which nothing survives keeps one channel:
    that of the largest |γ| or, if all are zero, of the largest bias.

    Raises ValueError unless 0 ≤ ``percent`` ≤ 1.
    """
    if not 0 <= percent <= 1:
        raise ValueError(f"percent is a fraction from 0 to 1, not {percent}")
    sizes = torch.cat([gamma.abs() for gamma in gammas])
    k = int(Decimal(repr(percent)) * len(sizes))  # exact: 0.29 of 100 is 29, not 28
    threshold = sizes.kthvalue(k).values if k else sizes.new_tensor(-1.0)
    masks = [(gamma.abs() >= TINY) & (gamma.abs() > threshold) for gamma in gammas]
    for mask, gamma, bias in zip(masks, gammas, biases, strict=True):
        if not mask.any():
            alive = (gamma.abs() >= TINY).any()
            mask[(gamma.abs() if alive else bias).argmax()] = True
    return masks


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Sequence[Tensor]) -> None:
    """Silence the channels that ``masks`` remove: γ and bias become 0, so their ReLU emits 0."""
    for bn, mask in zip(batch_norms(model), masks, strict=True):
        bn.weight *= mask
        bn.bias *= mask


@torch.no_grad()
def copy_conv(
    source: nn.Conv2d, target: nn.Conv2d, out: Tensor | None, into: Tensor | None
) -> None:
    """Copy the weights of the kept output and input channels; None keeps all of them."""
    weight = source.weight if out is None else source.weight[out]
    target.weight.copy_(weight if into is None else weight[:, into])


@torch.no_grad()
def copy_linear(source: nn.Linear, target: nn.Linear, into: Tensor) -> None:
    """Copy bias and the weights of the kept inputs."""
    target.weight.copy_(source.weight[:, into])
    target.bias.copy_(source.bias)


@torch.no_grad()
def copy_batch_norm(source: nn.BatchNorm2d, target: nn.BatchNorm2d, mask: Tensor) -> None:
    """Copy parameters and statistics of the kept channels."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(target, name).copy_(getattr(source, name)[mask])
    target.num_batches_tracked.copy_(source.num_batches_tracked)


def copy_selection(source: ChannelSelection, target: ChannelSelection, mask: Tensor) -> None:
    """Select from the stream the kept ones of what ``source`` selects."""
    if target.index is not None:
        index = (
            torch.arange(len(mask), device=mask.device) if source.index is None else source.index
        )
        target.index.copy_(index[mask])
