"""SAS-ADMM: stochastic accelerated symmetric ADMM on all weights, for unstructured pruning.

Symbols are that paper's: W the weights (of all convolutions and linear layers, one vector), Z their
copy that the ℓ1 norm acts on, U the multiplier, W̆ (``breve``) the proximal iterate of the inner
loop, Ŵ (``hat``) the point at which gradients are taken, Wᵃ (``average``) what comes out.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from models.surgery import AnyBatchNorm
from netslim.methods.penalties import soft_threshold
from netslim.weights import weights
from utils import arguments
from utils.arguments import Flag
from utils.methods.base import Method
from utils.methods.slimming import lambda_flag
from utils.paper.settings import SAS, SAS_RETRAINING, Schedule

TAU, SIGMA = 0.9, 1.09  # factors of the two dual steps; τ + σ + 1 > τ² + σ² + τσ
MOST = 10**6  # mini-batches of an outer iteration: all that it sees is drawn at once


class SasAdmm(Method):
    """Minimise f(W) + λ‖Z‖₁ subject to W = Z, by the augmented Lagrangian

        f(W) + λ‖Z‖₁ − Uᵀ(W − Z) + (β/2)‖W − Z‖².

    An epoch is an outer iteration i of ``outer``: :meth:`steps` mini-batches of an accelerated
    inner loop on W, a step of U, the soft thresholding of Z, and another step of U. ``inner`` is M,
    the mini-batches of an iteration before the ``k0``-th; from then on their number grows as i^q.
    ``v`` bounds the Lipschitz constant of ∇f from above. From iteration ``average_from`` on, the
    mean of the iterates is what is tested and saved.

    Nothing else is trained: scaling factors and biases keep their initial values.

    Raises ValueError unless λ ≥ 0, β and v are positive and the counts are at least 1.
    """

    name = "sas-admm"
    title = "SAS-ADMM"
    help = "ADMM on all weights, single ones of which --prune-ratio then cuts"
    idle = ("epochs", "lr", "momentum", "nesterov", "weight_decay", "schedule", "warmup")
    flags = (
        lambda_flag(lambda arch, depth: SAS.lambda_),
        Flag("sas_beta", "β of SAS-ADMM", arguments.positive, SAS.beta, parameter="beta"),
        Flag("outer", "outer iterations: its epochs", arguments.epochs, SAS.outer),
        Flag("inner", "M: mini-batches of the first ones", arguments.positive_int, SAS.inner),
        Flag(
            "growth_from",
            "k0: the outer iteration from which on M grows",
            arguments.positive_int,
            SAS.k0,
            words=("--k0",),
            parameter="k0",
        ),
        Flag("q", "and by which power", arguments.not_negative, SAS.q),
        Flag("v", "reciprocal of the first step size", arguments.positive, SAS.v),
        Flag(
            "average_from",
            "the outer iteration from which on weights are averaged",
            arguments.positive_int,
            SAS.average_from,
        ),
    )
    columns = ("penalised_loss", "inner_steps", "primal_gap", "w_change", "dual_change")
    refine_flags = ("--prune-ratio", "0.85")

    def __init__(
        self,
        model: nn.Module,
        lambda_: float = SAS.lambda_,
        beta: float = SAS.beta,
        outer: int = SAS.outer,
        inner: int = SAS.inner,
        k0: int = SAS.k0,
        q: float = SAS.q,
        v: float = SAS.v,
        average_from: int = SAS.average_from,
        tau: float = TAU,
        sigma: float = SIGMA,
    ) -> None:
        super().__init__(model)
        if not (lambda_ >= 0 and min(beta, v) > 0 and min(outer, inner, k0, average_from) >= 1):
            raise ValueError("SAS-ADMM takes λ ≥ 0, β > 0, v > 0 and counts of at least 1")
        self.lambda_, self.beta, self.outer, self.inner = lambda_, beta, outer, inner
        self.k0, self.q, self.v, self.average_from = k0, q, v, average_from
        self.tau, self.sigma = tau, sigma
        own = list(weights(model).values())
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is w for w in own))
        self.points = own  # where the model has Ŵ
        self.w = torch.cat([w.detach().flatten() for w in own])
        self.breve, self.z, self.average = (self.w.clone() for _ in range(3))
        self.u = torch.zeros_like(self.w)
        # They change from step to step: on the device, for a captured graph holds no others.
        self.t = torch.ones((), dtype=torch.int64, device=self.w.device)
        self.eta = torch.full_like(self.w[0], 1 / v)
        self.i = 1
        self.changes = torch.zeros_like(self.w[:2])  # ‖ΔW‖², ‖ΔZ‖²

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        inner, outer = options.get("inner", SAS.inner), options.get("outer", SAS.outer)
        k0, q = options.get("growth_from", SAS.k0), options.get("q", SAS.q)
        # Of the last iteration, which has the most; its own logarithm may be beyond all numbers.
        if math.log(inner) + q * max(math.log(outer / k0), 0) > math.log(MOST):
            raise ValueError(
                f"--inner {inner} grows beyond {MOST:,} mini-batches in {outer} outer iterations:"
                " take a smaller --inner or --q, or a larger --k0"
            )

    @classmethod
    def presets(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        retraining = {} if known.get("prune_ratio") is None else SAS_RETRAINING
        epochs = known.get("outer", SAS.outer)
        return {"epochs": epochs, "batch_size": SAS.batch_size, **retraining}

    @classmethod
    def initialise(cls, model: nn.Module) -> None:
        """Kaiming's normal values; and γ = 1, which stays so."""
        for weight in weights(model).values():
            nn.init.kaiming_normal_(weight)
        for module in model.modules():
            if isinstance(module, AnyBatchNorm):
                nn.init.ones_(module.weight)

    def tensors(self) -> dict[str, Tensor]:
        own = {"W": self.w, "breve": self.breve, "Z": self.z, "U": self.u, "average": self.average}
        return own | {"t": self.t}

    def forget(self) -> str:
        return "W, Z and U start again from its weights"

    def remedy(self, lr: float) -> str:
        return f"try a larger --v than {self.v:g}"

    def optimised(self, model: nn.Module) -> list[nn.Parameter]:
        return []

    def steps(self, epoch: int) -> int:
        """M_i, how many mini-batches outer iteration ``epoch`` + 1 takes."""
        growth = ((epoch + 1) / self.k0) ** self.q if epoch + 1 > self.k0 else 1
        return math.ceil(self.inner * growth - 1e-9)  # which rounding may lift above a whole number

    def begin(self, epoch: int) -> None:
        self.i = epoch + 1
        m, m_i = self.inner, self.steps(epoch)
        self.eta.fill_(m * (m + 1) / (self.v * m_i * (m_i + 1)))  # 1/v as long as M_i = M
        self.t.fill_(1)
        self.w_old = self.w.clone()

    def _mean(self) -> Tensor:
        """bW̆ + (1 − b)W, with b = 2/(t + 1)."""
        return torch.lerp(self.w, self.breve, 2 / (self.t.to(self.w) + 1))

    def _load(self, flat: Tensor) -> None:
        parts = flat.split([w.numel() for w in self.points])
        for point, part in zip(self.points, parts, strict=True):
            point.copy_(part.view_as(point))

    @torch.no_grad()
    def before_forward(self) -> None:
        self._load(self._mean())  # Ŵ

    @torch.no_grad()
    def on_step(self, alpha: float) -> None:
        d = torch.cat([w.grad.flatten() for w in self.points if w.grad is not None])
        # argmin of dᵀW + (g/2)‖W − W̆‖² + (ρ/2)‖W − W_old‖² − (U − β(W_old − Z))ᵀW. With ρ = β,
        # W_old falls out.
        g = 2 / (self.eta * self.t)
        breve = (g * self.breve + self.u + self.beta * self.z - d) / (g + self.beta)
        self.set_(self.breve, breve)
        self.set_(self.w, self._mean())
        self.t += 1

    @torch.no_grad()
    def on_epoch(self, alpha: float) -> None:
        z_old = self.z.clone()
        u_half = self.u - self.tau * self.beta * (self.w - self.z)
        self.set_(self.z, soft_threshold(self.w - u_half / self.beta, self.lambda_ / self.beta))
        self.set_(self.u, u_half - self.sigma * self.beta * (self.w - self.z))
        count = max(self.i - self.average_from, 0) + 1  # of the iterates in Wᵃ
        self.set_(self.average, self.average.lerp(self.w, 1 / count))
        moved = self.w - self.w_old, self.z - z_old
        self.changes = torch.stack([x.square().sum() for x in moved])

    @contextmanager
    def solution(self, retake: Callable[[], None]) -> Iterator[None]:
        with torch.no_grad():
            self._load(self.average)
        retake()
        yield

    def zeros(self) -> dict[str, Tensor]:
        return {**super().zeros(), "z": (self.z == 0).sum()}

    def figures(self, loss: float) -> dict[str, float]:
        w_change, dual_change = self.changes.tolist()
        return {
            "penalised_loss": loss + self.lambda_ * self.average.abs().sum().item(),
            "inner_steps": sum(self.steps(epoch) for epoch in range(self.i)),
            "primal_gap": (self.w - self.z).square().sum().item(),
            "w_change": w_change,
            "dual_change": dual_change,
        }

    def warnings(
        self, schedule: Schedule, arch: str, depth: int, optimizer: torch.optim.SGD
    ) -> Iterable[str]:
        yield "note: no γ is trained here and no channel dies, so all train to the end"
        if self.average_from > self.outer:
            yield (
                f"note: there are {self.outer} outer iterations, and averaging would begin at the"
                f" {self.average_from}th: the last weights are what is tested and saved"
            )
