"""Proximal and original network slimming: flags, log, and advice on λ."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import nn

from models.torchvision_models import STREAMS
from netslim import methods
from netslim.graph import Graph
from netslim.methods.base import TINY
from netslim.methods.penalties import L1, PENALTIES, GroupLasso, penalty_named
from netslim.methods.slimming import pair_step
from utils.arguments import Flag, not_negative, number, positive, share
from utils.console import note
from utils.methods.base import Method, TrainingSetup
from utils.paper.settings import XI_INIT, Schedule, recipe

# The flags --target-*, and the units of their shares.
BUDGETS = {"budget_flops": "flops", "budget_params": "parameters", "budget_channels": "channels"}
PENALTY = Flag(
    "penalty",
    "φ (default l1; with the proximal method group for torchvision's resnets and mobilenet_v2); lp"
    " only with the proximal method, as its slope at 0 is infinite; group is l1, but makes the"
    " channels of a residual or dense stream 0 in all layers that write it",
    default=L1.name,
    choices=tuple(PENALTIES),
)
SHAPE = Flag(
    "shape",
    "parameter of φ: a of l1-l2 and tl1, θ of mcp and scad (default 1), p of lp (default 0.5)",
    positive,
)
LARGEST = 20  # times the paper's λ is the largest λ that is advised
AMPLE = 2  # times the path to 0: γ then has half of the training to follow ξ


def budget_flag(name: str, unit: str) -> Flag:
    text = f"share of the {unit} to remove (0.3 or 30: 30 %%); determines λ and β"
    option = name.replace("budget_", "--target-")
    return Flag(name, text, share, metavar="P", custom_options=(option,))


def lambda_flag(default: Callable[[str, int], float]) -> Flag:
    text = "λ, the weight of the penalty φ"
    names: dict[str, Any] = {"custom_options": ("--s", "--lambda"), "constructor_name": "lambda_"}
    return Flag("s", text, not_negative, default, metavar="LAMBDA", **names)


def has_group_penalty(options: Mapping[str, Any]) -> bool:
    """Returns whether the penalty makes a stream's channels zero in all layers that write it."""
    return options.get("penalty") == GroupLasso.name


def check_shape(options: Mapping[str, Any]) -> None:
    """Raises ValueError if --shape does not fit --penalty."""
    if "penalty" in options:
        try:
            penalty_named(options["penalty"], options.get("shape"))
        except ValueError as error:  # name the flags
            text = str(error).replace(" shape ", " --shape ", 1)
            raise ValueError(f"--{text}") from None


def shrinkage(lambda_: float, beta: float, schedule: Schedule) -> float:
    """Returns how far the penalty alone moves a coupled pair (γ, ξ) in a training.

    Args:
        schedule: number of alternations and learning rate 1/α of each epoch.
    """
    return lambda_ * sum(count * pair_step(lr, beta) for count, lr in schedule)


def too_large(lambda_: float, collapse: str, advice: str = "try a smaller --lambda") -> str:
    """Returns the verdict on the λ of a model with this ``collapse``."""
    return f"{collapse}: λ = {lambda_:g} was too large; {advice}"


class Subgradient(Method, methods.Subgradient):
    """Original network slimming (Liu et al., 2017): subgradient descent on eq. (2)."""

    name, title, help = "subgradient", "Original NS", "original network slimming, eq. (3b)"
    flags = (
        lambda_flag(lambda *network: recipe(*network).subgradient_lambda),
        # A penalty of infinite slope at 0 has no subgradient there.
        replace(
            PENALTY,
            choices=tuple(n for n, phi in PENALTIES.items() if not phi.infinite_slope_at_zero),
        ),
        SHAPE,
    )
    columns = ("ns_objective",)
    prune_flags = ("--percent", "0.5")  # γ is only near zero, so pruning needs a share

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        check_shape(options)

    def verdict(self, zeros: Mapping[str, int], collapse: str, setup: TrainingSetup) -> str:
        return too_large(self.lambda_, collapse) if collapse else ""

    def log_metrics(self, loss: float) -> dict[str, float]:
        penalty = self.lambda_ * self.phi.value(self.read().abs()).item()
        return {"ns_objective": loss + penalty}  # (2)


class ProximalSlimming(Method, methods.ProximalSlimming):
    """Proximal network slimming: minimise L(W, γ) + λφ(ξ) + (β/2)‖γ − ξ‖² (eq. 5)."""

    name, title, help = "proximal", "Proximal NS", "the paper's algorithm"
    flags = (
        lambda_flag(lambda *network: recipe(*network).lambda_),
        Flag(
            "beta",
            "β, the weight of the quadratic penalty",
            positive,
            lambda *network: recipe(*network).beta,
        ),
        PENALTY,
        SHAPE,
        Flag(
            "prox_every",
            "updates of ξ: after every mini-batch (default) or epoch (Algorithm 1 as printed)",
            default="step",
            choices=("step", "epoch"),
        ),
        Flag(
            "xi_init",
            "range of the uniform initial ξ (default 0.47 0.50; fine-tuning: ξ = γ)",
            number,
            XI_INIT,
            metavar=("LOW", "HIGH"),
            nargs=2,
            only_untrained=True,
        ),
        Flag(
            "keep_dead",
            "no removal of dead channels during training: the same result up to rounding, slower",
            default=False,
            in_experiment_key=False,
        ),
        *(budget_flag(name, unit) for name, unit in BUDGETS.items()),
    )
    columns = ("objective", "ns_objective")
    prune_flags = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.paths = self.phi.path_length(self.xi.abs())  # from each initial ξ to 0, at slope 1

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        low, high = options.get("xi_init") or XI_INIT
        if low > high:
            raise ValueError(f"--xi-init takes LOW HIGH with LOW ≤ HIGH, not {low:g} {high:g}")
        check_shape(options)
        strings = {flag.name: flag.option_strings[-1] for flag in cls.flags}
        targets = [strings[name] for name in BUDGETS if options.get(name) is not None]
        if len(targets) > 1:
            raise ValueError(f"{' and '.join(targets)} exclude one another")
        defaults = {"s": None, "beta": None, "penalty": "l1", "prox_every": "step"}
        others = [strings[n] for n, x in defaults.items() if options.get(n, x) not in (None, x)]
        if targets and others:
            determined = f"{targets[0]} determines λ and β of the ℓ1 penalty"
            raise ValueError(f"{determined}: leave out {', '.join(others)}")

    @classmethod
    def presets(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        if known.keys() & BUDGETS.keys():
            return {"s": None, "beta": None}
        return {"penalty": GroupLasso.name} if known.get("arch") in STREAMS else {}

    @classmethod
    def from_options(cls, graph: Graph, model: nn.Module, options: Mapping[str, Any]) -> Self:
        flags = (flag for flag in cls.flags if flag.name not in BUDGETS)
        arguments = {flag.constructor_name or flag.name: options[flag.name] for flag in flags}
        for name, unit in BUDGETS.items():
            if (value := options[name]) is not None:
                arguments["target"] = methods.Budget(unit, value, options["steps"], options["lr"])
        return cls(graph, model=model, **arguments)

    def end_epoch(self, lr: float) -> None:
        before = self.budget_met
        super().end_epoch(lr)
        if self.target is not None and self.budget_met and not before:
            note(
                f"the budget is met: ξ = 0 for {int((self.xi == 0).sum())} factors removes"
                f" {100 * self.removed:.1f} % of the {self.target.what}; the penalty on the others"
                " ends"
            )

    def reset_state(self) -> str:
        self.xi.copy_(self.read())
        return "ξ restarts at ξ = γ"

    def log_metrics(self, loss: float) -> dict[str, float]:
        # F of eq. (5), and eq. (2) if φ is the ℓ1 norm; read at once.
        values = torch.stack((self.penalty(), self.phi.value(self.read().abs())))
        penalty, size = values.tolist()
        return {"objective": loss + penalty, "ns_objective": loss + self.lambda_ * size}

    def warnings(self, setup: TrainingSetup) -> Iterable[str]:
        """Warns if no ξ or no γ can reach zero in time, or if λ is far too large."""
        if self.target is not None:
            return
        reach = self.lambda_ * self._reach(setup)
        shortest = self.paths.min().item()
        if flat := int(self.paths.isinf().sum()):
            yield (
                f"warning: {self.phi.name} is flat from {self.phi.shape:g} on, where {flat} of"
                f" {len(self.paths)} ξ start: they stay there. Take a larger --shape"
            )
        elif reach < shortest:
            measure = "" if self.phi.name == "l1" else " (by ∫dξ/φ'(ξ))"
            yield (
                f"warning: in {len(setup.schedule)} epochs the penalty alone moves ξ by"
                f" {reach:.2g}, but ξ starts at {shortest:.2g} or more{measure}: there may be no"
                f" zeros; {self._advice(setup)}"
            )
        elif self.lambda_ > LARGEST * setup.recipe.lambda_:
            yield (
                f"warning: --lambda {self.lambda_:g} is more than {LARGEST} times the paper's, and"
                f" all ξ may become 0 at once; {self._advice(setup, larger=False)}"
            )
        elif not self._gamma_can_follow(setup):
            yield (
                "warning: there are too few steps for γ = 0: where ξ = 0, a step multiplies γ by"
                f" max(α/(α + β), momentum {setup.momentum:g}). Prune with --mask xi, or take more"
                " epochs, a larger --beta or a smaller --momentum"
            )

    def _reach(self, setup: TrainingSetup) -> float:
        """Returns how far λ = 1 alone moves ξ in the training."""
        per_epoch = self.prox_every == "epoch"
        schedule = [(1 if per_epoch else count, lr) for count, lr in setup.schedule]
        return shrinkage(1, self.beta, schedule)

    def _gamma_can_follow(self, setup: TrainingSetup) -> bool:
        """Returns whether γ could become 0 if ξ were 0 from the first step on."""
        smallest = max(self.read().abs().min().item(), TINY)
        rates = ((n, max(setup.momentum, 1 / (1 + lr * self.beta))) for n, lr in setup.schedule)
        return sum(n * math.log(rate) for n, rate in rates) <= math.log(TINY / smallest)

    def _advice(self, setup: TrainingSetup, larger: bool = True) -> str:
        """Returns the λ that moves ξ twice the way to 0, or other advice if that is no remedy.

        A λ above 20 times the paper's is never advised: it makes all ξ 0 at once.

        Args:
            larger: whether λ should be larger than it is, or smaller.
        """
        largest = LARGEST * setup.recipe.lambda_
        enough = AMPLE * self.paths.min().item() / self._reach(setup)
        if math.isinf(enough):
            return "take a larger --shape"
        if enough <= largest and (enough > self.lambda_) == larger:
            return f"try --lambda {enough:.2g}, which moves ξ {AMPLE} times the way to 0"
        if enough > largest and (larger or self.lambda_ > largest):
            factor = math.ceil(enough / largest)
            return (
                f"so few steps need a λ above {largest:g}, {LARGEST} times the paper's, which is"
                f" too large: train for {factor} times as many epochs, or use --target-flops"
            )
        return "train for more epochs" if larger else "try a smaller --lambda"

    def verdict(self, zeros: Mapping[str, int], collapse: str, setup: TrainingSetup) -> str:
        """Returns "λ too small" if no ξ is 0, "λ too large" after a collapse.

        If fewer γ than half of the ξ are 0, γ has not followed yet.
        """
        if self.target is not None:
            advice = "train for more epochs, or with a smaller --batch-size or budget"
            return f"{collapse}: {advice}" if collapse else ""
        if not zeros["xi"]:
            prefix = f"{collapse}; " if collapse else ""
            reason = f"λ = {self.lambda_:g} was too small for so short a training"
            if self.lambda_ > LARGEST * setup.recipe.lambda_:
                reason = "the training was too short"
            return f"{prefix}no ξ is 0: {reason}; {self._advice(setup)}"
        if collapse:
            return too_large(self.lambda_, collapse, self._advice(setup, larger=False))
        if 2 * zeros["gamma"] < zeros["xi"]:
            return (
                f"{zeros['xi']} ξ are 0, but only {zeros['gamma']} γ yet: train for more epochs,"
                " raise --beta, or prune by ξ now: add --mask xi to the next command"
            )
        return ""
