"""What every method is, and plain training, which is the least of them.

A method is one class: its flags, the tensors it keeps, what it does around an SGD step, what it
adds to the log, and what the prune commands may mask by. Nothing else knows any of that.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor, nn

from models.surgery import AnyBatchNorm, norms
from utils.arguments import Flag
from utils.paper.settings import Schedule

TINY = torch.finfo(torch.float32).tiny


def batch_norms(model: nn.Module) -> list[AnyBatchNorm]:
    """All batch norms of ``model`` that have scaling factors to slim, in module order."""
    return list(norms(model).values())


def is_zero(factor: Tensor) -> Tensor:
    """Where a scaling factor (γ or ξ) is zero; a subnormal one is. Elementwise, bool."""
    return factor.abs() < TINY


def count_of(share: float, count: int) -> int:
    """⌊share · count⌋, exactly: 0.29 of 100 is 29 and not 28."""
    return int(Decimal(repr(share)) * count)


class Method:
    """No penalty on γ: plain training, and the hooks that every method has.

    The γ of all batch norms that can be slimmed are moved into one flat buffer of which
    ``bn.weight`` are views, so that a method is a handful of operations on one vector of length
    ``channels``. Build it when the model is on its device; moving the model afterwards breaks the
    views.

    Raises ValueError for a model without batch norms, if it trains towards channels that can go.
    """

    name, title, help = "baseline", "Baseline", ""  # typed, in tables, in -h
    flags: tuple[Flag, ...] = ()
    # The vectors over all channels that tell which are needed, and their symbols: γ, and what else.
    factors: dict[str, str] = {"gamma": "γ"}  # noqa: RUF012
    zeroed = "gamma"  # the factor whose zeros are pruned
    columns: tuple[str, ...] = ()  # what :meth:`figures` adds to a line of the log
    # What a prune command is given: None where nothing is to be pruned.
    prune_flags: tuple[str, ...] | None = None
    # And fine-tuning of the trained network, where that is what comes next.
    refine_flags: tuple[str, ...] | None = None
    idle: tuple[str, ...] = ()  # the flags of all runs that it makes no use of

    def __init__(self, model: nn.Module) -> None:
        self.norms = batch_norms(model)
        if not self.norms and self.prunes():
            raise ValueError("the model has no batch norm, so there are no scaling factors to slim")
        self.weights = [bn.weight for bn in self.norms]
        none = next(model.parameters()).new_empty(0)
        self.gamma = torch.cat([none, *(w.detach() for w in self.weights)])
        for weight, part in zip(self.weights, self.split(self.gamma), strict=True):
            weight.data = part
        # 0 or 1, where an optimiser's ``found_inf`` would be: at 1, nothing changes a parameter or
        # a tensor of the method's.
        self.halted = torch.zeros((), device=self.gamma.device)

    @classmethod
    def of(cls, model: nn.Module, options: Mapping[str, Any]) -> "Method":
        """For ``model``, with its flags' values in ``options``."""
        return cls(model, **{flag.parameter or flag.name: options[flag.name] for flag in cls.flags})

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

    def tensors(self) -> dict[str, Tensor]:
        """What it keeps beside the weights, by name: saved, restored, captured, compared, in Z.

        Each is a vector over the channels, or does not follow when channels are cut.
        """
        return {}

    def forget(self) -> str:
        """Start :meth:`tensors` again from the weights, for a file has none; say how."""
        return ""

    def factor(self, name: str) -> Tensor:
        """One of ``factors``, [channels]."""
        return self.gamma if name == "gamma" else self.tensors()[name]

    def zeros(self) -> dict[str, Tensor]:
        """How many of each of the ``factors`` are zero: to be read, they wait for the device."""
        return {name: is_zero(self.factor(name)).sum() for name in self.factors}

    def figures(self, loss: float) -> dict[str, float]:
        """Its ``columns`` at the end of an epoch whose mean training loss is ``loss``."""
        return {}

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """A vector as long as γ, cut into the batch norms' parts."""
        return flat.split([w.numel() for w in self.weights])

    def check_views(self) -> None:
        """Raise RuntimeError if the model was moved, so that γ is its weights no more."""
        if self.weights[0].data_ptr() != self.gamma.data_ptr():
            raise RuntimeError("the model was moved after its method was made: make it again")

    def optimised(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that SGD trains."""
        return list(model.parameters())

    def steps(self, epoch: int) -> int | None:
        """How many mini-batches an epoch takes, drawn with replacement; None: every picture once.

        ``epoch`` counts from 0, here as in :meth:`begin`.
        """
        return None

    def begin(self, epoch: int) -> None:
        """Before the first step of an epoch."""

    def before_forward(self) -> None:
        """Before each forward pass of the training."""

    def on_gradient(self) -> None:
        """After the backward pass, before the SGD step: may change the gradients."""

    def on_step(self, alpha: float) -> None:
        """After an SGD step with learning rate 1/``alpha``."""

    def on_epoch(self, alpha: float) -> None:
        """After the last step of an epoch."""

    def solution(self, retake: Callable[[], None]) -> AbstractContextManager[None]:
        """Within, the model has the weights that are tested and saved.

        ``retake`` takes the batch norms' statistics anew, for weights that they do not belong to.
        """
        return nullcontext()

    def dead(self, optimizer: torch.optim.SGD, lr: float) -> Tensor:
        """Which channels change nothing any more, bool [channels], at learning rates up to ``lr``.

        None of them here: nothing holds a γ at 0.
        """
        return torch.zeros_like(self.gamma, dtype=torch.bool)

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

    def remedy(self, lr: float) -> str:
        """What to try where a training with learning rate ``lr`` diverged."""
        return f"try a smaller --lr than {lr:g}"

    def add_to_gradients(self, flat: Tensor, scale: float) -> None:
        """Add ``scale`` times ``flat``, as long as γ, to the gradients of γ that there are."""
        parts = zip(self.weights, self.split(flat), strict=True)
        pairs = [(w.grad, part) for w, part in parts if w.grad is not None]  # none where frozen
        if pairs:
            gradients, added = zip(*pairs, strict=True)
            torch._foreach_add_(gradients, added, alpha=scale)

    def set_(self, target: Tensor, value: Tensor) -> None:
        """``target`` becomes ``value``, unless the training is halted."""
        torch.where(self.halted > 0, target, value, out=target)
