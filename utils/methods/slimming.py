"""Network slimming: Algorithm 1 of "A Proximal Algorithm for Network Slimming", and the original.

Symbols are the paper's: γ the batch norms' scaling factors, ξ their auxiliary variable, λ the
weight of the ℓ1 penalty, β of the quadratic one, α the reciprocal of the learning rate.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from utils import arguments
from utils.arguments import Flag
from utils.methods.base import TINY, Method, is_zero, momentum_of
from utils.paper.settings import XI_INIT, Schedule, recipe
from utils.paper.settings import schedule as papers_schedule

LAMBDA = Flag(
    "s",
    "λ, the weight of the ℓ1 penalty (default: the paper's for the network)",
    arguments.not_negative,
    lambda arch, depth: recipe(arch, depth).lambda_,
    metavar="LAMBDA",
    parameter="lambda_",
)


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """S(x, t) = sign(x) · max(0, |x| − t), elementwise (section 3.2)."""
    return x.sign() * (x.abs() - threshold).clamp_(min=0)


def shrinkage(lambda_: float, beta: float, schedule: Schedule) -> float:
    """How far the penalty alone moves a coupled (γ, ξ) pair that drifts together: Σ λ/(2α + β).

    ``schedule`` lists how many alternations there are at which learning rate 1/α.
    """
    return lambda_ * sum(count / (2 / lr + beta) for count, lr in schedule)


def ns_penalty(method: "Subgradient | ProximalSlimming") -> float:
    """λ‖γ‖₁, which eq. (2) adds to the loss."""
    return method.lambda_ * method.gamma.abs().sum().item()


class Subgradient(Method):
    """Original network slimming (Liu et al., 2017): subgradient descent on eq. (2)."""

    name = "subgradient"
    title = "Original NS"
    help = "original network slimming, eq. (3b)"
    flags = (replace(LAMBDA, default=lambda arch, depth: recipe(arch, depth).subgradient_lambda),)
    columns = ("ns_objective",)
    prune_flags = ("--percent", "0.5")  # its factors come near zero only: choose a share

    def __init__(self, model: nn.Module, lambda_: float) -> None:
        super().__init__(model)
        self.lambda_ = lambda_

    @torch.no_grad()
    def on_gradient(self) -> None:
        self.check_views()
        # (3b): the subgradient of λ‖γ‖₁, 0 where γ = 0.
        grads = [w.grad for w in self.weights if w.grad is not None]
        torch._foreach_add_(grads, self.split(self.gamma.sign()), alpha=self.lambda_)

    def figures(self, loss: float) -> dict[str, float]:
        return {"ns_objective": loss + ns_penalty(self)}


class ProximalSlimming(Method):
    """Proximal network slimming: minimise L(W, γ) + λ‖ξ‖₁ + (β/2)‖γ − ξ‖² (eq. 5).

    Works on any model with batch-norm layers and any optimiser that makes plain SGD's
    step. Call :meth:`on_step` after every optimiser step, and :meth:`on_epoch` after every epoch.

    With momentum μ the fixed point satisfies β(γ − ξ) = −∇L/(1 − μ): the run approaches a
    critical point of eq. (5) with (1 − μ)λ and (1 − μ)β, not with λ and β as given.

    ``prox_every`` is ``"step"`` (one alternation per mini-batch, as the released program makes
    them) or ``"epoch"`` (Algorithm 1 as printed: ξ changes once, after the epoch). ``xi_init`` is
    the range ξ is drawn from; ``None`` starts at ξ = γ. With ``keep_dead``, :meth:`dead` calls no
    channel dead.

    Raises ValueError unless λ ≥ 0, β > 0 and ``prox_every`` is one of the two.
    """

    name = "proximal"
    title = "Proximal NS"
    help = "the paper's algorithm"
    flags = (
        LAMBDA,
        Flag(
            "beta",
            "β, the weight of the quadratic penalty (default: the paper's for the network)",
            arguments.positive,
            lambda arch, depth: recipe(arch, depth).beta,
        ),
        Flag(
            "prox_every",
            "update ξ after every mini-batch (default), or as Algorithm 1 is printed",
            default="step",
            choices=("step", "epoch"),
        ),
        Flag(
            "xi_init",
            "ξ starts uniform in this range (default 0.47 0.50; fine-tuning: ξ = γ)",
            arguments.number,
            XI_INIT,
            metavar=("LOW", "HIGH"),
            nargs=2,
            of_fresh=True,
        ),
        Flag(
            "keep_dead",
            "train channels on that have died: the same result, later (default: cut them out)",
            default=False,
            compared=False,
        ),
    )
    factors = {"gamma": "γ", "xi": "ξ"}  # noqa: RUF012
    columns = ("objective", "ns_objective")
    prune_flags = ()

    def __init__(
        self,
        model: nn.Module,
        lambda_: float,
        beta: float,
        prox_every: str = "step",
        xi_init: tuple[float, float] | None = XI_INIT,
        keep_dead: bool = False,
    ) -> None:
        super().__init__(model)
        if not (lambda_ >= 0 and beta > 0 and prox_every in ("step", "epoch")):
            raise ValueError("proximal slimming takes λ ≥ 0, β > 0, prox_every 'step' or 'epoch'")
        self.lambda_, self.beta, self.prox_every = lambda_, beta, prox_every
        self.keep_dead = keep_dead
        if xi_init is None:
            self.xi = self.gamma.clone()
        else:
            # Drawn on the CPU, so that a seed means the same ξ on every device.
            self.xi = torch.empty(self.gamma.numel()).uniform_(*xi_init).to(self.gamma)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        low, high = options.get("xi_init") or XI_INIT
        if low > high:
            raise ValueError("--xi-init takes LOW HIGH, the lower one first")

    def tensors(self) -> dict[str, Tensor]:
        return {"xi": self.xi}

    def forget(self) -> str:
        self.xi.copy_(self.gamma)
        return "ξ starts again at ξ = γ"

    @torch.no_grad()
    def on_step(self, alpha: float) -> None:
        self.check_views()
        # (8b), for a γ that SGD has stepped: (α(γ − ∇L/α) + βξ)/(α + β) is its right-hand side.
        gamma = (self.gamma * alpha).add_(self.xi, alpha=self.beta).div_(alpha + self.beta)
        # A dead channel's γ is halved and halved but never arrives: rounding has a fixed point
        # among the subnormals.
        self.set_(self.gamma, gamma.masked_fill_(is_zero(gamma), 0))
        if self.prox_every == "step":
            self._update_xi(alpha)

    @torch.no_grad()
    def on_epoch(self, alpha: float) -> None:
        if self.prox_every == "epoch":
            self._update_xi(alpha)

    def _update_xi(self, alpha: float) -> None:
        # (9), in closed form: line 4 of Algorithm 1.
        mean = (self.xi * alpha).add_(self.gamma, alpha=self.beta).div_(alpha + self.beta)
        self.set_(self.xi, soft_threshold(mean, self.lambda_ / (alpha + self.beta)))

    @torch.no_grad()
    def dead(self, optimizer: torch.optim.SGD, lr: float) -> Tensor:
        """As :meth:`Method.dead`: γ and ξ stay 0, and the bias stays ≤ 0, whatever comes.

        The ReLU behind then gives 0 on every picture, so the gradients of γ, of the bias, of the
        filter before and of the weights behind are 0. What could still move γ and bias is momentum
        and weight decay; the conditions here rule that out, at this learning rate and below it.
        """
        if self.keep_dead:
            return super().dead(optimizer, lr)
        group = optimizer.param_groups[0]
        mu, n, decay = group["momentum"], int(group["nesterov"]), lr * group["weight_decay"]
        biases = [bn.bias for bn in self.norms]
        gamma_v, bias_v = (momentum_of(optimizer, x) for x in (self.weights, biases))
        bias = torch.cat([b.detach() for b in biases]).double()
        # What is left of γ's momentum moves it by less than the next (8b) sets to zero.
        stays_zero = (self.gamma == 0) & (self.xi == 0) & (lr * gamma_v.abs() < TINY)
        # Without a gradient the bias b and its buffer v follow a linear recursion. Its eigenvalues
        # solve z² − (1 + μ − ε(1 + nμ))z + μ(1 − nε) = 0, where ε is lr · weight decay and n is 1
        # with Nesterov, else 0. If both are real and not negative, a step multiplies b + cv by the
        # larger one, z; and once b ≤ 0 and b + cv ≤ 0, both hold for ever.
        half, product = (1 + mu - decay * (1 + n * mu)) / 2, mu * (1 - n * decay)
        if half < 0 or product < 0 or half * half < product:  # the bias oscillates
            return torch.zeros_like(stays_zero)
        z = half + math.sqrt(half * half - product)
        c = -lr * mu ** (1 + n) / (z - mu) if mu else 0.0
        return stays_zero & (bias <= 0) & (bias + c * bias_v.double() <= 0)

    def figures(self, loss: float) -> dict[str, float]:
        return {
            "objective": loss + self.penalty(),  # F of eq. (5),
            "ns_objective": loss + ns_penalty(self),  # and eq. (2)
        }

    def penalty(self) -> float:
        """λ‖ξ‖₁ + (β/2)‖γ − ξ‖², which eq. (5) adds to the loss."""
        distance = (self.gamma - self.xi).square().sum()
        return (self.lambda_ * self.xi.abs().sum() + self.beta / 2 * distance).item()

    def warnings(self, schedule: Schedule, arch: str, depth: int) -> Iterable[str]:
        """Say so when the penalty alone cannot bring a factor to zero."""
        if self.prox_every == "epoch":
            schedule = [(1, lr) for _, lr in schedule]
        reach = shrinkage(self.lambda_, self.beta, schedule)
        start = self.xi.abs().min().item()
        if reach < start:
            paper = recipe(arch, depth)
            total = shrinkage(paper.lambda_, paper.beta, papers_schedule())
            enough = total / shrinkage(1, self.beta, schedule)
            yield (
                f"warning: in {len(schedule)} epochs the penalty alone moves ξ by {reach:.2g}, and"
                f" it starts at {start:.2g} or more: zeros may not appear. --s {enough:.2g} shrinks"
                " as much in total as the paper's recipe does"
            )
