"""Ints that record their origin: sizes of tensors, and int attributes of modules.

Recorded code sees plain ints. Its use of them shows whether a width follows a removal of channels.
"""

import operator
from collections.abc import Callable
from typing import Any

# An int attribute: name of the module, attribute, and position in a list (0 if it is no list).
Source = tuple[str, str, int]


class Width(int):
    """The int attribute ``source``, divided by ``times``."""

    source: Source = ("", "", 0)
    times = 1

    @classmethod
    def of(cls, value: int, source: Source, times: int = 1) -> "Width":
        width = cls(value)
        width.source, width.times = source, times
        return width

    def __floordiv__(self, other: Any) -> Any:
        quotient = int(self) // other
        if type(quotient) is int and quotient * other == self > 0:
            return Width.of(quotient, self.source, self.times * int(other))
        return quotient


class Setting:
    """A :class:`Width` that reports every use.

    It passes for an int. ``used`` is called with its source when its value is read, except by a
    division without remainder. torch's C functions do not accept it.
    """

    width = Width()
    __class__ = property(lambda self: int)  # type: ignore[assignment]

    def __init__(self, width: Width, used: Callable[[Source], None]) -> None:
        self.width, self.used = width, used

    def __index__(self) -> int:
        self.used(self.width.source)
        return int(self.width)

    def __floordiv__(self, other: Any) -> Any:
        quotient = self.width // as_plain(other)
        return Setting(quotient, self.used) if isinstance(quotient, Width) else int(self) // other

    def __getattr__(self, name: str) -> Any:
        return getattr(int(self), name)


def as_plain(x: Any) -> Any:
    """Returns ``x``, as a plain int if it is an attribute of a module."""
    return int(x) if type(x) is Setting or type(x) is Width else x


def _noticed(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *others: function(int(self), *others)


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: function(other, int(self))


for _operation in "add sub mul truediv mod pow lshift rshift and or xor".split():
    _function = getattr(operator, f"__{_operation}__")
    setattr(Setting, f"__{_operation}__", _noticed(_function))
    setattr(Setting, f"__r{_operation}__", _reflected(_function))
for _operation in "eq ne lt le gt ge neg pos abs invert".split():
    setattr(Setting, f"__{_operation}__", _noticed(getattr(operator, f"__{_operation}__")))
for _builtin in (float, complex, bool, str, repr, hash, format, divmod, round):
    setattr(Setting, f"__{_builtin.__name__}__", _noticed(_builtin))
setattr(Setting, "__rfloordiv__", _reflected(operator.floordiv))  # noqa: B010
setattr(Setting, "__rdivmod__", _reflected(divmod))  # noqa: B010


class Dim(int):
    """A size read from tensors: ``axes`` are their (value, axis) pairs.

    Sums and multiples keep the axes, which distinguishes a view to ``c // 2`` channels from one to
    a literal 32. ``used`` is called for any other use (comparing, dividing by it).
    """

    axes: frozenset[tuple[Any, int]]
    used: Callable[..., None]
    divisor: int  # of the remainder that this is
    __hash__ = int.__hash__

    def __new__(
        cls,
        size: int,
        axes: frozenset[tuple[Any, int]] = frozenset(),
        used: Callable[..., None] = lambda *_: None,
        divisor: int = 0,
    ) -> "Dim":
        dim = super().__new__(cls, size)
        dim.axes, dim.used, dim.divisor = axes, used, divisor
        return dim


def _recording(operation: str) -> Callable[..., Any]:
    """Wraps an operation of ints: returns a :class:`Dim` if the result follows a removal of
    channels, else calls ``used``."""
    plain = getattr(int, f"__{operation}__")

    def method(self: Dim, *others: Any) -> Any:
        others = tuple(map(as_plain, others))
        result = plain(self, *others)
        other: Any = others[0] if others else None
        is_int, other_is_size = type(result) is int, isinstance(other, Dim)
        if operation == "mod":
            if other_is_size or not is_int:
                return result
            return Dim(result, self.axes, self.used, int(other))
        if operation in ("add", "radd") and type(other) is int and other == 0:  # sum()
            return self
        if is_int and (operation in SCALING or (other_is_size and operation in OF_TWO_SIZES)):
            axes = self.axes | other.axes if other_is_size else self.axes
            return Dim(result, axes, self.used)
        equal = operation in ("eq", "ne") and result is (operation == "eq")
        self.used(self, other if equal else None)
        return result

    return method


SCALING = {"mul", "rmul", "floordiv"}  # of a size: a size, whatever the other operand is
OF_TWO_SIZES = {"add", "radd", "sub", "rsub", "rfloordiv"}  # of two sizes: a size
USING = set("mod eq ne lt le gt ge bool float truediv rtruediv pow rpow".split())
for _operation in SCALING | OF_TWO_SIZES | USING:
    setattr(Dim, f"__{_operation}__", _recording(_operation))


class Shape(tuple[int, ...]):
    """A ``torch.Size`` of :class:`Dim`."""

    def numel(self) -> int:
        product: int = 1
        for size in self:
            product = product * size
        return product


def as_width(x: Any) -> Any:
    """Replaces a :class:`Setting`, also in a slice, by its :class:`Width`."""
    if type(x) is slice:
        return slice(as_width(x.start), as_width(x.stop), as_width(x.step))
    return x.width if type(x) is Setting else x


def widths_in(x: Any) -> list[Width]:
    """Returns each :class:`Width` in an argument or slice."""
    each = (x.start, x.stop, x.step) if type(x) is slice else (x,)
    return [n for n in each if type(n) is Width]


def as_int(x: Any) -> Any:
    """Replaces recording ints, also in a slice, by plain ones."""
    if type(x) is slice:
        return slice(as_int(x.start), as_int(x.stop), as_int(x.step))
    return int(x) if isinstance(x, Dim | Width) else x
