"""Chooses channels as the command line says, and removes them."""

import argparse
import copy
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

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

TARGETS = {"flops": "flops", "params": "parameters"}  # suffixes of flags, fields of a Cost
UNITS = TARGETS | {"latency": "milliseconds"}


def target_of(args: argparse.Namespace) -> str | None:
    """Returns the suffix of the ``--target-`` flag that was given, None without one."""
    return next((x for x in UNITS if getattr(args, f"target_{x}") is not None), None)


@dataclass(frozen=True)
class Pruning:
    """One pruning of ``network``.

    Attributes:
        masked: the network with γ = 0 in the channels that are removed.
        removal: how they are removed.
        chosen: bool [channels] for each batch norm, True where a channel was chosen to be kept.
        rounded: {flag: bool [channels]}: channels that are kept for speed only.
        milliseconds: of the network and of the pruned one, if they were measured.
    """

    network: Network
    masked: Network
    removal: Removal
    chosen: list[Tensor]
    rounded: Mapping[str, Tensor]
    milliseconds: tuple[float, float] | None

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

    Raises InputError: no channel can be removed, or a pattern matches no layer.
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

    def select(self, zeros: Tensor) -> Pruning:
        """Returns the pruning of ``zeros`` and the share of --percent, or the fewest for a target.

        With --for, channels are kept nevertheless where that is faster.

        ``zeros`` is bool [channels]. Raises InputError: the target is out of reach.
        """
        args, search = self.args, None
        if args.engine:
            device = pick_device(args.no_cuda)
            search = Search(self.network, args.engine, args.batch_size or 1, device)
        pruning = self._remove(zeros, self._count(zeros, search))
        if search is None:
            return pruning
        build = partial(self._build, zeros)
        masks, times = search.fastest(pruning.chosen, pruning.masked.model, build)
        target = args.target_latency
        if target and 1 - times[1] / times[0] < target.share_of(times[0]):
            note(f"note: the last measurement misses --target-latency {target}: times vary")
        kept = {f"--for {args.engine}": torch.cat(masks) & ~torch.cat(pruning.chosen)}
        return self._pruning(zeros, masks, kept, times)

    def _count(self, zeros: Tensor, search: Search | None) -> int:
        """Returns how many channels are removed: for a target, the fewest that reach it."""
        args, step = self.args, 1
        channels = int(self.scores.isfinite().sum())
        if (flag := target_of(args)) is None:
            return count_of(args.percent, channels)
        unit, target = UNITS[flag], getattr(args, f"target_{flag}")
        share = target
        if flag == "latency" and search is not None:
            step, share = max(1, channels // 100), target.share_of(search.full_milliseconds)

        def saved(count: int) -> float:
            pruning = self._remove(zeros, count)
            if flag == "latency" and search is not None:
                build = partial(self._build, zeros)
                return 1 - search.best_rule(pruning.chosen, pruning.masked.model, build)
            return 1 - getattr(pruning.pruned.cost, unit) / getattr(self.network.cost, unit)

        counts = range(0, channels + 1, step)
        # Removing more channels never costs more: a binary search finds the smallest number.
        index = bisect_left(counts, share, key=saved)
        if index == len(counts):
            raise InputError(
                f"--target-{flag} {target} is out of reach: with the fewest channels that every"
                f" layer may have {saved(counts[-1]):.4f} of the {unit} are removed"
            )
        return counts[index]

    def _remove(self, zeros: Tensor, count: int) -> Pruning:
        """Returns the pruning of ``count`` channels within the limits, ``zeros`` included."""
        network, args = self.network, self.args
        norms = list(network.norms.values())
        chosen = plan(norms, zeros, count, self.scores, args.adjust, self.ties)
        if not (args.keep or args.skip or args.round_to > 1):
            return self._pruning(zeros, chosen)
        silent = copy.deepcopy(network.model)
        folded = self._foldable(chosen) if self.fold else zeros
        # Whichever channels the limits leave to be removed as alive, they lose their bias.
        for name, folds in network.keep(folded.split(network.widths)).items():
            bias = silent.get_submodule(name).bias
            if isinstance(bias, Tensor):
                bias.data.mul_(folds)
        shares, keep = dict(args.keep), network.keep(chosen)
        limited = limit(network.graph, keep, minimum=shares, skip=args.skip, model=silent)
        rounded = limit(network.graph, limited, round_to=args.round_to, model=silent)
        chosen, before = list(rounded.values()), torch.cat(list(limited.values()))
        return self._pruning(zeros, chosen, {"--round-to": torch.cat(chosen) & ~before})

    def _pruning(
        self,
        zeros: Tensor,
        chosen: list[Tensor],
        rounded: Mapping[str, Tensor] | None = None,
        times: tuple[float, float] | None = None,
    ) -> Pruning:
        """Returns the pruning that keeps the ``chosen`` channels."""
        folded = self._foldable(chosen) if self.fold else zeros
        masked = self._masked(chosen, folded)
        removal = masked.plan(chosen, streams=self.args.layout != "released")
        return Pruning(self.network, masked, removal, chosen, rounded or {}, times)

    def _build(self, zeros: Tensor, chosen: list[Tensor]) -> Network:
        return self._pruning(zeros, chosen).pruned

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
