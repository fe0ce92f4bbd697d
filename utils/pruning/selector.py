"""Chooses channels as the command line says, and removes them."""

import argparse
import copy
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from netslim.choice import limit, matching
from netslim.surgery import Removal
from utils.console import InputError, note
from utils.device import pick_device
from utils.methods.base import count_of
from utils.network import Network, with_weights
from utils.pruning.latency import Search
from utils.pruning.plan import apply_plan, filter_sizes, plan
from utils.pruning.report import cost_of

TARGETS = {"flops": "flops", "params": "parameters"}  # suffixes of flags, fields of a Cost


def target_of(args: argparse.Namespace) -> str | None:
    """Returns the suffix of the ``--target-`` flag that was given, None without one."""
    flags = (*TARGETS, "latency")
    return next((x for x in flags if getattr(args, f"target_{x}") is not None), None)


@dataclass(frozen=True)
class Pruning:
    """One pruning of a network.

    Attributes:
        masked: the network with γ = 0 in the channels that are removed.
        removal: how they are removed.
        chosen: bool [channels] for each batch norm, True where a channel was chosen to be kept.
        rounded: {flag: bool [channels]}: channels that are kept for speed only.
        milliseconds: of the network and of the pruned one, if they were measured.
    """

    masked: Network
    removal: Removal
    chosen: list[Tensor]
    rounded: dict[str, Tensor]
    milliseconds: tuple[float, float] | None = None

    @property
    def masks(self) -> list[Tensor]:
        """bool [channels] for each batch norm, True where a channel is kept, as a carrier too."""
        return list(self.removal.keep.values())

    @cached_property
    def pruned(self) -> Network:
        return self.masked.remove(self.removal)

    @cached_property
    def with_whole_streams(self) -> Network:
        """The pruned network with the unused channels of residual and dense streams."""
        return self.masked.remove(self.masked.plan(self.chosen, streams=False))


class Selector:
    """Chooses channels of ``network`` by the flags in ``args``.

    Attributes:
        scores: float [channels], the size by which channels are compared.

    Args:
        fold: whether channels with γ ≠ 0 are removed as constants where possible; if not, they
            lose their bias, as in original network slimming.
        seed: of random scores.

    Raises:
        InputError: no channel can be removed, or a pattern matches no layer.
    """

    def __init__(
        self, network: Network, args: argparse.Namespace, fold: bool = False, seed: int = 1
    ) -> None:
        self.network, self.args, self.fold = network, args, fold
        names = list(network.norms)
        if not names:
            raise InputError(
                f"{args.model} is of {network.arch}, no channel of which can be removed"
                f" ({network.graph.why_none()})"
            )
        self.scores = network.gamma.abs()
        if args.criterion == "filters":
            self.scores = filter_sizes(network)
            if self.scores.isinf().all():
                raise InputError(
                    f"--criterion filters: no channel of a {network.arch} has a filter of its own"
                )
        elif args.criterion == "random":
            random = torch.Generator().manual_seed(seed)
            self.scores = torch.rand(len(self.scores), generator=random)
        for flag, patterns in (("--keep", dict(args.keep)), ("--skip", args.skip)):
            for pattern in patterns:
                try:
                    matching(pattern, names)
                except ValueError as error:
                    raise InputError(f"{flag} {pattern}: {error}") from None
        self.ties = [[names.index(name) for name in tie] for tie in network.graph.ties]

    def remove(self, zeros: Tensor, count: int) -> Pruning:
        """Returns the pruning of ``zeros`` and others, ``count`` channels within the limits.

        Args:
            zeros: bool [channels].
            count: ``zeros`` included; more only if more are zero.
        """
        network, args = self.network, self.args
        norms = list(network.norms.values())
        chosen = plan(norms, zeros, count, self.scores, args.adjust, self.ties)
        rounded = {}
        if args.keep or args.skip or args.round_to > 1:
            graph, silent = network.graph, copy.deepcopy(network.model)
            folded = self._foldable(chosen) if self.fold else zeros
            # Whichever channels the limits leave to be removed as alive, they lose their bias.
            for name, folds in network.keep(folded.split(network.widths)).items():
                bias = silent.get_submodule(name).bias
                if isinstance(bias, Tensor):
                    bias.data.mul_(folds)
            keep, minimum = network.keep(chosen), dict(args.keep)
            limited = limit(graph, keep, minimum=minimum, skip=args.skip, model=silent)
            masks = limit(graph, limited, round_to=args.round_to, model=silent)
            chosen = list(masks.values())
            rounded["--round-to"] = torch.cat(chosen) & ~torch.cat(list(limited.values()))
        return self._pruning(zeros, chosen, rounded)

    def _pruning(
        self, zeros: Tensor, chosen: list[Tensor], rounded: dict[str, Tensor] | None = None
    ) -> Pruning:
        """Returns the pruning that keeps the ``chosen`` channels."""
        folded = self._foldable(chosen) if self.fold else zeros
        masked = self._masked(chosen, folded)
        removal = masked.plan(chosen, streams=self.args.layout != "released")
        return Pruning(masked, removal, chosen, rounded or {})

    def _foldable(self, masks: list[Tensor]) -> Tensor:
        """Returns the channels whose bias can be folded: not those before a gate, for example."""
        masked = self._masked(masks, torch.ones_like(torch.cat(masks)))
        removal, graph = masked.plan(masks), self.network.graph
        carriers = {name: removal.carriers[graph.norm_classes(name)] for name in removal.keep}
        kept = [mask & ~carriers[name] for name, mask in removal.keep.items()]
        return ~torch.cat(kept) | torch.cat(masks)

    def _masked(self, masks: list[Tensor], folded: Tensor) -> Network:
        """Returns a copy with γ = 0 outside ``masks``, and bias 0 if not ``folded`` either."""
        masked = with_weights(self.network, copy.deepcopy(self.network.model))
        apply_plan(list(masked.norms.values()), masks, folded)
        return masked

    def select(self, zeros: Tensor) -> Pruning:
        """Returns the pruning of ``zeros`` and the share of --percent, or the fewest for a target.

        With --for, channels are kept nevertheless where that is faster.

        Raises:
            InputError: the target is out of reach.
        """
        args, search = self.args, None
        if args.engine:
            device = pick_device(args.no_cuda)
            search = Search(self.network, args.engine, args.batch_size or 1, device)
        pruning = self.remove(zeros, self._count(zeros, search))
        if search is None:
            return pruning

        def build(masks: list[Tensor]) -> Network:
            return self._pruning(zeros, masks).pruned

        masks, times = search.fastest(pruning.chosen, pruning.masked.model, build)
        target = args.target_latency
        if target and 1 - times[1] / times[0] < target.share_of(times[0]):
            note(f"note: the last measurement misses --target-latency {target}: times vary")
        kept = {f"--for {args.engine}": torch.cat(masks) & ~torch.cat(pruning.chosen)}
        return replace(self._pruning(zeros, masks, kept), milliseconds=times)

    def _count(self, zeros: Tensor, search: Search | None) -> int:
        """Returns how many channels are removed: for a target, the fewest that reach it."""
        args, channels = self.args, int(self.scores.isfinite().sum())
        if (flag := target_of(args)) is None:
            return count_of(args.percent, channels)
        if search is not None and flag == "latency":
            counts, unit = range(0, channels + 1, max(1, channels // 100)), "milliseconds"
            target = args.target_latency.share_of(search.full_milliseconds)

            def saved(count: int) -> float:
                pruning = self.remove(zeros, count)
                chosen, model = pruning.chosen, pruning.masked.model
                return 1 - search.best_rule(chosen, model, lambda x: self._pruning(zeros, x).pruned)
        else:
            counts, unit = range(channels + 1), TARGETS[flag]
            full, target = getattr(cost_of(self.network), unit), getattr(args, f"target_{flag}")

            def saved(count: int) -> float:
                return 1 - getattr(cost_of(self.remove(zeros, count).pruned), unit) / full

        # Removing more channels never costs more: a binary search finds the smallest number.
        index = bisect_left(counts, target, key=saved)
        if index == len(counts):
            raise InputError(
                f"--target-{flag} {getattr(args, f'target_{flag}')} is out of reach: with the"
                f" fewest channels that every layer may have {saved(counts[-1]):.4f} of the {unit}"
                " are removed"
            )
        return counts[index]
