"""Retraining of a network whose smallest weights were cut: they stay exactly 0."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.weights import Convolution, weights
from utils.methods.base import Method, count_of
from utils.paper.settings import RETRAINING, Schedule


@torch.no_grad()
def zero_smallest(model: nn.Module, ratio: float) -> Tensor:
    """Set the ⌊``ratio`` · n⌋ smallest of each convolution's n weights to 0; bool: which are left.

    Linear layers stay whole, as in the ResNets that SAS-ADMM's program cuts, unless they have most
    of the weights: of an AlexNet's, convolutions alone would leave 1.04 times fewer at best. The
    mask is over all of :func:`weights`.
    """
    named, mask = weights(model), []
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in named}
    convolved = sum(w.numel() for n, w in named.items() if isinstance(layers[n], Convolution))
    all_are_cut = 2 * convolved < sum(w.numel() for w in named.values())
    for name, weight in named.items():
        kept = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
        if all_are_cut or isinstance(layers[name], Convolution):
            order = weight.abs().flatten().argsort(stable=True)
            kept[order[: count_of(ratio, len(kept))]] = False
            weight.masked_fill_(~kept.view_as(weight), 0)
        mask.append(kept)
    return torch.cat(mask)


def masking(kind: type[Method], ratio: float) -> type[Method]:
    """That method for a network that it cuts first, the share ``ratio`` of each convolution.

    Weights that are 0 stay 0: their gradients are set to 0, and whatever the method or the
    optimiser keeps of them starts at 0, momentum too. Weight decay of 0 is 0.
    """

    class Masked(kind):  # type: ignore[valid-type, misc]
        refine_flags = None

        def __init__(self, graph: Graph, model: nn.Module | None = None, **options: Any) -> None:
            self.mask = zero_smallest(graph.model if model is None else model, ratio)
            super().__init__(graph, model=model, **options)

        @classmethod
        def presets(cls, known: Mapping[str, Any]) -> dict[str, Any]:
            by_sgd = {k: v for k, v in RETRAINING.items() if k not in cls.unused_flags}
            return by_sgd | super().presets(known)

        def state_dict(self) -> dict[str, Tensor]:
            return {**super().state_dict(), "mask": self.mask}

        @torch.no_grad()
        def before_step(self) -> None:
            super().before_step()
            own = list(weights(self.model).values())
            parts = self.mask.split([w.numel() for w in own])
            for weight, part in zip(own, parts, strict=True):
                if weight.grad is not None:
                    weight.grad.masked_fill_(~part.view_as(weight), 0)

        def dead(self, optimizer: torch.optim.Optimizer, lr: float) -> Tensor:
            return Method.dead(self, optimizer, lr)  # the mask would not follow

        def warnings(
            self, schedule: Schedule, arch: str, depth: int, optimizer: torch.optim.SGD
        ) -> Iterable[str]:
            left = int(self.mask.sum())
            yield f"note: of {len(self.mask):,} weights {left:,} are left, and the others stay 0"
            yield from super().warnings(schedule, arch, depth, optimizer)

    return Masked
