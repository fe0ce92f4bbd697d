"""Which channels go, by their scaling factors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import torch
from torch import Tensor, nn

from utils.methods.base import batch_norms, is_zero


@dataclass(frozen=True)
class Plan:
    """What to prune, one bool tensor per batch norm each.

    ``masks`` is True where a channel is kept. ``zeros`` is True where γ (or ξ) is zero: such a
    channel, when removed, is replaced by the constant it emits; any other is dropped with its bias.
    """

    masks: list[Tensor]
    zeros: list[Tensor]


def zero_channels(factors: Sequence[Tensor]) -> list[Tensor]:
    """Where the scaling factors (γ or ξ) of every batch norm are zero."""
    return [is_zero(factor) for factor in factors]


def plan(
    gammas: Sequence[Tensor], biases: Sequence[Tensor], zeros: Sequence[Tensor], count: int = 0
) -> Plan:
    """Prune all ``zeros``, and the ``count`` smallest |γ| over all layers, zeros being the first.

    Whatever ties with the last of them goes with it. A layer in which nothing survives keeps one
    channel: that of the largest |γ| or, if all are zero, of the largest bias.
    """
    sizes = [gamma.abs().masked_fill(zero, 0) for gamma, zero in zip(gammas, zeros, strict=True)]
    threshold = torch.cat(sizes).kthvalue(count).values if count else -1.0
    masks = []
    for size, zero, gamma, bias in zip(sizes, zeros, gammas, biases, strict=True):
        mask = ~zero & (size > threshold)
        if not mask.any():
            mask[(bias if is_zero(gamma).all() else gamma.abs()).argmax()] = True
        masks.append(mask)
    return Plan(masks, list(zeros))


def count_of(percent: float, channels: int) -> int:
    """⌊percent · channels⌋, exactly: 0.29 of 100 is 29 and not 28.

    Raises ValueError unless 0 ≤ ``percent`` ≤ 1.
    """
    if not 0 <= percent <= 1:
        raise ValueError(f"percent is a fraction from 0 to 1, not {percent}")
    return int(Decimal(repr(percent)) * channels)


def smallest_count(channels: int, enough: Callable[[int], bool]) -> int | None:
    """The fewest channels to prune so that ``enough`` holds, or None if all are too few.

    Pruning more never costs more, so this is a binary search.
    """
    if not enough(channels):
        return None
    low, high = -1, channels
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@torch.no_grad()
def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Mask in place: γ = 0 for removed channels, and no bias for those dropped while alive."""
    for bn, mask, zero in zip(batch_norms(model), plan.masks, plan.zeros, strict=True):
        bn.weight.mul_(mask)
        bn.bias.mul_(mask | zero)
