"""Pruning budget instead of λ: selects the channels to remove and steers λ towards it.

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

AIM = 0.4  # share of all steps after which ξ shall be 0 in C
DEADLINE = 0.5  # share of all steps after which ξ and γ are set to 0 in C
OPPOSED = 1.5  # factor on the first λ, because the loss gradient opposes the penalty
WHAT = ("flops", "parameters", "channels")


@dataclass(frozen=True)
class Budget:
    """Share of FLOPs, parameters or channels to remove in a training; replaces λ and β.

    Attributes:
        what: "flops", "parameters" or "channels" (of the batch norms in ``graph.norms``).
        share: share to remove, between 0 and 1.
        steps: number of optimizer steps in the whole training.
        lr: initial learning rate.
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
    """Selects the channels to remove for a budget."""

    def __init__(self, graph: Graph, budget: Budget) -> None:
        self.budget, self.cost = budget, PrunedCost(graph)
        self.widths = [len(mask) for mask in graph.removable.values()]

    def removed(self, cost: Cost) -> float:
        """Share that is removed when ``cost`` remains."""
        what = self.budget.what
        return 1 - getattr(cost, what) / getattr(self.cost.full, what)

    def choose(self, xi: Tensor, gamma: Tensor, trains: Sequence[bool]) -> tuple[Tensor, float]:
        """Returns the channels to remove, bool [channels] on the CPU, and the share they make.

        Selects the fewest channels that meet the budget, smallest |ξ| first and, where these are
        equal, smallest |γ|. The largest channel of each batch norm stays, and all channels of those
        that do not train.

        Args:
            xi, gamma: [channels].
            trains: whether each batch norm's γ is trained.

        Raises:
            ValueError: all that may be removed do not meet it.
        """
        by_size = gamma.abs().cpu().argsort(stable=True)
        by_size = by_size[xi.abs().cpu()[by_size].argsort(stable=True)]
        rank = by_size.argsort()
        parts = zip(rank.split(self.widths), trains, strict=True)
        stays = torch.cat([(part == part.max()) | (not train) for part, train in parts])
        order = by_size[~stays[by_size]]

        def removal(count: int) -> Tensor:
            return torch.zeros_like(stays).index_fill_(0, order[:count], True)

        def share(count: int) -> float:
            keep = (~removal(count)).split(self.widths)
            return self.removed(self.cost(dict(zip(self.cost.graph.norms, keep, strict=True))))

        budget = self.budget
        if (most := share(len(order))) < budget.share:
            raise ValueError(
                f"{100 * budget.share:g} % of the {budget.what} cannot be removed:"
                f" the channels that can go make {100 * most:.1f} %"
            )
        count = bisect_left(range(len(order)), budget.share, key=share)
        return removal(count), share(count)


def steered(lambda_: float, fell: float, falls: float, per_step: float) -> float:
    """Returns λ for the next epoch, so that ξ decreases by ``falls`` per step.

    A pair (γ, ξ) decreases by (λ − G)/(2α + β) per step, where G is the opposing gradient of the
    loss and ``per_step`` is 1/(2α + β). G is estimated from the decrease ``fell`` per step at
    ``lambda_``. After the first epoch λ changes by a factor of 2 at most. Where ``per_step`` is 0
    (the learning rate is), it does not change.
    """
    if not per_step:
        return lambda_
    if not lambda_:
        return OPPOSED * falls / per_step
    held_up = lambda_ - fell / per_step
    return min(max(held_up + falls / per_step, lambda_ / 2), 2 * lambda_)
