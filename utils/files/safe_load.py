"""Reading of torch files from untrusted sources.

``torch.load(weights_only=True)`` runs no code. It accepts compressed archives, flipped bits,
tensors larger than their memory, and containers that contain themselves: checked here.
"""

import argparse
import math
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.console import InputError

MAX_VALUES, MAX_NESTING = 10**6, 10  # a ResNet-1001 has 20,000 values, our files 5 levels
# Earlier programs save best_prec1 as a NumPy scalar. NumPy 1 and 2 name the function differently.
_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_SCALARS: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
]
# The flags of a run, which the training scripts of torchvision and timm save: plain values. Python
# 3.13 names the module of paths differently.
FLAGS: list[Any] = [
    argparse.Namespace,
    *((pathlib.PosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
]


def read(path: pathlib.Path) -> Any:
    """Returns the content of a torch file, zip or older than torch 1.6, on the CPU.

    Raises InputError: the file is missing, damaged, or needs code to be loaded.
    """
    if not path.is_file():
        kind = "is a folder: give a file in it" if path.is_dir() else "does not exist"
        raise InputError(f"there is no checkpoint {path}: it {kind}")
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        with torch.serialization.safe_globals(NUMPY_SCALARS + FLAGS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_values(content, 0, iter(range(MAX_VALUES)))
        return content
    except Exception as error:  # torch and zipfile raise many kinds for damaged files
        needs_code, text = isinstance(error, pickle.UnpicklingError), str(error)
        if needs_code and (name := re.search(r"GLOBAL ([\w.]+)|class [`']?([\w.]+)", text)):
            raise InputError(
                f"{path} is refused: loading it would run {name[1] or name[2]}. Nothing of it was"
                " run. Save the state_dict alone: it has tensors only"
            ) from None
        reason = text.partition("\n")[0][:150] or type(error).__name__
        if needs_code or reason.isdecimal():  # advice to trust the file, or its first bytes
            raise InputError(f"{path} is not a PyTorch file, or is damaged") from None
        raise InputError(f"{path} is not a whole checkpoint ({reason})") from None


def _check_zip(path: pathlib.Path) -> None:
    """Raises ValueError for an archive that is compressed, oversized or damaged."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any("/code/" in entry.filename for entry in entries):
            raise ValueError("it is a TorchScript program: save the model's state_dict() instead")
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it is compressed, or claims to be larger than it is")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")


def _check_values(value: Any, depth: int, budget: Iterator[int]) -> None:
    """Raises ValueError for tensors that are not dense, and if ``budget`` ends."""
    if depth > MAX_NESTING or next(budget, None) is None:
        raise ValueError("it has too many values, or is nested too deeply")
    if isinstance(value, Tensor):
        size = math.prod(value.shape) * value.element_size()  # an expanded one has less memory
        dense = value.layout == torch.strided and value.device.type == "cpu"
        if not dense or value.is_complex() or size > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(value.shape)} is not dense and real")
    elif isinstance(value, dict | list | tuple):
        for item in dict.values(value) if isinstance(value, dict) else value:
            _check_values(item, depth + 1, budget)
