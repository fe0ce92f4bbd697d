"""SAS-ADMM: flags, initial values, log."""

import math
from collections.abc import Callable, Iterable, Mapping
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


def sas_flag(name: str, text: str, parse: Callable[[str], Any], field: str = "") -> Flag:
    """Returns a flag whose default is the ``field`` (default: ``name``) of ``SAS``."""
    value = getattr(SAS, field or name)
    options: dict[str, Any] = {"custom_options": ("--k0",)} if field == "k0" else {}
    help_text = f"{text} (default {value:g})"
    return Flag(name, help_text, parse, value, constructor_name=field, **options)


class SasAdmm(Method, methods.SASADMM):
    """ADMM on all weights, for unstructured pruning."""

    name, title = "sas-admm", "SAS-ADMM"
    help = "ADMM for unstructured weight sparsity, to be followed by --refine with --prune-ratio"
    unused_flags = ("epochs", "lr", "momentum", "nesterov", "weight_decay", "schedule", "warmup")
    flags = (
        lambda_flag(lambda arch, depth: SAS.lambda_),
        sas_flag("sas_beta", "β", positive, "beta"),
        sas_flag("outer", "outer iterations, its epochs", epochs),
        sas_flag("inner", "M, mini-batches of an outer iteration before the k0-th", positive_int),
        sas_flag("growth_from", "k0, the outer iteration from which M grows", positive_int, "k0"),
        sas_flag("q", "exponent of the growth of M", not_negative),
        sas_flag("v", "reciprocal of the first step size", positive),
        sas_flag("average_from", "outer iteration from which weights are averaged", positive_int),
    )
    columns = ("penalised_loss", "inner_steps", "primal_gap", "w_change", "dual_change")
    refine_flags = ("--prune-ratio", "0.85")

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        values = {flag.name: flag.default for flag in cls.flags} | dict(options)
        inner, outer, k0, q = (values[name] for name in ("inner", "outer", "growth_from", "q"))
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
