"""Network slimming: Algorithm 1 of "A Proximal Algorithm for Network Slimming", and the original.

Symbols are the paper's: γ the batch norms' scaling factors, ξ their auxiliary variable, λ the
weight of the ℓ1 penalty, or of another φ in its place (:mod:`utils.methods.penalties`), β of the
quadratic one, α the reciprocal of the learning rate.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from netslim.methods.penalties import PENALTIES
from netslim.methods.slimming import bias_eigenvalue, momentum_of
from utils.arguments import Flag, not_negative, number, positive
from utils.methods import penalties
from utils.methods.base import TINY, Method, is_zero
from utils.paper.settings import XI_INIT, Schedule, recipe

# What -h says of the flags.
LAMBDA = "λ, the weight of the penalty φ"
BETA = "β, the weight of the quadratic penalty"
EVERY = "update ξ after every mini-batch (default), or as Algorithm 1 is printed"
INIT = "ξ starts uniform in this range (default 0.47 0.50; fine-tuning: ξ = γ)"
KEEP = "train on channels that have died: the same but for rounding, later (default: cut them)"


def lambda_flag(default: Callable[[str, int], float]) -> Flag:
    return Flag("s", LAMBDA, not_negative, default, metavar="LAMBDA", parameter="lambda_")


MOST = 20  # times the paper's λ is the most that is advised
AMPLE = 2  # times as far as 0 is: γ has the other half of the training to follow


def shrinkage(lambda_: float, beta: float, schedule: Schedule) -> float:
    """How far the penalty alone moves a coupled (γ, ξ) pair that drifts together: Σ λ/(2α + β).

    ``schedule`` lists how many alternations there are at which learning rate 1/α.
    """
    return lambda_ * sum(count / (2 / lr + beta) for count, lr in schedule)


def rounded_down(x: float) -> str:
    """To two digits, not above it."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 1)
    return f"{math.floor(x / unit) * unit:.2g}"


def too_large(lambda_: float, collapse: str, advice: str = "try a smaller --s") -> str:
    return f"{collapse}: λ = {lambda_:g} was too large; {advice}"


class Subgradient(Method):
    """Original network slimming (Liu et al., 2017): subgradient descent on eq. (2)."""

    name, title = "subgradient", "Original NS"
    help = "original network slimming, eq. (3b)"
    flags = (
        lambda_flag(lambda arch, depth: recipe(arch, depth).subgradient_lambda),
        # What is steep at 0 has no subgradient there.
        replace(penalties.FLAG, choices=tuple(n for n, phi in PENALTIES.items() if not phi.steep)),
        penalties.SHAPE,
    )
    columns = ("ns_objective",)
    prune_flags = ("--percent", "0.5")  # its factors come near zero only: choose a share

    def __init__(
        self, model: nn.Module, lambda_: float, penalty: str = "l1", shape: float | None = None
    ) -> None:
        super().__init__(model)
        self.lambda_, self.phi = lambda_, PENALTIES[penalty](shape)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        penalties.check(options)

    def verdict(
        self, zeros: Mapping[str, int], collapse: str, schedule: Schedule, arch: str, depth: int
    ) -> str:
        return too_large(self.lambda_, collapse) if collapse else ""

    @torch.no_grad()
    def on_gradient(self) -> None:
        self.check_views()
        # (3b): the subgradient of λ‖γ‖₁, or of λφ(γ), 0 where γ = 0.
        subgradient = self.gamma.sign() * self.phi.slope(self.gamma.abs())
        self.add_to_gradients(subgradient, self.lambda_)

    def figures(self, loss: float) -> dict[str, float]:
        return {
            "ns_objective": loss + self.lambda_ * self.phi.value(self.gamma.abs()).item()
        }  # (2)


class ProximalSlimming(Method):
    """Proximal network slimming: minimise L(W, γ) + λφ(ξ) + (β/2)‖γ − ξ‖² (eq. 5).

    φ is the ℓ1 norm there; ``penalty`` and ``shape`` may put another one in its place.

    Works on any model with batch norms and any optimiser that makes plain SGD's step. Call
    :meth:`on_step` after every step of it, and :meth:`on_epoch` after every epoch.

    With momentum μ the fixed point satisfies β(γ − ξ) = −∇L/(1 − μ): the run approaches a
    critical point of eq. (5) with (1 − μ)λ and (1 − μ)β, not with λ and β as given.

    ``prox_every`` is ``"step"`` (one alternation per mini-batch, as the released program makes
    them) or ``"epoch"`` (Algorithm 1 as printed: ξ changes once, after the epoch). ``xi_init`` is
    the range ξ is drawn from; ``None`` starts at ξ = γ. With ``keep_dead``, :meth:`dead` calls no
    channel dead.

    Raises ValueError unless λ ≥ 0, β > 0, ``prox_every`` is one of the two and φ takes ``shape``.
    """

    name, title, help = "proximal", "Proximal NS", "the paper's algorithm"
    flags = (
        lambda_flag(lambda arch, depth: recipe(arch, depth).lambda_),
        Flag("beta", BETA, positive, lambda arch, depth: recipe(arch, depth).beta),
        penalties.FLAG,
        penalties.SHAPE,
        Flag("prox_every", EVERY, default="step", choices=("step", "epoch")),
        Flag("xi_init", INIT, number, XI_INIT, metavar=("LOW", "HIGH"), nargs=2, of_fresh=True),
        Flag("keep_dead", KEEP, default=False, compared=False),
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
        penalty: str = "l1",
        shape: float | None = None,
    ) -> None:
        super().__init__(model)
        if not (lambda_ >= 0 and beta > 0 and prox_every in ("step", "epoch")):
            raise ValueError("proximal slimming takes λ ≥ 0, β > 0, prox_every 'step' or 'epoch'")
        self.lambda_, self.beta, self.phi = lambda_, beta, PENALTIES[penalty](shape)
        self.prox_every, self.keep_dead = prox_every, keep_dead
        self.xi = self.gamma.clone()
        if xi_init is not None:
            # Drawn on the CPU, so that a seed means the same ξ on every device.
            self.xi.copy_(torch.empty(self.gamma.numel()).uniform_(*xi_init))
        self.ways = self.phi.way(self.xi.abs())  # from where each ξ starts to 0, at slope 1

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        low, high = options.get("xi_init") or XI_INIT
        if low > high:
            raise ValueError("--xi-init takes LOW HIGH, the lower one first")
        penalties.check(options)

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
        xi = self.xi.double() if self.phi.precise else self.xi
        mean = (xi * alpha).add_(self.gamma, alpha=self.beta).div_(alpha + self.beta)
        new = self.phi.prox(mean, self.lambda_ / (alpha + self.beta))
        self.set_(self.xi, new.to(self.xi))

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
        # A step multiplies b + cv by z; and once b ≤ 0 and b + cv ≤ 0, both hold for ever.
        z = bias_eigenvalue(mu, n, decay)
        if z is None:
            return torch.zeros_like(stays_zero)
        c = -lr * mu ** (1 + n) / (z - mu) if mu else 0.0
        return stays_zero & (bias <= 0) & (bias + c * bias_v.double() <= 0)

    def figures(self, loss: float) -> dict[str, float]:
        # F of eq. (5), and eq. (2), where φ is the ℓ1 norm; read at once.
        values = torch.stack((self.penalty(), self.phi.value(self.gamma.abs())))
        penalty, size = values.tolist()
        return {"objective": loss + penalty, "ns_objective": loss + self.lambda_ * size}

    def penalty(self) -> Tensor:
        """λφ(ξ) + (β/2)‖γ − ξ‖², which eq. (5) adds to the loss."""
        distance = (self.gamma - self.xi).square().sum()
        return self.lambda_ * self.phi.value(self.xi.abs()) + self.beta / 2 * distance

    def warnings(
        self, schedule: Schedule, arch: str, depth: int, optimizer: torch.optim.SGD
    ) -> Iterable[str]:
        """Say so when the penalty alone cannot bring a factor to zero, or when no channel dies."""
        momentum = optimizer.param_groups[0]["momentum"]
        reach = shrinkage(self.lambda_, self.beta, self._of_xi(schedule))
        way = self.ways.min().item()
        if flat := int(self.ways.isinf().sum()):
            yield (
                f"warning: {self.phi.name} is flat from {self.phi.shape:g}, and"
                f" {flat} of {len(self.ways)} ξ start beyond: nothing draws them to zero. Take a"
                " larger --shape"
            )
        elif reach < way:
            measured = "" if self.phi.name == "l1" else ", measured by ∫dξ/φ'(ξ)"
            yield (
                f"warning: in {len(schedule)} epochs the penalty alone moves ξ by {reach:.2g}, and"
                f" it starts at {way:.2g} or more{measured}: zeros may not appear;"
                f" {self._advice(schedule, arch, depth)}"
            )
        elif self.lambda_ > MOST * recipe(arch, depth).lambda_:
            yield (
                f"warning: --s {self.lambda_:g} is more than {MOST} times the paper's: all ξ may"
                f" become 0 at once; {self._advice(schedule, arch, depth, larger=False)}"
            )
        elif not self._gamma_can_follow(schedule, momentum):
            yield (
                "warning: the steps are too few for γ = 0. Behind ξ = 0 a step multiplies γ by"
                f" α/(α + β), or by the momentum {momentum:g} if that is more: prune with --mask"
                " xi, or take more epochs, a larger --beta or a smaller --momentum"
            )
        if not self.keep_dead:
            yield from self._of_swinging_biases(schedule, optimizer)

    def _of_xi(self, schedule: Schedule) -> Schedule:
        """How many updates of ξ there are at which learning rate."""
        return [(1, lr) for _, lr in schedule] if self.prox_every == "epoch" else schedule

    def _gamma_can_follow(self, schedule: Schedule, momentum: float) -> bool:
        """Whether γ can shrink to 0, were every ξ 0 from the first step on."""
        smallest = max(self.gamma.abs().min().item(), TINY)
        rates = [(steps, max(momentum, 1 / (1 + lr * self.beta))) for steps, lr in schedule]
        return sum(steps * math.log(rate) for steps, rate in rates) <= math.log(TINY / smallest)

    def _of_swinging_biases(self, schedule: Schedule, optimizer: torch.optim.SGD) -> Iterable[str]:
        """Say so when :meth:`dead` calls no channel dead, or none before a later epoch."""
        group = optimizer.param_groups[0]
        mu, n, decay = group["momentum"], int(group["nesterov"]), group["weight_decay"]
        to_come = accumulate((lr for _, lr in reversed(schedule)), max)  # the highest, from the end
        bad = [lr for lr in to_come if bias_eigenvalue(mu, n, lr * decay) is None]
        if bad:
            epochs = (
                f"the first {len(bad)} of {len(schedule)}" if len(bad) < len(schedule) else "all"
            )
            # Where the equation of bias_eigenvalue has a double root.
            root = (1 - mu) / (1 + mu) if n else 1 - math.sqrt(mu)
            yield (
                f"warning: no channel is called dead in {epochs} epochs, so all train on: with"
                f" --momentum {mu:g} and --weight-decay {decay:g} the bias of a dead channel swings"
                f" about 0. It does not up to --weight-decay {rounded_down(root * root / max(bad))}"
            )

    def _advice(self, schedule: Schedule, arch: str, depth: int, larger: bool = True) -> str:
        """The λ with which the penalty alone moves ξ ``AMPLE`` times as far as 0 is, or else what.

        It is ``larger`` than the run's, or smaller. Many times the paper's λ is too large for every
        channel, and all ξ are 0 at once.
        """
        most, way = MOST * recipe(arch, depth).lambda_, self.ways.min().item()
        enough = AMPLE * way / shrinkage(1, self.beta, self._of_xi(schedule))
        if math.isinf(enough):
            return "take a larger --shape"
        if enough <= most and (enough > self.lambda_) == larger:
            return f"with --s {enough:.2g} the penalty moves ξ {AMPLE} times as far as 0 is"
        if enough > most and (larger or self.lambda_ > most):
            return (
                f"so few steps take more than --s {most:g}, {MOST} times the paper's, and that is"
                f" too large: train for {math.ceil(enough / most)} times as many epochs"
            )
        return "train for more epochs" if larger else "try a smaller --s"

    def verdict(
        self, zeros: Mapping[str, int], collapse: str, schedule: Schedule, arch: str, depth: int
    ) -> str:
        """By this rule: where no ξ is 0, λ was too small; where the network is ruined, too large.

        Where γ is 0 for fewer than half of the channels for which ξ is, γ is still on its way.
        """
        if not zeros["xi"]:
            also = f"{collapse}; " if collapse else ""
            small = f"λ = {self.lambda_:g} was too small for so short a run"
            if self.lambda_ > MOST * recipe(arch, depth).lambda_:
                small = "the run was too short"
            return f"{also}no ξ is 0: {small}; {self._advice(schedule, arch, depth)}"
        if collapse:
            advice = self._advice(schedule, arch, depth, larger=False)
            return too_large(self.lambda_, collapse, advice)
        if 2 * zeros["gamma"] < zeros["xi"]:
            return (
                f"ξ is 0 for {zeros['xi']} channels, but γ for {zeros['gamma']} only: it is still"
                " on its way, more epochs or a larger --beta bring it there"
            )
        return ""
