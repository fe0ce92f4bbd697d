"""SAS-ADMM: flags, initial values, log."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from netslim import methods
from netslim.graph import AnyBatchNorm
from netslim.weights import weights
from utils.arguments import Flag, epochs, not_negative, positive, positive_int
from utils.methods.base import Method, TrainingSetup
from utils.methods.slimming import lambda_flag
from utils.paper.settings import SAS, SAS_RETRAINING

MOST_STEPS = 10**6  # of an outer iteration, whose batches are drawn at once


class SasAdmm(Method, methods.SASADMM):
    """ADMM on all weights, for unstructured pruning."""

    name, title = "sas-admm", "SAS-ADMM"
    help = "ADMM for unstructured weight sparsity, to be followed by --refine with --prune-ratio"
    unused_flags = ("epochs", "lr", "momentum", "nesterov", "weight_decay", "schedule", "warmup")
    flags = (
        lambda_flag(lambda arch, depth: SAS.lambda_),
        Flag("sas_beta", f"β (default {SAS.beta})", positive, SAS.beta, constructor_name="beta"),
        Flag("outer", f"outer iterations, its epochs (default {SAS.outer})", epochs, SAS.outer),
        Flag(
            "inner",
            f"M, mini-batches of an outer iteration before the k0-th (default {SAS.inner})",
            positive_int,
            SAS.inner,
        ),
        Flag(
            "growth_from",
            f"k0, the outer iteration from which M grows (default {SAS.k0})",
            positive_int,
            SAS.k0,
            custom_options=("--k0",),
            constructor_name="k0",
        ),
        Flag("q", f"exponent of the growth of M (default {SAS.q})", not_negative, SAS.q),
        Flag("v", f"reciprocal of the first step size (default {SAS.v:g})", positive, SAS.v),
        Flag(
            "average_from",
            f"outer iteration from which weights are averaged (default {SAS.average_from})",
            positive_int,
            SAS.average_from,
        ),
    )
    columns = ("penalised_loss", "inner_steps", "primal_gap", "w_change", "dual_change")
    refine_flags = ("--prune-ratio", "0.85")

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        inner, outer = options.get("inner", SAS.inner), options.get("outer", SAS.outer)
        k0, q = options.get("growth_from", SAS.k0), options.get("q", SAS.q)
        # Logarithms: the last iteration's number of mini-batches may overflow.
        if math.log(inner) + q * max(math.log(outer / k0), 0) > math.log(MOST_STEPS):
            raise ValueError(
                f"--inner {inner} grows beyond {MOST_STEPS:,} mini-batches in {outer} outer"
                " iterations: take a smaller --inner or --q, or a larger --k0"
            )

    @classmethod
    def presets(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        retraining = {} if known.get("prune_ratio") is None else SAS_RETRAINING
        outer = known.get("outer", SAS.outer)
        return {"epochs": outer, "batch_size": SAS.batch_size, **retraining}

    @classmethod
    def initialise(cls, model: nn.Module) -> None:
        """Draws weights from Kaiming's normal distribution; sets γ = 1, which is not trained."""
        for weight in weights(model).values():
            nn.init.kaiming_normal_(weight)
        for module in model.modules():
            if isinstance(module, AnyBatchNorm):
                nn.init.ones_(module.weight)

    def reset_state(self) -> str:
        return "W, Z and U restart from its weights"

    def divergence_hint(self, lr: float) -> str:
        return f"try a larger --v than {self.v:g}"

    def trained_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        return []

    def zero_counts(self) -> dict[str, Tensor]:
        return {**super().zero_counts(), "z": (self.z == 0).sum()}

    def log_metrics(self, loss: float) -> dict[str, float]:
        w_change, dual_change = self.changes.tolist()
        return {
            "penalised_loss": loss + self.lambda_ * self.average.abs().sum().item(),
            "inner_steps": sum(self.steps(epoch) for epoch in range(self.i)),
            "primal_gap": (self.w - self.z).square().sum().item(),
            "w_change": w_change,
            "dual_change": dual_change,
        }

    def warnings(self, setup: TrainingSetup) -> Iterable[str]:
        yield "note: γ is not trained: no channel is removed during training"
        if self.average_from > self.outer:
            yield (
                f"note: --average-from {self.average_from} is beyond --outer {self.outer}: the last"
                " weights are evaluated and saved, not an average"
            )
