"""Base class of all methods: the vector of scaling factors γ, and hooks around a training step."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.selection import name_in

# Scaling factors below float32's smallest normal number count as zero in every dtype.
TINY = torch.finfo(torch.float32).tiny
# Threshold for ``hardshrink``, which zeroes magnitudes up to it: the number just below TINY.
BELOW_TINY = TINY * (1 - 2**-23)


def is_zero(factor: Tensor) -> Tensor:
    """Elementwise mask (bool) of the scaling factors (γ or ξ) that are zero or subnormal."""
    return factor.float().abs() < TINY


class Method:
    """Plain training without a penalty, and the base class of the other methods.

    The method owns no tensor of the model: it reads the γ of the batch norms in ``graph.norms``
    whenever it needs them and writes them back. ``gamma`` [channels] holds the values read last, in
    module order.

    Frozen batch norms (``requires_grad=False``) keep their γ.

    Args:
        graph: dependency graph of the model.
        model: the module that is trained, if it is not ``graph.model`` itself but a copy from which
            channels were removed.
        coupled: whether the batch norms in ``graph.coupled`` are also driven to zero.

    Raises:
        TypeError: ``graph`` is no graph.
        ValueError: the method ``needs_channels`` that can be removed, and there are none.
    """

    factors: dict[str, str] = {"gamma": "γ"}  # noqa: RUF012  # scaling factors by name, with their symbols
    pruned_by = "gamma"  # the factor whose zeros mark the channels to remove
    needs_channels = False  # whether it does nothing without channels that can be removed

    def __init__(self, graph: Graph, model: nn.Module | None = None, coupled: bool = False) -> None:
        if not isinstance(graph, Graph):
            raise TypeError(f"give netslim.analyze(model, example), not {type(graph).__name__}")
        self.graph, self.model = graph, graph.model if model is None else model
        self.names = {name: name_in(self.model, name) for name in graph.prunable(coupled)}
        if self.needs_channels and not self.names:
            raise ValueError(f"no channel of the model can be removed ({graph.why_none()})")
        parameter = next(self.model.parameters())
        self.weights = self._weights(check=False)  # as read last
        self.widths = [len(weight) for weight in self.weights]
        self.gamma = torch.zeros(sum(self.widths), device=parameter.device)
        if any(weight.dtype == torch.float64 for weight in self.weights):
            self.gamma = self.gamma.double()
        # Like a GradScaler's ``found_inf``: once it is 1, no step changes a parameter or a tensor
        # of the method.
        self.found_inf = torch.zeros((), device=parameter.device)
        self.read()

    def _weights(self, check: bool = True) -> list[Tensor]:
        """Current scaling factors of the model's batch norms."""
        weights: list[Tensor] = []
        for i, (name, path) in enumerate(self.names.items()):
            try:
                weight: Any = self.model.get_submodule(path).weight
            except AttributeError:
                weight = None
            if not isinstance(weight, Tensor) or (check and len(weight) != self.widths[i]):
                found = (
                    "was removed"
                    if not isinstance(weight, Tensor)
                    else f"has {len(weight)} channels now, not {self.widths[i]}"
                )
                raise RuntimeError(f"{name} {found}: construct the method again")
            weights.append(weight)
        return weights

    @torch.no_grad()
    def read(self) -> Tensor:
        """Returns γ [channels], read from the model."""
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
        """γ of one batch norm in full precision: ``before`` where ``weight`` is its rounding."""
        if weight.dtype == before.dtype:
            return weight
        rounded = before.to(weight.dtype) == weight
        return torch.where(rounded, before, weight.to(before))

    def _move(self, device: torch.device) -> None:
        """Moves the method's tensors to the device of the model."""
        for name, x in vars(self).items():
            if isinstance(x, Tensor):
                setattr(self, name, x.to(device))

    @torch.no_grad()
    def write(self, gamma: Tensor) -> None:
        """Writes ``gamma`` [channels] into the model's batch norms, unless ``found_inf`` is set."""
        weights = self.weights = self._weights()
        self.update(self.gamma, self.unless_frozen(gamma, self.gamma))
        each = zip(weights, self.split(self.gamma), strict=True)
        pairs = [(weight, part) for weight, part in each if weight.requires_grad]
        if pairs:
            targets, parts = zip(*pairs, strict=True)
            torch._foreach_copy_([w.detach() for w in targets], parts)

    def unless_frozen(self, new: Tensor, old: Tensor) -> Tensor:
        """Returns ``new``, with ``old`` in the channels of frozen batch norms."""
        trains = [weight.requires_grad for weight in self.weights]
        if all(trains):
            return new
        each = torch.tensor(trains).repeat_interleave(torch.tensor(self.widths))
        return torch.where(each.to(new.device), new, old)

    def stream_numbers(self) -> Tensor:
        """A group number for each γ, int64 [channels], equal for those that can only go together.

        These are the factors of one stream channel, and those of one batch norm whose channels a
        grouped convolution or a ``chunk`` behind it joins.
        """
        numbers = torch.arange(len(self.gamma)) + len(self.graph.classes)
        for name, part in zip(self.names, self.split(numbers), strict=True):
            classes, shared = self.graph.norm_classes(name), self.graph.coupled.get(name)
            found, which = classes.unique(return_inverse=True)
            if shared is None and len(found) == len(classes):
                continue
            if len(part) != len(classes):
                raise ValueError(f"channels of {name} were removed: analyze the model again")
            part.copy_(part[0] + which)
            if shared is not None:
                part[shared] = classes[shared]
        return numbers

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Splits a vector [channels] into one part per batch norm."""
        return flat.split(self.widths)

    def update(self, target: Tensor, value: Tensor) -> None:
        """Sets ``target`` to ``value``, unless ``found_inf`` is set."""
        torch.where(self.found_inf > 0, target, value, out=target)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the tensors that the method keeps beside the weights, by name, not copied."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies the tensors of a :meth:`state_dict`.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        for name, tensor in self.state_dict().items():
            if name not in state or state[name].shape != tensor.shape:
                raise ValueError(f"{name} is missing or not of shape {tuple(tensor.shape)}")
            tensor.copy_(state[name])

    def factor(self, name: str) -> Tensor:
        """Returns one of ``factors``, [channels]."""
        return self.read() if name == "gamma" else self.state_dict()[name]

    def zeros(self, factor: str | None = None) -> dict[str, Tensor]:
        """Returns masks of the zero factors, by batch norm.

        Args:
            factor: one of ``factors``; None selects ``pruned_by``.

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
        """Returns the number of mini-batches of an epoch, drawn with replacement.

        None means every image once. ``epoch`` counts from 0.
        """
        return None

    def begin_epoch(self, epoch: int) -> None:
        """Hook before the first step of an epoch, counted from 0."""

    def eval_weights(
        self, recompute_statistics: Callable[[], None]
    ) -> AbstractContextManager[None]:
        """Context in which the model holds the weights to evaluate and save.

        Args:
            recompute_statistics: called if the batch norms' running statistics belong to other
                weights.
        """
        return nullcontext()

    def before_forward(self) -> None:
        """Hook before each forward pass in training."""

    def before_step(self) -> None:
        """Hook between the backward pass and the optimizer's step; may change gradients."""

    def step(self, lr: float) -> None:
        """Hook after an optimizer's step with learning rate ``lr``."""

    def end_epoch(self, lr: float) -> None:
        """Hook after the last step of an epoch."""

    def dead(self, optimizer: torch.optim.Optimizer, lr: float) -> Tensor:
        """Mask of the channels whose output stays 0, bool [channels].

        ``lr`` is the largest learning rate still to come.
        """
        return torch.zeros_like(self.gamma, dtype=torch.bool)

    def add_to_gradients(self, flat: Tensor, scale: float) -> None:
        """Adds ``scale`` · ``flat`` [channels] to the gradients of γ; frozen γ have none."""
        parts = zip(self._weights(), self.split(flat), strict=True)
        pairs = [(w.grad, part.to(w.grad)) for w, part in parts if w.grad is not None]
        if pairs:
            gradients, added = zip(*pairs, strict=True)
            torch._foreach_add_(gradients, added, alpha=scale)
