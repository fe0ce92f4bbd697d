"""Channels of a traced model as signals, from which the dependency graph is made.

Every channel of a tensor is a *signal*; a tensor carries an integer array of them that broadcasts
to its shape, [1, C, 1, 1] for most. Every signal belongs to an *atom*, an index along an axis of a
parameter (such as row 3 of a convolution's weight). Atoms that an operation combines (the two
sides of an addition, input and output of a depthwise convolution) are joined by an *edge*: they
can only be removed together. Atom 0 can never be removed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from netslim.sizes import Dim, Source, Width
from netslim.trace import Call, Ref, Trace, refs

FIXED, VARYING, ZERO = 0, 0, 1  # atom 0; the signal of unknown values; the signal of padding


@dataclass
class Step:
    """An operation that computes new signals from others.

    Attributes:
        kind: "convolution" (in one group), "grouped", "linear", "norm", "select", "elementwise",
            "known" (a parameter) or "other" (reads only).
        name: name of the operation or layer.
        inputs, output: arrays of signals.
        call: the recorded call with its arguments.
        function: the elementwise operation on constants (float64, NaN: varies).
        weight, bias, mean, variance: names of a layer's parameters and buffers, "" for none.
        stream: the signals from which a selection chooses.
        training: whether it was recorded in training mode.
    """

    kind: str
    name: str
    inputs: list[Tensor]
    output: Tensor | None
    call: Call | None = None
    function: Callable[..., Tensor] | None = None
    weight: str = ""
    bias: str = ""
    mean: str = ""
    variance: str = ""
    stream: Tensor | None = None
    training: bool = False

    @property
    def options(self) -> "Options":
        """The arguments of a convolution."""
        assert self.call is not None
        return options(self.call)

    @property
    def transposed(self) -> bool:
        return self.call is not None and "transpose" in self.call.name

    @property
    def bordered(self) -> bool:
        """Whether a constant input gives no constant: because of zero padding or strides."""
        if self.kind == "linear":
            return False
        padding = self.options.padding
        return self.transposed or not (
            padding == "valid" if isinstance(padding, str) else not any(padding)
        )

    @property
    def one_by_one(self) -> bool:
        """Whether each output channel of a grouped convolution reads one input channel."""
        return self.options.groups == len(self.inputs[0])


class Options(NamedTuple):
    """Arguments of a convolution, one number for each axis of its maps."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int


def options(call: Call) -> Options:
    """Returns the arguments of a convolution, defaults included."""
    transposed, axes = "transpose" in call.name, int(call.name[-2])

    def each(position: int, name: str, default: int) -> Any:
        value = call.argument(position, name, default)
        value = (value,) if isinstance(value, int) else value
        return value if isinstance(value, str) else tuple(value) * (axes // len(value))

    stride, padding = each(3, "stride", 1), each(4, "padding", 0)
    dilation = each(7 if transposed else 5, "dilation", 1)
    return Options(stride, padding, dilation, call.argument(6, "groups", 1))


class NotPrunable(Exception):
    """The reason why an operation keeps channels from being removed."""


@dataclass
class Signals:
    """Signals, atoms and steps of all traces of a model."""

    model: nn.Module
    # The atom of each signal, with spare capacity.
    table: Tensor = field(default_factory=lambda: torch.zeros(1024, dtype=torch.int64))
    count: int = 0
    atom_count: int = 1
    edges: list[Tensor] = field(default_factory=list)  # [2, n] pairs of atoms
    pins: list[tuple[Tensor, str]] = field(default_factory=list)  # not removable, and the reason
    axes: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)  # atoms of parameters
    known: list[Tensor] = field(default_factory=list)  # signals of parameters
    steps: list[Step] = field(default_factory=list)
    dropped: list[Tensor] = field(default_factory=list)  # inputs of dropout
    written: dict[Any, Tensor] = field(default_factory=dict)  # outputs of layers, by call
    # Inputs and outputs of the calls in evaluation mode, by what they depend on.
    followed: dict[Any, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict)
    read: dict[Any, Tensor] = field(default_factory=dict)  # by name of a parameter, or axes
    # For each int attribute of a module, the atoms that it counts, per use.
    widths: dict[Source, list[Tensor]] = field(default_factory=dict)
    parts: list[Tensor] = field(default_factory=list)  # slices, which keep at least one channel
    fixed: set[Source] = field(default_factory=set)  # int attributes that code uses in other ways

    def __post_init__(self) -> None:
        self.new(torch.zeros(2, dtype=torch.int64))  # VARYING and ZERO
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, x in tensors.items():
            self.axes[name] = tuple(self.fresh(n) for n in x.shape[:2])
        self.owner: dict[str, tuple[nn.Module, str, str]] = {}
        for path, module in self.model.named_modules():
            for key, _ in (*module._parameters.items(), *module._buffers.items()):
                name = f"{path}.{key}" if path else key
                if name in tensors:
                    self.owner[name] = module, path, key

    def fresh(self, count: int) -> Tensor:
        """Returns ``count`` new atoms."""
        atoms = torch.arange(self.atom_count, self.atom_count + count)
        self.atom_count += count
        return atoms

    def new(self, atoms: Tensor) -> Tensor:
        """Returns new signals of these atoms, in their shape."""
        start, self.count = self.count, self.count + atoms.numel()
        if self.count > len(self.table):
            self.table = torch.cat((self.table, torch.zeros(self.count, dtype=torch.int64)))
        self.table[start : self.count] = atoms.flatten()
        return torch.arange(start, self.count).view(atoms.shape)

    def atom(self, signals: Tensor) -> Tensor:
        """Returns the atoms of ``signals``, in their shape."""
        return self.table[signals]

    def join(self, a: Tensor, b: Tensor) -> None:
        """Adds edges between the atoms ``a`` and ``b``, which broadcast."""
        a, b = torch.broadcast_tensors(a, b)
        self.edges.append(torch.stack((a.flatten(), b.flatten())))

    def pin(self, atoms: Tensor, reason: str) -> None:
        """Marks ``atoms`` as not removable."""
        self.pins.append((atoms.flatten().unique(), reason))

    def join_widths(self) -> None:
        """Joins the channels that one int attribute counts in several places, or pins them."""
        for source, counted in self.widths.items():
            for atoms in counted[1:]:
                self.join(counted[0], atoms)
            if source in self.fixed:
                module, attribute, _ = source
                name = f"{module}.{attribute}".lstrip(".")
                self.pin(torch.cat(counted), f"code uses {name} for more than splitting")


class Reader:
    """Maps the tensors of one trace to their signals; :mod:`netslim.rules` has the operations."""

    def __init__(self, all_: Signals, trace: Trace, training: bool) -> None:
        self.all, self.trace, self.training = all_, trace, training
        self.signals: dict[int, Tensor] = {}
        self.times: Counter[str] = Counter()  # calls of each layer
        self.counted: set[int] = set()  # ids of a call's widths that can follow a removal

    def step(
        self,
        kind: str,
        name: str,
        inputs: list[Tensor],
        output: Tensor | None,
        *more: Any,
        **of: Any,
    ) -> None:
        of["training"] = self.training
        self.all.steps.append(Step(kind, name, inputs, output, *more, **of))

    def of(self, value: int) -> Tensor:
        """Returns the signals of tensor ``value``, [1, ..., C, ..., 1]."""
        if value not in self.signals:
            shape, name = self.trace.shapes[value], self.trace.names.get(value)
            key = name or len(shape)
            if key not in self.all.read:
                self.all.read[key] = self.unread(name, shape)
            self.signals[value] = self.all.read[key]
        return self.signals[value]

    def unread(self, name: str | None, shape: Sequence[int]) -> Tensor:
        """Returns new signals of a parameter, or those of a tensor of unknown origin."""
        flat = torch.full([1] * len(shape), VARYING)
        wide = [axis for axis, size in enumerate(shape) if size > 1]
        if name is not None and (not wide or (len(wide) == 1 and wide[0] < 2)):
            atoms = self.all.axes[name][wide[0]] if wide else torch.tensor([FIXED])
            flat = self.all.new(atoms.view([-1 if n > 1 else 1 for n in shape]))
            self.all.known.append(flat)
            self.step("known", name, [], flat)
        elif name is not None:
            for atoms in self.all.axes[name]:
                self.all.pin(atoms, f"code reads {name} as a whole")
        return flat

    def give(self, value: int, signals: Tensor) -> None:
        """Sets the signals of a computed tensor; raises NotPrunable if its shape does not fit."""
        if not fits(signals, self.trace.shapes[value]):
            raise NotPrunable("returns another shape than expected")
        self.signals[value] = signals

    def stop(self, call: Call, reason: str) -> None:
        """Pins all channels that ``call`` reads."""
        inputs = [self.of(value) for value in call.refs()]
        for signals in inputs:
            self.all.pin(self.all.atom(signals), reason)
        self.step("other", call.name, inputs, None)
        for value in refs(call.outputs):
            self.signals.pop(value, None)  # unknown

    def made(self, name: str, inputs: list[Tensor], function: Callable[..., Tensor]) -> Tensor:
        """Returns new signals, elementwise functions of the inputs, and joins their atoms."""
        shape = torch.broadcast_shapes(*(x.shape for x in inputs))
        inputs = [x.expand(shape) for x in inputs]
        atoms = self.all.atom(inputs[0])
        for other in inputs[1:]:
            self.all.join(atoms, self.all.atom(other))
        output = self.all.new(atoms)
        self.step("elementwise", name, inputs, output, None, function)
        return output

    def channels(self, value: int, axis: int) -> Tensor:
        """Returns the signals of tensor ``value`` along ``axis``, [size].

        Raises:
            NotPrunable: another axis has channels, too.
        """
        signals, shape = self.of(value), self.trace.shapes[value]
        axis %= max(len(shape), 1)
        if any(n > 1 for i, n in enumerate(signals.shape) if i != axis):
            raise NotPrunable("works along another axis")
        return signals.flatten().expand(shape[axis])

    def along(self, signals: Tensor, axis: int) -> Tensor:
        """Returns the atoms along an axis, one if all are equal."""
        if axis >= signals.dim() or signals.shape[axis] == 1:
            return torch.zeros(1, dtype=torch.int64)
        first = signals.movedim(axis, 0).flatten(1)
        if first.shape[1] > 1:
            self.all.join(self.all.atom(first[:, :1]), self.all.atom(first))
        return self.all.atom(first[:, 0])

    def counts(self, n: Dim) -> list[Tensor]:
        """Returns the atoms of the channels that a size counts."""
        read = [self.along(self.of(value), axis) for value, axis in sorted(n.axes)]
        return [atoms for atoms in read if len(atoms) > 1]

    def follows(self, n: Any) -> bool:
        """Whether ``n`` is a size that counts channels."""
        return isinstance(n, Dim) and bool(self.counts(n))

    def tie(self, n: Dim, whole: Tensor, signals: Tensor, axis: int) -> None:
        """Joins the channels along an axis of ``signals`` with those that the size ``n`` counts."""
        read = self.counts(n)
        if torch.equal(torch.cat(read).unique(), self.all.atom(whole).unique()):
            return  # its own size
        short, long = sorted((self.along(signals, axis), torch.cat(read)), key=len)
        if len(read) > 1 or len(long) % len(short):
            raise NotPrunable("uses the width of other channels")
        self.all.join(short, long.view(-1, len(short)))

    def count(self, width: Width, signals: Tensor, axis: int) -> None:
        """Notes that an int attribute counts the channels along an axis."""
        shape = [int(width) if a == axis else n for a, n in enumerate(signals.shape)]
        atoms = self.along(signals.expand(shape), axis)
        self.all.widths.setdefault(width.source, []).append(atoms.repeat(width.times))
        self.counted.add(id(width))


def fits(signals: Tensor, shape: Sequence[int]) -> bool:
    """Whether ``signals`` broadcast to ``shape``."""
    pairs = zip(signals.shape, shape, strict=False)
    return signals.dim() == len(shape) and all(a in (1, b) for a, b in pairs)


def ref(x: Any) -> int:
    """Returns the number of tensor ``x``. Raises NotPrunable if it is none."""
    if not isinstance(x, Ref):
        raise NotPrunable("takes something else than a tensor")
    return x.value
