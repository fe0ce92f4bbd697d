"""Network slimming: Algorithm 1 of "A Proximal Algorithm for Network Slimming", and the original.

Symbols are the paper's: γ the batch norms' scaling factors, ξ their auxiliary variable, λ the
weight of the ℓ1 penalty, or of another φ in its place (:mod:`netslim.methods.penalties`), β of the
quadratic one, α the reciprocal of the learning rate.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.methods import budget as budgets
from netslim.methods.base import TINY, Method, foreach, is_zero
from netslim.methods.penalties import GroupLasso, penalty_named

# Threshold for ``hardshrink``, which zeroes magnitudes up to it: the number just below TINY.
BELOW_TINY = TINY * (1 - 2**-23)


class Subgradient(Method):
    """Original network slimming (Liu et al., 2017): subgradient descent on eq. (2).

    Call :meth:`before_step` between the backward pass and the optimizer's step.
    """

    needs_channels = True

    def __init__(
        self,
        graph: Graph,
        lambda_: float,
        penalty: str = "l1",
        shape: float | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.lambda_, self.phi = lambda_, penalty_named(penalty, shape)
        super().__init__(graph, model, self.phi.grouped)
        if isinstance(self.phi, GroupLasso):
            self.phi.group(self.stream_numbers())

    @torch.no_grad()
    def before_step(self) -> None:
        # (3b): the subgradient of λ‖γ‖₁, or of λφ(γ), 0 where γ = 0.
        gamma = self.read()
        self.add_to_gradients(gamma.sign() * self.phi.slope(gamma.abs()), self.lambda_)

    def step(self, lr: float) -> None:
        self.check_gradients()


class ProximalSlimming(Method):
    """Proximal network slimming: minimise L(W, γ) + λφ(ξ) + (β/2)‖γ − ξ‖² (eq. 5).

    φ is the ℓ1 norm there; ``penalty`` and ``shape`` may put another one in its place. Call
    :meth:`step` after every step of the optimizer, and :meth:`end_epoch` after every epoch if
    ``prox_every`` is "epoch".

    With momentum μ the fixed point satisfies β(γ − ξ) = −∇L/(1 − μ): the run approaches a
    critical point of eq. (5) with (1 − μ)λ and (1 − μ)β, not with λ and β as given. Step (8b) is
    that of plain SGD; behind another optimizer it is the same operation, and λ needs other values.

    Args:
        graph: of the model that is trained.
        lambda_: λ ≥ 0.
        beta: β > 0.
        prox_every: "step" (one alternation per mini-batch, as the released program makes them) or
            "epoch" (Algorithm 1 as printed: ξ changes once, after the epoch).
        xi_init: the range that ξ is drawn from; None starts at ξ = γ.
        keep_dead: :meth:`dead` calls no channel dead.
        penalty, shape: φ, by its name in ``PENALTIES``. "group" is the ℓ1 norm where a channel
            has one factor, and makes the channels of ``graph.coupled`` zero in all batch norms
            that write their stream. It is the default if there are any, else "l1" is.
        target: a :class:`Budget`, in place of ``lambda_`` and ``beta``. The penalty is then λ
            times the sum of the smallest |ξ| whose channels make the budget. Once these are 0,
            they, their γ and their biases stay 0, and the others train on alone. Call
            :meth:`end_epoch`, too.

    Raises:
        ValueError: an argument is out of its range, the model has no channel that can be removed,
            or too few of them for the budget.
    """

    factors = {"gamma": "γ", "xi": "ξ"}  # noqa: RUF012
    needs_channels = True

    def __init__(
        self,
        graph: Graph,
        lambda_: float | None = None,
        beta: float | None = None,
        prox_every: str = "step",
        xi_init: tuple[float, float] | None = None,
        keep_dead: bool = False,
        penalty: str | None = None,
        shape: float | None = None,
        model: nn.Module | None = None,
        target: budgets.Budget | None = None,
    ) -> None:
        if penalty is None:
            shared = isinstance(graph, Graph) and graph.coupled
            penalty = "group" if shared and target is None else "l1"
        self.phi = penalty_named(penalty, shape)
        super().__init__(graph, model, self.phi.grouped)
        if isinstance(self.phi, GroupLasso):
            self.phi.group(self.stream_numbers())
        if target is not None:
            if (lambda_, beta, prox_every, penalty) != (None, None, "step", "l1"):
                raise ValueError("a target determines λ and β of the ℓ1 penalty: leave out others")
            lambda_, beta = 0.0, 1 / target.lr
        if lambda_ is None or beta is None:
            raise ValueError("proximal slimming takes λ and β, or a target")
        if not (lambda_ >= 0 and beta > 0 and prox_every in ("step", "epoch")):
            raise ValueError("proximal slimming takes λ ≥ 0, β > 0, prox_every 'step' or 'epoch'")
        self.lambda_, self.beta, self.target = lambda_, beta, target
        self.prox_every, self.keep_dead = prox_every, keep_dead
        self.xi = self.gamma.clone()
        if xi_init is not None:
            # Drawn on the CPU, so that a seed means the same ξ on every device.
            self.xi.copy_(torch.empty(self.gamma.numel()).uniform_(*xi_init))
        # On the device from the start: :meth:`dead` is asked every epoch.
        self.rectified = torch.zeros_like(self.gamma, dtype=torch.bool)
        for name, part in zip(self.names, self.split(self.rectified), strict=True):
            part.fill_(name in graph.rectified)
        self.reach = 0.0  # how far the penalty alone has moved a pair (γ, ξ) so far
        self.start = float(self.xi.abs().min())
        if prox_every == "epoch":
            self.end_epoch_task = "updates ξ"
        if target is not None:
            self.end_epoch_task = "chooses λ and the channels to remove"
            # budget: λ; whether it is met; steps so far; steps up to this epoch; the largest |ξ| to
            # remove. Tensors, because a captured step reads them.
            self.to_remove = torch.zeros_like(self.rectified)
            self.budget = torch.zeros(1, 5, device=self.gamma.device)
            if self.widths == [len(mask) for mask in graph.removable.values()]:  # nothing is cut
                self.planner = budgets.Planner(graph, target)
                self._choose()

    @property
    def budget_met(self) -> bool:
        """Whether the budget is met; waits for the device."""
        return self.target is not None and bool(self.budget[0, 1])

    def state_dict(self) -> dict[str, Tensor]:
        own = {} if self.target is None else {"to_remove": self.to_remove, "budget": self.budget}
        if any(weight.dtype != self.gamma.dtype for weight in self._weights()):
            own["gamma"] = self.gamma  # of which the model holds the rounding, in bfloat16 say
        return {"xi": self.xi, **own}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Extends :meth:`Method.load_state_dict`: γ may be missing, as in earlier state dicts."""
        super().load_state_dict({"gamma": self.gamma, **state})

    @torch.no_grad()
    def step(self, lr: float) -> None:
        if not isinstance(lr, int | float | Tensor):
            raise TypeError(f"lr is {lr!r}: give this step's learning rate, a number")
        self.stepped = True
        before = self.read()
        if self.target is not None:
            self.budget[0, 2] += self.found_inf == 0
        if not lr:  # the limit α → ∞: (8b) and (9) leave γ and ξ as they are
            return
        alpha = 1 / lr
        # (8b), for a γ that SGD has stepped: (α(γ − ∇L/α) + βξ)/(α + β) is its right-hand side.
        gamma = (before * alpha).add_(self.xi, alpha=self.beta).div_(alpha + self.beta)
        if self.target is not None:
            gamma = torch.where(self.budget[0, 1] > 0, before.masked_fill(self.to_remove, 0), gamma)
            self._silence()
        # A dead channel's γ is halved and halved but never arrives: rounding has a fixed point
        # among the subnormals.
        self.write(F.hardshrink(gamma, BELOW_TINY))
        self.reach += self.lambda_ * pair_step(lr, self.beta)
        if self.prox_every == "step":
            self._update_xi(alpha)

    @torch.no_grad()
    def end_epoch(self, lr: float) -> None:
        self.ended = True
        if self.prox_every == "epoch" and lr:
            self._update_xi(1 / lr)
        if self.target is not None and not (self.budget_met or self.found_inf):
            self._steer(lr)

    @torch.no_grad()
    def _silence(self) -> None:
        """Sets the biases of the removed channels to 0, once the budget is met."""
        stays = self.split(~(self.to_remove & (self.budget[0, 1] > 0)))
        biases: list[Any] = [self.model.get_submodule(p).bias for p in self.names.values()]
        pairs = zip(biases, stays, strict=True)
        trained = [(b, part.to(b)) for b, part in pairs if b is not None and b.requires_grad]
        foreach(torch._foreach_mul_, trained)

    def _choose(self) -> None:
        """Selects the channels to remove."""
        trains = [weight.requires_grad for weight in self._weights()]
        chosen, self.removed = self.planner.choose(self.xi, self.read(), trains)
        self.to_remove.copy_(chosen)

    def _steer(self, lr: float) -> None:
        """Chooses the channels to remove and λ, or sets these channels to 0 once they are due."""
        assert self.target is not None
        lambda_, _, done, before, way = self.budget[0].tolist()
        if not self.read().isfinite().all() or done == before:
            return
        self._choose()
        left = float(self.xi.abs()[self.to_remove].max())
        budget_met = not left or done >= budgets.DEADLINE * self.target.steps
        if budget_met:
            self.write(self.gamma.masked_fill(self.to_remove, 0))
            self.xi.copy_(self.gamma)
        per_step, since = pair_step(lr, self.beta), done - before
        falls = left / max(budgets.AIM * self.target.steps - done, since)  # a step
        fell = (way - left) / since
        self.lambda_ = 0.0 if budget_met else budgets.steered(lambda_, fell, falls, per_step)
        self.budget.copy_(torch.tensor([[self.lambda_, budget_met, done, done, left]]))
        self._silence()

    def _update_xi(self, alpha: float) -> None:
        """Sets ξ by (9), line 4 of Algorithm 1, in closed form; ``alpha`` is 1/lr."""
        xi = self.xi.double() if self.phi.precise else self.xi
        mean = (xi * alpha).add_(self.gamma, alpha=self.beta).div_(alpha + self.beta)
        if self.target is None:
            new = self.phi.prox(mean, self.lambda_ / (alpha + self.beta)).to(self.xi)
        else:  # soft thresholding, where the channel is to be removed
            t = self.to_remove * (self.budget[0, 0] / (alpha + self.beta))
            new = torch.where(self.budget[0, 1] > 0, self.gamma, mean - mean.clamp(-t, t))
        self.update(self.xi, self.unless_frozen(new, self.xi))

    def training_hint(self, zeros: Mapping[str, Tensor]) -> str:
        """Extends :meth:`Method.training_hint`: a warning, too, if no factor is zero yet.

        γ follows each ξ = 0, but slowly with momentum; pruning by ξ does not have to wait.
        """
        if (hint := super().training_hint(zeros)) or any(zero.any() for zero in zeros.values()):
            return hint
        if of_xi := int(is_zero(self.xi).sum()):
            return (
                f"{of_xi} of {len(self.xi)} ξ are zero, but no γ is yet: train for longer, or with"
                ' a larger beta or a smaller momentum, or prune by ξ, with zeros("xi")'
            )
        if 0 < self.reach < self.start:
            longer = "longer or with a larger lambda_" if self.target is None else "all its steps"
            return (
                "no scaling factor is zero: so far the penalty alone has moved them by"
                f" {self.reach:.2g}, and ξ started at {self.start:.2g} or more; train for {longer}"
            )
        return ""

    @torch.no_grad()
    def dead(self, optimizer: torch.optim.Optimizer, lr: float) -> Tensor:
        """Mask of the channels whose γ and ξ stay 0 and whose bias stays ≤ 0, bool [channels].

        The following ReLU then outputs 0 for every image, so the gradients of γ, of the bias, of
        the filter before and of the weights behind are 0. Only momentum and weight decay could
        still move γ and bias; the conditions rule that out at learning rates up to ``lr``.
        """
        if self.keep_dead or not isinstance(optimizer, torch.optim.SGD):
            return super().dead(optimizer, lr)
        biases: list[Any] = [self.model.get_submodule(p).bias for p in self.names.values()]
        bias = torch.cat([*biases]).double()
        dead = (self.read() == 0) & (self.xi == 0) & (bias <= 0)
        if self.target is not None:  # step() sets them to 0 whatever momentum does
            return dead & self.to_remove & self.budget_met
        group = optimizer.param_groups[0]
        mu, n, decay = group["momentum"], int(group["nesterov"]), lr * group["weight_decay"]
        if (z := bias_eigenvalue(mu, n, decay)) is None:
            return super().dead(optimizer, lr)
        gamma_v, bias_v = (momentum_of(optimizer, x) for x in (self._weights(), biases))
        c = -lr * mu ** (1 + n) / (z - mu) if mu else 0.0
        # What is left of γ's momentum moves it by less than the next (8b) sets to zero.
        dead &= self.rectified & (lr * gamma_v.abs() < TINY)
        return dead & (bias + c * bias_v.double() <= 0)

    def penalty(self) -> Tensor:
        """λφ(ξ) + (β/2)‖γ − ξ‖², which eq. (5) adds to the loss."""
        distance = (self.read() - self.xi).square().sum()
        return self.lambda_ * self.phi.value(self.xi.abs()) + self.beta / 2 * distance


def pair_step(lr: float, beta: float) -> float:
    """Returns 1/(2α + β) with α = 1/``lr``: how far λ = 1 alone moves a pair (γ, ξ) in a step.

    (8b) and (9) decrease αγ + (α + β)ξ by λ; γ and ξ decrease equally once they are coupled. With
    ``lr`` = 0 nothing moves.
    """
    return 1 / (2 / lr + beta) if lr else 0.0


def bias_eigenvalue(mu: float, n: int, decay: float) -> float | None:
    """Larger eigenvalue of the recursion of a bias without gradient (momentum and weight decay).

    The bias b and its buffer v follow a linear recursion, whose eigenvalues solve
    z² − (1 + μ − ε(1 + nμ))z + μ(1 − nε) = 0, where ε is lr · weight decay and n is 1 with
    Nesterov, else 0. If both are real and not negative, a step multiplies b + cv by the larger
    one, z; and once b ≤ 0 and b + cv ≤ 0, both hold for ever. None where the bias oscillates.
    """
    half, product = (1 + mu - decay * (1 + n * mu)) / 2, mu * (1 - n * decay)
    if half < 0 or product < 0 or half * half < product:
        return None
    return half + math.sqrt(half * half - product)


def momentum_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Tensor:
    """Momentum buffers of ``parameters`` in one vector, 0 where there is none."""
    buffers = [optimizer.state[p].get("momentum_buffer") for p in parameters]
    pairs = zip(parameters, buffers, strict=True)
    return torch.cat([torch.zeros_like(p) if buffer is None else buffer for p, buffer in pairs])
