"""Network slimming by ADMM with a bounded ℓp penalty (Ji et al.; their program prunes filters).

minimise L(W, γ) + λΣh(z) subject to γ = z, where h has the slope ω(z) = min(p|z|^(p−1), M): ℓp,
linearised at the z before, and bounded. Where the authors' program and their description differ or
are silent, this module squares ρ/2·‖γ − z + u‖², clamps ω at M, and uses γ as the variable.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.methods.base import Method


class LpADMM(Method):
    """Lp network slimming: γ descends L + ρ/2·‖γ − z + u‖², z and the scaled dual u follow.

    Channels are pruned where z is 0; γ is near z but never exactly 0. Call :meth:`before_step`
    between the backward pass and the optimizer's step, and :meth:`end_epoch` after every epoch.

    Args:
        graph: of the model that is trained.
        lambda_: λ ≥ 0.
        p: exponent of ℓp, 0 < p ≤ 1.
        rho: ρ > 0, the weight of γ − z.
        bound: M > 0, the largest slope of the penalty.
        z_every: number of steps between updates of z and u, or "epoch"; they are also updated at
            the end of every epoch.

    Raises:
        ValueError: an argument is out of its range, or no channel can be removed.
    """

    factors = {"gamma": "γ", "z": "z"}  # noqa: RUF012
    pruned_by = "z"
    needs_channels = True

    def __init__(
        self,
        graph: Graph,
        lambda_: float,
        p: float = 0.2,
        rho: float = 1.5e-3,
        bound: float = 1.0,
        z_every: int | str = "epoch",
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(graph, model)
        if not (lambda_ >= 0 and 0 < p <= 1 and rho > 0 and bound > 0):
            raise ValueError("Lp slimming takes λ ≥ 0, 0 < p ≤ 1, ρ > 0, M > 0")
        self.lambda_, self.p, self.rho, self.bound = lambda_, p, rho, bound
        self.period = math.inf if z_every == "epoch" else int(z_every)
        self.end_epoch_task = "updates z" if z_every == "epoch" else ""
        self.z, self.u = self.gamma.clone(), torch.zeros_like(self.gamma)
        # Steps since the last update of z, on the device because a captured step must count, too.
        self.count = torch.zeros((), device=self.gamma.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"z": self.z, "u": self.u, "count": self.count}

    def slope(self, size: Tensor) -> Tensor:
        """Returns ω = min(p|z|^(p−1), M) for |z| = ``size``, elementwise."""
        return (self.p * size ** (self.p - 1)).clamp(max=self.bound)

    @torch.no_grad()
    def before_step(self) -> None:
        # ∇γ of ρ/2·‖γ − z + u‖²; SGD's momentum is over it too.
        self.add_to_gradients((self.read() - self.z).add_(self.u), self.rho)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.check_gradients()
        self.stepped = True
        self.update(self.count, self.count + 1)
        self._update_z(self.count >= self.period)

    @torch.no_grad()
    def end_epoch(self, lr: float) -> None:
        self.ended = True
        self._update_z(self.count > 0)

    def _update_z(self, due: Tensor) -> None:
        """Updates z and u if ``due`` (bool scalar)."""
        # z ← S(v, λω(z)/ρ) and u ← v − z, with v = γ + u: the part of v that S takes is u.
        v = self.read() + self.u
        threshold = self.slope(self.z.abs()) * (self.lambda_ / self.rho)
        u = v.clamp(-threshold, threshold)
        for tensor, new in ((self.u, u), (self.z, v - u), (self.count, self.count * 0)):
            self.update(tensor, torch.where(due, new, tensor))

    def training_hint(self, zeros: Mapping[str, Tensor]) -> str:
        """Returns no warning once u shows that end_epoch() was called, maybe before resuming."""
        return "" if self.u.any() else super().training_hint(zeros)

    def penalty(self) -> float:
        """Returns λΣh(z): slope M up to the x with ω(x) = M, then |z|^p plus a constant."""
        size = self.z.abs()
        if self.p == 1:
            return self.lambda_ * min(1.0, self.bound) * size.sum().item()
        bend = (self.p / self.bound) ** (1 / (1 - self.p))
        beyond = size**self.p + (self.bound * bend - bend**self.p)
        return self.lambda_ * torch.where(size <= bend, self.bound * size, beyond).sum().item()
