"""What the program knows of every method, and plain training, which is the least of them.

The mathematics is in :mod:`netslim.methods`. Here a method is one class, too: its flags, what it
adds to the log, what it says before and after a training, and what the prune commands may mask by.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Self

import torch
from torch import Tensor, nn

from netslim import methods
from netslim.graph import Graph
from netslim.methods import is_zero
from utils.arguments import Flag
from utils.paper.settings import Schedule


def count_of(share: float, count: int) -> int:
    """⌊share · count⌋, exactly: 0.29 of 100 is 29 and not 28."""
    return int(Decimal(repr(share)) * count)


class Method(methods.Method):
    """No penalty on γ: plain training."""

    name, title, help = "baseline", "Baseline", ""  # typed, in tables, in -h
    flags: tuple[Flag, ...] = ()
    columns: tuple[str, ...] = ()  # what :meth:`figures` adds to a line of the log
    # What a prune command is given: None where nothing is to be pruned.
    prune_flags: tuple[str, ...] | None = None
    # And fine-tuning of the trained network, where that is what comes next.
    refine_flags: tuple[str, ...] | None = None
    unused_flags: tuple[str, ...] = ()  # the flags of all runs that it makes no use of

    @classmethod
    def from_options(cls, graph: Graph, model: nn.Module, options: Mapping[str, Any]) -> Self:
        """For ``model``, what is left of ``graph.model``, with its flags' values in ``options``.

        There, too: the ``steps`` and the first ``lr`` of the training.
        """
        own = {flag.constructor_name or flag.name: options[flag.name] for flag in cls.flags}
        return cls(graph, model=model, **own)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raise ValueError where ``options``, those that were given, contradict one another."""

    @classmethod
    def presets(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults of flags where they are not the flags' own, given what is ``known``."""
        return {}

    @classmethod
    def initialise(cls, model: nn.Module) -> None:
        """Give a new ``model`` other initial values than section 5.1's."""

    @classmethod
    def prunes(cls) -> bool:
        """Whether it trains towards channels that can go."""
        return cls.prune_flags is not None

    def reset_state(self) -> str:
        """Start :meth:`state_dict` again from the weights, for a file has none; say how."""
        return ""

    def zero_counts(self) -> dict[str, Tensor]:
        """How many of each of the ``factors`` are zero: to be read, they wait for the device."""
        return {name: is_zero(self.factor(name)).sum() for name in self.factors}

    def log_metrics(self, loss: float) -> dict[str, float]:
        """Its ``columns`` at the end of an epoch whose mean training loss is ``loss``."""
        return {}

    def trained_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that SGD trains."""
        return list(model.parameters())

    def warnings(
        self, schedule: Schedule, arch: str, depth: int, optimizer: torch.optim.SGD
    ) -> Iterable[str]:
        """What to say before ``optimizer`` trains such a network with this ``schedule``."""
        return ()

    def verdict(
        self, zeros: Mapping[str, int], collapse: str, schedule: Schedule, arch: str, depth: int
    ) -> str:
        """What to say, of its λ too, after a training with this ``schedule``; '' if all is well.

        ``zeros`` counts the factors that are 0, of all channels that the run began with;
        ``collapse`` says how the network is ruined, if it is.
        """
        return collapse

    def divergence_hint(self, lr: float) -> str:
        """What to try where a training with learning rate ``lr`` diverged."""
        return f"try a smaller --lr than {lr:g}"
