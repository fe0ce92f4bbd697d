"""The base class of the program's methods, which is also plain training.

The mathematics is in :mod:`netslim.methods`. A method here adds its flags, its columns of the log,
its warnings before a training and its verdict after it.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from netslim import methods
from netslim.graph import Graph
from netslim.methods import is_zero
from utils.arguments import Flag
from utils.paper.settings import Recipe, Schedule


def count_of(share: float, count: int) -> int:
    """Returns ⌊share · count⌋ exactly: 0.29 of 100 is 29, not 28."""
    return int(Decimal(repr(share)) * count)


class TrainingSetup(NamedTuple):
    """The properties of a training on which a method's warnings and verdict depend."""

    schedule: Schedule
    momentum: float  # of SGD
    recipe: Recipe  # the paper's settings for the architecture


class Method(methods.Method):
    """Plain training, without a penalty on γ."""

    name, title, help = "baseline", "Baseline", ""  # on command lines, in tables, in -h
    flags: tuple[Flag, ...] = ()
    columns: tuple[str, ...] = ()  # keys of log_metrics()
    # Flags of the prune command that comes next, and of the fine-tuning; None: none comes next.
    prune_flags: tuple[str, ...] | None = None
    refine_flags: tuple[str, ...] | None = None
    unused_flags: tuple[str, ...] = ()  # flags of all runs that it does not use

    @classmethod
    def from_options(cls, graph: Graph, model: nn.Module, options: Mapping[str, Any]) -> Self:
        """Returns the method for ``model``, which is ``graph.model`` without removed channels.

        Args:
            options: values of its flags, and ``steps`` and first ``lr`` of the training.
        """
        arguments = {flag.constructor_name or flag.name: options[flag.name] for flag in cls.flags}
        return cls(graph, model=model, **arguments)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raises ValueError if the given ``options`` contradict one another."""

    @classmethod
    def presets(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        """Returns defaults that differ from the flags' own, for the values given."""
        return {}

    @classmethod
    def initialise(cls, model: nn.Module) -> None:
        """Sets the initial values of a new ``model`` that differ from ``build_model``'s."""

    @classmethod
    def prunes(cls) -> bool:
        """Returns whether the training is followed by channel pruning."""
        return cls.prune_flags is not None

    def reset_state(self) -> str:
        """Restarts the method where a checkpoint lacks its state; returns how, for a note."""
        return ""

    def zero_counts(self) -> dict[str, Tensor]:
        """Returns the number of zeros of each factor, on the device."""
        return {name: is_zero(self.factor(name)).sum() for name in self.factors}

    def log_metrics(self, loss: float) -> dict[str, float]:
        """Returns the values of ``columns``, for an epoch of mean training loss ``loss``."""
        return {}

    def trained_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Returns the parameters that the optimizer trains."""
        return list(model.parameters())

    def warnings(self, setup: TrainingSetup) -> Iterable[str]:
        """Yields the lines to print before the training."""
        return ()

    def verdict(self, zeros: Mapping[str, int], collapse: str, setup: TrainingSetup) -> str:
        """Returns the text to print after the training, "" if all is well.

        Args:
            zeros: number of zeros by factor, removed channels included.
            collapse: the text of :meth:`PerClass.collapse`, "" if the model has not collapsed.
        """
        return collapse

    def divergence_hint(self, lr: float) -> str:
        """Returns advice for a training that diverged at learning rate ``lr``."""
        return f"try a smaller --lr than {lr:g}"
