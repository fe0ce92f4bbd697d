"""Proximal and original network slimming in the program: flags, log, and advice on λ."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any, Self

import torch
from torch import nn

from netslim import methods
from netslim.graph import Graph
from netslim.methods.base import TINY
from netslim.methods.penalties import PENALTIES
from netslim.methods.slimming import bias_eigenvalue
from utils.arguments import Flag, not_negative, number, percent, positive
from utils.console import note
from utils.methods import penalties
from utils.methods.base import Method
from utils.paper.settings import XI_INIT, Schedule, recipe

# What -h says of the flags.
LAMBDA = "λ, the weight of the penalty φ"
BETA = "β, the weight of the quadratic penalty"
EVERY = "update ξ after every mini-batch (default), or as Algorithm 1 is printed"
INIT = "ξ starts uniform in this range (default 0.47 0.50; fine-tuning: ξ = γ)"
KEEP = "train on channels that have died: the same but for rounding, later (default: cut them)"

BUDGETS = {f"budget_{what}": what for what in ("flops", "params", "channels")}  # of what, by flag
WHAT = {"flops": "flops", "params": "parameters", "channels": "channels"}


def budget_flag(name: str, what: str) -> Flag:
    text = f"percent of the {WHAT[what]} to remove; λ and β are found, and released once it is met"
    return Flag(name, text, percent, metavar="P", custom_options=(f"--target-{what}",))


def lambda_flag(default: Callable[[str, int], float]) -> Flag:
    names: dict[str, Any] = {"custom_options": ("--lambda", "--s"), "constructor_name": "lambda_"}
    return Flag("s", LAMBDA, not_negative, default, metavar="LAMBDA", **names)


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


class Subgradient(Method, methods.Subgradient):
    """Original network slimming (Liu et al., 2017): subgradient descent on eq. (2)."""

    name, title = "subgradient", "Original NS"
    help = "original network slimming, eq. (3b)"
    flags = (
        lambda_flag(lambda arch, depth: recipe(arch, depth).subgradient_lambda),
        # What is steep at 0 has no subgradient there.
        replace(
            penalties.FLAG,
            choices=tuple(n for n, phi in PENALTIES.items() if not phi.infinite_slope_at_zero),
        ),
        penalties.SHAPE,
    )
    columns = ("ns_objective",)
    prune_flags = ("--percent", "0.5")  # its factors come near zero only: choose a share

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        penalties.check(options)

    def verdict(
        self, zeros: Mapping[str, int], collapse: str, schedule: Schedule, arch: str, depth: int
    ) -> str:
        return too_large(self.lambda_, collapse) if collapse else ""

    def log_metrics(self, loss: float) -> dict[str, float]:
        return {
            "ns_objective": loss + self.lambda_ * self.phi.value(self.read().abs()).item()
        }  # (2)


class ProximalSlimming(Method, methods.ProximalSlimming):
    """Proximal network slimming: minimise L(W, γ) + λφ(ξ) + (β/2)‖γ − ξ‖² (eq. 5)."""

    name, title, help = "proximal", "Proximal NS", "the paper's algorithm"
    flags = (
        lambda_flag(lambda arch, depth: recipe(arch, depth).lambda_),
        Flag("beta", BETA, positive, lambda arch, depth: recipe(arch, depth).beta),
        penalties.FLAG,
        penalties.SHAPE,
        Flag("prox_every", EVERY, default="step", choices=("step", "epoch")),
        Flag(
            "xi_init", INIT, number, XI_INIT, metavar=("LOW", "HIGH"), nargs=2, only_untrained=True
        ),
        Flag("keep_dead", KEEP, default=False, in_experiment_key=False),
        *(budget_flag(name, what) for name, what in BUDGETS.items()),
    )
    columns = ("objective", "ns_objective")
    prune_flags = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ways = self.phi.path_length(self.xi.abs())  # from where each ξ starts to 0, at slope 1

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        low, high = options.get("xi_init") or XI_INIT
        if low > high:
            raise ValueError("--xi-init takes LOW HIGH, the lower one first")
        penalties.check(options)
        targets = [f"--target-{BUDGETS[n]}" for n in BUDGETS if options.get(n) is not None]
        if len(targets) > 1:
            raise ValueError(f"{' and '.join(targets)} exclude one another")
        usual = {"s": None, "beta": None, "penalty": "l1", "prox_every": "step"}
        other = [n for n, value in usual.items() if options.get(n, value) not in (None, value)]
        if targets and other:
            given = ", ".join("--" + name.replace("_", "-") for name in other)
            raise ValueError(f"{targets[0]} finds λ and β of the ℓ1 penalty: leave out {given}")

    @classmethod
    def presets(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        return {"s": None, "beta": None} if known.keys() & BUDGETS.keys() else {}

    @classmethod
    def from_options(cls, graph: Graph, model: nn.Module, options: Mapping[str, Any]) -> Self:
        own = {
            f.constructor_name or f.name: options[f.name]
            for f in cls.flags
            if f.name not in BUDGETS
        }
        for name, what in BUDGETS.items():
            if (share := options[name]) is not None:
                budget = WHAT[what], share / 100, options["steps"], options["lr"]
                own["target"] = methods.Budget(*budget)
        return cls(graph, model=model, **own)

    def end_epoch(self, lr: float) -> None:
        before = self.landed
        super().end_epoch(lr)
        if self.target is not None and self.landed and not before:
            zeros = int((self.xi == 0).sum())
            note(
                f"the budget is met: without the {zeros} channels whose ξ is 0 now,"
                f" {100 * self.removed:.1f} % of the {self.target.what} are gone; the others train"
                " on without a penalty"
            )

    def reset_state(self) -> str:
        self.xi.copy_(self.read())
        return "ξ starts again at ξ = γ"

    def log_metrics(self, loss: float) -> dict[str, float]:
        # F of eq. (5), and eq. (2), where φ is the ℓ1 norm; read at once.
        values = torch.stack((self.penalty(), self.phi.value(self.read().abs())))
        penalty, size = values.tolist()
        return {"objective": loss + penalty, "ns_objective": loss + self.lambda_ * size}

    def warnings(
        self, schedule: Schedule, arch: str, depth: int, optimizer: torch.optim.SGD
    ) -> Iterable[str]:
        """Say so when the penalty alone cannot bring a factor to zero, or when no channel dies."""
        if self.target is not None:
            return
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
        smallest = max(self.read().abs().min().item(), TINY)
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
        if self.target is not None:
            advice = "take a smaller budget or more epochs"
            return f"{collapse}: the training does not bear its budget; {advice}" * bool(collapse)
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
