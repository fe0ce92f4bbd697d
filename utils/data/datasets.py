"""Data sets as ``uint8`` tensors in memory, wherever their pictures come from."""

import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.console import InputError, note
from utils.data import shapes
from utils.data.folder import PARTS, read_folder
from utils.shell import command

CIFAR_NORM = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
SVHN_NORM = ((0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614))
# Training and test pictures and classes of the public data sets, to notice half an archive.
KNOWN = {
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "SVHN": (604_388, 26_032, 10),
}
DATASETS = ("cifar10", "cifar100", "SVHN", "folder", "shapes")
TORCHVISION, PICTURES = "torchvision", "picture files"
Arrays = tuple[np.ndarray, np.ndarray]  # pictures and labels


@dataclass(frozen=True)
class Pictures:
    """``images`` uint8 [n, 32, 32, 3] (height, width, RGB) and ``labels`` int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def checksum(self, before: int = 0) -> int:
        """CRC-32 of all pictures and labels, behind what has the checksum ``before``."""
        return zlib.crc32(self.labels.numpy().data, zlib.crc32(self.images.numpy().data, before))


@dataclass(frozen=True)
class Dataset:
    """A training and a test set, and how their pictures become network input."""

    name: str
    classes: tuple[str, ...]
    train: Pictures
    test: Pictures
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augment: bool
    # Of a public data set: TORCHVISION, whose files' MD5 are known, or PICTURES, a copy of it.
    source: str = ""

    def checksum(self) -> int:
        """Of all pictures and labels: what tells one set of pictures from another."""
        return self.test.checksum(self.train.checksum())


def load(known: Mapping[str, Any]) -> Dataset:
    """The data set that ``known`` settings name, as :func:`load_dataset` does."""
    name, data = known.get("dataset", DATASETS[0]), known.get("data")
    folder = None if data is None else Path(data)
    return load_dataset(name, folder, known.get("subset"), known.get("test_subset"))


def load_dataset(
    name: str, folder: Path | None = None, subset: int | None = None, test_subset: int | None = None
) -> Dataset:
    """Load a data set of ``DATASETS`` into memory.

    ``folder`` holds either what torchvision keeps there or ``{train,test}/<class>/*``; without it,
    data sets known to torchvision are downloaded into ``./data.<name>``. ``subset`` and
    ``test_subset`` take that many pictures, always the same ones. Raises InputError, one line, when
    the pictures are not there, not whole or not readable.
    """
    source = ""
    if name == "shapes":
        if folder is not None:
            raise InputError("--dataset shapes is drawn by the program: it takes no --data")
        classes, parts = shapes.CLASSES, _shapes()
    elif folder is not None and any((folder / part).is_dir() for part in PARTS):
        classes, parts = read_folder(folder)
        if name in KNOWN:
            source = PICTURES
            _compare(name, folder, len(parts[0][1]), len(parts[1][1]), len(classes))
    elif name == "folder":
        where = "give it with --data DIR" if folder is None else f"{folder} has neither"
        raise InputError(f"--dataset folder needs DIR/{{train,test}}/<class>/*: {where}")
    else:
        classes, parts = _torchvision(name, folder)
        source = TORCHVISION
    train = _pictures(parts[0], subset, "--subset")
    test = _pictures(parts[1], test_subset, "--test-subset")
    mean, std = SVHN_NORM if name == "SVHN" else CIFAR_NORM
    return Dataset(name, classes, train, test, mean, std, name != "SVHN", source)


def _pictures(part: Arrays, count: int | None, flag: str) -> Pictures:
    """All of ``part``, or ``count`` of it."""
    images, labels = (torch.from_numpy(np.ascontiguousarray(x)) for x in part)
    if count is None:
        return Pictures(images, labels.long())
    if count > len(labels):
        raise InputError(f"{flag} {count} is more than the {len(labels)} pictures there are")
    # A fixed seed: the same pictures in every run, whatever the run's own seed.
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
    return Pictures(images[chosen], labels[chosen].long())


def _shapes() -> Sequence[Arrays]:
    return shapes.draw_shapes(10_000, 0), shapes.draw_shapes(2_000, 1)


def _torchvision(name: str, folder: Path | None) -> tuple[tuple[str, ...], Sequence[Arrays]]:
    """CIFAR or SVHN through torchvision, which downloads what is missing where it may."""
    from torchvision import datasets  # here: its import takes as long as that of all else

    root = Path(f"data.{name}") if folder is None else folder
    if folder is not None and not folder.is_dir():
        raise InputError(f"--data {folder} is not a folder")
    if name == "SVHN" and find_spec("scipy") is None:  # or torchvision would first download
        how = command("-m", "pip", "install", "scipy")
        raise InputError(f"torchvision reads SVHN with scipy: {how}")

    def get(**split: bool | str):
        # It unpickles CIFAR's batches, but first compares their MD5 with the known ones.
        return getattr(datasets, name.upper())(root, download=folder is None, **split)

    was_there = root.exists()
    try:
        if name == "SVHN":
            parts = [get(split=split) for split in ("train", "extra", "test")]
            arrays = [(x.data.transpose(0, 2, 3, 1), x.labels) for x in parts]
            images, labels = map(np.concatenate, zip(*arrays[:2], strict=True))
            return tuple("0123456789"), [(images, labels), arrays[2]]
        parts = [get(train=train) for train in (True, False)]
        return tuple(parts[0].classes), [(x.data, np.asarray(x.targets)) for x in parts]
    except (OSError, HTTPException, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if folder is None and not was_there:
            with suppress(OSError):  # it may hold half a download
                root.rmdir()
        missing = "could not be downloaded into" if folder is None else "is not, or not whole, in"
        raise InputError(
            f"{name} {missing} {root} ({reason[:200]}): put its archive there and unpack it, or"
            " give --data DIR with DIR/{train,test}/<class>/*"
        ) from None


def _compare(name: str, folder: Path, train: int, test: int, classes: int) -> None:
    """How many pictures and classes are in ``folder`` with what data set ``name`` has."""
    all_train, all_test, all_classes = KNOWN[name]
    if classes != all_classes:
        raise InputError(
            f"{folder}/train has {classes} classes where {name} has {all_classes}:"
            " finish unpacking it, or use --dataset folder for your own classes"
        )
    if (train, test) != (all_train, all_test):
        note(
            f"note: {folder} has {train} training and {test} test pictures;"
            f" all of {name} has {all_train} and {all_test}"
        )
