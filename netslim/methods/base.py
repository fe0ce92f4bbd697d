"""Base class of all methods: the vector of scaling factors γ, and hooks around a training step."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.selection import name_in

# Scaling factors below float32's smallest normal number count as zero in every dtype.
TINY = torch.finfo(torch.float32).tiny


def is_zero(factor: Tensor) -> Tensor:
    """Elementwise mask (bool) of the scaling factors (γ or ξ) that are zero or subnormal."""
    return factor.float().abs() < TINY


def foreach(
    operation: Callable[..., object], pairs: Sequence[tuple[Tensor, Tensor]], **options: float
) -> None:
    """Calls one of ``torch._foreach_*`` with the targets and the operands in ``pairs``."""
    if pairs:
        operation(*zip(*pairs, strict=True), **options)


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
    end_epoch_task = ""  # what only end_epoch() does, e.g. "updates z", for a warning
    stepped = ended = False  # whether step() and end_epoch() were called, of methods with that task
    ready = False  # whether add_to_gradients() was called since the last step

    def __init__(self, graph: Graph, model: nn.Module | None = None, coupled: bool = False) -> None:
        if not isinstance(graph, Graph):
            raise TypeError(f"give netslim.analyze(model, example), not {type(graph).__name__}")
        self.graph, self.model = graph, graph.model if model is None else model
        self.names = {name: name_in(self.model, name) for name in graph.prunable(coupled)}
        if self.needs_channels and not self.names:
            raise ValueError(f"no channel of the model can be removed ({graph.why_none()})")
        weights = [self.model.get_parameter(f"{path}.weight") for path in self.names.values()]
        self.widths = [len(weight) for weight in weights]
        double = any(weight.dtype == torch.float64 for weight in weights)
        self.gamma = torch.zeros(
            sum(self.widths),
            device=next(self.model.parameters()).device,
            dtype=torch.float64 if double else torch.float32,
        )
        # Like a GradScaler's ``found_inf``: once it is 1, no step changes a parameter or a tensor
        # of the method.
        self.found_inf = torch.zeros((), device=self.gamma.device)
        self.read()

    def _weights(self) -> list[nn.Parameter]:
        """Current γ of the model's batch norms."""
        weights = []
        for (name, path), width in zip(self.names.items(), self.widths, strict=True):
            try:
                weight = self.model.get_parameter(f"{path}.weight")
            except AttributeError:
                raise RuntimeError(f"{name} was removed: construct the method again") from None
            if len(weight) != width:
                now = f"{name} has {len(weight)} channels now, not {width}"
                raise RuntimeError(f"{now}: construct the method again")
            weights.append(weight)
        return weights

    @torch.no_grad()
    def read(self) -> Tensor:
        """Returns γ [channels], read from the model."""
        weights = self.weights = self._weights()
        if not weights:
            return self.gamma
        if (device := weights[0].device) != self.gamma.device:
            for name, x in vars(self).items():
                if isinstance(x, Tensor):
                    setattr(self, name, x.to(device))
        parts = list[Tensor](weights)
        for i, before in enumerate(self.split(self.gamma)):
            if parts[i].dtype != before.dtype:  # keep ``before`` where γ is its rounding
                rounded = before.to(parts[i].dtype) == parts[i]
                parts[i] = torch.where(rounded, before, parts[i].to(before))
        return torch.cat(parts, out=self.gamma)

    @torch.no_grad()
    def write(self, gamma: Tensor) -> None:
        """Writes ``gamma`` [channels] into the model's batch norms, unless ``found_inf`` is set."""
        self.weights = self._weights()
        self.update(self.gamma, self.unless_frozen(gamma, self.gamma))
        pairs = zip(self.weights, self.split(self.gamma), strict=True)
        foreach(torch._foreach_copy_, [(w, part) for w, part in pairs if w.requires_grad])

    def unless_frozen(self, new: Tensor, old: Tensor) -> Tensor:
        """Returns ``new``, with ``old`` in the channels of frozen batch norms."""
        # Those found last: finding them takes as long as the rest of a step.
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
            symbol = self.factors.get(name, name)
            if name not in state:
                raise ValueError(f"{symbol} is missing")
            if state[name].shape != tensor.shape:
                found, expected = [*state[name].shape], [*tensor.shape]
                raise ValueError(f"{symbol} has shape {found}, not {expected}")
            tensor.copy_(state[name])

    def factor(self, name: str) -> Tensor:
        """Returns one of ``factors``, [channels]."""
        return self.read() if name == "gamma" else self.state_dict()[name]

    def zeros(self, factor: str | None = None) -> dict[str, Tensor]:
        """Returns masks of the zero factors, {name of the batch norm: bool [channels]}.

        Warns if the training is incomplete (:meth:`training_hint`).

        Args:
            factor: one of ``factors``; None selects ``pruned_by``.

        Raises:
            ValueError: there is no such factor.
        """
        factor = factor or self.pruned_by
        if factor not in self.factors:
            raise ValueError(f"there is no factor {factor!r}, only {', '.join(self.factors)}")
        parts = self.split(is_zero(self.factor(factor)))
        zeros = dict(zip(self.names, parts, strict=True))
        if hint := self.training_hint(zeros):
            warnings.warn(hint, stacklevel=2)
        return zeros

    def training_hint(self, zeros: Mapping[str, Tensor]) -> str:
        """Returns a warning if ``zeros``, {name: bool [channels]}, come from an incomplete
        training, else ""."""
        if not self.end_epoch_task or not self.stepped or self.ended:
            return ""
        return (
            f"end_epoch() has not been called yet, and only it {self.end_epoch_task}: call it"
            " after every epoch"
        )

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
        pairs = zip((w.grad for w in self._weights()), self.split(flat), strict=True)
        foreach(torch._foreach_add_, [(g, x.to(g)) for g, x in pairs if g is not None], alpha=scale)
        self.ready = True

    def check_gradients(self) -> None:
        """Raises RuntimeError unless :meth:`add_to_gradients` was called since the last step."""
        if not self.ready:
            raise RuntimeError("call before_step() between backward() and the optimizer's step")
        self.ready = False
