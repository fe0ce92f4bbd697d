"""A budget in place of λ: which channels have to go for it, and the λ that brings them there.

With c(C) the share of FLOPs, parameters or channels that removing the channels C saves, p the
budget and C the k channels of the smallest |ξ|, k the least with c(C) ≥ p, eq. (5) becomes

    minimise L(W, γ) + λ·T(ξ) + (β/2)‖γ − ξ‖²,  T(ξ) the sum of the k smallest |ξ|

(the trimmed ℓ1 penalty). T(ξ) is the minimum over |C| = k of the sum of |ξ| in C, so each epoch
first minimises over C, and then takes Algorithm 1's steps, with soft thresholding in C and none
elsewhere. λ starts and changes so that ξ is 0 in C after ``AIM`` of the steps. Then, or after
``DEADLINE`` of them, λ is released, and the rest minimises L where γ and the biases are 0 in C.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from netslim.cost import Cost, PrunedCost
from netslim.graph import Graph

AIM = 0.4  # of all steps: when all ξ that are to go are to be 0
DEADLINE = 0.5  # and when they are set to 0, whatever they are
OPPOSED = 1.5  # times as fast as it falls, the first λ alone would move ξ: the loss holds it up
WHAT = ("flops", "parameters", "channels")


@dataclass(frozen=True)
class Budget:
    """What a training has to remove, in place of λ and β.

    Attributes:
        what: "flops", "parameters" or "channels" (those of ``graph.norms``).
        share: of it, between 0 and 1, that is to be removed.
        steps: of the optimizer, in all of the training.
        lr: the learning rate that it begins with.
    """

    what: str
    share: float
    steps: int
    lr: float

    def __post_init__(self) -> None:
        if not (self.what in WHAT and 0 < self.share < 1 and self.steps > 0 and self.lr > 0):
            raise ValueError(
                f"a budget is a share between 0 and 1 of {', '.join(WHAT)}, with steps and lr > 0"
            )


class Planner:
    """Which channels of a graph's model have to go for a budget."""

    def __init__(self, graph: Graph, budget: Budget) -> None:
        self.budget, self.cost = budget, PrunedCost(graph)
        self.widths = [len(mask) for mask in graph.removable.values()]

    def removed(self, cost: Cost) -> float:
        """The share that is removed where ``cost`` is left."""
        what = self.budget.what
        return 1 - getattr(cost, what) / getattr(self.cost.full, what)

    def order(self, xi: Tensor, gamma: Tensor, trains: Sequence[bool]) -> tuple[Tensor, int]:
        """Channels by |ξ|, then |γ|, all on the CPU, and how many of the first may go.

        The largest channel of each batch norm stays, and all of those that do not train.
        """
        by_size = _ascending(xi.abs(), gamma.abs())
        rank = by_size.argsort()
        stays = [
            (rank == rank.max()) | (not train)
            for rank, train in zip(rank.split(self.widths), trains, strict=True)
        ]
        stay = torch.cat(stays)[by_size]
        return torch.cat((by_size[~stay], by_size[stay])), int((~stay).sum())

    def needed(self, order: Tensor, most: int) -> tuple[int, float]:
        """How many of the first channels in ``order`` meet the budget, and what share that
        removes.

        Raises ValueError where ``most`` are too few.
        """

        def share(count: int) -> float:
            keep = torch.ones(len(order), dtype=torch.bool)
            keep[order[:count]] = False
            masks = dict(zip(self.cost.graph.norms, keep.split(self.widths), strict=True))
            return self.removed(self.cost(masks))

        budget = self.budget
        if (found := share(most)) < budget.share:
            raise ValueError(
                f"{100 * budget.share:g} % of the {budget.what} cannot be removed:"
                f" the channels that can go make {100 * found:.1f} %"
            )
        count = bisect_left(range(most), budget.share, key=share)
        return count, share(count)


def _ascending(*keys: Tensor) -> Tensor:
    """The indices that sort by the first of ``keys``; what is equal there, by the next."""
    order = torch.arange(len(keys[0]))
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def steered(lambda_: float, fell: float, falls: float, per_step: float) -> float:
    """λ for the next epoch, in which ξ is to fall by ``falls`` a step.

    A pair (γ, ξ) falls by (λ − G)/(2α + β) a step, where G is how strongly the loss holds it up;
    ``per_step`` is 1/(2α + β). G follows from how far it ``fell`` a step at ``lambda_``. After the
    first one λ changes at most by a factor of 2.
    """
    if not lambda_:
        return OPPOSED * falls / per_step
    held_up = lambda_ - fell / per_step
    return min(max(held_up + falls / per_step, lambda_ / 2), 2 * lambda_)
