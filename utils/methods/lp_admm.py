"""Lp network slimming: flags and warnings."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from netslim import methods
from utils import arguments
from utils.arguments import Flag
from utils.console import note
from utils.methods.base import Method, TrainingSetup
from utils.methods.slimming import lambda_flag, too_large

# λM/ρ bounds |γ| where z = 0. At 0.067, the released settings, masking such γ costs nothing; at 0.6
# a small model lost half of its accuracy.
LARGEST_THRESHOLD = 0.25


def exponent(text: str) -> float:
    """Parses p in (0, 1]; an integer n above 1 means 1/n, as in the released program."""
    value = arguments.positive(text)
    if value > 1 and value == int(value):
        note(f"note: --p {text} means 1/{int(value)}, as in the released program")
        return 1 / value
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither in (0, 1] nor a whole number")
    return value


def every(text: str) -> Any:
    """Parses "epoch", "step" (1) or a number of steps."""
    return text if text == "epoch" else 1 if text == "step" else arguments.positive_int(text)


class LpAdmm(Method, methods.LpADMM):
    """Lp network slimming; channels with z = 0 are pruned."""

    name, title, help = "lp-admm", "Lp ADMM", "ADMM with an ℓp penalty"
    flags = (
        lambda_flag(lambda arch, depth: 1e-4),
        Flag("p", "exponent of ℓp in (0, 1], or n ≥ 2 for 1/n (default 0.2)", exponent, 0.2),
        Flag("rho", "ρ, the weight of γ = z (default 0.0015)", arguments.positive, 1.5e-3),
        Flag("bound", "M, the largest slope of the penalty (default 1)", arguments.positive, 1.0),
        Flag(
            "z_every",
            "steps between updates of z (default epoch: at its end, where it is always updated)",
            every,
            "epoch",
            metavar="step|N|epoch",
        ),
    )
    columns = ("objective", "primal_gap")
    prune_flags = ("--target-flops", "0.5")  # the zeros of z, then the smallest γ

    def reset_state(self) -> str:
        self.z.copy_(self.read())
        self.u.zero_()
        self.count.zero_()
        return "ADMM restarts at z = γ, u = 0"

    def log_metrics(self, loss: float) -> dict[str, float]:
        primal_gap = (self.read() - self.z).square().sum().item()  # ‖γ − z‖²
        return {"objective": loss + self.penalty(), "primal_gap": primal_gap}

    def verdict(self, zeros: Mapping[str, int], collapse: str, setup: TrainingSetup) -> str:
        return too_large(self.lambda_, collapse) if collapse else ""

    def warnings(self, setup: TrainingSetup) -> Iterable[str]:
        """Warns if no z can become zero, or if z = 0 does not imply a small γ."""
        yield "note: only z becomes exactly 0, γ does not: no channel is removed during training"
        threshold = self.lambda_ * self.bound / self.rho
        if threshold > LARGEST_THRESHOLD:
            rho = threshold / LARGEST_THRESHOLD * self.rho
            yield (
                f"warning: γ may be as large as λM/ρ = {threshold:.2g} where z = 0, and pruning it"
                f" then costs accuracy: take --rho {rho:.2g} or more"
            )
        # An update moves z by at most λω/ρ, and by no more than γ follows until the next one.
        start, reach = self.read().abs().min(), 0.0
        for steps, lr in setup.schedule:
            period = min(steps, self.period)
            for n, times in ((period, steps // period), (steps % period, 1)):
                reach += times * min(n * lr / (1 - setup.momentum), 1 / self.rho)
        reach *= self.lambda_ * self.slope(start).item()
        if reach < start.item():
            yield (
                f"warning: in {len(setup.schedule)} epochs the penalty alone moves γ by"
                f" {reach:.2g}, but γ starts at {start.item():.2g} or more: there may be no zeros."
                " Take more epochs or a larger --lambda"
            )
