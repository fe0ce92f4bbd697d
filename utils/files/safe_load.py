"""Torch files from anywhere: read as dense tensors and plain values, or refused.

``torch.load(weights_only=True)`` alone still calls what it trusts with arguments of the file's
choosing (``bytearray(10**12)``), and checks no checksum. So a file is looked through first, without
running anything of it.
"""

import io
import math
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from utils.console import InputError

MOST_BYTES = 2**23  # of pickle; a ResNet-1001 has 0.9 million
MOST_TEXT = 2**16  # in one string
MOST_VALUES = 10**6
DEEPEST = 10  # containers within one another
PICKLES = 5  # in a file of before torch 1.6: two marks, the machine, the content, its storages


class _Dtype:
    """What stands for ``numpy.dtype`` in a pickle."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: a file of a little-endian machine is taken for granted."""


def _scalar(dtype: _Dtype, data: bytes) -> float:
    """What stands for numpy's own function, which takes memory on the file's word."""
    (value,) = struct.unpack({"f8": "<d", "f4": "<f", "i8": "<q"}[dtype.code], data)
    return value


# Numpy scalars, under the names of numpy 1 and 2: the earlier programs keep best_prec1 so.
SCALARS: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
# All that the pickle of a checkpoint may ask for by name.
NAMES = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "_codecs.encode",  # a scalar's bytes
    *(name for _, name in SCALARS),
    *(f"torch.{kind}Storage" for kind in "Double Float Half BFloat16 Long Int".split()),
    *(f"torch.{kind}Storage" for kind in "Short Char Byte Bool".split()),
}


def read(path: Path) -> Any:
    """What is in the torch file ``path``, zipped or of before torch 1.6, on the CPU.

    Only dense tensors, numbers, strings, None, and lists, tuples and dicts of these come out.

    Raises InputError when the file is missing, damaged, would run code, or holds anything else.
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        unknown = sorted(_names(path) - NAMES)
        if not unknown:
            with torch.serialization.safe_globals(SCALARS), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, of old pickles
                content = torch.load(path, map_location="cpu", weights_only=True)
            return _plain(content, 0, iter(range(MOST_VALUES)))
    except Exception as error:  # zipfile, pickletools and torch raise of all kinds on damaged files
        reason = str(error).partition("\n")[0][:150]
        if not reason or isinstance(error, pickle.UnpicklingError):  # torch's advice is to trust it
            reason = "its pickle is damaged"
        raise InputError(f"{path} is not a whole checkpoint ({reason})") from None
    raise InputError(
        f"{path} is refused: to be read it asks for {', '.join(unknown[:3])}, but a checkpoint is"
        " dense tensors and plain values, no code: save the state_dict alone. Nothing of it was run"
    )


def _names(path: Path) -> set[str]:
    """Everything that ``path`` asks for by name. Raises ValueError and others on damaged files."""
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return _names_in_pickle(io.BytesIO(_zipped_pickle(file, path.stat().st_size)))
        file.seek(0)
        # Storages of this format are taken on their word, but not touched before the file turns
        # out too short for them.
        names: set[str] = set()
        for _ in range(PICKLES):
            if names <= NAMES:
                names |= _names_in_pickle(file)
        return names


def _zipped_pickle(file: BinaryIO, size: int) -> bytes:
    """The pickle in a zip of ``size`` bytes that is as torch writes it, whole to the last bit."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise ValueError("it holds two files of one name")
        stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
        if not stored or sum(entry.file_size for entry in entries) > size:
            raise ValueError("it claims to hold more than its size")
        pickled = [e for e in entries if e.filename.partition("/")[2] == "data.pkl"]
        if len(pickled) != 1 or pickled[0].file_size > MOST_BYTES:
            raise ValueError("it has no data.pkl, several, or one that is too large")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        return archive.read(pickled[0])


def _names_in_pickle(stream: BinaryIO) -> set[str]:
    """Every name that the next pickle in ``stream`` asks for. Nothing of it is run."""
    names, texts = set(), ["", ""]
    start = stream.tell()
    for opcode, value, at in pickletools.genops(stream):
        if (at or 0) - start > MOST_BYTES or (isinstance(value, str) and len(value) > MOST_TEXT):
            raise ValueError("its pickle is too large")
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(value).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(texts))
        elif opcode.name.startswith("EXT"):
            names.add(f"extension {value}")
        elif isinstance(value, str):
            texts = [texts[1], value]
    return names


def _plain(value: Any, depth: int, left: Iterator[int]) -> Any:
    """``value`` built anew. ``left`` runs out where containers hold one another without end."""
    if depth > DEEPEST or next(left, None) is None:
        raise ValueError("it is nested too deeply")
    if isinstance(value, Tensor):
        # A tensor may be many times as large as what is behind it.
        if math.prod(value.shape) * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} has not as many numbers")
        return value.detach()
    if isinstance(value, dict):
        pairs = dict.items(value)  # a pickle may give an OrderedDict another method of this name
        if not all(isinstance(key, str | int) for key in value):
            raise ValueError("a dict has a key that is neither text nor number")
        return {key: _plain(item, depth + 1, left) for key, item in pairs}
    if isinstance(value, list | tuple):
        items = [_plain(item, depth + 1, left) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a number in it is too large")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")
