"""Network slimming by ADMM with a bounded ℓp penalty (Ji et al.; their program prunes filters).

minimise L(W, γ) + λΣh(z) subject to γ = z, where h has the slope ω(z) = min(p|z|^(p−1), M): ℓp,
linearised at the z before, and bounded. Where their program and its description part, or leave
something open: ρ/2·‖γ − z + u‖² is squared, ω is clamped at M, and the variable is γ.
"""

import argparse
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

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


class LpAdmm(Method):
    """Lp network slimming: γ descends L + ρ/2·‖γ − z + u‖², z and the scaled dual u follow.

    ``z_every`` is after how many steps they do, ``"epoch"`` for its end only; they follow there in
    any case. The zeros of z are what is pruned: γ is near z, but never exactly 0.

    Raises ValueError unless λ ≥ 0, 0 < p ≤ 1, ρ > 0 and M > 0.
    """

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
    factors = {"gamma": "γ", "z": "z"}  # noqa: RUF012
    zeroed = "z"
    columns = ("objective", "primal_gap")
    prune_flags = ("--target-flops", "0.5")  # zeros of z go in any case; then the smallest γ

    def __init__(
        self,
        model: nn.Module,
        lambda_: float,
        p: float = 0.2,
        rho: float = 1.5e-3,
        bound: float = 1.0,
        z_every: int | str = "epoch",
    ) -> None:
        super().__init__(model)
        if not (lambda_ >= 0 and 0 < p <= 1 and rho > 0 and bound > 0):
            raise ValueError("Lp slimming takes λ ≥ 0, 0 < p ≤ 1, ρ > 0, M > 0")
        self.lambda_, self.p, self.rho, self.bound = lambda_, p, rho, bound
        n = every(str(z_every))
        self.period = math.inf if n == "epoch" else n
        self.z, self.u = self.gamma.clone(), torch.zeros_like(self.gamma)
        # Steps since z was updated: on the device, for a captured step must count too. It is 0 at
        # the end of an epoch, so that Z's change there is that of γ, z and u.
        self.count = torch.zeros((), device=self.gamma.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"z": self.z, "u": self.u, "count": self.count}

    def forget(self) -> str:
        self.z.copy_(self.gamma)
        self.u.zero_()
        self.count.zero_()
        return "ADMM starts again at z = γ, u = 0"

    def slope(self, size: Tensor) -> Tensor:
        """ω of |z|, elementwise."""
        return (self.p * size ** (self.p - 1)).clamp(max=self.bound)

    @torch.no_grad()
    def on_gradient(self) -> None:
        self.check_views()
        # ∇γ of ρ/2·‖γ − z + u‖²; SGD's momentum is over it too.
        self.add_to_gradients((self.gamma - self.z).add_(self.u), self.rho)

    @torch.no_grad()
    def on_step(self, alpha: float) -> None:
        self.set_(self.count, self.count + 1)
        self._update_z(self.count >= self.period)

    @torch.no_grad()
    def on_epoch(self, alpha: float) -> None:
        self._update_z(self.count > 0)

    def _update_z(self, due: Tensor) -> None:
        """z and u, where it is time."""
        # z ← S(v, λω(z)/ρ) and u ← v − z, with v = γ + u: the part of v that S takes is u.
        v = self.gamma + self.u
        threshold = self.slope(self.z.abs()) * (self.lambda_ / self.rho)
        u = v.clamp(-threshold, threshold)
        for tensor, new in ((self.u, u), (self.z, v - u), (self.count, self.count * 0)):
            self.set_(tensor, torch.where(due, new, tensor))

    def figures(self, loss: float) -> dict[str, float]:
        return {
            "objective": loss + self.penalty(),
            "primal_gap": (self.gamma - self.z).square().sum().item(),  # ‖γ − z‖²
        }

    def penalty(self) -> float:
        """λΣh(z): with slope M up to the x where ω(x) = M, then |z|^p and what makes it whole."""
        size = self.z.abs()
        if self.p == 1:
            return self.lambda_ * min(1.0, self.bound) * size.sum().item()
        bend = (self.p / self.bound) ** (1 / (1 - self.p))
        beyond = size**self.p + (self.bound * bend - bend**self.p)
        return self.lambda_ * torch.where(size <= bend, self.bound * size, beyond).sum().item()

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
        start, reach = self.gamma.abs().min(), 0.0
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
