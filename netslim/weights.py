"""Weights of convolutions and linear layers, for unstructured pruning."""

from dataclasses import dataclass

import torch
from torch import nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all convolutions and linear layers of ``model`` by name, in module order."""
    layers = (n for n, m in model.named_modules() if isinstance(m, Convolution | nn.Linear))
    return {f"{n}.weight": model.get_parameter(f"{n}.weight") for n in layers}


@dataclass(frozen=True)
class Compression:
    """Number of ``weights``, of nonzero weights (``kept``), and of all ``parameters``.

    The papers' compression factor counts :func:`weights` only, and calls them the parameters.
    """

    weights: int
    kept: int
    parameters: int

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module) -> "Compression":
        own = list(weights(model).values())
        return cls(
            sum(w.numel() for w in own),
            sum(int(w.count_nonzero()) for w in own),
            sum(p.numel() for p in model.parameters()),
        )

    @property
    def factor(self) -> float:
        """Compression factor of the weights."""
        return self.weights / max(self.kept, 1)

    @property
    def factor_all(self) -> float:
        """Compression factor of all parameters: batch norms and biases are kept."""
        return self.parameters / max(self.parameters - self.weights + self.kept, 1)
