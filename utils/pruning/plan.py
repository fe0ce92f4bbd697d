"""Which channels go, by their scaling factors."""

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
    count: int = 0,
    sizes: Tensor | None = None,
    floor: float = 0.0,
    ties: Sequence[Sequence[int]] = (),
) -> list[Tensor]:
    """Masks: a bool tensor for each of the batch ``norms``, True where a channel is kept.

    Prunes all ``zeros`` (bool, over all channels), and the ``count`` smallest |γ| over all layers,
    or smallest of other ``sizes``, zeros being the first; never more than ``count`` where the zeros
    are not more. Of equally large ones the one of the smaller bias goes first, whose ReLU is silent
    more often; if these are equal too, the one further behind in its layer. A layer keeps the share
    ``floor`` of its channels, and one, whatever that says: of those that should go, the largest
    ones or, if all γ are zero, the ones of the largest bias.

    ``ties`` are the numbers of batch norms whose channels go together, in the order in which a
    picture meets them: the smallest counts for all, the last one's bias too, and what a layer
    keeps, all of them keep. Those that go together count as many as they are, and go whole.
    """
    gamma = torch.cat([bn.weight for bn in norms]).abs()
    sizes = gamma if sizes is None else sizes
    widths = [len(bn.weight) for bn in norms]
    by = torch.where(sizes.isfinite(), sizes, gamma).split(widths)  # to choose what stays
    own = sizes.masked_fill(zeros, -1).split(widths)
    alone = ([i] for i in range(len(norms)) if not any(i in tie for tie in ties))
    layers = [*ties, *alone]
    biases: list[Tensor] = [norms[tie[-1]].bias for tie in layers]
    places = [torch.arange(len(bias), device=bias.device) for bias in biases]
    smallest = torch.cat([torch.stack([own[i] for i in tie]).amin(0) for tie in layers])
    relative = torch.cat([-place / len(place) for place in places])
    order = by_magnitude(smallest, torch.cat(biases), relative)
    together = torch.cat([torch.full_like(p, len(t)) for p, t in zip(places, layers, strict=True)])
    first = order[together[order].cumsum(0) <= count]
    goes = torch.zeros_like(smallest, dtype=torch.bool)
    goes[first] = True
    largest = smallest[first].amax() if len(first) else -math.inf
    masks = list((~zeros).split(widths))
    for tie, go, bias, place in zip(
        layers, goes.split([*map(len, biases)]), biases, places, strict=True
    ):
        for i in tie:  # what only goes along is not masked itself: what it emits then is folded
            masks[i] = masks[i] & ~(go & (own[i] <= largest))
        keep = torch.stack([masks[i] for i in tie]).all(0)
        if (least := max(1, count_of(floor, len(keep)))) > keep.sum():
            gammas = torch.stack([norms[i].weight for i in tie]).abs().amin(0)
            size = torch.stack([by[i] for i in tie]).amin(0)
            size = torch.zeros_like(size) if is_zero(gammas).all() else size
            for i in tie:
                masks[i][by_magnitude(keep.int(), size, bias, -place)[-least:]] = True
    return masks


def by_magnitude(*keys: Tensor) -> Tensor:
    """The indices that sort by the first of ``keys``; what is equal there, by the next."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


@torch.no_grad()
def filter_sizes(network: Network) -> Tensor:
    """ℓ1 norms of the filters that make the channels, scaled from 0 to 1 in every layer.

    As in Lp slimming's released program. Infinite where channels have no filter of their own:
    those of a stream, which many layers write.
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
    """Mask in place: γ = 0 for removed channels, and no bias for those dropped while alive.

    Those of ``zeros``, where γ (or ξ) is zero, keep their bias: they emit a constant.
    """
    parts = zeros.split([len(mask) for mask in masks])
    for bn, mask, zero in zip(norms, masks, parts, strict=True):
        bn.weight.mul_(mask)
        bn.bias.mul_(mask | zero)
