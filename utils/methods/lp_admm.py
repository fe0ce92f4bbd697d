"""Lp network slimming in the program: its flags, and what is said of λ, ρ and M."""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from netslim import methods
from utils import arguments
from utils.arguments import Flag
from utils.console import note
from utils.methods.base import Method
from utils.methods.slimming import lambda_flag, too_large
from utils.paper.settings import Schedule

# λM/ρ, how far from 0 a γ may be whose z is 0: masking it away costs accuracy where it is larger
# (0.067 with the released settings; at 0.6 a small network lost half of its accuracy).
LARGEST_THRESHOLD = 0.25


def exponent(text: str) -> float:
    """p in (0, 1]; a whole number n above that is 1/n, as the released program has it."""
    value = arguments.positive(text)
    if value > 1 and value == int(value):
        note(f"note: --p {text} is read as 1/{int(value)}, as the released program reads it")
        return 1 / value
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither in (0, 1] nor a whole number")
    return value


def every(text: str) -> Any:
    """``epoch``, or a number of steps: ``step`` is 1."""
    return text if text == "epoch" else 1 if text == "step" else arguments.positive_int(text)


class LpAdmm(Method, methods.LpADMM):
    """Lp network slimming: the zeros of z are what is pruned."""

    name = "lp-admm"
    title = "Lp ADMM"
    help = "ADMM with an ℓp penalty"
    flags = (
        lambda_flag(lambda arch, depth: 1e-4),
        Flag("p", "exponent of ℓp; n ≥ 2 is read as 1/n (default 0.2)", exponent, 0.2),
        Flag("rho", "ρ, weight of γ − z (default 0.0015)", arguments.positive, 1.5e-3),
        Flag("bound", "M, the largest slope of the penalty (default 1)", arguments.positive, 1.0),
        Flag(
            "z_every",
            "update z after every step, N steps, or epoch (default); at an epoch's end always",
            every,
            "epoch",
            metavar="step|N|epoch",
        ),
    )
    columns = ("objective", "primal_gap")
    prune_flags = ("--target-flops", "0.5")  # zeros of z go in any case; then the smallest γ

    def reset_state(self) -> str:
        self.z.copy_(self.read())
        self.u.zero_()
        self.count.zero_()
        return "ADMM starts again at z = γ, u = 0"

    def log_metrics(self, loss: float) -> dict[str, float]:
        return {
            "objective": loss + self.penalty(),
            "primal_gap": (self.read() - self.z).square().sum().item(),  # ‖γ − z‖²
        }

    def verdict(
        self, zeros: Mapping[str, int], collapse: str, schedule: Schedule, arch: str, depth: int
    ) -> str:
        return too_large(self.lambda_, collapse) if collapse else ""

    def warnings(
        self, schedule: Schedule, arch: str, depth: int, optimizer: torch.optim.SGD
    ) -> Iterable[str]:
        """Say so when no z can become zero, or when zeros of z say little of γ."""
        yield "note: γ is never exactly 0 here, only z is: all channels train to the end"
        threshold = self.lambda_ * self.bound / self.rho
        if threshold > LARGEST_THRESHOLD:
            enough = threshold / LARGEST_THRESHOLD * self.rho
            yield (
                f"warning: z = 0 where |γ| stays below λM/ρ = {threshold:.2g}, and pruning what is"
                f" so far from 0 costs accuracy: take --rho {enough:.2g} or more"
            )
        momentum = optimizer.param_groups[0]["momentum"]
        # What z moves at an update is λω/ρ at most, and no more than γ follows until then.
        start, reach = self.read().abs().min(), 0.0
        for steps, lr in schedule:
            period = min(steps, self.period)
            for n, times in ((period, steps // period), (steps % period, 1)):
                reach += times * min(n * lr / (1 - momentum), 1 / self.rho)
        reach *= self.lambda_ * self.slope(start).item()
        if reach < start.item():
            yield (
                f"warning: in {len(schedule)} epochs the penalty alone moves γ by {reach:.2g}, and"
                f" it starts at {start.item():.2g} or more: zeros may not appear. Take more epochs,"
                " or a larger --s"
            )
