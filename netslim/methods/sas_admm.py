"""SAS-ADMM: stochastic accelerated symmetric ADMM on all weights, for unstructured pruning.

Symbols are that paper's: W the weights (of all convolutions and linear layers, one vector), Z their
copy in the ℓ1 norm, U the multiplier, W̆ (``breve``) the proximal iterate of the inner loop,
Ŵ (``hat``) the point where gradients are computed, Wᵃ (``average``) the resulting average.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.methods.base import Method
from netslim.methods.penalties import soft_threshold
from netslim.weights import Convolution, weights

TAU, SIGMA = 0.9, 1.09  # factors of the two dual steps; τ + σ + 1 > τ² + σ² + τσ


class SASADMM(Method):
    """Minimise f(W) + λ‖Z‖₁ subject to W = Z, by the augmented Lagrangian

        f(W) + λ‖Z‖₁ − Uᵀ(W − Z) + (β/2)‖W − Z‖².

    An epoch is an outer iteration i of ``outer``: :meth:`steps` mini-batches of an accelerated
    inner loop on W, a step of U, the soft thresholding of Z, and another step of U. ``inner`` is M,
    the mini-batches of an iteration before the ``k0``-th; from then on their number grows as i^q.
    ``v`` bounds the Lipschitz constant of ∇f from above. From iteration ``average_from`` on, the
    mean of the iterates is evaluated and saved.

    Nothing else is trained: scaling factors and biases keep their initial values. There is no
    optimizer: call :meth:`begin_epoch`, then :meth:`before_forward` and :meth:`step` for each
    mini-batch, then :meth:`end_epoch`; within :meth:`eval_weights` the model holds Wᵃ.

    Raises:
        ValueError: λ is negative, β or v not positive, or a count below 1; or the weight of a layer
            is not a parameter, but computed from others.
    """

    def __init__(
        self,
        graph: Graph,
        lambda_: float,
        beta: float,
        outer: int,
        inner: int,
        k0: int,
        q: float,
        v: float,
        average_from: int,
        tau: float = TAU,
        sigma: float = SIGMA,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(graph, model)
        if not (lambda_ >= 0 and min(beta, v) > 0 and min(outer, inner, k0, average_from) >= 1):
            raise ValueError("SAS-ADMM takes λ ≥ 0, β > 0, v > 0 and counts of at least 1")
        self.lambda_, self.beta, self.outer, self.inner = lambda_, beta, outer, inner
        self.k0, self.q, self.v, self.average_from = k0, q, v, average_from
        self.tau, self.sigma = tau, sigma
        for name, layer in self.model.named_modules():
            computed = layer._parameters.get("weight") is None
            if computed and isinstance(layer, Convolution | nn.Linear):
                raise ValueError(
                    f"the weight of {name} is not a parameter, but computed from others, as by"
                    " weight_norm: replace it by its value, with"
                    " torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm"
                )
        self.model.requires_grad_(False)
        for weight in self.points():
            weight.requires_grad_(True)
        self.w = torch.cat([w.detach().flatten() for w in self.points()])
        self.breve, self.z, self.average = (self.w.clone() for _ in range(3))
        self.u = torch.zeros_like(self.w)
        # On the device because they change from step to step in a captured graph.
        self.t = torch.ones((), dtype=torch.int64, device=self.w.device)
        self.eta = torch.full_like(self.w[0], 1 / v)
        self.i = 1
        self.changes = torch.zeros_like(self.w[:2])  # ‖ΔW‖², ‖ΔZ‖²

    def points(self) -> list[nn.Parameter]:
        """Returns the model's weight parameters, which hold Ŵ."""
        return list(weights(self.model).values())

    def parts(self, flat: Tensor) -> list[Tensor]:
        """Splits a vector [weights] into one part in the shape of each weight parameter."""
        points = self.points()
        split = flat.split([w.numel() for w in points])
        return [part.view_as(w) for part, w in zip(split, points, strict=True)]

    def zeros(self, factor: str | None = None) -> dict[str, Tensor]:
        """Returns {name of the weight: bool mask in its shape}, true where Z is exactly 0.

        With a ``factor``, like :meth:`Method.zeros`.
        """
        if factor:
            return super().zeros(factor)
        return dict(zip(weights(self.model), self.parts(self.z == 0), strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        names = "W", "breve", "Z", "U", "average", "t"
        own = self.w, self.breve, self.z, self.u, self.average, self.t
        return dict(zip(names, own, strict=True))

    def steps(self, epoch: int) -> int:
        """Returns M_i, the number of mini-batches of outer iteration ``epoch`` + 1."""
        growth = ((epoch + 1) / self.k0) ** self.q if epoch + 1 > self.k0 else 1
        return math.ceil(self.inner * growth - 1e-9)  # rounding may exceed an integer

    def begin_epoch(self, epoch: int) -> None:
        self.i = epoch + 1
        m, m_i = self.inner, self.steps(epoch)
        self.eta.fill_(m * (m + 1) / (self.v * m_i * (m_i + 1)))  # 1/v as long as M_i = M
        self.t.fill_(1)
        self.w_old = self.w.clone()

    def _mean(self) -> Tensor:
        """Returns bW̆ + (1 − b)W with b = 2/(t + 1): Ŵ before an inner step, W after it."""
        return torch.lerp(self.w, self.breve, 2 / (self.t.to(self.w) + 1))

    @torch.no_grad()
    def _load(self, flat: Tensor) -> None:
        for point, part in zip(self.points(), self.parts(flat), strict=True):
            point.copy_(part)

    def before_forward(self) -> None:
        self._load(self._mean())  # Ŵ

    @torch.no_grad()
    def step(self, lr: float) -> None:
        # A layer that the forward pass did not use has no gradient: it counts as 0.
        gradients = (torch.zeros_like(w) if w.grad is None else w.grad for w in self.points())
        d = torch.cat([gradient.flatten() for gradient in gradients])
        # argmin of dᵀW + (g/2)‖W − W̆‖² + (ρ/2)‖W − W_old‖² − (U − β(W_old − Z))ᵀW. With ρ = β,
        # W_old falls out.
        g = 2 / (self.eta * self.t)
        breve = (g * self.breve + self.u + self.beta * self.z - d) / (g + self.beta)
        self.update(self.breve, breve)
        self.update(self.w, self._mean())
        self.t += 1

    @torch.no_grad()
    def end_epoch(self, lr: float) -> None:
        z_old = self.z.clone()
        u_half = self.u - self.tau * self.beta * (self.w - self.z)
        self.update(self.z, soft_threshold(self.w - u_half / self.beta, self.lambda_ / self.beta))
        self.update(self.u, u_half - self.sigma * self.beta * (self.w - self.z))
        count = max(self.i - self.average_from, 0) + 1  # of the iterates in Wᵃ
        self.update(self.average, self.average.lerp(self.w, 1 / count))
        moved = self.w - self.w_old, self.z - z_old
        self.changes = torch.stack([x.square().sum() for x in moved])

    @contextmanager
    def eval_weights(self, recompute_statistics: Callable[[], None]) -> Iterator[None]:
        self._load(self.average)
        recompute_statistics()
        yield
