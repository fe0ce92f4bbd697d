"""What a model does with its channels, from which the dependency graph is made.

Every channel of a tensor is a *signal*; a tensor carries an integer array of them that broadcasts
to its shape, [1, C, 1, 1] for most. Every signal belongs to an *atom*, an index along an axis of a
parameter (row 3 of a convolution's weight, say). Atoms that an operation combines (the two sides
of an addition, an input and an output of a depthwise convolution) are joined by an *edge*: they
can only be removed together. Atom 0 is what can never be removed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from netslim.sizes import Dim, Source, Width
from netslim.trace import Call, Ref, Trace

FIXED, VARYING, ZERO = 0, 0, 1  # the atom that stays; the signal of unknown values; that of padding


@dataclass
class Step:
    """An operation that makes new signals of others, for the values that these can have.

    Attributes:
        kind: "convolution" (in one group), "grouped", "linear", "norm", "select", "elementwise",
            "known" (a parameter) or "other" (reads only).
        name: of the operation, or of the layer.
        inputs, output: signals.
        call: the operation, with its arguments.
        function: of an elementwise operation, on the values of its inputs (float64, NaN: varies).
        weight, bias, mean, variance: parameters and buffers of a layer, by name in the state dict;
            "" for none.
        stream: all signals that a selection chooses from.
        training: whether it is seen in training mode.
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
        """How a convolution is computed."""
        assert self.call is not None
        return options(self.call)

    @property
    def transposed(self) -> bool:
        return self.call is not None and "transpose" in self.call.name

    @property
    def bordered(self) -> bool:
        """Whether a constant gives no constant: at zero padding, or between strides."""
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
    transposed, axes = "transpose" in call.name, int(call.name[-2])

    def each(position: int, name: str, default: int) -> Any:
        given = call.argument(position, name, default)
        given = (given,) if isinstance(given, int) else given
        return given if isinstance(given, str) else tuple(given) * (axes // len(given))

    stride, padding = each(3, "stride", 1), each(4, "padding", 0)
    dilation = each(7 if transposed else 5, "dilation", 1)
    return Options(stride, padding, dilation, call.argument(6, "groups", 1))


class NotPrunable(Exception):
    """Why channels cannot be removed: what an operation does with them."""


@dataclass
class Signals:
    """All that was seen, for all traces of a model."""

    model: nn.Module
    # Atoms by signal, with room to grow.
    table: Tensor = field(default_factory=lambda: torch.zeros(1024, dtype=torch.int64))
    count: int = 0
    atom_count: int = 1
    edges: list[Tensor] = field(default_factory=list)  # [2, n] pairs of atoms
    pins: list[tuple[Tensor, str]] = field(default_factory=list)  # atoms that stay, and why
    axes: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)  # atoms of parameters
    known: list[Tensor] = field(default_factory=list)  # signals of parameters
    steps: list[Step] = field(default_factory=list)
    dropped: list[Tensor] = field(default_factory=list)  # signals that dropout draws numbers for
    # The atoms that an int of a module counts, once for each place where it does.
    widths: dict[Source, list[Tensor]] = field(default_factory=dict)
    parts: list[Tensor] = field(default_factory=list)  # atoms of slices, which keep one of them
    fixed: set[Source] = field(default_factory=set)  # ints of modules that code uses otherwise

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
        """New atoms."""
        atoms = torch.arange(self.atom_count, self.atom_count + count)
        self.atom_count += count
        return atoms

    def new(self, atoms: Tensor) -> Tensor:
        """New signals, one for each of ``atoms``, in their shape."""
        start, self.count = self.count, self.count + atoms.numel()
        if self.count > len(self.table):
            self.table = torch.cat((self.table, torch.zeros(self.count, dtype=torch.int64)))
        self.table[start : self.count] = atoms.flatten()
        return torch.arange(start, self.count).view(atoms.shape)

    def atom(self, signals: Tensor) -> Tensor:
        """The atoms of ``signals``, in their shape."""
        return self.table[signals]

    def join(self, a: Tensor, b: Tensor) -> None:
        a, b = torch.broadcast_tensors(a, b)
        self.edges.append(torch.stack((a.flatten(), b.flatten())))

    def pin(self, atoms: Tensor, reason: str) -> None:
        self.pins.append((atoms.flatten().unique(), reason))

    def join_widths(self) -> None:
        """An int of a module counts the same channels wherever it is used, or stays."""
        for source, counted in self.widths.items():
            for atoms in counted[1:]:
                self.join(counted[0], atoms)
            if source in self.fixed:
                module, attribute, _ = source
                name = f"{module}.{attribute}".lstrip(".")
                self.pin(torch.cat(counted), f"code does not only split at {name}")


class Reader:
    """The signals of every value of one trace; :mod:`netslim.rules` says what operations do."""

    def __init__(self, all_: Signals, trace: Trace, training: bool) -> None:
        self.all, self.trace, self.training = all_, trace, training
        self.signals: dict[int, Tensor] = {}
        self.counted: set[int] = set()  # ids of the widths of a call that are known to follow

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
        """The signals of a value, [1, ..., C, ..., 1]."""
        if value not in self.signals:
            shape, name = self.trace.shapes[value], self.trace.names.get(value)
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
            self.signals[value] = flat
        return self.signals[value]

    def give(self, value: int, signals: Tensor) -> None:
        """Set the signals of a value that is made."""
        if not fits(signals, self.trace.shapes[value]):
            raise NotPrunable("gives another shape than expected")
        self.signals[value] = signals

    def stop(self, call: Call, reason: str) -> None:
        """Everything that ``call`` reads stays as it is."""
        inputs = [self.of(value) for value in call.refs()]
        for signals in inputs:
            self.all.pin(self.all.atom(signals), reason)
        self.step("other", call.name, inputs, None)
        for value in refs(call.outputs):
            self.signals[value] = torch.full([1] * len(self.trace.shapes[value]), VARYING)

    def made(self, name: str, inputs: list[Tensor], function: Callable[..., Tensor]) -> Tensor:
        """New signals, each a function of the inputs' in its place; all of these are joined."""
        shape = torch.broadcast_shapes(*(x.shape for x in inputs))
        inputs = [x.expand(shape) for x in inputs]
        atoms = self.all.atom(inputs[0])
        for other in inputs[1:]:
            self.all.join(atoms, self.all.atom(other))
        output = self.all.new(atoms)
        self.step("elementwise", name, inputs, output, None, function)
        return output

    def channels(self, value: int, axis: int) -> Tensor:
        """The signals along the one axis that may have channels, [size]."""
        signals, shape = self.of(value), self.trace.shapes[value]
        axis %= max(len(shape), 1)
        if any(n > 1 for i, n in enumerate(signals.shape) if i != axis):
            raise NotPrunable("works along another axis")
        return signals.flatten().expand(shape[axis])

    def along(self, signals: Tensor, axis: int) -> Tensor:
        """The atoms along an axis, one where all are the same."""
        if axis >= signals.dim() or signals.shape[axis] == 1:
            return torch.zeros(1, dtype=torch.int64)
        first = signals.movedim(axis, 0).flatten(1)
        if first.shape[1] > 1:
            self.all.join(self.all.atom(first[:, :1]), self.all.atom(first))
        return self.all.atom(first[:, 0])

    def counts(self, n: Dim) -> list[Tensor]:
        """The atoms of the channels of which a size is read."""
        read = [self.along(self.of(value), axis) for value, axis in sorted(n.axes)]
        return [atoms for atoms in read if len(atoms) > 1]

    def follows(self, n: Any) -> bool:
        """Whether a size is read from channels."""
        return isinstance(n, Dim) and bool(self.counts(n))

    def tie(self, n: Dim, whole: Tensor, signals: Tensor, axis: int) -> None:
        """Channels along an axis, of those of ``whole``, stay as many as a size says."""
        read = self.counts(n)
        if torch.equal(torch.cat(read).unique(), self.all.atom(whole).unique()):
            return  # its own size
        short, long = sorted((self.along(signals, axis), torch.cat(read)), key=len)
        if len(read) > 1 or len(long) % len(short):
            raise NotPrunable("takes the width of others")
        self.all.join(short, long.view(-1, len(short)))

    def count(self, width: Width, signals: Tensor, axis: int) -> None:
        """An int of a module says how many channels there are along an axis."""
        shape = [int(width) if a == axis else n for a, n in enumerate(signals.shape)]
        atoms = self.along(signals.expand(shape), axis)
        self.all.widths.setdefault(width.source, []).append(atoms.repeat(width.times))
        self.counted.add(id(width))


def fits(signals: Tensor, shape: Sequence[int]) -> bool:
    """Whether ``signals`` broadcast to ``shape``."""
    pairs = zip(signals.shape, shape, strict=False)
    return signals.dim() == len(shape) and all(a in (1, b) for a, b in pairs)


def ref(x: Any) -> int:
    if not isinstance(x, Ref):
        raise NotPrunable("takes something else than a tensor")
    return x.value


def refs(x: Any) -> list[int]:
    if isinstance(x, Ref):
        return [x.value]
    if isinstance(x, Mapping):
        x = list(x.values())
    return [v for each in x for v in refs(each)] if isinstance(x, tuple | list) else []
