"""Limits on pruning: layers that keep all channels, a share of them, or a multiple of a number."""

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from netslim.graph import Graph, Keep
from netslim.surgery import check_keep, plan_removal


@torch.no_grad()
def limit(
    graph: Graph,
    keep: Keep,
    *,
    round_to: int = 1,
    minimum: Mapping[str, float] | None = None,
    skip: Iterable[str] = (),
    model: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Returns masks that keep the channels of ``keep`` and, within the limits, others.

    Channels are added by |γ|, largest first, equal ones by bias. A channel that several batch norms
    share is kept in all of them, and its |γ| is the smallest of theirs.

    Args:
        graph: the dependency graph of the model.
        keep: {name of a batch norm: bool [channels]}, True where a channel is kept. Batch norms
            that are not named keep all.
        round_to: each width is rounded up to a multiple of it, where the layer is as wide.
            Carriers, which stay with γ = 0, count towards the width.
        minimum: {pattern: share} of the channels that layers with such a name keep at least.
            Carriers do not count towards it.
        skip: patterns (``fnmatch``) of the layers that keep all channels.
        model: the model that is pruned, if it is not the graph's.

    Raises:
        ValueError: a pattern matches no batch norm that can be pruned, ``keep`` does not fit, a
            ``minimum`` is no share, or ``round_to`` no positive number.
    """
    check_keep(graph, keep)
    if round_to < 1:
        raise ValueError(f"round_to is {round_to}, not a positive number of channels")
    prunable, least = graph.prunable(), dict[str, int]()
    for pattern, share in (minimum or {}).items():
        if not 0 <= share <= 1:
            raise ValueError(f"minimum of {pattern} is {share}, not a share from 0 to 1")
        for name in matching(pattern, prunable):
            wanted = math.ceil(Decimal(repr(share)) * len(prunable[name]))
            least[name] = max(least.get(name, 0), wanted)
    skipped = [name for pattern in skip for name in matching(pattern, prunable)]
    masks = {name: mask.cpu().clone() for name, mask in keep.items()}
    for name in (*skipped, *least):  # it may share channels with others
        masks.setdefault(name, torch.ones_like(prunable[name]))
    channels = {name: graph.norm_classes(name) for name in masks}
    scores = torch.full((len(graph.classes),), math.inf)
    for name, index in channels.items():
        gamma = graph.all_norms[name].weight.abs().float().cpu()
        scores.scatter_reduce_(0, index, gamma, "amin")

    def add(name: str, kept: Tensor, count: int) -> None:
        """Keeps ``count`` of the channels of a layer that a mask removes and are not ``kept``."""
        index, removed = channels[name], torch.zeros_like(changed)
        for other, mask in masks.items():
            removed[channels[other][~mask]] = True
        norm: Any = graph.all_norms[name]
        bias = torch.zeros(len(index)) if norm.bias is None else norm.bias.cpu()
        order = bias.argsort(descending=True, stable=True)
        order = order[scores[index][order].argsort(descending=True, stable=True)]
        added = index[order[(removed[index] & ~kept)[order]][:count]]
        changed[added] = True
        for other, mask in masks.items():
            mask |= torch.isin(channels[other], added)

    changed = torch.zeros(len(graph.classes), dtype=torch.bool)
    for name in skipped:
        add(name, torch.zeros_like(masks[name]), len(masks[name]))
    while round_to > 1 or least:
        removal = plan_removal(graph, masks, model)
        changed[:] = False
        for name, kept in removal.keep.items():
            if name not in masks or changed[channels[name]].any():
                continue  # of layers that share channels, one at a time
            alive = kept & ~removal.carriers[channels[name]]
            width = math.ceil(int(kept.sum()) / round_to) * round_to
            if (missing := least.get(name, 0) - int(alive.sum())) > 0:
                add(name, alive, missing)
            elif int(kept.sum()) < width <= len(kept):
                add(name, kept, width - int(kept.sum()))
        if not changed.any():
            break
    return {name: masks[name] for name in keep}


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Returns the ``names`` that match ``pattern``, with or without a final ``.norm``.

    Raises:
        ValueError: there is none.
    """
    full_names = {name: (name, name.removesuffix(".norm")) for name in names}
    found = [n for n, both in full_names.items() if any(fnmatchcase(x, pattern) for x in both)]
    if not found:
        names = [*full_names]
        shown = ", ".join(names[:50]) + (f" and {len(names) - 50} more" if names[50:] else "")
        raise ValueError(f"no layer that can be pruned is called {pattern}: there are {shown}")
    return found
