"""What each operation does with channels: the rules from which the dependency graph is made.

Every channel of a tensor is a *signal*; a tensor carries an integer array of them that broadcasts
to its shape, [1, C, 1, 1] for most. Operations that rearrange tensors (flatten, permute, chunk,
cat, ...) are applied to that array as they were to the tensor. Every signal belongs to an *atom*,
an index along an axis of a parameter (row 3 of a convolution's weight, say). Atoms that an
operation combines (the two sides of an addition, an input and an output of a depthwise
convolution) are joined by an *edge*: they can only be removed together. Atom 0 is what can never
be removed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from netslim.trace import SPLITTING, Call, Dim, Ref, Source, Trace, Width, each, leaves

# Elementwise operations: an output channel is a function of the same channel of the inputs.
ELEMENTWISE = set(
    "relu relu6 silu sigmoid tanh gelu elu selu celu leaky_relu mish hardswish hardsigmoid hardtanh"
    " softplus softsign logsigmoid tanhshrink softshrink hardshrink threshold prelu rrelu clamp"
    " clip clamp_min clamp_max add radd iadd sub rsub isub subtract mul rmul imul multiply div"
    " truediv rtruediv itruediv rdiv true_divide divide neg negative pow rpow square sqrt rsqrt exp"
    " log log1p abs absolute erf sin cos floor ceil round sign reciprocal maximum minimum where"
    " lerp addcmul addcdiv masked_fill eq ne gt ge lt le logical_not isnan floor_divide remainder"
    " floordiv nan_to_num type_as zeros_like ones_like full_like rand_like randn_like bernoulli"
    " softmax log_softmax".split()
)
PRODUCTS = {"mul", "rmul", "imul", "multiply"}  # 0 where one factor is
RANDOM_OR_SOFT = set("full_like rand_like randn_like bernoulli softmax log_softmax rrelu".split())
# The tensor itself, in another place, type or memory format.
SAME = set(
    "contiguous clone detach to float double half bfloat16 type cuda cpu requires_grad data"
    " positive dropout dropout1d dropout2d dropout3d native_dropout alpha_dropout"
    " feature_alpha_dropout feature_dropout identity real".split()
)
# Pools and the like: channel by channel, and of a constant map they give the constant.
SPATIAL = {
    f"{kind}_pool{d}d" for kind in "max avg adaptive_max adaptive_avg lp".split() for d in (1, 2, 3)
} | set("interpolate upsample upsample_nearest upsample_bilinear boolean_dispatch".split())
SPATIAL |= {f"{k}max_pool{d}d_with_indices" for k in ("", "adaptive_") for d in (1, 2, 3)}
MEANS = {"mean", "amax", "amin", "max", "min"}  # over axes without channels they keep constants
SUMS = {"sum", "std", "var", "argmax", "argmin", "any", "all", "prod"}  # and these keep 0 only
REARRANGING = set(
    "flatten unflatten view reshape permute transpose swapaxes movedim t T squeeze unsqueeze chunk"
    " split split_with_sizes tensor_split unbind getitem expand expand_as reshape_as view_as narrow"
    " flip roll pixel_shuffle pixel_unshuffle channel_shuffle unsafe_chunk mT select repeat"
    " moveaxis".split()
)
PARTS = {"chunk", "unsafe_chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
PICKING = {"pixel_shuffle", "narrow", "select", "repeat", "roll", "flip", "pixel_unshuffle"}
NEW = {f"new_{kind}" for kind in "empty zeros ones full".split()}  # of the type of a tensor
CONVOLUTIONS = {f"conv{t}{d}d" for d in (1, 2, 3) for t in ("", "_transpose")}
STRICT = False  # whether tests want to see errors of the rules
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
    """Why channels cannot be removed."""


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

    def read(self, trace: Trace, training: bool) -> None:
        """Follow the calls of one trace."""
        _Reader(self, trace, training).run()
        self.fixed |= trace.fixed

    def join_widths(self) -> None:
        """An int of a module counts the same channels wherever it is used, or stays."""
        for source, counted in self.widths.items():
            for atoms in counted[1:]:
                self.join(counted[0], atoms)
            if source in self.fixed:
                module, attribute, _ = source
                name = f"{module}.{attribute}".lstrip(".")
                self.pin(torch.cat(counted), f"code does not only split at {name}")


class _Reader:
    """The signals of every value of one trace."""

    def __init__(self, all_: Signals, trace: Trace, training: bool) -> None:
        self.all, self.trace, self.training = all_, trace, training
        self.signals: dict[int, Tensor] = {}
        self.unseen = set(trace.unseen)
        self.counted: set[int] = set()  # ids of the widths of a call that are known to follow

    def run(self) -> None:
        for call in self.trace.calls:
            self.follow(call)
        for value in self.trace.outputs:
            signals = self.of(value)
            self.all.pin(self.all.atom(signals), "it is an output of the model")
            self.step("other", "output", [signals], None)
        if self.unseen:
            everything = torch.arange(self.all.atom_count)
            self.all.pin(
                everything, "the model runs code that torch cannot see (compiled, or of its own)"
            )

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
            if name is not None:
                wide = [axis for axis, size in enumerate(shape) if size > 1]
                if not wide or (len(wide) == 1 and wide[0] < 2):
                    atoms = self.all.axes[name][wide[0]] if wide else torch.tensor([FIXED])
                    flat = self.all.new(atoms.view([-1 if n > 1 else 1 for n in shape]))
                    self.all.known.append(flat)
                    self.step("known", name, [], flat)
                else:
                    for atoms in self.all.axes[name]:
                        self.all.pin(atoms, f"code reads {name} as a whole")
            self.signals[value] = flat
        return self.signals[value]

    def follow(self, call: Call) -> None:
        try:
            self.apply(call)
        except NotPrunable as reason:
            self.stop(call, str(reason))
        except Exception:  # of an operation in a form that the rules do not foresee
            if STRICT:
                raise
            self.stop(call, f"{_where(call)} is called in a form that is not known")
        if call.name in SPLITTING:
            given = leaves((call.args, call.kwargs))
            slices = [n for x in given if isinstance(x, slice) for n in (x.start, x.stop, x.step)]
            widths = [n for n in (*given, *slices) if isinstance(n, Width)]
            self.all.fixed |= {n.source for n in widths if id(n) not in self.counted}

    def count(self, width: Width, signals: Tensor, axis: int) -> None:
        """An int of a module says how many channels there are along an axis."""
        shape = [int(width) if a == axis else n for a, n in enumerate(signals.shape)]
        atoms = self.along(signals.expand(shape), axis)
        self.all.widths.setdefault(width.source, []).append(atoms.repeat(width.times))
        self.counted.add(id(width))

    def stop(self, call: Call, reason: str) -> None:
        """Everything that ``call`` reads stays as it is."""
        inputs = [self.of(value) for value in call.refs()]
        for signals in inputs:
            self.all.pin(self.all.atom(signals), reason)
        self.step("other", call.name, inputs, None)
        for value in _refs(call.outputs):
            self.signals[value] = torch.full([1] * len(self.trace.shapes[value]), VARYING)

    def apply(self, call: Call) -> None:
        name = call.name
        if name == "size":
            self.size(call)
        elif name in CONVOLUTIONS or name == "linear":
            self.layer(call)
        elif name == "batch_norm":
            self.norm(call)
        elif name in SAME:
            signals = self.of(_ref(call.argument(0, "input")))
            if "dropout" in name and self.training:
                self.all.dropped.append(signals.flatten())
            if _truncates(call):
                signals = self.made(name, [signals], _varying)
            self.keep(call, signals)
        elif name in SPATIAL:
            self.spatial(call)
        elif name in MEANS | SUMS and len(call.refs()) == 1:
            self.reduce(call)
        elif name in ELEMENTWISE | MEANS:
            self.elementwise(call)
        elif name in ("cat", "concat", "concatenate", "stack"):
            self.cat(call)
        elif name == "pad":
            self.pad(call)
        elif name == "index_select":
            self.select(call)
        elif name in REARRANGING:
            self.rearrange(call)
        elif call.refs() and name not in NEW:
            raise NotPrunable(f"{_where(call)} reads it")
        else:  # made of nothing: a constant tensor
            for value in _refs(call.outputs):
                self.of(value)

    def keep(self, call: Call, signals: Tensor) -> None:
        """All outputs have these signals."""
        for value in _refs(call.outputs):
            if not _fits(signals, self.trace.shapes[value]):
                raise NotPrunable(f"{_where(call)} gives another shape than expected")
        for value in _refs(call.outputs):
            self.signals[value] = signals

    def channels(self, call: Call, value: int, axis: int) -> Tensor:
        """The signals along the one axis that may have channels, [size]."""
        signals, shape = self.of(value), self.trace.shapes[value]
        axis %= max(len(shape), 1)
        if any(n > 1 for i, n in enumerate(signals.shape) if i != axis):
            raise NotPrunable(f"{_where(call)} works along another axis")
        return signals.flatten().expand(shape[axis])

    def layer(self, call: Call) -> None:
        """A convolution or linear layer: reads channels, and writes new ones."""
        value, weight, bias = (
            call.argument(i, n) for i, n in enumerate(("input", "weight", "bias"))
        )
        value, name = _ref(value), self.trace.names.get(_ref(weight))
        if name is None:
            raise NotPrunable(f"{_where(call)} computes with weights that are no parameter")
        axes, linear = self.all.axes[name], call.name == "linear"
        dims = len(self.trace.shapes[value])
        if not linear and dims != len(self.trace.shapes[_ref(weight)]):
            raise NotPrunable(f"{_where(call)} takes one image without a batch")
        axis = dims - 1 if linear else 1
        inputs = self.channels(call, value, axis)
        module, path, key = self.all.owner[name]
        own_bias = self.trace.names.get(bias.value) if isinstance(bias, Ref) else ""
        if own_bias is None:
            raise NotPrunable(f"{_where(call)} adds a bias that is no parameter")
        transposed = "transpose" in call.name
        groups = 1 if linear else options(call).groups
        if groups > 1 and not (key == "weight" and isinstance(module, nn.modules.conv._ConvNd)):
            raise NotPrunable(f"{_where(call)} computes in groups whose number its code says")
        rows, columns = (axes[1], axes[0]) if transposed else (axes[0], axes[1])
        atoms = self.all.atom(inputs)
        if groups == 1:
            self.all.join(atoms, columns)
        else:  # inputs and outputs of a group can only be removed together
            if transposed:
                fresh = (self.all.fresh(len(axes[1]) * groups),)
                rows = self.all.axes.setdefault(f"{name}:out", fresh)[0]
                self.all.join(atoms, columns)
                self.all.pin(axes[1], "it is counted within groups")
            grouped = atoms.view(groups, -1)
            self.all.join(grouped[:, :1], grouped)
            self.all.join(grouped[:, :1], rows.view(groups, -1))
        if own_bias:
            self.all.join(rows, self.all.axes[own_bias][0])
        shape = [1] * dims
        shape[axis] = -1
        output = self.all.new(rows).view(shape)
        self.keep(call, output)
        kind = "linear" if linear else "convolution" if groups == 1 else "grouped"
        self.step(kind, path, [inputs], output.flatten(), call, weight=name, bias=own_bias)

    def norm(self, call: Call) -> None:
        """A batch norm: its own channels, which are joined to those it reads, or select them,
        later."""
        value, *own = call.args[:5]  # running mean and variance, weight, bias
        keys = ("mean", "variance", "weight", "bias")
        names = [self.trace.names.get(x.value) if isinstance(x, Ref) else "" for x in own]
        of = dict(zip(keys, names, strict=True))
        first = of["weight"] or of["mean"]
        if not first or None in names:
            raise NotPrunable(f"{_where(call)} computes its scaling factors or its statistics")
        inputs = self.channels(call, _ref(value), 1)
        atoms = self.all.axes[first][0]
        for name in names:
            if name:
                self.all.join(atoms, self.all.axes[name][0])
        shape = [1, -1, *[1] * (len(self.trace.shapes[_ref(value)]) - 2)]
        output = self.all.new(atoms).view(shape)
        self.keep(call, output)
        self.step("norm", self.all.owner[first][1], [inputs], output.flatten(), call, **of)

    def size(self, call: Call) -> None:
        """Code computes with a size, which has to stay; or finds it equal to another, or a
        multiple."""
        size, axes, divisor, others = call.args
        wide = [x for axis in sorted(axes) if len(x := self.along(self.of(axis[0]), axis[1])) > 1]
        for atoms in wide:
            other = [self.along(self.of(value), axis) for value, axis in sorted(others or ())]
            if divisor and size == 0 and len(atoms) % divisor == 0:
                parts = atoms.view(divisor, -1)
                self.all.join(parts[:1], parts)
            elif len(wide) == len(other) == 1 and len(atoms) == len(other[0]):
                self.all.join(atoms, other[0])
            else:
                for each in (atoms, *other):
                    self.all.pin(
                        each, f"code of {call.module or 'the model'} computes with its width"
                    )

    def along(self, signals: Tensor, axis: int) -> Tensor:
        """The atoms along an axis, one where all are the same."""
        if axis >= signals.dim() or signals.shape[axis] == 1:
            return torch.zeros(1, dtype=torch.int64)
        first = signals.movedim(axis, 0).flatten(1)
        if first.shape[1] > 1:
            self.all.join(self.all.atom(first[:, :1]), self.all.atom(first))
        return self.all.atom(first[:, 0])

    def spatial(self, call: Call) -> None:
        """Pools and the like; of a constant map they give the constant, but see :func:`_blurs`."""
        signals = self.of(_ref(call.argument(0, "input")))
        if any(n > 1 for n in signals.shape[2:]) or signals.dim() < 3:
            raise NotPrunable(f"{_where(call)} works along another axis")
        if _blurs(call):
            signals = self.made("pad", [signals], lambda x: x.masked_fill(x != 0, math.nan))
        self.values(call, signals)

    def values(self, call: Call, signals: Tensor) -> None:
        """The first output has these signals, the others are indices of where they were found."""
        first, *indices = _refs(call.outputs)
        if not _fits(signals, self.trace.shapes[first]):
            raise NotPrunable(f"{_where(call)} gives another shape than expected")
        self.signals[first] = signals
        for value in indices:
            self.signals[value] = self.made(call.name, [signals], _varying)

    def reduce(self, call: Call) -> None:
        """Means, sums and extremes over axes without channels."""
        value = _ref(call.argument(0, "input"))
        signals, dims = self.of(value), len(self.trace.shapes[value])
        axes = call.argument(1, "dim", call.kwargs.get("axis"))
        axes = range(dims) if axes is None else (axes,) if isinstance(axes, int) else axes
        axes = sorted({axis % max(dims, 1) for axis in axes}, reverse=True)
        across = [axis for axis in axes if signals.shape[axis] > 1]
        several = len(across) == 1 and signals.numel() > signals.shape[across[0]]
        if several and call.name in ("sum", "mean"):  # of parts that stay equally wide
            combine = torch.sum if call.name == "sum" else torch.mean
            parts = [*signals.split(1, across[0])]
            signals = self.made(call.name, parts, lambda *x: combine(torch.stack(x), 0))
        elif across:
            raise NotPrunable(f"{_where(call)} works over all channels")
        if call.name in SUMS and any(self.trace.shapes[value][a] > 1 for a in {*axes} - {*across}):
            signals = self.made(call.name, [signals], lambda x: x.masked_fill(x != 0, math.nan))
        if len(_refs(call.outputs)) and len(self.trace.shapes[_refs(call.outputs)[0]]) < dims:
            for axis in axes:
                signals = signals.squeeze(axis)
        self.values(call, signals)

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

    def elementwise(self, call: Call) -> None:
        values = call.refs()
        outputs = _refs(call.outputs)
        dims = max(len(self.trace.shapes[v]) for v in outputs)
        shape = self.trace.shapes[outputs[0]]
        arrays: list[Tensor] = []
        for position, value in enumerate(values):
            signals = self.of(value)
            if call.name == "prelu" and position == 1:  # one slope for each channel, along axis 1
                signals = signals.view(-1, *[1] * (dims - 2))
            arrays.append(signals.view([1] * (dims - signals.dim()) + list(signals.shape)))
        wide = {axis for x in arrays for axis, n in enumerate(x.shape) if n > 1}
        numbers = leaves((call.args, call.kwargs))
        for size in (x for x in numbers if isinstance(x, Dim)):
            self.size(
                Call("size", call.function, (int(size), size.axes, 0, None), {}, None, call.module)
            )
        if call.name in ("softmax", "log_softmax"):
            axis = call.argument(1, "dim")
            if axis is None or wide == {axis % dims}:
                raise NotPrunable(f"{_where(call)} works over all channels")
            if axis % dims in wide:  # over parts that stay equally wide
                soft, parts = getattr(torch, call.name), arrays[0].split(1, axis)
                functions = [lambda *x, i=i: soft(torch.stack(x), 0)[i] for i in range(len(parts))]
                made = [self.made(call.name, [*parts], function) for function in functions]
                self.keep(call, torch.cat(made, axis))
                return
        joined = torch.broadcast_shapes(*(x.shape for x in arrays)) if wide else (1,) * dims
        if any(n not in (1, shape[axis]) for axis, n in enumerate(joined)):
            raise NotPrunable(f"{_where(call)} broadcasts its channels")
        # What has one value for all channels broadcasts; what is as wide as they are without having
        # any cannot follow when some are removed, and joins them to atom 0.
        output_atoms: Tensor | None = None
        for value, x in zip(values, arrays, strict=True):
            own = (1,) * (dims - len(self.trace.shapes[value])) + self.trace.shapes[value]
            if call.name == "prelu" and x is not arrays[0]:
                own = tuple(x.shape)
            atoms = self.all.atom(x)
            if wide and all(own[axis] == 1 for axis in wide):
                self.all.pin(atoms[atoms != FIXED], f"{_where(call)} combines it with all channels")
            elif output_atoms is None:
                output_atoms = atoms.expand(joined)
            else:
                self.all.join(output_atoms, atoms.expand(joined))
        assert output_atoms is not None
        output = self.all.new(output_atoms.contiguous())

        inputs = [x.expand(joined) for x in arrays]
        self.step("elementwise", call.name, inputs, output, call, partial(_evaluate, call))
        self.keep(call, output)

    def cat(self, call: Call) -> None:
        parts = call.argument(0, "tensors")
        values = [_ref(x) for x in parts]
        axis = call.argument(1, "dim", call.kwargs.get("axis", 0))
        arrays = [self.of(v) for v in values]
        dims = len(self.trace.shapes[values[0]])
        if call.name == "stack":
            axis %= dims + 1
            arrays = [x.unsqueeze(axis) for x in arrays]
            sizes = [1] * len(arrays)
        else:
            kept = [
                (v, x) for v, x in zip(values, arrays, strict=True) if self.trace.shapes[v] != (0,)
            ]
            values, arrays = [v for v, _ in kept], [x for _, x in kept]
            axis %= max(len(self.trace.shapes[values[0]]), 1)
            sizes = [self.trace.shapes[v][axis] for v in values]
        others = {a for x in arrays for a, n in enumerate(x.shape) if n > 1 and a != axis}
        if others:  # channels lie along another axis: the same ones in all parts
            if any(x.shape[axis] > 1 for x in arrays):
                raise NotPrunable(f"{_where(call)} joins channels along two axes")
            real = [
                (*self.trace.shapes[v][:axis], 1, *self.trace.shapes[v][axis:])
                if call.name == "stack"
                else self.trace.shapes[v]
                for v in values
            ]
            shape = torch.broadcast_shapes(*(x.shape for x in arrays))
            assert all(r[a] == n for r in real for a, n in enumerate(shape) if n > 1)
            signals = self.made(call.name, [x.expand(shape) for x in arrays], _all_equal)
        elif all(x.numel() == 1 and int(self.all.atom(x)) == FIXED for x in arrays):
            signals = torch.full([1] * arrays[0].dim(), VARYING)
        else:
            wide = [
                x.expand(*(n if a == axis else 1 for a in range(x.dim())))
                for x, n in zip(arrays, sizes, strict=True)
            ]
            signals = torch.cat(wide, axis)
        self.keep(call, signals)

    def pad(self, call: Call) -> None:
        """Channels are padded by what stays; maps by a border, where a constant is one no more."""
        value, widths = _ref(call.argument(0, "input")), call.argument(1, "pad")
        mode, fill = call.argument(2, "mode", "constant"), call.argument(3, "value", 0) or 0
        signals, shape = self.of(value), self.trace.shapes[value]
        dims = len(shape)
        pairs = {dims - 1 - i: (widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)}
        padded = {axis for axis, pair in pairs.items() if any(pair)}
        along = {axis for axis in padded if signals.shape[axis] > 1}
        for axis in along:
            if mode != "constant" or any(n < 0 for n in pairs[axis]):
                raise NotPrunable(f"{_where(call)} pads or crops its channels")
            border = ZERO if fill == 0 else VARYING
            parts = [
                torch.full([n if a == axis else 1 for a in range(dims)], border)
                for n in pairs[axis]
            ]
            middle = [n if a == axis else 1 for a, n in enumerate(signals.shape)]
            assert list(signals.shape) == middle
            signals = torch.cat((parts[0], signals, parts[1]), axis)
        if padded - along and mode == "constant":
            signals = self.made("pad", [signals], lambda x: x.masked_fill(x != fill, math.nan))
        self.keep(call, signals)

    def select(self, call: Call) -> None:
        """Some channels of a tensor: an index of its own, which follows when channels are
        removed."""
        value, axis, index = (call.argument(i, n) for i, n in enumerate(("input", "dim", "index")))
        name = self.trace.names.get(_ref(index))
        if name is None:
            raise NotPrunable(f"{_where(call)} selects channels by a computed index")
        buffer = dict(self.all.model.named_buffers()).get(name)
        if buffer is None or buffer.is_meta:
            raise NotPrunable(f"{_where(call)} selects channels by an index without content")
        stream = self.channels(call, _ref(value), axis)
        inputs = stream[buffer.cpu()]
        own = self.all.axes[name][0]
        shape = [1] * len(self.trace.shapes[_ref(value)])
        shape[axis] = -1
        output = self.all.new(own).view(shape)
        self.keep(call, output)
        self.step("select", name, [inputs], output.flatten(), call, stream=stream)

    def rearrange(self, call: Call) -> None:
        """Do with the signals what is done with the tensor."""
        value = _ref(call.args[0])
        signals, shape = self.of(value), self.trace.shapes[value]
        if signals.numel() == 1:
            for out in _refs(call.outputs):
                self.signals[out] = signals.view([1] * len(self.trace.shapes[out]))
            return
        whole = signals.expand(shape)
        whole = whole.contiguous() if call.name in ("view", "view_as") else whole
        args, kwargs = each(self.literal, (call.args[1:], call.kwargs))
        if call.name == "getitem":
            self.check_index(call, signals, shape)
        try:
            attribute = call.name in ("T", "mT")
            result = (
                getattr(whole, call.name) if attribute else call.function(whole, *args, **kwargs)
            )
        except Exception:
            raise NotPrunable(f"{_where(call)} rearranges it") from None
        results = list(result) if isinstance(result, tuple | list) else [result]
        arrays, outs = [_compressed(x) for x in results], _refs(call.outputs)
        if call.name in PARTS:
            self.check_parts(call, arrays, signals)
        elif call.name in ("view", "reshape", "unflatten", "expand"):
            self.check_view(call, arrays[0])
        elif call.name in ("expand_as", "reshape_as", "view_as"):
            self.check_like(call, arrays[0])
        elif call.name == "squeeze" and len(call.args) == 1 and not call.kwargs:
            for axis in (axis for axis, n in enumerate(signals.shape) if n > 1):
                reason = f"{_where(call)} drops every axis of size 1: name the axis"
                self.all.pin(self.all.atom(signals.narrow(axis, 0, 2)), reason)
        elif call.name == "channel_shuffle":
            atoms = self.all.atom(signals).flatten()
            if signals.dim() < 2 or signals.shape[1] != len(atoms):
                raise NotPrunable(f"{_where(call)} rearranges its channels")
            groups = atoms.view(args[0], -1)
            self.all.join(groups[:1], groups)
        elif call.name in PICKING and not torch.equal(arrays[0].flatten(), signals.flatten()):
            raise NotPrunable(f"{_where(call)} picks or rearranges its channels")
        for out, array in zip(outs, arrays, strict=True):
            if not _fits(array, self.trace.shapes[out]):
                raise NotPrunable(f"{_where(call)} gives another shape than expected")
            self.signals[out] = array

    def literal(self, x: Any) -> Any:
        """An argument without what the trace knows of it."""
        if isinstance(x, Ref):
            return torch.empty(self.trace.shapes[x.value], device="meta")
        return int(x) if isinstance(x, Dim | Width) else x

    def check_like(self, call: Call, array: Tensor) -> None:
        """The shape is another tensor's, whose channels follow."""
        other = self.of(_ref(call.argument(1, "other")))
        for axis in (axis for axis, n in enumerate(array.shape) if n > 1):
            if other.dim() <= axis or other.shape[axis] != array.shape[axis]:
                raise NotPrunable(f"{_where(call)} takes a width that does not follow")
        self.all.join(self.all.atom(array), self.all.atom(other))

    def check_index(self, call: Call, signals: Tensor, shape: Sequence[int]) -> None:
        """An index may not pick channels: it would pick others when some are removed."""
        index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        if any(isinstance(i, Ref | list) for i in index):
            raise NotPrunable(f"{_where(call)} picks channels by a computed index")
        given = sum(i is not None and i is not Ellipsis for i in index)
        axis = 0
        for i in index:
            if i is Ellipsis:
                axis += len(shape) - given
            elif i is not None:
                whole = isinstance(i, slice) and range(shape[axis])[_slice(i)] == range(shape[axis])
                if signals.shape[axis] > 1 and not whole:
                    if not isinstance(i, slice) or i.step is not None:
                        raise NotPrunable(f"{_where(call)} picks channels by number")
                    for bound in (i.start, i.stop):
                        if isinstance(bound, Width) and bound <= shape[axis]:
                            self.count(bound, signals.narrow(axis, 0, bound), axis)
                        elif bound is not None and not (bound is i.start and bound == 0):
                            raise NotPrunable(f"{_where(call)} picks channels by number")
                axis += 1

    def check_parts(self, call: Call, arrays: list[Tensor], signals: Tensor) -> None:
        """Parts of equal width must stay so; widths that are written in code must stay as they
        are."""
        position = 1 if call.name == "unbind" else 2
        axis = call.argument(position, "dim", 0) % signals.dim()
        if signals.shape[axis] == 1:
            return
        given = [*call.args[1:2], *call.kwargs.values()][0]
        by_count = "chunk" in call.name or call.name == "tensor_split"
        by_count = by_count and isinstance(given, int) and not isinstance(given, Dim)
        sizes = given if isinstance(given, tuple | list) else [given]
        if isinstance(given, tuple | list) and all(isinstance(n, Width) for n in sizes):
            for n, part in zip(sizes, arrays, strict=True):
                self.count(n, part, axis)
            return
        if call.name == "unbind" or not (by_count or all(self.follows(n) for n in sizes)):
            raise NotPrunable(f"{_where(call)} splits it at widths that are written in the code")
        if len({x.shape[axis] for x in arrays}) > 1:
            raise NotPrunable(f"{_where(call)} splits it into unequal parts")
        for x in arrays[1:]:
            self.all.join(self.all.atom(arrays[0]), self.all.atom(x))
        for n in sizes:
            if isinstance(n, Width):
                self.count(n, arrays[0], axis)
            elif isinstance(n, Dim):
                self.tie(n, signals, arrays[0], axis)

    def follows(self, n: Any) -> bool:
        """Whether a size is read from channels."""
        if not isinstance(n, Dim):
            return isinstance(n, Width)
        arrays = [(self.of(value), axis) for value, axis in n.axes]
        return any(x.dim() > axis and x.shape[axis] > 1 for x, axis in arrays)

    def tie(self, n: Dim, whole: Tensor, signals: Tensor, axis: int) -> None:
        """Channels along an axis, of those of ``whole``, stay as many as a size says."""
        read = [self.along(self.of(value), a) for value, a in sorted(n.axes)]
        read = [atoms for atoms in read if len(atoms) > 1]
        if torch.equal(torch.cat(read).unique(), self.all.atom(whole).unique()):
            return  # its own size
        atoms = self.along(signals, axis)
        short, long = sorted((atoms, torch.cat(read)), key=len)
        if len(read) > 1 or len(long) % len(short):
            raise NotPrunable("it takes the width of others")
        self.all.join(short, long.view(-1, len(short)))

    def check_view(self, call: Call, array: Tensor) -> None:
        """A width that is written in code stays: what varies along that axis goes together or
        not."""
        sizes: Sequence[Any] = call.args[1:]
        before = rest = 0  # axes that are not in sizes, and do not change
        if call.name == "unflatten":
            dims = len(self.trace.shapes[_ref(call.args[0])])
            before = call.argument(1, "dim") % dims
            sizes, rest = call.argument(2, "sizes"), dims - before - 1
        elif len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = sizes[0]
        elif call.kwargs:
            sizes = next(iter(call.kwargs.values()))
        if any(not isinstance(n, int) for n in sizes):
            return  # another dtype
        literal = range(before, array.dim() - rest)
        free = {before + i for i, n in enumerate(sizes) if self.follows(n)}
        for axis in (axis for axis in free if array.shape[axis] > 1):
            self.tie(sizes[axis - before], array, array, axis)
        if not free or call.name == "expand":
            free |= {before + i for i, n in enumerate(sizes) if int(n) == -1}
        free |= {*range(array.dim())} - {*literal}
        atoms = self.all.atom(array)
        for axis in (axis for axis in literal if array.shape[axis] > 1 and axis not in free):
            self.all.join(atoms.narrow(axis, 0, 1), atoms)
            if not any(array.shape[a] > 1 for a in free):
                raise NotPrunable(f"{_where(call)} has a width that is written in the code")


def _fits(signals: Tensor, shape: Sequence[int]) -> bool:
    """Whether ``signals`` broadcast to ``shape``."""
    pairs = zip(signals.shape, shape, strict=False)
    return signals.dim() == len(shape) and all(a in (1, b) for a, b in pairs)


def _evaluate(call: Call, *numbers: Tensor) -> Tensor:
    """What an elementwise operation makes of constants, NaN where it varies or is not finite."""
    varies = torch.stack([x.isnan() for x in numbers]).any(0)
    if call.name == "prelu":
        result = torch.where(numbers[0] >= 0, numbers[0], numbers[0] * numbers[1])
    elif call.name in ("zeros_like", "ones_like"):
        return torch.full_like(numbers[0], float(call.name == "ones_like"))
    elif call.name in RANDOM_OR_SOFT:
        return _varying(numbers[0])
    else:
        rest = iter(numbers)
        args = each(lambda x: next(rest) if isinstance(x, Ref) else x, (call.args, call.kwargs))
        try:
            result = _function(call.name, call.function, *args).to(numbers[0].dtype)
        except Exception:  # of an argument that constants do not take
            return _varying(numbers[0])
    result = result.masked_fill(varies | ~result.isfinite(), math.nan)
    if call.name in PRODUCTS:
        result = result.masked_fill(torch.stack([x == 0 for x in numbers]).any(0), 0)
    return result


def _function(
    name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    kwargs = {key: x for key, x in kwargs.items() if key not in ("inplace", "out")}
    positional = list(args)
    condition = {"where": 0, "masked_fill": 1}.get(name)
    if condition is not None:
        if name == "where" and not (isinstance(args[0], Tensor) and function is torch.where):
            raise ValueError("a condition that is passed another way")
        positional[condition] = args[condition] != 0
    return function(*positional, **kwargs)


def _varying(x: Tensor) -> Tensor:
    return torch.full_like(x, math.nan)


def _truncates(call: Call) -> bool:
    """Whether a change of type is to one that does not hold every number."""
    given = (*call.args[1:], *call.kwargs.values())
    floating = all(x.is_floating_point for x in given if isinstance(x, torch.dtype))
    return not floating or (call.name == "type" and any(isinstance(x, str | type) for x in given))


def _blurs(call: Call) -> bool:
    """Whether a pool makes another number of a constant: at its padding, say."""
    if "lp_pool" in call.name:
        return True
    if "avg_pool" not in call.name or "adaptive" in call.name:
        return False
    padding = call.argument(3, "padding", 0)
    padded = any(padding) if isinstance(padding, tuple | list) else padding != 0
    divided = call.argument(6, "divisor_override") is not None
    return divided or bool(padded and call.argument(5, "count_include_pad", True))


def _all_equal(*parts: Tensor) -> Tensor:
    equal = torch.stack([part == parts[0] for part in parts]).all(0)
    return torch.where(equal, parts[0], math.nan)


def _slice(s: slice) -> slice:
    return slice(*(None if x is None else int(x) for x in (s.start, s.stop, s.step)))


def _compressed(signals: Tensor) -> Tensor:
    """The same, with size 1 along every axis along which it is the same."""
    for axis in range(signals.dim()):
        if signals.shape[axis] > 1 and bool((signals == signals.narrow(axis, 0, 1)).all()):
            signals = signals.narrow(axis, 0, 1)
    return signals.contiguous()


def _ref(x: Any) -> int:
    if not isinstance(x, Ref):
        raise NotPrunable("an operation takes something else than a tensor")
    return x.value


def _refs(x: Any) -> list[int]:
    if isinstance(x, Ref):
        return [x.value]
    if isinstance(x, Mapping):
        x = list(x.values())
    return [v for each in x for v in _refs(each)] if isinstance(x, tuple | list) else []


def _where(call: Call) -> str:
    """The operation and the module whose code calls it."""
    return f"'{call.name}' in {call.module or 'the model'}"
