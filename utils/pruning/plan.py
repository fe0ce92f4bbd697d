"""Chooses the channels to keep, by scaling factors or filter norms."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from netslim.graph import AnyBatchNorm
from utils.methods.base import count_of, is_zero
from utils.network import Network


@torch.no_grad()
def plan(
    norms: Sequence[AnyBatchNorm],
    zeros: Tensor,
    count: int,
    scores: Tensor,
    floor: float,
    ties: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Chooses the channels to keep.

    All ``zeros`` are removed and, counting these, the ``count`` channels of the smallest scores
    over all layers; never more than ``count`` unless more are zero. Of equal scores the smaller
    bias is removed first, whose ReLU gives 0 more often, then the larger position relative to
    the layer's width.

    Args:
        norms: batch norms.
        zeros: bool [channels of all norms].
        count: number of channels.
        scores: float [channels of all norms]; infinite for channels that are removed only as zeros.
        floor: every layer keeps ⌊floor · width⌋ channels and at least one: after those that are
            not to be removed, the largest scores (|γ| where these are infinite) or, if all γ of the
            layer are 0, biases.
        ties: groups of positions in ``norms`` that lose the same channels, in forward order. Their
            channels have the smallest score and the last bias of the group, count once for each
            batch norm, and are kept or removed together.

    Returns:
        bool [channels] for each batch norm, True where a channel is kept.
    """
    widths = [len(bn.weight) for bn in norms]
    ranks = scores.masked_fill(zeros, -1).split(widths)
    tied = {i for tie in ties for i in tie}
    layers = [*ties, *([i] for i in range(len(norms)) if i not in tied)]
    last = [norms[layer[-1]] for layer in layers]
    biases: list[Tensor] = [
        torch.zeros_like(bn.weight) if bn.bias is None else bn.bias for bn in last
    ]
    positions = [torch.arange(len(bias), device=bias.device) for bias in biases]
    rank = torch.cat([torch.stack([ranks[i] for i in layer]).amin(0) for layer in layers])
    order = sort_by(rank, torch.cat(biases), torch.cat([-p / len(p) for p in positions]))
    sizes = torch.cat([torch.full_like(p, len(x)) for p, x in zip(positions, layers, strict=True)])
    first = order[sizes[order].cumsum(0) <= count]
    removed = torch.zeros_like(rank, dtype=torch.bool)
    removed[first] = True
    threshold = rank[first].amax() if len(first) else -math.inf
    gamma = torch.cat([bn.weight for bn in norms]).abs()
    finite_scores = torch.where(scores.isfinite(), scores, gamma).split(widths)
    masks = list((~zeros).split(widths))
    parts = removed.split([*map(len, biases)])
    for layer, chosen, bias, position in zip(layers, parts, biases, positions, strict=True):
        for i in layer:  # a larger γ of the group stays: the constant behind it is then folded
            masks[i] = masks[i] & ~(chosen & (ranks[i] <= threshold))
        kept = torch.stack([masks[i] for i in layer]).all(0)
        if (least := max(1, count_of(floor, len(kept)))) > kept.sum():
            gammas = torch.stack([norms[i].weight for i in layer]).abs().amin(0)
            score = torch.stack([finite_scores[i] for i in layer]).amin(0)
            score = torch.zeros_like(score) if is_zero(gammas).all() else score
            for i in layer:
                masks[i][sort_by(kept.int(), score, bias, -position)[-least:]] = True
    return masks


def sort_by(*keys: Tensor) -> Tensor:
    """Returns the indices that sort by the first of ``keys``, equal values by the next one."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


@torch.no_grad()
def filter_sizes(network: Network) -> Tensor:
    """Returns the ℓ1 norms of the filters that write the channels, scaled to [0, 1] in every layer.

    As in the released program of Lp slimming. Infinite for channels of streams, which several
    layers write.
    """
    sizes = []
    for name, bn in network.norms.items():
        layer = network.graph.writer(name)
        size = torch.full_like(bn.weight, math.inf)
        if layer is not None:
            size = network.model.get_parameter(f"{layer}.weight").abs().flatten(1).sum(1)
        low, high = size.min(), size.max()
        sizes.append((size - low) / (high - low) if low < high else size)
    return torch.cat(sizes)


@torch.no_grad()
def apply_plan(norms: Sequence[AnyBatchNorm], masks: Sequence[Tensor], zeros: Tensor) -> None:
    """Sets γ of removed channels to 0 in place, and their bias if they are not among ``zeros``.

    A channel of ``zeros`` keeps its bias, since it emits a constant.
    """
    parts = zeros.split([len(mask) for mask in masks])
    for bn, mask, zero in zip(norms, masks, parts, strict=True):
        bn.weight.mul_(mask)
        if bn.bias is not None:
            bn.bias.mul_(mask | zero)
