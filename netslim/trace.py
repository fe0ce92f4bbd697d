"""Recording of the torch calls that a model makes on an example.

The model is run, not traced symbolically: every operation goes through a ``TorchFunctionMode``, so
any code that runs is recorded, conditions on shapes are answered by the example, and layers are
recognised by the parameters that reach ``conv2d`` or ``batch_norm``, whatever the class of the
module.
"""

import copy
import copyreg
import inspect
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from netslim.selection import ChannelSelection
from netslim.sizes import Dim, Setting, Shape, Source, Width, as_int, as_plain, as_width, widths_in

Model = TypeVar("Model", bound=nn.Module)
RECORDING = {slice, Dim, Width, Setting}  # types of arguments that are or contain recording ints
# Queries that read no values of a tensor and return none.
QUERIES = set(
    "dim ndim ndimension dtype device layout requires_grad is_cuda is_meta is_contiguous"
    " is_floating_point is_complex storage_offset get_device element_size itemsize nbytes"
    " is_leaf grad_fn is_quantized is_sparse type is_signed is_inference names is_mps is_xpu"
    " data_ptr is_nested base result_type can_cast is_tensor hash format repr assert"
    " is_shared version".split()
)
SIZES = {"shape", "size", "len", "numel", "nelement", "stride"}  # queries of sizes
SPLITTING = {"split", "split_with_sizes", "getitem"}  # their int arguments may be attributes
CONTAINERS = (tuple, list, dict, deque)  # and their subclasses, as arguments of calls
ATOMS = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size}
LEAVES = ATOMS - {torch.Size} | {Tensor, nn.Parameter}
# Layers whose attributes follow their weights.
RESIZED = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.PReLU)
SMALL = 16_384  # elements: such examples are computed faster than the meta device is imported
signature = cache(inspect.signature)


@dataclass(eq=False)
class Value:
    """A tensor of a trace.

    Attributes:
        shape: its shape.
        name: of a parameter or buffer, else "".
        signals: the signals of its channels, once :mod:`netslim.rules` has found them.
    """

    shape: tuple[int, ...]
    name: str = field(default="", repr=False)
    signals: Tensor | None = field(default=None, repr=False)


@dataclass
class Call:
    """One operation: torch's ``name`` without underscores, called in ``module``.

    Tensors are a :class:`Value` in ``args``, ``kwargs`` and ``outputs``. ``leaves`` are all
    arguments, also in nested tuples, lists and dicts, and ``inputs`` the tensors among them;
    ``text`` is the repr of the arguments, with shapes in place of tensors; "" if it does not tell
    different arguments apart.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value]
    module: str
    text: str

    def __post_init__(self) -> None:
        self.leaves = leaves((self.args, self.kwargs))
        self.inputs = [x for x in self.leaves if isinstance(x, Value)]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Returns an argument that was passed by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass
class Trace:
    """The calls of a model on an example."""

    calls: list[Call] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    unseen: bool = False  # whether there are tensors of unknown origin
    changed: set[str] = field(default_factory=set)  # buffers that the forward pass changes
    split: set[Source] = field(default_factory=set)  # int attributes at which calls split
    fixed: set[Source] = field(default_factory=set)  # int attributes with other uses


def each(function: Callable[[Any], Any], x: Any) -> Any:
    """Maps ``function`` over the leaves of nested tuples, lists and dicts."""
    kind = type(x)
    if kind is tuple or kind is list or kind is Shape:
        return kind([function(y) if type(y) in LEAVES else each(function, y) for y in x])
    if kind is dict:
        return {key: each(function, y) for key, y in x.items()}
    return tree_map(function, x) if isinstance(x, CONTAINERS) else function(x)


def leaves(x: Any) -> list[Any]:
    """Returns the leaves of nested tuples, lists and dicts."""
    found: list[Any] = []
    each(found.append, x)
    return found


def copied(model: Model, memo: Mapping[int, Any] | None = None) -> Model:
    """Returns a deep copy; non-leaf tensors are copied without their autograd history.

    ``memo`` maps ``id``s to copies, as for ``copy.deepcopy``.
    """
    new: Model = _copied(model, {**(memo or {})})
    return new


def _copied(x: Any, memo: dict[int, Any]) -> Any:
    """Does what ``copy.deepcopy`` does, ten times as fast for modules."""
    kind: Any = type(x)
    if kind in ATOMS:
        return x
    if id(x) in memo:
        return memo[id(x)]
    new: Any
    if (kind is tuple or kind is set) and ATOMS.issuperset(map(type, x)):
        new = memo[id(x)] = x if kind is tuple else set(x)
    elif kind is dict or kind is OrderedDict:
        new = memo[id(x)] = kind()
        for key, value in x.items():
            new[key] = value if type(value) in ATOMS else _copied(value, memo)
    elif kind is list:
        new = memo[id(x)] = []
        new.extend(_copied(value, memo) for value in x)
    elif isinstance(x, Tensor) and not x.is_leaf:
        new = memo[id(x)] = x.detach().clone()
    elif isinstance(x, nn.Module) and _copies_its_dict(kind):
        new = memo[id(x)] = kind.__new__(kind)
        vars(new).update(
            (k, v if type(v) in ATOMS else _copied(v, memo))
            for k, v in vars(x).items()
            if k != "_compiled_call_impl"  # which calls ``x``
        )
    else:
        tensors = (y for y in leaves(x) if isinstance(y, Tensor) and not y.is_leaf)
        memo.update((id(y), _copied(y, memo)) for y in tensors)
        new = copy.deepcopy(x, memo)
    return new


@cache
def _copies_its_dict(kind: type) -> bool:
    """Whether ``copy.deepcopy`` of such a module copies its ``__dict__`` only."""
    own = {name for base in kind.__mro__[: kind.__mro__.index(nn.Module)] for name in vars(base)}
    asked = {"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__new__", "__slots__"}
    sets = kind.__setstate__ in (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)  # type: ignore[attr-defined]
    return sets and not own & asked and kind not in copyreg.dispatch_table


def call(model: nn.Module, example: Any) -> Any:
    """Calls ``model`` on a tensor, a tuple of arguments, or a dict of keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


def moved(model: nn.Module, example: Any) -> Any:
    """Copies ``example`` to the device of ``model``, floating-point tensors to its dtype."""
    parameter = next(iter(model.parameters()), torch.empty(0))

    def move(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.detach().to(parameter if x.is_floating_point() else parameter.device).clone()

    return tree_map(move, dict(example) if isinstance(example, Mapping) else example)


def record(model: nn.Module, example: Any) -> tuple[Trace, Trace | None]:
    """Returns the calls of copies of ``model`` on ``example``, in evaluation and training mode.

    In training mode batch norms still use their running statistics and dropout passes everything
    on, so one image is enough and no random numbers are drawn. The second trace is None if the
    model cannot be run in training mode.

    Raises ValueError: the model cannot take the example.
    """
    inputs = moved(model, example)
    if not (tensors := [*passed(inputs)]):
        raise ValueError("the example has no tensor: give images, as torch.randn(1, 3, 224, 224)")
    there, known = None, dict[Any, Tensor | None]()
    if sum(x.numel() for x in tensors) > SMALL:
        there = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, inputs)
        on_meta = {id(x): _meta(x) for x in named_tensors(model).values()}

    def run(training: bool) -> Trace:
        if there is not None:
            # On the meta device nothing is computed; code that reads values fails there.
            with suppress(Exception):
                return _record(model, there, on_meta, training, known)
        return _record(model, inputs, {}, training, known)

    try:
        evaluation = run(False)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise ValueError(f"the model cannot take {shapes}: {first_line(error)}") from None
    with suppress(Exception):
        return evaluation, run(True)
    return evaluation, None


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers by name, shared ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _meta(x: Tensor) -> Tensor:
    new = x.detach().to("meta")
    return nn.Parameter(new, x.requires_grad) if isinstance(x, nn.Parameter) else new


def passed(x: Any) -> Iterator[Tensor]:
    """Yields the tensors in an argument or output of a model, also in attributes of objects."""
    left, seen = [x], set[int]()
    while left:
        x = left.pop()
        if isinstance(x, Tensor):
            yield x
        elif type(x) not in ATOMS and id(x) not in seen and not isinstance(x, nn.Module | type):
            seen.add(id(x))
            if isinstance(x, Mapping):
                left += [*x.values()][::-1]
            elif isinstance(x, tuple | list | deque | Set):
                left += [*x][::-1]
            else:
                slots = (n for kind in type(x).__mro__ for n in vars(kind).get("__slots__", ()))
                left += [getattr(x, n, None) for n in (*getattr(x, "__dict__", ()), *slots)][::-1]


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:150] or type(error).__name__


def ints_of(module: nn.Module) -> dict[str, Any]:
    """Returns the attributes of a user's module that are ints, or lists or tuples of ints."""
    kind: Any = type(module)
    if nn.utils.parametrize.is_parametrized(module):
        kind = kind.__base__  # torch makes a subclass, in a module of its own
    torchs = isinstance(module, (torch.jit.ScriptModule, *RESIZED))
    if torchs or kind.__module__.startswith("torch.nn."):
        return {}
    return {
        key: x
        for key, x in vars(module).items()
        if type(x) is int or (type(x) in (list, tuple) and {*map(type, x)} == {int})
    }


def _record(
    original: nn.Module,
    example: Any,
    tensors: Mapping[int, Tensor],
    training: bool,
    known: dict[Any, Tensor | None],
    watched: Set[Source] | None = None,
) -> Trace:
    """Records a run of a copy, and a second one that watches int attributes that split channels.

    ``tensors`` maps ``id``s of tensors of the model to those of the copy. ``known`` are results of
    calls on the meta device, by function and arguments; None of calls in place.
    """
    memo: dict[int, Any] = {**tensors}
    model = _copied(original, memo).train(training)
    inputs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, example)
    recorder = _Recorder(original, memo, known, watched)
    handles = [
        hooks.register_module_forward_pre_hook(recorder.enter),
        hooks.register_module_forward_hook(recorder.leave, always_call=True),
    ]
    try:
        for x in passed(inputs):
            recorder.register(x)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), recorder:
            outputs = call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    trace = recorder.trace
    trace.outputs = [recorder.value(x) for x in passed(outputs)]
    for path, module in original.named_modules():
        own = vars(memo.get(id(module), module))["_buffers"]
        for key, x in module._buffers.items():
            if x is not None and own.get(key) is not memo.get(id(x), x):  # replaced
                trace.changed.add(f"{path}.{key}".lstrip("."))
    if trace.split and watched is None:
        try:
            return _record(original, example, tensors, training, known, trace.split)
        except Exception:  # code that needs real ints
            trace.fixed = trace.split
    return trace


class _Recorder(TorchFunctionMode):
    """The mode that records a run; ``copies`` maps ``id``s of the model's objects to the copy's."""

    def __init__(
        self,
        model: nn.Module,
        copies: Mapping[int, Any],
        known: dict[Any, Tensor | None],
        watched: Set[Source] | None,
    ) -> None:
        super().__init__()
        self.trace, self.known = Trace(), known
        self.values: dict[int, Value] = {}  # by id of the tensor
        self.alive: list[Tensor] = []  # keeps ids unique
        self.aliases: dict[int, list[Tensor]] = {}  # tensors by storage
        self.stale: dict[int, Value] = {}  # by id: what was written into a tensor's storage
        self.paths: dict[int, str] = {}
        self.stack: list[str] = [""]
        self.selecting = False
        for x in {id(x): x for x in copies.values() if isinstance(x, Tensor)}.values():
            self.register(x)
        for path, original in model.named_modules():
            if (module := copies.get(id(original))) is None:
                continue  # part of a compiled module
            self.paths[id(module)] = path
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.momentum is None:
                module.momentum = 0.0  # None makes it read its number of batches
            for key, n in ints_of(original).items():
                each = [
                    self.watch(Width.of(x, (path, key, i)), watched)
                    for i, x in enumerate([n] if type(n) is int else n)
                ]
                vars(module)[key] = each[0] if type(n) is int else type(n)(each)
        for name, x in named_tensors(model).items():
            if id(x) in copies:
                self.values[id(copies[id(x)])].name = name

    def watch(self, width: Width, watched: Set[Source] | None) -> Any:
        if watched is None:
            return width
        return Setting(width, self.trace.fixed.add) if width.source in watched else int(width)

    def enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(self.paths.get(id(module), self.stack[-1]))
        self.selecting = isinstance(module, ChannelSelection)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()
        if isinstance(module, ChannelSelection):  # recorded as one operation
            read = self.value(args[0]), 1, self.value(module.index)
            self.note("index_select", torch.index_select, (read, {}), [self.register(output)])
            self.selecting = False

    def note(
        self, name: str, function: Any, read: Any, outputs: list[Value], text: str = "-"
    ) -> None:
        """Adds a call to the trace; ``read`` are its (args, kwargs)."""
        args, kwargs = read
        self.trace.calls.append(Call(name, function, args, kwargs, outputs, self.stack[-1], text))

    def register(self, x: Tensor) -> Value:
        value = self.values[id(x)] = Value(tuple(x.shape))
        self.alive.append(x)
        if x.layout is torch.strided:
            self.aliases.setdefault(_storage(x), []).append(x)
        return value

    def used(self, size: Dim, equal_to: Any = None) -> None:
        """Records that code computed with a size, or compared it with an equal one."""
        other = equal_to.axes if isinstance(equal_to, Dim) else frozenset()
        divisor = 0 if int(size) else size.divisor  # of a multiple
        self.note("size", _nothing, ((size.axes, other, divisor), {}), [])

    def value(self, x: Tensor) -> Value:
        if id(x) in self.stale:  # another view of its storage was changed in place
            read = self.values[id(x)], self.stale.pop(id(x))
            self.note("in-place write", _nothing, (read, {}), [self.register(x)])
        if id(x) not in self.values:
            self.trace.unseen = True
            self.register(x)
        return self.values[id(x)]

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.selecting:
            return function(*args, **kwargs)
        name = _name(function)
        if name in SIZES:
            return self.sizes(function, name, *args, **kwargs)
        args, kwargs = _evaluating(function, name, args, kwargs)
        arguments = leaves((args, kwargs))
        recording = not RECORDING.isdisjoint(map(type, arguments))
        if recording:
            args, kwargs = each(as_width if name in SPLITTING else as_plain, (args, kwargs))
            if name in SPLITTING:
                widths = [n for x in leaves((args, kwargs)) for n in widths_in(x)]
                self.trace.split |= {n.source for n in widths}
        inputs = [x for x in arguments if isinstance(x, Tensor)]
        read: Any = each(lambda x: self.value(x) if isinstance(x, Tensor) else x, (args, kwargs))
        if recording:
            args, kwargs = each(as_int, (args, kwargs))
        versions = [x._version for x in inputs]
        # torch 2.14 takes 12 ms for the shape of a batch norm on the meta device, 0.2 for others.
        on_meta = all(x.is_meta for x in inputs)
        # Those that cannot be hashed, such as large arrays, may differ and have the same repr.
        told_apart = all(type(x) in RECORDING or type(x).__hash__ for x in arguments)
        text = repr(read) if told_apart else ""
        form = (function, text, *((x.stride(), x.dtype) for x in inputs)) if on_meta else None
        if function is F.batch_norm and on_meta and _fits(*args[:4]):
            result = args[0].clone()
        elif text and on_meta and form in self.known:
            like = self.known[form]
            result = args[0].zero_() if like is None else like.clone()
        else:
            result = function(*args, **kwargs)
        written = [x for x, before in zip(inputs, versions, strict=True) if x._version != before]
        made = [x for x in leaves(result) if isinstance(x, Tensor)]
        if not (made or written) and (name in QUERIES or not inputs):
            return result
        new = on_meta and not written and type(result) is Tensor and result.is_meta
        changed = [(id(x), tuple(x.shape)) for x in written]
        if on_meta and args and result is args[0] and changed == [(id(result), read[0][0].shape)]:
            self.known[form] = None  # in place
        elif new and all(_storage(x) != _storage(result) for x in inputs):
            self.known[form] = result.detach()
        stale = []
        for x in written:  # tensors that share its storage have changed, too
            for other in self.aliases.get(_storage(x), ()):
                if buffer := self.values[id(other)].name:
                    self.trace.changed.add(buffer)
                if other is not x:
                    stale.append(other)
        values = [self.register(x) for x in {id(x): x for x in (*made, *written)}.values()]
        self.stale |= {id(x): values[0] for x in stale}
        self.note(name, function, read, [self.value(x) for x in made or written[:1]], text)
        return result

    def sizes(self, function: Any, name: str, x: Tensor, *dims: Any, **kwargs: Any) -> Any:
        """Returns sizes that record what is computed with them."""
        dims, kwargs = each(as_plain, (dims, kwargs))
        result, value = function(x, *dims, **kwargs), self.value(x)
        if name in ("shape", "size") and not isinstance(result, int):
            return Shape(Dim(n, frozenset({(value, i)}), self.used) for i, n in enumerate(result))
        axes = [*range(1 if name == "len" else x.dim())]
        if name == "size":
            axes = [axes[dim] for dim in (*dims, *kwargs.values())]
        counted = frozenset((value, axis) for axis in axes)
        return each(lambda n: Dim(n, counted, self.used), result)


def _name(function: Any) -> str:
    """Returns torch's name without underscores, such as ``add``, ``shape`` or ``getitem``."""
    name = getattr(function, "__name__", str(function))
    return (function.__self__.__name__ if name == "__get__" else name).strip("_")


def _evaluating(function: Any, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Returns the arguments with running statistics and without dropout."""
    if function is F.batch_norm:
        bound = signature(F.batch_norm).bind(*args, **kwargs)
        bound.apply_defaults()
        if bound.arguments["running_mean"] is not None:
            bound.arguments["training"] = False
        return tuple(bound.arguments.values()), {}
    if (
        "dropout" in name
        and callable(getattr(F, name, None))
        and "training" in signature(function).parameters
    ):
        bound = signature(function).bind(*args, **kwargs)
        bound.arguments["training"] = False
        return bound.args, bound.kwargs
    return args, kwargs


def _fits(x: Tensor, *own: Tensor | None) -> bool:
    return x.dim() > 1 and all(t is None or len(t) == x.shape[1] for t in own)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _nothing(*args: Any) -> None:
    raise NotImplementedError
