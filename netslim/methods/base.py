"""What every method is: a vector of scaling factors, and what happens around a training step."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.selection import name_in

# A scaling factor smaller than this is zero, whatever its type: float32's smallest normal number.
TINY = torch.finfo(torch.float32).tiny
# ``hardshrink`` sets what is at most this large to zero: float32's number just below TINY.
BELOW_TINY = TINY * (1 - 2**-23)


def is_zero(factor: Tensor) -> Tensor:
    """Where a scaling factor (γ or ξ) is zero; a subnormal one is. Elementwise, bool."""
    return factor.float().abs() < TINY


class Method:
    """Plain training, and what all methods share.

    The γ of all batch norms of ``graph.norms`` are read from the model whenever they are needed,
    and written back: the method owns no tensor of the model. ``gamma`` is the vector of their
    values as they were last read, [channels], in module order.

    Frozen batch norms (``requires_grad=False``) keep their γ.

    Args:
        graph: of the model that is trained.
        model: what is trained where it is not ``graph.model``: what is left of it after channels
            were removed.
        coupled: whether ``graph.coupled`` batch norms are driven to zero, too.
    """

    factors: dict[str, str] = {"gamma": "γ"}  # noqa: RUF012  # what tells which channels are needed
    pruned_by = "gamma"  # the one of them whose zeros are pruned

    def __init__(self, graph: Graph, model: nn.Module | None = None, coupled: bool = False) -> None:
        self.graph, self.model = graph, graph.model if model is None else model
        self.names = {name: name_in(self.model, name) for name in graph.prunable(coupled)}
        parameter = next(self.model.parameters())
        self.weights = self._weights(check=False)  # as the model had them last
        self.widths = [len(weight) for weight in self.weights]
        self.gamma = torch.zeros(sum(self.widths), device=parameter.device)
        if any(weight.dtype == torch.float64 for weight in self.weights):
            self.gamma = self.gamma.double()
        # 0 or 1, where an optimizer's ``found_inf`` would be: at 1, nothing changes a parameter or
        # a tensor of the method's.
        self.found_inf = torch.zeros((), device=parameter.device)
        self.read()

    def _weights(self, check: bool = True) -> list[Tensor]:
        """The scaling factors of the model's batch norms as it has them now."""
        weights: list[Tensor] = []
        for i, (name, path) in enumerate(self.names.items()):
            try:
                weight: Any = self.model.get_submodule(path).weight
            except AttributeError:
                weight = None
            if not isinstance(weight, Tensor) or (check and len(weight) != self.widths[i]):
                found = (
                    "is gone"
                    if not isinstance(weight, Tensor)
                    else f"has {len(weight)} channels now, not {self.widths[i]}"
                )
                raise RuntimeError(f"{name} {found}: make the method again")
            weights.append(weight)
        return weights

    @torch.no_grad()
    def read(self) -> Tensor:
        """γ, as the model has it now."""
        weights = self.weights = self._weights()
        if weights and weights[0].device != self.gamma.device:
            self._move(weights[0].device)
        if weights:
            pairs = zip(weights, self.split(self.gamma), strict=True)
            parts = [self._precise(w.detach(), before) for w, before in pairs]
            torch.cat(parts, out=self.gamma)
        return self.gamma

    @staticmethod
    def _precise(weight: Tensor, before: Tensor) -> Tensor:
        """γ of one batch norm: as it was ``before``, where its type only rounded that."""
        if weight.dtype == before.dtype:
            return weight
        rounded = before.to(weight.dtype) == weight
        return torch.where(rounded, before, weight.to(before))

    def _move(self, device: torch.device) -> None:
        """The model has been moved, so the method's tensors follow."""
        for name, x in vars(self).items():
            if isinstance(x, Tensor):
                setattr(self, name, x.to(device))

    @torch.no_grad()
    def write(self, gamma: Tensor) -> None:
        """Have the model's batch norms have this γ, unless the training is halted."""
        weights = self.weights = self._weights()
        frozen = [not weight.requires_grad for weight in weights]
        self.update(self.gamma, self.unless_frozen(gamma, self.gamma))
        pairs = [
            (w, part)
            for w, part, f in zip(weights, self.split(self.gamma), frozen, strict=True)
            if not f
        ]
        if pairs:
            targets, parts = zip(*pairs, strict=True)
            torch._foreach_copy_([w.detach() for w in targets], parts)

    def unless_frozen(self, new: Tensor, old: Tensor) -> Tensor:
        """``new``, but ``old`` in the channels of frozen batch norms."""
        trains = [weight.requires_grad for weight in self.weights]
        if all(trains):
            return new
        each = torch.tensor(trains).repeat_interleave(torch.tensor(self.widths))
        return torch.where(each.to(new.device), new, old)

    def stream_numbers(self) -> Tensor:
        """For each γ a number, int64 [channels]; those of one channel of a stream have the same."""
        numbers = torch.arange(len(self.gamma)) + len(self.graph.classes)
        for name, part in zip(self.names, self.split(numbers), strict=True):
            if name in self.graph.coupled:
                classes, shared = self.graph.norm_classes(name), self.graph.coupled[name]
                if len(part) != len(classes):
                    raise ValueError(f"channels of {name} were removed: analyze the model again")
                part[shared] = classes[shared]
        return numbers

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """A vector as long as γ, cut into the batch norms' parts."""
        return flat.split(self.widths)

    def update(self, target: Tensor, value: Tensor) -> None:
        """``target`` becomes ``value``, unless the training is halted."""
        torch.where(self.found_inf > 0, target, value, out=target)

    def state_dict(self) -> dict[str, Tensor]:
        """What it keeps beside the weights, by name; not copied."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: something is missing or of another shape.
        """
        for name, tensor in self.state_dict().items():
            if name not in state or state[name].shape != tensor.shape:
                raise ValueError(f"{name} is missing or not of shape {tuple(tensor.shape)}")
            tensor.copy_(state[name])

    def factor(self, name: str) -> Tensor:
        """One of ``factors``, [channels]."""
        return self.read() if name == "gamma" else self.state_dict()[name]

    def zeros(self, factor: str | None = None) -> dict[str, Tensor]:
        """Where a factor is zero, by batch norm.

        Args:
            factor: one of ``factors``; None for ``zeroed``, whose zeros are pruned.

        Returns:
            {name of the batch norm: bool [channels]}.

        Raises:
            ValueError: there is no such factor.
        """
        factor = factor or self.pruned_by
        if factor not in self.factors:
            raise ValueError(f"there is no factor {factor!r}, only {', '.join(self.factors)}")
        parts = self.split(is_zero(self.factor(factor)))
        return dict(zip(self.names, parts, strict=True))

    def steps(self, epoch: int) -> int | None:
        """How many mini-batches an epoch takes, drawn with replacement; None: every image once.

        ``epoch`` counts from 0, here as in :meth:`begin`.
        """
        return None

    def begin(self, epoch: int) -> None:
        """Before the first step of an epoch."""

    def eval_weights(
        self, recompute_statistics: Callable[[], None]
    ) -> AbstractContextManager[None]:
        """Within, the model has the weights that are evaluated and saved.

        ``recompute_statistics`` is called where the batch norms' statistics do not belong to them.
        """
        return nullcontext()

    def before_forward(self) -> None:
        """Before each forward pass of the training."""

    def before_step(self) -> None:
        """After the backward pass, before the optimizer's step: may change the gradients."""

    def step(self, lr: float) -> None:
        """After an optimizer's step with learning rate ``lr``."""

    def end_epoch(self, lr: float) -> None:
        """After the last step of an epoch."""

    def dead(self, optimizer: torch.optim.Optimizer, lr: float) -> Tensor:
        """Which channels change nothing any more, bool [channels], at learning rates up to
        ``lr``."""
        return torch.zeros_like(self.gamma, dtype=torch.bool)

    def add_to_gradients(self, flat: Tensor, scale: float) -> None:
        """Add ``scale`` times ``flat``, as long as γ, to the gradients of γ that there are."""
        parts = zip(self._weights(), self.split(flat), strict=True)
        pairs = [
            (w.grad, part.to(w.grad)) for w, part in parts if w.grad is not None
        ]  # none where frozen
        if pairs:
            gradients, added = zip(*pairs, strict=True)
            torch._foreach_add_(gradients, added, alpha=scale)
