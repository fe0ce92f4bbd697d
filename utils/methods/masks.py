"""Unstructured pruning: zeroes the smallest weights, then trains with zeros that stay exactly 0."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.weights import Convolution, weights
from utils.methods.base import Method, TrainingSetup, count_of
from utils.paper.settings import RETRAINING


@torch.no_grad()
def zero_smallest(model: nn.Module, ratio: float) -> Tensor:
    """Sets the ⌊``ratio`` · n⌋ smallest of each convolution's n weights to 0.

    Linear layers stay dense, as in SAS-ADMM's program, unless they have most of the weights: in an
    AlexNet, pruning convolutions alone would leave 1.04 times fewer weights at best.

    Returns:
        bool, flat over all of :func:`weights`: which ones are kept.
    """
    named, masks = weights(model), []
    layers = {name: model.get_submodule(name.removesuffix(".weight")) for name in named}
    in_convolutions = sum(w.numel() for n, w in named.items() if isinstance(layers[n], Convolution))
    prune_linear = 2 * in_convolutions < sum(w.numel() for w in named.values())
    for name, weight in named.items():
        mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
        if prune_linear or isinstance(layers[name], Convolution):
            order = weight.abs().flatten().argsort(stable=True)
            mask[order[: count_of(ratio, len(mask))]] = False
            weight.masked_fill_(~mask.view_as(weight), 0)
        masks.append(mask)
    return torch.cat(masks)


def masking(kind: type[Method], ratio: float) -> type[Method]:
    """Returns a subclass of ``kind`` that zeroes the share ``ratio`` of each convolution first.

    The gradients of these weights are set to 0, and so are all states that start from the weights.
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
            return Method.dead(self, optimizer, lr)  # none: the mask is of full width

        def warnings(self, setup: TrainingSetup) -> Iterable[str]:
            kept = int(self.mask.sum())
            yield f"note: {kept:,} of {len(self.mask):,} weights are kept, the others stay 0"
            yield from super().warnings(setup)

    return Masked
