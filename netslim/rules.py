"""Rules for the effect of each operation on channels; :func:`read` applies them to a trace.

Operations that rearrange tensors (flatten, permute, chunk, cat, ...) are applied to the arrays of
signals. Channels for which no rule holds cannot be removed, with a reason.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim.signals import (
    FIXED,
    VARYING,
    ZERO,
    NotPrunable,
    Reader,
    Signals,
    options,
    ref,
)
from netslim.sizes import Dim, Width, as_int, widths_in
from netslim.trace import ATOMS, CONTAINERS, SPLITTING, Call, Ref, Trace, each, leaves, refs

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


def read(signals: Signals, trace: Trace, training: bool) -> None:
    """Adds the signals and steps of one trace to ``signals``."""
    reader = _Rules(signals, trace, training)
    for call in trace.calls:
        reader.follow(call)
    for value in trace.outputs:
        output = reader.of(value)
        signals.pin(signals.atom(output), "it is an output of the model")
        reader.step("other", "output", [output], None)
    for name in trace.changed & signals.axes.keys():
        for atoms in signals.axes[name]:
            signals.pin(atoms, f"code changes {name}")
    if trace.unseen:
        everything = torch.arange(signals.atom_count)
        reason = "the model runs code that torch cannot see (compiled, or of its own)"
        signals.pin(everything, reason)
    signals.fixed |= trace.fixed


class _Rules(Reader):
    """The rules: each returns the signals of a call's first output, or a list for all outputs."""

    def follow(self, call: Call) -> None:
        """Finds the signals of a call's outputs; in training mode those of evaluation mode."""
        inputs = [self.of(value) for value in call.refs() if value not in self.trace.names]
        key: Any = call.name, call.function, call.module, self.form((call.args, call.kwargs))
        values = refs(call.outputs)
        key = *key, *(self.trace.shapes[value] for value in values)
        try:
            known = self.all.followed.get(key) if "dropout" not in call.name else None
        except TypeError:  # an argument that cannot be hashed
            return self.apply_rule(call)
        if known is not None and self.training:
            self.signals.update(zip(values, known[1], strict=True))
        else:
            self.apply_rule(call)
            self.all.followed[key] = inputs, [self.of(value) for value in values]

    def form(self, x: Any) -> Any:
        """Returns what the signals of a call's outputs depend on."""
        if type(x) in ATOMS:
            return type(x), x
        if isinstance(x, Ref):
            shape = self.trace.shapes[x.value]
            return shape, self.trace.names.get(x.value) or id(self.of(x.value))
        if isinstance(x, Dim):
            return int(x), *((id(self.of(value)), axis) for value, axis in sorted(x.axes))
        if isinstance(x, Width):
            return int(x), x.source, x.times
        if isinstance(x, slice):
            return slice, *map(self.form, (x.start, x.stop, x.step))
        if isinstance(x, dict):
            return *x, *map(self.form, x.values())
        if isinstance(x, CONTAINERS):
            return type(x), *map(self.form, x)
        return type(x), x

    def apply_rule(self, call: Call) -> None:
        try:
            if call.name == "size":
                axes, equal, divisor = call.args
                return self.size(axes, equal, divisor, call.module)
            if call.name not in REARRANGING:
                for n in (x for x in leaves((call.args, call.kwargs)) if isinstance(x, Dim)):
                    self.size(n.axes, None, 0, call.module)
            if not call.refs() or call.name in NEW:
                return  # a constant tensor
            if call.name not in RULES:
                raise NotPrunable("reads it")
            outputs, made = refs(call.outputs), RULES[call.name](self, call)
            if not isinstance(made, list):  # further outputs, such as indices of maxima
                made = [made, *(self.made(call.name, [made], _varying) for _ in outputs[1:])]
            for value, signals in zip(outputs, made, strict=True):
                self.give(value, signals)
        except NotPrunable as reason:
            self.stop(call, f"{_where(call)} {reason}")
        except Exception:  # a form of the operation without a rule
            if STRICT:
                raise
            self.stop(call, f"{_where(call)} is called in a form without a rule")
        if call.name in SPLITTING:
            widths = [n for x in leaves((call.args, call.kwargs)) for n in widths_in(x)]
            self.all.fixed |= {n.source for n in widths if id(n) not in self.counted}

    def same(self, call: Call) -> Tensor:
        signals = self.of(ref(call.argument(0, "input")))
        if "dropout" in call.name and self.training:
            self.all.dropped.append(signals.flatten())
        return self.made(call.name, [signals], _varying) if _truncates(call) else signals

    def layer(self, call: Call) -> Tensor:
        """Convolutions and linear layers read channels and write new ones."""
        value, weight, bias = (
            call.argument(i, n) for i, n in enumerate(("input", "weight", "bias"))
        )
        value, name = ref(value), self.trace.names.get(ref(weight))
        if name is None:
            raise NotPrunable("uses weights that are no parameter")
        axes, linear = self.all.axes[name], call.name == "linear"
        dims = len(self.trace.shapes[value])
        if not linear and dims != len(self.trace.shapes[ref(weight)]):
            raise NotPrunable("takes an image without a batch axis")
        axis = dims - 1 if linear else 1
        if not linear and any(n > 1 for n in self.of(value).shape[2:]):
            raise NotPrunable("mixes neighbouring channels")
        inputs = self.channels(value, axis)
        module, path, key = self.all.owner[name]
        own_bias = self.trace.names.get(bias.value) if isinstance(bias, Ref) else ""
        if own_bias is None:
            raise NotPrunable("uses a bias that is no parameter")
        transposed = "transpose" in call.name
        groups = 1 if linear else options(call).groups
        if groups > 1 and not (key == "weight" and isinstance(module, nn.modules.conv._ConvNd)):
            raise NotPrunable("has a number of groups that is written in the code")
        rows, columns = (axes[1], axes[0]) if transposed else (axes[0], axes[1])
        atoms = self.all.atom(inputs)
        if groups == 1:
            self.all.join(atoms, columns)
        else:  # inputs and outputs of a group can only be removed together
            if transposed:
                fresh = (self.all.fresh(len(axes[1]) * groups),)
                rows = self.all.axes.setdefault(f"{name}:out", fresh)[0]
                self.all.join(atoms, columns)
                self.all.pin(axes[1], "it is indexed within groups")
            grouped = atoms.view(groups, -1)
            self.all.join(grouped[:, :1], grouped)
            self.all.join(grouped[:, :1], rows.view(groups, -1))
        if own_bias:
            self.all.join(rows, self.all.axes[own_bias][0])
        shape = [1] * dims
        shape[axis] = -1
        self.times[name] += 1
        called = name, own_bias, self.times[name], *shape
        if called not in self.all.written or groups == len(inputs):
            self.all.written[called] = self.all.new(rows).view(shape)
        output = self.all.written[called]  # it varies, whatever the inputs are
        kind = "linear" if linear else "convolution" if groups == 1 else "grouped"
        self.step(kind, path, [inputs], output.flatten(), call, weight=name, bias=own_bias)
        return output

    def norm(self, call: Call) -> Tensor:
        """Batch norms have channels of their own, later joined to their inputs or selecting."""
        if call.function is not F.batch_norm:
            raise NotPrunable("is not torch.nn.functional's")
        value, *own = call.args[:5]  # running mean and variance, weight, bias
        keys = ("mean", "variance", "weight", "bias")
        names = [self.trace.names.get(x.value) if isinstance(x, Ref) else "" for x in own]
        of = dict(zip(keys, names, strict=True))
        first = of["weight"] or of["mean"]
        if not first or None in names:
            raise NotPrunable("has scaling factors or statistics that are computed")
        inputs = self.channels(ref(value), 1)
        atoms = self.all.axes[first][0]
        for name in names:
            if name:
                self.all.join(atoms, self.all.axes[name][0])
        shape = [1, -1, *[1] * (len(self.trace.shapes[ref(value)]) - 2)]
        output = self.all.new(atoms).view(shape)
        self.step("norm", self.all.owner[first][1], [inputs], output.flatten(), call, **of)
        return output

    def size(
        self,
        axes: Set[tuple[int, int]],
        equal: Set[tuple[int, int]] | None,
        divisor: int,
        module: str,
    ) -> None:
        """A size that code computes with is pinned, unless it is only compared or a multiple."""
        wide = [x for value, axis in sorted(axes) if len(x := self.along(self.of(value), axis)) > 1]
        other = [self.along(self.of(value), axis) for value, axis in sorted(equal or ())]
        for atoms in wide:
            if divisor and len(atoms) % divisor == 0:
                self.all.join(atoms[: len(atoms) // divisor], atoms.view(divisor, -1))
            elif len(wide) == len(other) == 1 and len(atoms) == len(other[0]):
                self.all.join(atoms, other[0])
            else:
                for x in (atoms, *other):
                    self.all.pin(x, f"code of {module or 'the model'} computes with its width")

    def spatial(self, call: Call) -> Tensor:
        """Pooling and resizing keep a constant map constant, except :func:`_blurs`."""
        signals = self.of(ref(call.argument(0, "input")))
        if any(n > 1 for n in signals.shape[2:]) or signals.dim() < 3:
            raise NotPrunable("works along another axis")
        if _blurs(call):
            signals = self.made("pad", [signals], _if_zero)
        return signals

    def reduce(self, call: Call) -> Tensor:
        """Reductions over axes without channels."""
        if len(call.refs()) > 1:  # such as torch.max(a, b)
            return self.elementwise(call)
        value = ref(call.argument(0, "input"))
        signals, dims = self.of(value), len(self.trace.shapes[value])
        axes = call.argument(1, "dim", call.kwargs.get("axis"))
        axes = range(dims) if axes is None else (axes,) if isinstance(axes, int) else axes
        axes = sorted({axis % max(dims, 1) for axis in axes}, reverse=True)
        across = [axis for axis in axes if signals.shape[axis] > 1]
        several = len(across) == 1 and signals.numel() > signals.shape[across[0]]
        if several and call.name in ("sum", "mean"):  # parts of equal width
            combine = torch.sum if call.name == "sum" else torch.mean
            parts = [*signals.split(1, across[0])]
            signals = self.made(call.name, parts, lambda *x: combine(torch.stack(x), 0))
        elif across:
            raise NotPrunable("works over all channels")
        if call.name in SUMS and any(self.trace.shapes[value][a] > 1 for a in {*axes} - {*across}):
            signals = self.made(call.name, [signals], _if_zero)
        if len(self.trace.shapes[refs(call.outputs)[0]]) < dims:
            for axis in axes:
                signals = signals.squeeze(axis)
        return signals

    def elementwise(self, call: Call) -> Tensor:
        values, shape = call.refs(), self.trace.shapes[refs(call.outputs)[0]]
        dims = len(shape)
        arrays: list[Tensor] = []
        for position, value in enumerate(values):
            signals = self.of(value)
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
                made = [self.made(call.name, [*parts], function) for function in functions]
                return torch.cat(made, axis)
        joined = torch.broadcast_shapes(*(x.shape for x in arrays)) if wide else (1,) * dims
        if any(n not in (1, shape[axis]) for axis, n in enumerate(joined)):
            raise NotPrunable("broadcasts its channels")
        # A single value for all channels broadcasts. A tensor of their width without channels of
        # its own cannot follow a removal and joins them to atom 0.
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
        return output

    def cat(self, call: Call) -> Tensor:
        values = [ref(x) for x in call.argument(0, "tensors")]
        axis = call.argument(1, "dim", call.kwargs.get("axis", 0))
        if call.name == "stack":
            axis %= len(self.trace.shapes[values[0]]) + 1
            arrays, sizes = [self.of(v).unsqueeze(axis) for v in values], [1] * len(values)
        else:
            values = [v for v in values if self.trace.shapes[v] != (0,)]
            axis %= max(len(self.trace.shapes[values[0]]), 1)
            arrays, sizes = (
                [self.of(v) for v in values],
                [self.trace.shapes[v][axis] for v in values],
            )
        others = {a for x in arrays for a, n in enumerate(x.shape) if n > 1 and a != axis}
        if others:  # channels along another axis, the same in all parts
            if any(x.shape[axis] > 1 for x in arrays):
                raise NotPrunable("joins channels along two axes")
            return self.made(call.name, arrays, _all_equal)
        if all(x.numel() == 1 and int(self.all.atom(x)) == FIXED for x in arrays):
            return torch.full([1] * arrays[0].dim(), VARYING)
        wide = [
            x.expand(*(n if a == axis else 1 for a in range(x.dim())))
            for x, n in zip(arrays, sizes, strict=True)
        ]
        return torch.cat(wide, axis)

    def pad(self, call: Call) -> Tensor:
        """Padding of channels adds fixed ones; padding of maps makes constants vary."""
        value, widths = ref(call.argument(0, "input")), call.argument(1, "pad")
        mode, fill = call.argument(2, "mode", "constant"), call.argument(3, "value", 0) or 0
        signals, shape = self.of(value), self.trace.shapes[value]
        dims = len(shape)
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
            signals = self.made("pad", [signals], lambda x: x.masked_fill(x != fill, math.nan))
        return signals

    def select(self, call: Call) -> Tensor:
        """A selection of channels by a buffer, which follows a removal of channels."""
        value, axis, index = (call.argument(i, n) for i, n in enumerate(("input", "dim", "index")))
        name = self.trace.names.get(ref(index))
        if name is None:
            raise NotPrunable("selects channels by a computed index")
        buffer = dict(self.all.model.named_buffers()).get(name)
        if buffer is None or buffer.is_meta:
            raise NotPrunable("selects channels by an index that is not a buffer with values")
        stream = self.channels(ref(value), axis)
        inputs = stream[buffer.cpu()]
        own = self.all.axes[name][0]
        shape = [1] * len(self.trace.shapes[ref(value)])
        shape[axis] = -1
        output = self.all.new(own).view(shape)
        self.step("select", name, [inputs], output.flatten(), call, stream=stream)
        return output

    def rearrange(self, call: Call) -> list[Tensor]:
        """Applies the operation to the array of signals."""
        value = ref(call.args[0])
        signals, shape = self.of(value), self.trace.shapes[value]
        if signals.numel() == 1:
            for n in (x for x in leaves((call.args, call.kwargs)) if isinstance(x, Dim)):
                self.size(n.axes, None, 0, call.module)  # of other channels: it would not follow
            outs = refs(call.outputs)
            return [signals.view([1] * len(self.trace.shapes[out])) for out in outs]
        whole = signals.expand(shape)
        whole = whole.contiguous() if call.name in ("view", "view_as") else whole
        args, kwargs = each(self.plain, (call.args[1:], call.kwargs))
        if call.name == "getitem":
            self.check_index(call, signals, shape)
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
                self.all.pin(self.all.atom(signals.narrow(axis, 0, 2)), reason)
        elif call.name == "channel_shuffle":
            atoms = self.all.atom(signals).flatten()
            if signals.dim() < 2 or signals.shape[1] != len(atoms):
                raise NotPrunable("rearranges its channels")
            groups = atoms.view(args[0], -1)
            self.all.join(groups[:1], groups)
        elif call.name in PICKING and not torch.equal(arrays[0].flatten(), signals.flatten()):
            raise NotPrunable("picks or rearranges its channels")
        elif (
            call.name == "narrow"
            and signals.shape[call.argument(1, "dim")] > 1
            and not self.follows(call.argument(3, "length"))
        ):
            raise NotPrunable("has a width that is written in the code")
        return arrays

    def plain(self, x: Any) -> Any:
        """Returns a plain argument, a meta tensor for a Ref."""
        if isinstance(x, Ref):
            return torch.empty(self.trace.shapes[x.value], device="meta")
        return as_int(x)

    def check_like(self, call: Call, array: Tensor) -> None:
        """Joins the channels of ``array``, which has another tensor's shape, with that tensor's.

        Raises:
            NotPrunable: the shape has other channels.
        """
        other = self.of(ref(call.argument(1, "other")))
        for axis in (axis for axis, n in enumerate(array.shape) if n > 1):
            if other.dim() <= axis or other.shape[axis] != array.shape[axis]:
                raise NotPrunable("uses a width that does not follow")
        self.all.join(self.all.atom(array), self.all.atom(other))

    def check_index(self, call: Call, signals: Tensor, shape: Sequence[int]) -> None:
        """Checks an index: it may not pick channels by number."""
        index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
        if any(isinstance(i, Ref | list) for i in index):
            raise NotPrunable("picks channels by a computed index")
        count = sum(i is not None and i is not Ellipsis for i in index)
        axis = 0
        for i in index:
            if i is Ellipsis:
                axis += len(shape) - count
            elif i is not None:
                whole = isinstance(i, slice) and range(shape[axis])[_slice(i)] == range(shape[axis])
                if signals.shape[axis] > 1 and not whole:
                    if not isinstance(i, slice) or i.step is not None:
                        raise NotPrunable("picks channels by number")
                    for bound in (i.start, i.stop):
                        if isinstance(bound, Width) and bound <= shape[axis]:
                            self.count(bound, signals.narrow(axis, 0, bound), axis)
                        elif bound is not None and not (bound is i.start and bound == 0):
                            raise NotPrunable("picks channels by number")
                    part = range(shape[axis])[_slice(i)]
                    self.all.parts.append(
                        self.all.atom(signals.narrow(axis, part.start, len(part)).flatten())
                    )
                axis += 1

    def check_parts(self, call: Call, arrays: list[Tensor], signals: Tensor) -> None:
        """Checks a split: equal parts are joined, widths that follow are noted, others refused."""
        position = 1 if call.name == "unbind" else 2
        axis = call.argument(position, "dim", 0) % signals.dim()
        if signals.shape[axis] == 1:
            return
        size = [*call.args[1:2], *call.kwargs.values()][0]
        sizes = size if isinstance(size, tuple | list) else [size]
        if sizes is size and all(isinstance(n, Width) for n in sizes):
            for n, part in zip(sizes, arrays, strict=True):
                self.count(n, part, axis)
            return
        by_count = "chunk" in call.name or call.name == "tensor_split"
        by_count = by_count and sizes is not size and not isinstance(size, Dim)
        follows = by_count or all(isinstance(n, Width) or self.follows(n) for n in sizes)
        if call.name == "unbind" or not follows:
            raise NotPrunable("splits it into widths that are written in the code")
        if len({x.shape[axis] for x in arrays}) > 1:
            raise NotPrunable("splits it into unequal parts")
        for x in arrays[1:]:
            self.all.join(self.all.atom(arrays[0]), self.all.atom(x))
        for n in sizes:
            if isinstance(n, Width):
                self.count(n, arrays[0], axis)
            elif isinstance(n, Dim):
                self.tie(n, signals, arrays[0], axis)

    def check_view(self, call: Call, array: Tensor) -> None:
        """Checks a view: channels along an axis of literal width can only be removed together."""
        sizes: Sequence[Any] = call.args[1:]
        before = rest = 0  # axes that are not in sizes, and do not change
        if call.name == "unflatten":
            dims = len(self.trace.shapes[ref(call.args[0])])
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
                raise NotPrunable("has a width that is written in the code")


def _evaluate(call: Call, *numbers: Tensor) -> Tensor:
    """Returns an elementwise operation of constants, NaN where it varies or is not finite."""
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
        except Exception:  # an argument that constants do not accept
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
            raise ValueError("a condition in another form")
        positional[condition] = args[condition] != 0
    return function(*positional, **kwargs)


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
    """Reduces axes along which all signals are equal to size 1."""
    for axis in range(signals.dim()):
        if signals.shape[axis] > 1 and bool((signals == signals.narrow(axis, 0, 1)).all()):
            signals = signals.narrow(axis, 0, 1)
    return signals.contiguous()


def _where(call: Call) -> str:
    """Names the operation and the module that calls it, for reasons."""
    return f"'{call.name}' in {call.module or 'the model'}"


RULES: dict[str, Callable[[_Rules, Call], Tensor | list[Tensor]]] = {
    **dict.fromkeys((*CONVOLUTIONS, "linear"), _Rules.layer),
    "batch_norm": _Rules.norm,
    **dict.fromkeys(ELEMENTWISE, _Rules.elementwise),
    **dict.fromkeys(SAME, _Rules.same),
    **dict.fromkeys(SPATIAL, _Rules.spatial),
    **dict.fromkeys(MEANS | SUMS, _Rules.reduce),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), _Rules.cat),
    "pad": _Rules.pad,
    "index_select": _Rules.select,
    **dict.fromkeys(REARRANGING, _Rules.rearrange),
}
