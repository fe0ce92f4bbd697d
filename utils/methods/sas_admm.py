"""SAS-ADMM in the program: its flags, initial values, and what it says."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netslim import methods
from netslim.graph import AnyBatchNorm
from netslim.weights import weights
from utils import arguments
from utils.arguments import Flag
from utils.methods.base import Method
from utils.methods.slimming import lambda_flag
from utils.paper.settings import SAS, SAS_RETRAINING, Schedule

MOST = 10**6  # mini-batches of an outer iteration: all that it sees is drawn at once


class SasAdmm(Method, methods.SASADMM):
    """ADMM on all weights, for unstructured pruning."""

    name = "sas-admm"
    title = "SAS-ADMM"
    help = "ADMM on all weights, single ones of which --prune-ratio then cuts"
    unused_flags = ("epochs", "lr", "momentum", "nesterov", "weight_decay", "schedule", "warmup")
    flags = (
        lambda_flag(lambda arch, depth: SAS.lambda_),
        Flag("sas_beta", "β of SAS-ADMM", arguments.positive, SAS.beta, constructor_name="beta"),
        Flag("outer", "outer iterations: its epochs", arguments.epochs, SAS.outer),
        Flag("inner", "M: mini-batches of the first ones", arguments.positive_int, SAS.inner),
        Flag(
            "growth_from",
            "k0: the outer iteration from which on M grows",
            arguments.positive_int,
            SAS.k0,
            custom_options=("--k0",),
            constructor_name="k0",
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

    def reset_state(self) -> str:
        return "W, Z and U start again from its weights"

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

    def warnings(
        self, schedule: Schedule, arch: str, depth: int, optimizer: torch.optim.SGD
    ) -> Iterable[str]:
        yield "note: no γ is trained here and no channel dies, so all train to the end"
        if self.average_from > self.outer:
            yield (
                f"note: there are {self.outer} outer iterations, and averaging would begin at the"
                f" {self.average_from}th: the last weights are what is tested and saved"
            )
