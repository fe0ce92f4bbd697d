"""Dependency graph of a model: which channels can be removed, and which only together.

:func:`analyze` runs the model on an example (:mod:`netslim.trace`), follows its channels
(:mod:`netslim.rules`), and divides the indices along all axes of all parameters into *classes*
that can only be removed together. A class can be removed if every layer that reads it sees a
constant or does not need it: a batch norm with scaling factor γ = 0 outputs its bias for any
input, and activations, sums and pools map constants to constants.

A batch norm that is the only reader of a layer's output is *tied* to the layer: they lose the same
channels. A batch norm that reads a stream, which several layers write or read (pre-activation
ResNet, DenseNet), *selects*: it loses channels of its own, and the stream keeps a channel as long
as another layer reads it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from netslim.rules import FIXED, NOTHING, PRODUCTS, ZERO, Signals, Step
from netslim.trace import record

AnyBatchNorm = nn.modules.batchnorm._BatchNorm
Keep = Mapping[str, Tensor]
NONE, SEVERAL = -1, -2
TERMINAL = ("convolution", "linear", "norm", "select")


class Graph:
    """Batch norms whose channels can be removed, and the dependencies; made by :func:`analyze`.

    Attributes:
        model: the analyzed model.
        example: the example it was run on.
        norms: {name: batch norm} with channels that can be removed, in module order.
        reasons: {name: reason} of the other batch norms that have scaling factors.
        removable: {name: bool [channels]}, the removable channels of the ``norms``.
        coupled: {name: bool [channels]}, channels that can be removed if γ = 0 in all batch norms
            that write their stream, as in residual networks.
        drawn_for: the ``norms`` followed by a dropout, which draws one number per channel.
        rectified: the ``norms`` directly followed by a ReLU or ReLU6: γ = 0 and a bias ≤ 0 give 0.
        training: whether the model was also run in training mode. If it could not be, parts that
            only training uses stay unchanged.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model, self.example = model, example
        evaluation, training = record(model, example)
        self.training = training is not None
        seen = Signals(model, evaluation, training)
        self.steps, self._axes = seen.steps, seen.axes
        self._atoms = seen.table[: seen.count]
        self._known = torch.cat([NOTHING, *(x.flatten() for x in seen.known)])
        modules = dict(model.named_modules())
        self.all_norms = {
            n: m
            for n, m in modules.items()
            if isinstance(m, AnyBatchNorm) and f"{n}.weight".lstrip(".") in seen.axes
        }
        self.reasons = self._without_own_gamma(modules, seen)
        edges = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *seen.edges], 1)
        apart = _components(torch.arange(seen.atom_count), edges)
        calls = [s for s in self.steps if s.kind == "norm"]
        # The first call of each batch norm.
        self._calls = {s.name: s for s in reversed(calls)}
        self._tied = self._ties(apart, seen)
        tied = [s for s in calls if s.name in self._tied]
        ends = torch.cat([torch.stack((s.inputs[0], s.output)) for s in tied] or [edges[:, :0]], 1)
        self.classes = _components(apart, self._atoms[ends])
        own = {name: self._axes[f"{name}.weight".lstrip(".")][0] for name in self.all_norms}
        self._norm_classes = {name: self.classes[atoms] for name, atoms in own.items()}
        self._why: dict[int, str] = {}  # of each class that cannot be removed, the reason
        for atoms, reason in seen.pins:
            for c in self.classes[atoms].unique().tolist():
                self._why.setdefault(c, reason)
        self._why.setdefault(int(self.classes[0]), "it is combined with something of fixed width")
        used = torch.zeros(seen.atom_count, dtype=torch.bool)
        used[edges.flatten()] = True
        used[self._atoms] = True
        for c in self.classes[~used].tolist():
            self._why.setdefault(c, "it is not used")
        self._pins = torch.zeros(seen.atom_count, dtype=torch.bool)
        self._pins[[*self._why]] = True
        # The layers that read channels, and the classes that they read.
        self._readers = [
            (s, self.classes_of(s.inputs[0]))
            for s in self.steps
            if s.kind in TERMINAL and (s.kind != "norm" or s.name not in self._tied)
        ]
        # For each int attribute that splits channels, the classes of the channels that it counts.
        self.widths = {s: self.classes[x[0]] for s, x in seen.widths.items() if s not in seen.fixed}
        self.parts = [*self.widths.values(), *(self.classes[x] for x in seen.parts)]
        self._decide()
        dropped = self.classes_of(torch.cat([NOTHING, *seen.dropped]))
        # Dropout draws one number per channel: removing channels changes the numbers.
        self.drawn_for = {n for n in self.norms if torch.isin(self.norm_classes(n), dropped).any()}
        # Rectified: nothing but a ReLU reads the output.
        read = [x.flatten() for s in self.steps if not _rectifies(s) for x in s.inputs]
        otherwise = torch.zeros(len(self._atoms), dtype=torch.bool)
        otherwise[torch.cat([NOTHING, *read])] = True
        rectified = {s.name for s in calls if not otherwise[s.output].any()}
        self.rectified = rectified & self.norms.keys()

    def _without_own_gamma(self, modules: Mapping[str, nn.Module], seen: Signals) -> dict[str, str]:
        """Returns why batch norms stay whose γ is computed, or not in a module of torch's.

        Pins γ that several batch norms share.
        """
        reasons = {}
        for name, module in modules.items():
            if isinstance(module, AnyBatchNorm) and name not in self.all_norms:
                if isinstance(gamma := module._parameters.get("weight"), nn.Parameter):
                    first = next(n for n, m in self.all_norms.items() if m.weight is gamma)
                    reasons[name] = f"its γ is also that of {first}"
                    shared = seen.axes[f"{first}.weight".lstrip(".")][0]
                    seen.pin(shared, f"its γ is also that of {name}")
                elif module.weight is not None:
                    reasons[name] = "its γ is computed from other parameters"
        for step in seen.steps:
            if step.kind == "norm" and step.weight and step.name not in self.all_norms:
                reasons.setdefault(step.name, "its module is none of torch's batch norms")
        return reasons

    def _ties(self, classes: Tensor, seen: Signals) -> set[str]:
        """Names of the batch norms that are the only readers of one layer's output."""
        pinned = torch.zeros(seen.atom_count, dtype=torch.bool)
        pins = torch.cat([torch.tensor([FIXED]), *(atoms for atoms, _ in seen.pins)])
        pinned[classes[pins]] = True
        layers = [s for s in self.steps if s.kind in TERMINAL]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(s.name for s in layers))}

        def sole_layer(ends: list[tuple[Step, Tensor]]) -> Tensor:
            """Returns the number of the only layer among ``ends`` with a channel of each class,
            [classes]; NONE, or SEVERAL."""
            of = classes[self._atoms[torch.cat([NOTHING, *(x.flatten() for _, x in ends)])]]
            sizes = torch.tensor([x.numel() for _, x in ends], dtype=torch.int64)
            ids = torch.tensor([numbers[s.name] for s, _ in ends], dtype=torch.int64)
            number = ids.repeat_interleave(sizes)
            most = torch.full((len(classes),), NONE).scatter_reduce(0, of, number, "amax")
            least = most.scatter_reduce(0, of, number, "amin")
            return torch.where((most == least) | (most == NONE), most, SEVERAL)

        readers = sole_layer([(s, s.inputs[0] if s.stream is None else s.stream) for s in layers])
        writers = sole_layer([(s, s.output) for s in layers if s.kind in ("convolution", "linear")])
        tied: set[str] = set()
        apart: set[str] = set()
        first: dict[str, Tensor] = {}
        for step in (s for s in layers if s.kind == "norm"):
            read = classes[self._atoms[step.inputs[0]]]
            others_read = pinned[read] | (readers[read] != numbers[step.name])
            sole_reader = not (others_read | (writers[read] == SEVERAL)).any()
            # Without factors, or called by code without a module that a selection could replace,
            # it cannot lose channels of its own.
            selects = step.weight and step.by_module
            (apart if selects and not sole_reader else tied).add(step.name)
            if step.name in apart and not torch.equal(first.setdefault(step.name, read), read):
                own = seen.axes[step.weight][0]
                seen.pin(own, "it is called more than once, on channels that others read, too")
        return tied - apart

    def _constant(self, ranks: Mapping[str, Tensor]) -> Tensor:
        """Whether γ = 0 makes each signal constant: bool [signals, writers + 2].

        Column i has γ = 0 in the batch norm of rank i among those of the signal's class, the last
        but one in none, the last in all of them.
        """
        known = torch.zeros(len(self._atoms), dtype=torch.bool)
        known[self._known] = True
        writers = max((int(rank.max()) + 1 for rank in ranks.values()), default=0)
        constant = known[:, None].repeat(1, writers + 2)
        constant[ZERO] = True
        for step in self.steps:
            rows = [constant[x] for x in step.inputs]
            if step.kind == "norm":
                row = rows[0] if step.name in self._tied else torch.zeros_like(rows[0])
                if step.name in ranks:
                    row[torch.arange(len(row)), ranks[step.name]] = True
                    row[:, -1] = True
            elif step.kind == "grouped":
                row = rows[0].new_zeros(len(step.output), writers + 2)
                if step.one_by_one:
                    row = rows[0].repeat_interleave(len(step.output) // len(rows[0]), 0)
            elif step.kind == "elementwise":
                classes = self.classes_of(step.output)
                for x, own in zip(step.inputs, rows, strict=True) if len(rows) > 1 else ():
                    other = (self.classes_of(x) != classes)[..., None]
                    own[..., :-1] = torch.where(other, own[..., -2:-1], own[..., :-1])
                row = rows[0]
                for more, inputs in zip(rows[1:], step.inputs[1:], strict=True):
                    # A product is 0 where one factor is; of a factor that is a parameter nothing
                    # is known.
                    fixed = (known[inputs] | known[step.inputs[0]])[..., None]
                    either = ~fixed & (step.name in PRODUCTS)
                    row = torch.where(either, row | more, row & more)
            else:
                continue
            constant[step.output] = row
        return constant

    def _decide(self) -> None:
        """Sets ``norms``, ``reasons``, ``removable`` and ``coupled``, see the class."""
        count = torch.zeros(len(self.classes), dtype=torch.int64)
        ranks = {}  # of each batch norm among those of its channels' classes, [channels]
        for name in self.all_norms:
            ranks[name] = count[self.norm_classes(name)]
            count[self.norm_classes(name)] += 1
        constant = self._constant(ranks)
        rows, read_by = [constant[:0]], [NOTHING]
        for step, seen in self._readers:
            rows.append(constant[step.inputs[0]])
            read_by.append(seen)
            if step.kind in ("norm", "select"):  # they may lose the channel themselves
                rows[-1][:, :-1], rows[-1][:, -1] = False, True
        every, row = torch.cat(read_by), torch.cat(rows).to(torch.uint8)
        by = torch.ones(len(self.classes), constant.shape[1], dtype=torch.uint8)
        by = by.scatter_reduce(0, every[:, None].expand_as(row), row, "amin").bool()
        self.reached = torch.zeros(len(self.classes), dtype=torch.bool)
        self.reached[every] = True
        for step in self.steps:
            if step.stream is not None:  # channels that no selection passes on have no reader
                self.reached[self.classes_of(step.stream)] = True
        self.norms: dict[str, AnyBatchNorm] = {}
        self.removable: dict[str, Tensor] = {}
        self.coupled: dict[str, Tensor] = {}
        for name, norm in self.all_norms.items():
            classes = self.norm_classes(name)
            free = self.reached[classes] & ~self._pins[classes]
            individually, together = by[classes, ranks[name]] & free, by[classes, -1] & free
            if name not in self._calls:
                self.reasons[name] = "it is not called, or does not use torch's batch_norm"
            elif norm.running_mean is None:
                self.reasons[name] = "it keeps no running statistics"
            else:
                if (together & ~individually).any():
                    self.coupled[name] = together & ~individually
                if individually.any():
                    self.norms[name], self.removable[name] = norm, individually
                else:
                    self.reasons[name] = self._reason(name)

    def _reason(self, name: str) -> str:
        """Returns why no channel of a batch norm can be removed."""
        classes = self.norm_classes(name)
        if why := [self._why[c] for c in classes.tolist() if c in self._why]:
            return why[0]
        if name not in self.coupled:
            return "its channels are read before a batch norm, or with γ = 0 they still vary"
        called = (n for n in self.all_norms if n in self._calls)
        sharing = [n for n in called if torch.isin(self.norm_classes(n), classes).any()]
        if len(sharing) == 1:
            return "what reads it needs it"
        together = "with the group penalty they can become zero together"
        return f"its channels are shared by {_few(sharing)}: {together}"

    def prunable(self, coupled: bool = True) -> dict[str, Tensor]:
        """Returns {name: bool [channels]} of removable channels; ``coupled`` ones, too, if set."""
        kinds = (self.removable, self.coupled) if coupled else (self.removable,)
        every = {n: [kind[n] for kind in kinds if n in kind] for n in self.all_norms}
        return {name: torch.stack(parts).any(0) for name, parts in every.items() if parts}

    def why_none(self) -> str:
        """Returns the commonest reasons why batch norms have no removable channels."""
        if isinstance(self.model, torch.jit.ScriptModule | torch.fx.GraphModule):
            none = "it is a program without batch norm modules: prune the model it was made from"
        else:
            none = "it has no batch norm"
        return "; ".join(commonest(self.reasons)) or none

    @property
    def ties(self) -> list[list[str]]:
        """Groups of ``norms`` that lose the same channels, in the order of the forward pass."""
        groups: dict[tuple[int, ...], list[str]] = {}
        called = (s.name for s in self.steps if s.kind == "norm" and s.name in self.norms)
        for name in dict.fromkeys(called):
            groups.setdefault(tuple(self.norm_classes(name).tolist()), []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def classes_of(self, signals: Tensor) -> Tensor:
        """Returns the classes of ``signals``, in their shape."""
        return self.classes[self._atoms[signals]]

    def norm_classes(self, name: str) -> Tensor:
        """Returns the classes of a batch norm's channels, [channels]."""
        return self._norm_classes[name]

    def read_by(self, name: str) -> Tensor:
        """Returns the classes of a batch norm's inputs, [channels]."""
        return self.classes_of(self._calls[name].inputs[0])

    def stream_channels(self, removed_classes: Tensor, norms: Iterable[str]) -> int:
        """Returns the number of removed classes that are no channels of ``norms``."""
        others = removed_classes.clone()
        others[torch.cat([NOTHING, *map(self.norm_classes, norms)])] = False
        return int(others.sum())

    def behind(self, name: str, constants: Tensor) -> Tensor:
        """Returns the ``constants`` of a batch norm's channels after the activation, [channels]."""
        output = self._calls[name].output
        for step in self.steps:
            single = step.kind == "elementwise" and len(step.inputs) == 1
            if single and torch.equal(step.inputs[0].flatten(), output):
                return constants[step.output].flatten()
        return constants[output]

    def writer(self, name: str) -> str | None:
        """Returns the layer whose output only this batch norm reads, or None."""
        read = self._calls[name].inputs[0]
        layers = (s for s in self.steps if s.kind in ("convolution", "grouped", "linear"))
        written = (s.name for s in layers if torch.equal(s.output, read))
        return next(written, None) if name in self._tied else None


def _rectifies(step: Step) -> bool:
    """Whether ``step`` is a ReLU or ReLU6 (nn.ReLU6 is a hardtanh from 0)."""
    if step.name == "hardtanh" and step.function is not None:
        return bool(step.function(torch.tensor([-1.0])) == 0)
    return step.name in ("relu", "relu6")


def commonest(reasons: Mapping[str, str]) -> list[str]:
    """Returns the three commonest ``reasons``, each behind the names of its batch norms."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    found = sorted(names, key=lambda reason: -len(names[reason]))[:3]
    return [f"{_few(names[reason])}: {reason}" for reason in found]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _components(label: Tensor, edges: Tensor) -> Tensor:
    """Connected components: for each node, its component's smallest number.

    ``label`` has those without the ``edges``, pairs of nodes, [2, n].
    """
    edges = label[edges]
    while edges.shape[1]:
        low = torch.minimum(edges[0], edges[1])
        for ends in edges:
            label = label.scatter_reduce(0, ends, low, "amin")
        while not torch.equal(new := label[label], label):
            label = new
        edges = label[edges]  # between components found so far
        edges = edges[:, edges[0] != edges[1]]
    return label


@torch.inference_mode(False)
def analyze(model: nn.Module, example: Any) -> Graph:
    """Finds the channels of ``model`` that can be removed.

    Args:
        model: any module; a copy of it is run. Of a compiled model, the one it was made from.
        example: arguments of its forward pass: a tensor, a tuple, or a dict of keyword
            arguments.

    Raises:
        ValueError: the model cannot take the example, is a TorchScript program, or has a layer that
            is lazy still.
    """
    model = getattr(model, "_orig_mod", model)
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(x):
            raise ValueError(f"{name} is lazy still: call the model on an image first")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("the model is a TorchScript program: give the module it was made from")
    return Graph(model, example)
