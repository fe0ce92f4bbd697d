"""Chooses channels as the command line says, and removes them."""

import argparse
import copy
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from netslim.choice import limit, matching
from netslim.surgery import Removal
from utils.console import InputError
from utils.methods.base import count_of
from utils.network import Network, with_weights
from utils.pruning.plan import apply_plan, filter_sizes, plan
from utils.pruning.report import cost_of

TARGETS = {"flops": "flops", "params": "parameters"}  # suffixes of flags, fields of a Cost


@dataclass(frozen=True)
class Pruning:
    """One pruning of a network.

    Attributes:
        masked: the network with γ = 0 in the channels that are removed.
        removal: how they are removed.
        chosen: bool [channels] for each batch norm, True where a channel was chosen to be kept.
        rounded: number of channels that are kept for --round-to only.
    """

    masked: Network
    removal: Removal
    chosen: list[Tensor]
    rounded: int

    @property
    def masks(self) -> list[Tensor]:
        """bool [channels] for each batch norm, True where a channel is kept, as a carrier too."""
        return list(self.removal.keep.values())

    @cached_property
    def pruned(self) -> Network:
        return self.masked.remove(self.removal)

    @cached_property
    def with_whole_streams(self) -> Network:
        """The pruned network with unused stream channels."""
        return self.masked.remove(self.masked.plan(self.chosen, streams=False))


class Selector:
    """Chooses channels of ``network`` by the flags in ``args``.

    Attributes:
        scores: float [channels], the size by which channels are compared.

    Args:
        fold: whether channels with γ ≠ 0 are removed as constants where possible; if not, they
            lose their bias, as in original network slimming.

    Raises:
        InputError: no channel can be removed, or a pattern matches no layer.
    """

    def __init__(self, network: Network, args: argparse.Namespace, fold: bool = False) -> None:
        self.network, self.args, self.fold = network, args, fold
        names = list(network.norms)
        if not names:
            raise InputError(
                f"{args.model} is of {network.arch}, no channel of which can be removed"
                f" ({network.graph.why_none()})"
            )
        self.scores = torch.cat([bn.weight.detach() for bn in network.norms.values()]).abs()
        if args.criterion == "filters":
            self.scores = filter_sizes(network)
            if self.scores.isinf().all():
                raise InputError(
                    f"--criterion filters: no channel of a {network.arch} has a filter of its own"
                )
        for flag, patterns in (("--keep", dict(args.keep)), ("--skip", args.skip)):
            for pattern in patterns:
                try:
                    matching(pattern, names)
                except ValueError as error:
                    raise InputError(f"{flag} {pattern}: {error}") from None
        self.ties = [[names.index(name) for name in tie] for tie in network.graph.ties]

    def remove(self, zeros: Tensor, count: int) -> Pruning:
        """Removes ``zeros`` (bool [channels]) and others, ``count`` in all, within the limits."""
        network, args = self.network, self.args
        norms = list(network.norms.values())
        chosen, rounded = plan(norms, zeros, count, self.scores, args.adjust, self.ties), 0
        folded = self._foldable(chosen) if self.fold else zeros
        if args.keep or args.skip or args.round_to > 1:
            ones = [torch.ones_like(mask) for mask in chosen]
            silent = self._masked(ones, folded, drop_bias=True).model
            limited = limit(
                network.graph,
                network.keep(chosen),
                minimum=dict(args.keep),
                skip=args.skip,
                model=silent,
            )
            masks = limit(network.graph, limited, round_to=args.round_to, model=silent)
            rounded = sum(int((masks[n] & ~limited[n]).sum()) for n in masks)
            chosen = list(masks.values())
        masked = self._masked(chosen, folded)
        removal = masked.plan(chosen, streams=args.layout != "released")
        return Pruning(masked, removal, chosen, rounded)

    def _foldable(self, masks: list[Tensor]) -> Tensor:
        """Returns the channels that can be removed with their bias: not before a gate, say."""
        masked = self._masked(masks, torch.ones_like(torch.cat(masks)))
        removal, graph = masked.plan(masks), self.network.graph
        kept = [
            mask & ~removal.carriers[graph.norm_classes(name)]
            for name, mask in removal.keep.items()
        ]
        return ~torch.cat(kept) | torch.cat(masks)

    def _masked(self, masks: list[Tensor], folded: Tensor, drop_bias: bool = False) -> Network:
        masked = with_weights(self.network, copy.deepcopy(self.network.model))
        norms = list(masked.norms.values())
        apply_plan(norms, masks, folded)
        if drop_bias:  # of all that is removed as alive, whichever channels these are
            with torch.no_grad():
                for bn, keeps in zip(norms, folded.split(self.network.widths), strict=True):
                    bn.bias.mul_(keeps)
        return masked

    def select(self, zeros: Tensor) -> Pruning:
        """Removes ``zeros`` and the share of --percent, or the fewest channels for the target.

        Raises:
            InputError: the target is out of reach.
        """
        channels = int(self.scores.isfinite().sum())
        flag = next((x for x in TARGETS if getattr(self.args, f"target_{x}") is not None), None)
        if flag is None:
            return self.remove(zeros, count_of(self.args.percent, channels))
        target, unit = getattr(self.args, f"target_{flag}"), TARGETS[flag]
        full = getattr(cost_of(self.network), unit)

        def saved(count: int) -> float:
            return 1 - getattr(cost_of(self.remove(zeros, count).pruned), unit) / full

        # Removing more channels never costs more: a binary search finds the smallest number.
        count = bisect_left(range(channels + 1), target, key=saved)
        if count > channels:
            raise InputError(
                f"--target-{flag} {target:g} is out of reach: with the fewest channels that every"
                f" layer may have {saved(channels):.4f} of the {unit} are removed"
            )
        return self.remove(zeros, count)
