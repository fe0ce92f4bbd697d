"""Rules for the effect of each operation on channels, from which the dependency graph is made.

Every channel of a tensor is a *signal*; a tensor carries an integer array of them that broadcasts
to its shape, [1, C, 1, 1] for most. Every signal belongs to an *atom*, an index along an axis of a
parameter (such as row 3 of a convolution's weight). Atoms that an operation combines (the two
sides of an addition, input and output of a depthwise convolution) are joined by an *edge*: they
can only be removed together. Atom 0 can never be removed.

Operations that rearrange tensors (flatten, permute, chunk, cat, ...) are applied to the arrays of
signals. Channels for which no rule holds cannot be removed, with a reason.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim.sizes import Dim, Source, Width, as_int, widths_in
from netslim.trace import SPLITTING, Call, Trace, Value, each, named_tensors

FIXED, VARYING, ZERO = 0, 0, 1  # atom 0; the signal of unknown values; the signal of padding
NOTHING = torch.empty(0, dtype=torch.int64)
# Elementwise operations: an output channel is a function of the same channel of the inputs.
ELEMENTWISE = set(
    "relu relu6 silu sigmoid tanh gelu elu selu celu leaky_relu mish hardswish hardsigmoid hardtanh"
    " softplus softsign logsigmoid tanhshrink softshrink hardshrink threshold prelu rrelu clamp"
    " clip clamp_min clamp_max add radd iadd sub rsub isub subtract mul rmul imul multiply div"
    " truediv rtruediv itruediv rdiv true_divide divide neg negative pow rpow square sqrt rsqrt exp"
    " log log1p abs absolute erf sin cos floor ceil round sign reciprocal maximum minimum where"
    " lerp addcmul addcdiv masked_fill eq ne gt ge lt le logical_not isnan floor_divide remainder"
    " floordiv nan_to_num zeros_like ones_like full_like rand_like randn_like bernoulli"
    " softmax log_softmax".split()
)
PRODUCTS = {"mul", "rmul", "imul", "multiply"}  # 0 if one factor is 0
CONDITIONS = {"where": 0, "masked_fill": 1}  # position of the condition
RANDOM_OR_SOFT = set("full_like rand_like randn_like bernoulli softmax log_softmax rrelu".split())
# Operations that return the same values.
SAME = set(
    "contiguous clone detach to float double half bfloat16 type cuda cpu requires_grad data"
    " positive dropout dropout1d dropout2d dropout3d native_dropout alpha_dropout"
    " feature_alpha_dropout feature_dropout identity real type_as".split()
)
# Pooling and resizing: channel by channel; a constant map stays constant.
SPATIAL = {
    f"{kind}_pool{d}d" for kind in "max avg adaptive_max adaptive_avg lp".split() for d in (1, 2, 3)
} | set("interpolate upsample upsample_nearest upsample_bilinear boolean_dispatch".split())
SPATIAL |= {f"{k}max_pool{d}d_with_indices" for k in ("", "adaptive_") for d in (1, 2, 3)}
MEANS = {"mean", "amax", "amin", "max", "min"}  # keep constants over axes without channels
SUMS = {"sum", "std", "var", "argmax", "argmin", "any", "all", "prod"}  # keep only 0
REARRANGING = set(
    "flatten unflatten view reshape permute transpose swapaxes movedim t T squeeze unsqueeze chunk"
    " split split_with_sizes tensor_split unbind getitem expand expand_as reshape_as view_as narrow"
    " flip roll pixel_shuffle pixel_unshuffle channel_shuffle unsafe_chunk mT select repeat"
    " moveaxis".split()
)
PARTS = {"chunk", "unsafe_chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
PICKING = {"pixel_shuffle", "narrow", "select", "repeat", "roll", "flip", "pixel_unshuffle"}
NEW = {f"new_{kind}" for kind in "empty zeros ones full".split()}  # new tensors of a tensor's dtype
CONVOLUTIONS = {f"conv{t}{d}d" for d in (1, 2, 3) for t in ("", "_transpose")}
STRICT = False  # for tests: raise errors of the rules


class NotPrunable(Exception):
    """The reason why an operation keeps channels from being removed."""


@dataclass
class Step:
    """An operation that computes new signals from others.

    Attributes:
        kind: "convolution" (in one group), "grouped", "linear", "norm", "select", "elementwise",
            "known" (a parameter) or "other" (reads only).
        name: name of the operation or layer.
        inputs, output: arrays of signals; the output of an operation that only reads is empty.
        training: whether it was recorded in training mode.
        call: the recorded call with its arguments.
        function: the elementwise operation on constants (float64, NaN: varies).
        weight, bias, mean, variance: names of a layer's parameters and buffers, "" for none.
        groups: of a convolution.
        transposed: whether a convolution is transposed.
        bordered: whether a constant input gives no constant: because of zero padding or strides.
        stream: the signals from which a selection chooses.
    """

    kind: str
    name: str
    inputs: list[Tensor]
    output: Tensor
    training: bool
    call: Call | None = None
    function: Callable[..., Tensor] | None = None
    weight: str = ""
    bias: str = ""
    mean: str = ""
    variance: str = ""
    groups: int = 1
    transposed: bool = False
    bordered: bool = False
    stream: Tensor | None = None

    @property
    def one_by_one(self) -> bool:
        """Whether each output channel of a grouped convolution reads one input channel."""
        return self.groups == len(self.inputs[0])

    @property
    def by_module(self) -> bool:
        """Whether the module that has the parameters calls the operation."""
        return self.call is not None and self.call.module == self.name


class Signals:
    """Signals, atoms and steps of a model, from its traces in evaluation and training mode.

    Attributes:
        table: int64, the atom of each signal, with spare capacity behind the first ``count``.
        edges: pairs of joined atoms, [2, n].
        pins: atoms that cannot be removed, and the reason.
        axes: {parameter or buffer: atoms along its first two axes}.
        known: signals of parameters.
        dropped: inputs of dropout.
        widths: {int attribute of a module: the atoms that it counts, per use}.
        fixed: int attributes that code uses in other ways.
        parts: atoms of slices, which keep at least one channel.
    """

    def __init__(self, model: nn.Module, evaluation: Trace, training: Trace | None) -> None:
        self.model = model
        self.table, self.count, self.atom_count = torch.zeros(1024, dtype=torch.int64), 0, 1
        self.edges: list[Tensor] = []
        self.pins: list[tuple[Tensor, str]] = []
        self.steps: list[Step] = []
        self.known: list[Tensor] = []
        self.dropped: list[Tensor] = []
        self.parts: list[Tensor] = []
        self.widths: dict[Source, list[Tensor]] = {}
        self.fixed: set[Source] = set()
        self._written: dict[Any, Tensor] = {}  # outputs of layers, by call
        # Inputs and outputs of the calls in evaluation mode, by what they depend on.
        self._followed: dict[Any, tuple[list[str | Tensor], list[Tensor]]] = {}
        self._read: dict[str | int, Tensor] = {}  # by name of a parameter, or number of axes
        self._new(torch.zeros(2, dtype=torch.int64))  # VARYING and ZERO
        tensors = named_tensors(model)
        self.axes = {name: tuple(map(self._fresh, x.shape[:2])) for name, x in tensors.items()}
        self._owner: dict[str, tuple[nn.Module, str, str]] = {}
        for path, module in model.named_modules():
            for key, _ in (*module._parameters.items(), *module._buffers.items()):
                self._owner[f"{path}.{key}".lstrip(".")] = module, path, key
        self._follow_all(evaluation, training=False)
        if training is None:
            self.fixed |= {*self.widths}  # their use in training mode is unknown
        else:
            self._follow_all(training, training=True)
        for source, counted in self.widths.items():
            for atoms in counted[1:]:
                self._join(counted[0], atoms)
            if source in self.fixed:
                name = f"{source[0]}.{source[1]}".lstrip(".")
                self.pin(torch.cat(counted), f"code uses {name} for more than splitting")

    def _fresh(self, count: int) -> Tensor:
        """Returns ``count`` new atoms."""
        self.atom_count += count
        return torch.arange(self.atom_count - count, self.atom_count)

    def _new(self, atoms: Tensor) -> Tensor:
        """Returns new signals of these atoms, in their shape."""
        start, self.count = self.count, self.count + atoms.numel()
        if self.count > len(self.table):
            self.table = torch.cat((self.table, torch.zeros(self.count, dtype=torch.int64)))
        self.table[start : self.count] = atoms.flatten()
        return torch.arange(start, self.count).view(atoms.shape)

    def _join(self, a: Tensor, b: Tensor) -> None:
        """Adds edges between the atoms ``a`` and ``b``, which broadcast."""
        a, b = torch.broadcast_tensors(a, b)
        self.edges.append(torch.stack((a.flatten(), b.flatten())))

    def pin(self, atoms: Tensor, reason: str) -> None:
        """Marks ``atoms`` as not removable."""
        self.pins.append((atoms.flatten().unique(), reason))

    def _follow_all(self, trace: Trace, training: bool) -> None:
        """Adds the signals and steps of one trace."""
        self._training = training
        self._times: Counter[str] = Counter()  # calls of each layer
        self._counted: set[int] = set()  # ids of a call's widths that can follow a removal
        for call in trace.calls:
            self._follow(call)
        for value in trace.outputs:
            output = self._of(value)
            self.pin(self.table[output], "it is an output of the model")
            self._step("other", "output", [output])
        for name in trace.changed & self.axes.keys():
            for atoms in self.axes[name]:
                self.pin(atoms, f"code changes {name}")
        if trace.unseen:
            reason = "the model runs code that torch cannot see (compiled, or of its own)"
            self.pin(torch.arange(self.atom_count), reason)
        self.fixed |= trace.fixed

    def _follow(self, call: Call) -> None:
        """Finds the signals of a call's outputs; in training mode those of evaluation mode."""
        if "dropout" in call.name or call.name == "size":
            return self._apply_rule(call)
        inputs = [value.name or self._of(value) for value in call.inputs]
        sizes = [x for x in call.leaves if isinstance(x, Dim)]
        axes = [frozenset((id(self._of(value)), axis) for value, axis in n.axes) for n in sizes]
        widths = [(n.source, n.times) for n in _widths(call)]
        read = [x if isinstance(x, str) else id(x) for x in inputs]
        shapes = [value.shape for value in call.outputs]
        key = call.name, call.function, call.module, call.text, *read, *shapes, *axes, *widths
        if self._training and call.text and key in self._followed:
            for value, signals in zip(call.outputs, self._followed[key][1], strict=True):
                value.signals = signals
        else:
            self._apply_rule(call)
            self._followed[key] = inputs, [self._of(value) for value in call.outputs]

    def _apply_rule(self, call: Call) -> None:
        try:
            if call.name == "size":
                return self._size(call.module, *call.args)
            if call.name not in REARRANGING:
                self._pin_sizes(call)
            if not call.inputs or call.name in NEW:
                return  # a constant tensor
            if call.name not in RULES:
                raise NotPrunable("reads it")
            made = RULES[call.name](self, call)
            if not isinstance(made, list):  # further outputs, such as indices of maxima
                more = call.outputs[1:]
                made = [made, *(self._made(call.name, [made], _varying) for _ in more)]
            for value, signals in zip(call.outputs, made, strict=True):
                if not _fits(signals, value.shape):
                    raise NotPrunable("returns another shape than expected")
                value.signals = signals
        except NotPrunable as reason:
            self._stop(call, f"{_where(call)} {reason}")
        except Exception:  # a form of the operation without a rule
            if STRICT:
                raise
            self._stop(call, f"{_where(call)} is called in a form without a rule")
        self.fixed |= {n.source for n in _widths(call) if id(n) not in self._counted}

    def _stop(self, call: Call, reason: str) -> None:
        """Pins all channels that ``call`` reads."""
        inputs = [self._of(value) for value in call.inputs]
        for signals in inputs:
            self.pin(self.table[signals], reason)
        self._step("other", call.name, inputs)
        for value in call.outputs:
            value.signals = None  # unknown

    def _step(
        self, kind: str, name: str, inputs: list[Tensor], output: Tensor = NOTHING, **more: Any
    ) -> None:
        self.steps.append(Step(kind, name, inputs, output, self._training, **more))

    def _of(self, value: Value) -> Tensor:
        """Returns the signals of a tensor, [1, ..., C, ..., 1]."""
        if value.signals is None:
            key = value.name or len(value.shape)
            if key not in self._read:
                self._read[key] = self._unread(value)
            value.signals = self._read[key]
        return value.signals

    def _unread(self, value: Value) -> Tensor:
        """Returns new signals of a parameter, or those of a tensor of unknown origin."""
        name, shape = value.name, value.shape
        flat = torch.full([1] * len(shape), VARYING)
        wide = [axis for axis, size in enumerate(shape) if size > 1]
        if name and wide in ([], [0], [1]):
            atoms = self.axes[name][wide[0]] if wide else torch.tensor([FIXED])
            flat = self._new(atoms.view([-1 if n > 1 else 1 for n in shape]))
            self.known.append(flat)
            self._step("known", name, [], flat)
        elif name:
            for atoms in self.axes[name]:
                self.pin(atoms, f"code reads {name} as a whole")
        return flat

    def _made(self, name: str, inputs: list[Tensor], function: Callable[..., Tensor]) -> Tensor:
        """Returns new signals, elementwise functions of the inputs, and joins their atoms."""
        shape = torch.broadcast_shapes(*(x.shape for x in inputs))
        inputs = [x.expand(shape) for x in inputs]
        atoms = self.table[inputs[0]]
        for other in inputs[1:]:
            self._join(atoms, self.table[other])
        output = self._new(atoms)
        self._step("elementwise", name, inputs, output, function=function)
        return output

    def _channels(self, value: Value, axis: int) -> Tensor:
        """Returns the signals of a tensor along ``axis``, [size].

        Raises:
            NotPrunable: another axis has channels, too.
        """
        signals = self._of(value)
        if any(n > 1 for i, n in enumerate(signals.shape) if i != axis % len(value.shape)):
            raise NotPrunable("works along another axis")
        return signals.flatten().expand(value.shape[axis])

    def _along(self, signals: Tensor, axis: int) -> Tensor:
        """Returns the atoms along an axis, one if all are equal."""
        if axis >= signals.dim() or signals.shape[axis] == 1:
            return torch.tensor([FIXED])
        first = self.table[signals.movedim(axis, 0).flatten(1)]
        if first.shape[1] > 1:
            self._join(first[:, :1], first)
        return first[:, 0]

    def _counts(self, n: Dim) -> list[Tensor]:
        """Returns the atoms of the channels that a size counts."""
        read = [self._along(self._of(value), axis) for value, axis in n.axes]
        return [atoms for atoms in read if len(atoms) > 1]

    def _follows(self, n: Any) -> bool:
        """Whether ``n`` is a size that counts channels."""
        return isinstance(n, Dim) and bool(self._counts(n))

    def _tie(self, n: Dim, whole: Tensor, signals: Tensor, axis: int) -> None:
        """Joins the channels along an axis of ``signals`` with those that the size ``n`` counts."""
        read = self._counts(n)
        if torch.equal(torch.cat(read).unique(), self.table[whole].unique()):
            return  # its own size
        short, long = sorted((self._along(signals, axis), torch.cat(read)), key=len)
        if len(read) > 1 or len(long) % len(short):
            raise NotPrunable("uses the width of other channels")
        self._join(short, long.view(-1, len(short)))

    def _count(self, width: Width, signals: Tensor, axis: int) -> None:
        """Notes that an int attribute counts the channels along an axis."""
        shape = [int(width) if a == axis else n for a, n in enumerate(signals.shape)]
        atoms = self._along(signals.expand(shape), axis)
        self.widths.setdefault(width.source, []).append(atoms.repeat(width.times))
        self._counted.add(id(width))

    def _size(
        self, module: str, axes: Set[tuple[Value, int]], equal: Set[tuple[Value, int]], divisor: int
    ) -> None:
        """A size that code computes with is pinned, unless it is only compared or a multiple."""
        read = [self._along(self._of(value), axis) for value, axis in axes]
        wide = [atoms for atoms in read if len(atoms) > 1]
        other = [self._along(self._of(value), axis) for value, axis in equal]
        for atoms in wide:
            if divisor and len(atoms) % divisor == 0:
                self._join(atoms[: len(atoms) // divisor], atoms.view(divisor, -1))
            elif len(wide) == len(other) == 1 and len(atoms) == len(other[0]):
                self._join(atoms, other[0])
            else:
                for x in (atoms, *other):
                    self.pin(x, f"code of {module or 'the model'} computes with its width")

    def _pin_sizes(self, call: Call) -> None:
        """Pins the sizes among the arguments of a call."""
        for n in call.leaves:
            if isinstance(n, Dim):
                self._size(call.module, n.axes, frozenset(), 0)

    def same(self, call: Call) -> Tensor:
        signals = self._of(_tensor(call))
        if "dropout" in call.name and self._training:
            self.dropped.append(signals.flatten())
        return self._made(call.name, [signals], _varying) if _truncates(call) else signals

    def layer(self, call: Call) -> Tensor:
        """Convolutions and linear layers read channels and write new ones."""
        value, weight, bias = _tensor(call), _tensor(call, 1, "weight"), call.argument(2, "bias")
        name, linear, dims = weight.name, call.name == "linear", len(value.shape)
        if not name:
            raise NotPrunable("uses weights that are no parameter")
        if not linear and dims != len(weight.shape):
            raise NotPrunable("takes an image without a batch axis")
        if not linear and any(n > 1 for n in self._of(value).shape[2:]):
            raise NotPrunable("mixes neighbouring channels")
        axis = dims - 1 if linear else 1
        inputs = self._channels(value, axis)
        module, path, key = self._owner[name]
        if isinstance(bias, Value) and not bias.name:
            raise NotPrunable("uses a bias that is no parameter")
        own_bias = bias.name if isinstance(bias, Value) else ""
        transposed = "transpose" in call.name
        groups = 1 if linear else call.argument(6, "groups", 1)
        if groups > 1 and not (key == "weight" and isinstance(module, nn.modules.conv._ConvNd)):
            raise NotPrunable("has a number of groups that is written in the code")
        rows, columns = self.axes[name][:: -1 if transposed else 1]
        atoms = self.table[inputs]
        if groups == 1:
            self._join(atoms, columns)
        else:  # inputs and outputs of a group can only be removed together
            if transposed:
                self._join(atoms, columns)
                self.pin(rows, "it is indexed within groups")
                fresh = (self._fresh(len(rows) * groups),)
                rows = self.axes.setdefault(f"{name}:out", fresh)[0]
            grouped = atoms.view(groups, -1)
            self._join(grouped[:, :1], grouped)
            self._join(grouped[:, :1], rows.view(groups, -1))
        if own_bias:
            self._join(rows, self.axes[own_bias][0])
        shape = [1] * dims
        shape[axis] = -1
        self._times[name] += 1
        called = name, own_bias, self._times[name], *shape
        if called not in self._written or groups == len(inputs):
            self._written[called] = self._new(rows).view(shape)
        output = self._written[called]  # it varies, whatever the inputs are
        kind = "linear" if linear else "convolution" if groups == 1 else "grouped"
        bordered = transposed or (not linear and _pads(call.argument(4, "padding", 0)))
        of: dict[str, Any] = {"weight": name, "bias": own_bias, "groups": groups}
        of |= {"transposed": transposed, "bordered": bordered}
        self._step(kind, path, [inputs], output.flatten(), call=call, **of)
        return output

    def norm(self, call: Call) -> Tensor:
        """Batch norms have channels of their own, later joined to their inputs or selecting."""
        if call.function is not F.batch_norm:
            raise NotPrunable("is not torch.nn.functional's")
        value, *own = call.args[:5]
        names = [x.name if isinstance(x, Value) else "" for x in own]
        of = dict(zip(("mean", "variance", "weight", "bias"), names, strict=True))
        first = of["weight"] or of["mean"]
        if not first or any(isinstance(x, Value) and not x.name for x in own):
            raise NotPrunable("has scaling factors or statistics that are computed")
        inputs, atoms = self._channels(value, 1), self.axes[first][0]
        for name in filter(None, names):
            self._join(atoms, self.axes[name][0])
        output = self._new(atoms).view([1, -1, *[1] * (len(value.shape) - 2)])
        self._step("norm", self._owner[first][1], [inputs], output.flatten(), call=call, **of)
        return output

    def spatial(self, call: Call) -> Tensor:
        """Pooling and resizing keep a constant map constant, except :func:`_blurs`."""
        signals = self._of(_tensor(call))
        if any(n > 1 for n in signals.shape[2:]) or signals.dim() < 3:
            raise NotPrunable("works along another axis")
        return self._made("pad", [signals], _if_zero) if _blurs(call) else signals

    def reduce(self, call: Call) -> Tensor:
        """Reductions over axes without channels."""
        if len(call.inputs) > 1:  # such as torch.max(a, b)
            return self.elementwise(call)
        value = _tensor(call)
        signals, dims = self._of(value), len(value.shape)
        axes = call.argument(1, "dim", call.kwargs.get("axis"))
        axes = range(dims) if axes is None else (axes,) if isinstance(axes, int) else axes
        axes = sorted({axis % max(dims, 1) for axis in axes}, reverse=True)
        across = [axis for axis in axes if signals.shape[axis] > 1]
        several = len(across) == 1 and signals.numel() > signals.shape[across[0]]
        if several and call.name in ("sum", "mean"):  # parts of equal width
            combine = torch.sum if call.name == "sum" else torch.mean
            parts = [*signals.split(1, across[0])]
            signals = self._made(call.name, parts, lambda *x: combine(torch.stack(x), 0))
        elif across:
            raise NotPrunable("works over all channels")
        if call.name in SUMS and any(value.shape[a] > 1 for a in {*axes} - {*across}):
            signals = self._made(call.name, [signals], _if_zero)
        if len(call.outputs[0].shape) < dims:
            for axis in axes:
                signals = signals.squeeze(axis)
        return signals

    def elementwise(self, call: Call) -> Tensor:
        dims = len(shape := call.outputs[0].shape)
        arrays: list[Tensor] = []
        for position, value in enumerate(call.inputs):
            signals = self._of(value)
            if call.name == "prelu" and position == 1:  # one slope for each channel, along axis 1
                signals = signals.view(-1, *[1] * (dims - 2))
            arrays.append(signals.view([1] * (dims - signals.dim()) + list(signals.shape)))
        wide = {axis for x in arrays for axis, n in enumerate(x.shape) if n > 1}
        if call.name in ("softmax", "log_softmax"):
            axis = call.argument(1, "dim")
            if axis is None or wide == {axis % dims}:
                raise NotPrunable("works over all channels")
            if axis % dims in wide:  # parts of equal width
                soft, parts = getattr(torch, call.name), arrays[0].split(1, axis)
                functions = [lambda *x, i=i: soft(torch.stack(x), 0)[i] for i in range(len(parts))]
                made = [self._made(call.name, [*parts], function) for function in functions]
                return torch.cat(made, axis)
        joined = torch.broadcast_shapes(*(x.shape for x in arrays)) if wide else (1,) * dims
        if any(n not in (1, shape[axis]) for axis, n in enumerate(joined)):
            raise NotPrunable("broadcasts its channels")
        # A single value for all channels broadcasts. A tensor of their width without channels of
        # its own cannot follow a removal and joins them to atom 0.
        output_atoms: Tensor | None = None
        for value, x in zip(call.inputs, arrays, strict=True):
            own = (1,) * (dims - len(value.shape)) + value.shape
            if call.name == "prelu" and x is not arrays[0]:
                own = tuple(x.shape)
            atoms = self.table[x]
            if wide and all(own[axis] == 1 for axis in wide):
                self.pin(atoms[atoms != FIXED], f"{_where(call)} combines it with all channels")
            elif output_atoms is None:
                output_atoms = atoms.expand(joined)
            else:
                self._join(output_atoms, atoms.expand(joined))
        assert output_atoms is not None
        output = self._new(output_atoms.contiguous())
        inputs, function = [x.expand(joined) for x in arrays], partial(_evaluate, call)
        self._step("elementwise", call.name, inputs, output, call=call, function=function)
        return output

    def cat(self, call: Call) -> Tensor:
        values, stacked = call.argument(0, "tensors"), call.name == "stack"
        values = [x for x in values if stacked or x.shape != (0,)]
        axis = call.argument(1, "dim", call.kwargs.get("axis", 0))
        axis %= max(len(values[0].shape) + stacked, 1)
        arrays = [self._of(x).unsqueeze(axis) if stacked else self._of(x) for x in values]
        if any(n > 1 for x in arrays for a, n in enumerate(x.shape) if a != axis):
            if any(x.shape[axis] > 1 for x in arrays):
                raise NotPrunable("joins channels along two axes")
            return self._made(call.name, arrays, _all_equal)  # the same in all parts
        if all(x.numel() == 1 and int(self.table[x]) == FIXED for x in arrays):
            return torch.full([1] * arrays[0].dim(), VARYING)
        sizes = [1 if stacked else value.shape[axis] for value in values]
        wide = [
            x.expand(*(n if a == axis else 1 for a in range(x.dim())))
            for x, n in zip(arrays, sizes, strict=True)
        ]
        return torch.cat(wide, axis)

    def pad(self, call: Call) -> Tensor:
        """Padding of channels adds fixed ones; padding of maps makes constants vary."""
        signals, widths = self._of(_tensor(call)), call.argument(1, "pad")
        mode, fill = call.argument(2, "mode", "constant"), call.argument(3, "value", 0) or 0
        dims = signals.dim()
        pairs = {dims - 1 - i: (widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)}
        padded = {axis for axis, pair in pairs.items() if any(pair)}
        along = {axis for axis in padded if signals.shape[axis] > 1}
        for axis in along:
            if mode != "constant" or any(n < 0 for n in pairs[axis]):
                raise NotPrunable("pads or crops its channels")
            if signals.numel() > signals.shape[axis]:
                raise NotPrunable("works along another axis")
            border = torch.tensor(ZERO if fill == 0 else VARYING)
            before, behind = (
                border.expand([n if a == axis else 1 for a in range(dims)]) for n in pairs[axis]
            )
            signals = torch.cat((before, signals, behind), axis)
        if padded - along and mode == "constant":
            signals = self._made("pad", [signals], lambda x: x.masked_fill(x != fill, math.nan))
        return signals

    def select(self, call: Call) -> Tensor:
        """A selection of channels by a buffer, which follows a removal of channels."""
        value, index = _tensor(call), _tensor(call, 2, "index")
        if not index.name:
            raise NotPrunable("selects channels by a computed index")
        buffer = dict(self.model.named_buffers()).get(index.name)
        if buffer is None or buffer.is_meta:
            raise NotPrunable("selects channels by an index that is not a buffer with values")
        axis = call.argument(1, "dim")
        stream = self._channels(value, axis)
        shape = [1] * len(value.shape)
        shape[axis] = -1
        output = self._new(self.axes[index.name][0]).view(shape)
        inputs = [stream[buffer.cpu()]]
        self._step("select", index.name, inputs, output.flatten(), call=call, stream=stream)
        return output

    def rearrange(self, call: Call) -> list[Tensor]:
        """Applies the operation to the array of signals."""
        value = _tensor(call)
        signals = self._of(value)
        if signals.numel() == 1:
            self._pin_sizes(call)  # of other channels: the operation would not follow
            return [signals.view([1] * len(out.shape)) for out in call.outputs]
        whole = signals.expand(value.shape)
        whole = whole.contiguous() if call.name in ("view", "view_as") else whole
        args, kwargs = each(_plain, (call.args[1:], call.kwargs))
        if call.name == "getitem":
            self.check_index(call, signals, value.shape)
        try:
            attribute = call.name in ("T", "mT")
            result = (
                getattr(whole, call.name) if attribute else call.function(whole, *args, **kwargs)
            )
        except Exception:
            raise NotPrunable("rearranges it") from None
        results = list(result) if isinstance(result, tuple | list) else [result]
        arrays = [_compressed(x) for x in results]
        if call.name in PARTS:
            self.check_parts(call, arrays, signals)
        elif call.name in ("view", "reshape", "unflatten", "expand"):
            self.check_view(call, arrays[0])
        elif call.name in ("expand_as", "reshape_as", "view_as"):
            self.check_like(call, arrays[0])
        elif call.name == "squeeze" and len(call.args) == 1 and not call.kwargs:
            for axis in (axis for axis, n in enumerate(signals.shape) if n > 1):
                reason = f"{_where(call)} drops every axis of size 1: name the axis"
                self.pin(self.table[signals.narrow(axis, 0, 2)], reason)
        elif call.name == "channel_shuffle":
            atoms = self.table[signals].flatten()
            if signals.dim() < 2 or signals.shape[1] != len(atoms):
                raise NotPrunable("rearranges its channels")
            groups = atoms.view(args[0], -1)
            self._join(groups[:1], groups)
        elif call.name in PICKING and not torch.equal(arrays[0].flatten(), signals.flatten()):
            raise NotPrunable("picks or rearranges its channels")
        elif (
            call.name == "narrow"
            and signals.shape[call.argument(1, "dim")] > 1
            and not self._follows(call.argument(3, "length"))
        ):
            raise NotPrunable("has a width that is written in the code")
        return arrays

    def check_like(self, call: Call, array: Tensor) -> None:
        """Joins the channels of ``array``, which has another tensor's shape, with that tensor's.

        Raises:
            NotPrunable: the shape has other channels.
        """
        other = self._of(_tensor(call, 1, "other"))
        for axis in (axis for axis, n in enumerate(array.shape) if n > 1):
            if other.dim() <= axis or other.shape[axis] != array.shape[axis]:
                raise NotPrunable("uses a width that does not follow")
        self._join(self.table[array], self.table[other])

    def check_index(self, call: Call, signals: Tensor, shape: Sequence[int]) -> None:
        """Checks an index: it may not pick channels by number."""
        index = [*call.args[1]] if isinstance(call.args[1], tuple) else [call.args[1]]
        if any(isinstance(i, Value | list) for i in index):
            raise NotPrunable("picks channels by a computed index")
        index = [i for i in index if i is not None]
        for at in (at for at, i in enumerate(index) if i is Ellipsis):
            index[at : at + 1] = [slice(None)] * (len(shape) - len(index) + 1)
        for axis, i in enumerate(index):
            size = shape[axis]
            part = range(size)[as_int(i)] if isinstance(i, slice) else None
            if signals.shape[axis] == 1 or part == range(size):
                continue
            if part is None or i.step is not None:
                raise NotPrunable("picks channels by number")
            for bound in (i.start, i.stop):
                if isinstance(bound, Width) and bound <= size:
                    self._count(bound, signals.narrow(axis, 0, bound), axis)
                elif bound is not None and not (bound is i.start and bound == 0):
                    raise NotPrunable("picks channels by number")
            chosen = signals.narrow(axis, part.start, len(part))
            self.parts.append(self.table[chosen.flatten()])

    def check_parts(self, call: Call, arrays: list[Tensor], signals: Tensor) -> None:
        """Checks a split: equal parts are joined, widths that follow are noted, others refused."""
        axis = call.argument(1 if call.name == "unbind" else 2, "dim", 0) % signals.dim()
        if signals.shape[axis] == 1:
            return
        size = [*call.args[1:2], *call.kwargs.values()][0]
        sizes = size if isinstance(size, tuple | list) else [size]
        if sizes is size and all(isinstance(n, Width) for n in sizes):
            for n, part in zip(sizes, arrays, strict=True):
                self._count(n, part, axis)
            return
        by_count = "chunk" in call.name or call.name == "tensor_split"
        by_count = by_count and sizes is not size and not isinstance(size, Dim)
        follows = by_count or all(isinstance(n, Width) or self._follows(n) for n in sizes)
        if call.name == "unbind" or not follows:
            raise NotPrunable("splits it into widths that are written in the code")
        if len({x.shape[axis] for x in arrays}) > 1:
            raise NotPrunable("splits it into unequal parts")
        for x in arrays[1:]:
            self._join(self.table[arrays[0]], self.table[x])
        for n in sizes:
            if isinstance(n, Width):
                self._count(n, arrays[0], axis)
            elif isinstance(n, Dim):
                self._tie(n, signals, arrays[0], axis)

    def check_view(self, call: Call, array: Tensor) -> None:
        """Checks a view: channels along an axis of literal width can only be removed together."""
        sizes: Sequence[Any] = call.args[1:]
        before = rest = 0  # axes that are not in sizes, and do not change
        if call.name == "unflatten":
            dims = len(_tensor(call).shape)
            before = call.argument(1, "dim") % dims
            sizes, rest = call.argument(2, "sizes"), dims - before - 1
        elif len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = sizes[0]
        elif call.kwargs:
            sizes = next(iter(call.kwargs.values()))
        if any(not isinstance(n, int) for n in sizes):
            return  # another dtype
        literal = range(before, array.dim() - rest)
        free = {before + i for i, n in enumerate(sizes) if self._follows(n)}
        for axis in free:
            if array.shape[axis] > 1:
                self._tie(sizes[axis - before], array, array, axis)
        if not free or call.name == "expand":
            free |= {before + i for i, n in enumerate(sizes) if int(n) == -1}
        free |= {*range(array.dim())} - {*literal}
        atoms = self.table[array]
        for axis in (axis for axis in literal if array.shape[axis] > 1 and axis not in free):
            self._join(atoms.narrow(axis, 0, 1), atoms)
            if not any(array.shape[a] > 1 for a in free):
                raise NotPrunable("has a width that is written in the code")


def _tensor(call: Call, position: int = 0, name: str = "input") -> Value:
    """Returns an argument that is a tensor."""
    x = call.argument(position, name)
    if not isinstance(x, Value):
        raise NotPrunable("takes something else than a tensor")
    return x


def _widths(call: Call) -> list[Width]:
    """Returns the int attributes at which a call splits."""
    return [n for x in call.leaves for n in widths_in(x)] if call.name in SPLITTING else []


def _fits(signals: Tensor, shape: Sequence[int]) -> bool:
    """Whether ``signals`` broadcast to ``shape``."""
    pairs = zip(signals.shape, shape, strict=False)
    return signals.dim() == len(shape) and all(a in (1, b) for a, b in pairs)


def _plain(x: Any) -> Any:
    """Returns a plain argument, a meta tensor for a :class:`Value`."""
    return torch.empty(x.shape, device="meta") if isinstance(x, Value) else as_int(x)


def _evaluate(call: Call, *numbers: Tensor) -> Tensor:
    """Returns an elementwise operation of constants, NaN where it varies or is not finite."""
    if call.name in ("zeros_like", "ones_like"):
        return torch.full_like(numbers[0], float(call.name == "ones_like"))
    if call.name in RANDOM_OR_SOFT:
        return _varying(numbers[0])
    if call.name == "prelu":
        result = torch.where(numbers[0] >= 0, numbers[0], numbers[0] * numbers[1])
    else:
        rest = iter(numbers)
        args, kwargs = each(
            lambda x: next(rest) if isinstance(x, Value) else x, (call.args, call.kwargs)
        )
        try:
            if call.name in CONDITIONS:
                condition = CONDITIONS[call.name]
                args = *args[:condition], args[condition] != 0, *args[condition + 1 :]
            kwargs = {key: x for key, x in kwargs.items() if key not in ("inplace", "out")}
            result = call.function(*args, **kwargs).to(numbers[0].dtype)
        except Exception:  # an argument that constants do not accept
            return _varying(numbers[0])
    varies = torch.stack([x.isnan() for x in numbers]).any(0)
    result = result.masked_fill(varies | ~result.isfinite(), math.nan)
    if call.name in PRODUCTS:
        result = result.masked_fill(torch.stack([x == 0 for x in numbers]).any(0), 0)
    return result


def _if_zero(x: Tensor) -> Tensor:
    """Keeps the constant 0 only."""
    return x.masked_fill(x != 0, math.nan)


def _varying(x: Tensor) -> Tensor:
    return torch.full_like(x, math.nan)


def _truncates(call: Call) -> bool:
    """Whether a change of dtype may round values."""
    if call.name == "type_as":  # of which the dtype is not known
        return True
    arguments = (*call.args[1:], *call.kwargs.values())
    floating = all(x.is_floating_point for x in arguments if isinstance(x, torch.dtype))
    return not floating or (
        call.name == "type" and any(isinstance(x, str | type) for x in arguments)
    )


def _blurs(call: Call) -> bool:
    """Whether a pooling changes a constant, for example by padding."""
    if "lp_pool" in call.name:
        return True
    if "avg_pool" not in call.name or "adaptive" in call.name:
        return False
    divided = call.argument(6, "divisor_override") is not None
    padded = _pads(call.argument(3, "padding", 0))
    return divided or bool(padded and call.argument(5, "count_include_pad", True))


def _pads(padding: Any) -> bool:
    """Whether the ``padding`` argument of a convolution or pooling adds a border."""
    return any(padding) if isinstance(padding, tuple | list) else padding not in (0, "valid")


def _all_equal(*parts: Tensor) -> Tensor:
    equal = torch.stack([part == parts[0] for part in parts]).all(0)
    return torch.where(equal, parts[0], math.nan)


def _compressed(signals: Tensor) -> Tensor:
    """Reduces axes along which all signals are equal to size 1."""
    for axis in range(signals.dim()):
        if signals.shape[axis] > 1 and bool((signals == signals.narrow(axis, 0, 1)).all()):
            signals = signals.narrow(axis, 0, 1)
    return signals.contiguous()


def _where(call: Call) -> str:
    """Names the operation and the module that calls it, for reasons."""
    return f"'{call.name}' in {call.module or 'the model'}"


RULES: dict[str, Callable[[Signals, Call], Tensor | list[Tensor]]] = {
    **dict.fromkeys((*CONVOLUTIONS, "linear"), Signals.layer),
    "batch_norm": Signals.norm,
    **dict.fromkeys(ELEMENTWISE, Signals.elementwise),
    **dict.fromkeys(SAME, Signals.same),
    **dict.fromkeys(SPATIAL, Signals.spatial),
    **dict.fromkeys(MEANS | SUMS, Signals.reduce),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), Signals.cat),
    "pad": Signals.pad,
    "index_select": Signals.select,
    **dict.fromkeys(REARRANGING, Signals.rearrange),
}
