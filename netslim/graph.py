"""The dependency graph of a model: which channels can be removed, and what has to follow.

:func:`analyze` runs the model on an example (:mod:`netslim.trace`), follows its channels
(:mod:`netslim.signals`), and divides the indices along all axes of all parameters into *classes*
that can only be removed together. A class can be removed where every layer that reads it sees a
constant, or does not need it: a batch norm whose scaling factor γ is 0 gives its bias, whatever it
reads, and activations, sums and pools keep constants.

A batch norm that is the only reader of its input is *tied* to it: they lose the same channels. One
that reads a stream that others read, too (a pre-activation ResNet, a DenseNet), *selects*: it loses
channels of its own, and the stream keeps them as long as somebody reads them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from netslim.signals import PRODUCTS, ZERO, Signals, Step
from netslim.trace import record

AnyBatchNorm = nn.modules.batchnorm._BatchNorm
Keep = Mapping[str, Tensor]
TERMINAL = ("convolution", "linear", "norm", "select")


class Graph:
    """Which batch norms of a model have channels that can be removed; made by :func:`analyze`.

    Attributes:
        model: the model that was analyzed.
        norms: {name: batch norm} whose channels can be removed, in module order.
        reasons: {name: why not} of the other batch norms that have scaling factors.
        removable: {name: bool [channels]} of the ``norms``; most are all True.
        drawn_for: the ``norms`` behind which dropout draws a number for each channel.
        rectified: the ``norms`` behind which a ReLU or ReLU6 comes first: γ = 0 and a bias of at
            most 0 give 0.
        training: whether it was also seen in training mode. Where it could not be run so, parts
            that only training uses stay as they are.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = model
        seen = Signals(model)
        seen.read(record(model, example), training=False)
        try:
            seen.read(record(model, example, training=True), training=True)
            self.training = True
        except ValueError:
            self.training = False
        self.steps, self._axes = seen.steps, seen.axes
        self._atoms = seen.table[: seen.count]
        self._known = (
            torch.cat([x.flatten() for x in seen.known])
            if seen.known
            else torch.empty(0, dtype=torch.int64)
        )
        modules = dict(model.named_modules())
        self.all_norms = {
            n: m for n, m in modules.items() if isinstance(m, AnyBatchNorm) and m.weight is not None
        }
        edges = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *seen.edges], 1)
        used = torch.zeros(seen.atom_count, dtype=torch.bool)
        used[edges.flatten()] = True
        used[self._atoms] = True
        self._tied = self._ties(edges, seen)
        for step in self.steps:
            if step.kind == "norm" and step.name in self._tied:
                tie = torch.stack((self._atoms[step.inputs[0]], self._atoms[step.output]))
                edges = torch.cat((edges, tie), 1)
        self.classes = _components(seen.atom_count, edges)
        self._why = self._pinned(seen, used)
        self._readers = self._read()
        self._decide()
        dropped = (
            self.classes[self._atoms[torch.cat(seen.dropped)]]
            if seen.dropped
            else edges.new_empty(0)
        )
        # Behind these a number is drawn for each channel: without some, others would be drawn.
        self.drawn_for = {
            n for n in self.norms if bool(torch.isin(self.norm_classes(n), dropped).any())
        }
        self.rectified = self._rectified()

    def _ties(self, edges: Tensor, seen: Signals) -> frozenset[str]:
        """The batch norms that are the only readers of what they read."""
        classes = _components(seen.atom_count, edges)
        pinned = torch.zeros(seen.atom_count, dtype=torch.bool)
        pinned[classes[0]] = True
        for atoms, _ in seen.pins:
            pinned[classes[atoms]] = True
        readers = torch.zeros(
            seen.atom_count, dtype=torch.int64
        )  # of a class: none, one by number, many
        numbers: dict[str, int] = {}
        for step in self.steps:
            if step.kind in TERMINAL:
                number = numbers.setdefault(step.name, len(numbers) + 1)
                read = classes[self._atoms[step.inputs[0]]]
                before = readers[read]
                readers[read] = torch.where((before == 0) | (before == number), number, -1)
        tied: set[str] = set()
        apart: set[str] = set()
        reads: dict[str, Tensor] = {}
        for step in (s for s in self.steps if s.kind == "norm"):
            read = classes[self._atoms[step.inputs[0]]]
            alone = bool((readers[read] == numbers[step.name]).all() and not pinned[read].any())
            # Without factors, or called by code that has no module to put a selection into, it
            # cannot lose channels of its own.
            selects = step.weight and step.call is not None and step.call.module == step.name
            (apart if selects and not alone else tied).add(step.name)
            if step.name in apart and not torch.equal(reads.setdefault(step.name, read), read):
                own = seen.axes[step.weight][0]
                seen.pin(own, "it is called more than once, on channels that others read, too")
        return frozenset(tied - apart)

    def _pinned(self, seen: Signals, used: Tensor) -> dict[int, str]:
        """The classes that stay, and why."""
        why: dict[int, str] = {}
        for atoms, reason in seen.pins:
            for c in self.classes[atoms].unique().tolist():
                if not why.get(c):
                    why[c] = reason
        why.setdefault(int(self.classes[0]), "it is combined with something of fixed width")
        for c in self.classes[~used].tolist():
            why.setdefault(c, "it is not used")
        self._pins = torch.zeros(len(self.classes), dtype=torch.bool)
        self._pins[torch.tensor([*why], dtype=torch.int64)] = True
        return why

    def _read(self) -> list[tuple[Step, Tensor]]:
        """The steps that end a class's way, and the classes that they read."""
        ends = [
            s
            for s in self.steps
            if s.kind in TERMINAL and not (s.kind == "norm" and s.name in self._tied)
        ]
        return [(s, self.classes[self._atoms[s.inputs[0]]]) for s in ends]

    def _constant(self, column: Mapping[str, int]) -> Tensor:
        """Whether γ = 0 makes each signal constant: bool [signals, batch norms + 1].

        The last column has γ = 0 in all batch norms at once.
        """
        known = torch.zeros(len(self._atoms), dtype=torch.bool)
        known[self._known] = True
        constant = known[:, None].repeat(1, len(column) + 1)
        constant[ZERO] = True
        for step in self.steps:
            if step.output is None or not step.inputs:
                continue
            first, *others = (constant[x] for x in step.inputs)
            if step.kind == "norm":
                row = first if step.name in self._tied else torch.zeros_like(first)
                if step.name in column:
                    row[:, [column[step.name], -1]] = True
            elif step.kind == "grouped":
                row = first.new_zeros(len(step.output), first.shape[1])
                if step.one_by_one:
                    row = first.repeat_interleave(len(step.output) // len(first), 0)
            elif step.kind == "elementwise":
                row = first
                for other, inputs in zip(others, step.inputs[1:], strict=True):
                    # A product is 0 where one factor is; of a factor that is a parameter nothing
                    # is known.
                    fixed = (known[inputs] | known[step.inputs[0]])[..., None]
                    either = ~fixed & (step.name in PRODUCTS)
                    row = torch.where(either, row | other, row & other)
            else:
                continue
            constant[step.output] = row
        return constant

    def _decide(self) -> None:
        """By which batch norm alone, and whether by all together, each class can be removed."""
        column = {name: i for i, name in enumerate(self.all_norms)}
        constant = self._constant(column)
        by = torch.ones(len(self.classes), constant.shape[1], dtype=torch.uint8)
        self.reached = torch.zeros(len(self.classes), dtype=torch.bool)
        for step, classes in self._readers:
            rows = constant[step.inputs[0]]
            if step.kind in ("norm", "select"):  # which may lose the channel itself
                rows = torch.zeros_like(rows)
                rows[:, -1] = True
            index = classes[:, None].expand_as(rows)
            by.scatter_reduce_(0, index, rows.to(torch.uint8), "amin")
            self.reached[classes] = True
        by, reached = by.bool(), self.reached
        self.norms: dict[str, AnyBatchNorm] = {}
        self.reasons: dict[str, str] = {}
        self.removable: dict[str, Tensor] = {}
        called = {s.name for s in self.steps if s.kind == "norm"}
        for name, norm in self.all_norms.items():
            if name not in called:
                self.reasons[name] = "it is not called, or computes in a way of its own"
                continue
            classes = self.norm_classes(name)
            can = by[classes, column[name]] & reached[classes] & ~self._pins[classes]
            if norm.running_mean is None:
                self.reasons[name] = "it keeps no running statistics"
            elif can.any():
                self.norms[name], self.removable[name] = norm, can
            elif self._pins[classes].any():
                self.reasons[name] = next(self._why[c] for c in classes.tolist() if c in self._why)
            elif by[classes, -1].any():
                mine = torch.zeros(len(self.classes), dtype=torch.bool)
                mine[classes] = True
                norms = (n for n in called & {*self.all_norms} if n != name)
                others = [n for n in norms if mine[self.norm_classes(n)].any()]
                self.reasons[name] = (
                    "its channels are shared with " + _few(sorted(others))
                    if others
                    else "what reads it needs it"
                )
            else:
                self.reasons[name] = "its channels are read before they pass a batch norm"

    def _rectified(self) -> set[str]:
        made_by = torch.full((len(self._atoms),), -1)
        norms = [s for s in self.steps if s.kind == "norm" and s.output is not None]
        for i, step in enumerate(norms):
            made_by[step.output] = i
        otherwise = {
            i
            for step in self.steps
            if step.name not in ("relu", "relu6")
            for x in step.inputs
            for i in made_by[x].unique().tolist()
        }
        names = {step.name for i, step in enumerate(norms) if i not in otherwise}
        return {name for name in self.norms if name in names}

    @property
    def ties(self) -> list[list[str]]:
        """The ``norms`` that lose the same channels, in the order of the forward pass."""
        order = dict.fromkeys(
            s.name for s in self.steps if s.kind == "norm" and s.name in self.norms
        )
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in order:
            groups.setdefault(tuple(self.norm_classes(name).tolist()), []).append(name)
        return [names for names in groups.values() if len(names) > 1]

    def classes_of(self, signals: Tensor) -> Tensor:
        """The classes of ``signals``, in their shape."""
        return self.classes[self._atoms[signals]]

    def behind(self, name: str, constants: Tensor) -> Tensor:
        """The ``constants`` that a batch norm's channels give behind the activation, [channels]."""
        output = next(s.output for s in self.steps if s.kind == "norm" and s.name == name)
        assert output is not None
        for step in self.steps:
            single = step.kind == "elementwise" and len(step.inputs) == 1
            if single and step.output is not None and torch.equal(step.inputs[0].flatten(), output):
                return constants[step.output].flatten()
        return constants[output]

    def norm_classes(self, name: str) -> Tensor:
        """The classes of the channels of a batch norm."""
        return self.classes[self._axes[f"{name}.weight" if name else "weight"][0]]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _components(count: int, edges: Tensor) -> Tensor:
    """The smallest number that each of ``count`` nodes is connected with."""
    label = torch.arange(count)
    while True:
        low = torch.minimum(label[edges[0]], label[edges[1]])
        new = label.scatter_reduce(0, label[edges[0]], low, "amin")
        new = new.scatter_reduce(0, label[edges[1]], low, "amin")
        new = new[new]
        if torch.equal(new, label):
            return label
        label = new


def analyze(model: nn.Module, example: Any) -> Graph:
    """Find out which channels of ``model`` can be removed.

    Args:
        model: any module; it is run in a copy and stays as it is.
        example: what its forward pass takes: a tensor, a tuple of arguments, or a dict of keyword
            arguments.

    Raises:
        ValueError: the model cannot take the example.
    """
    return Graph(model, example)
