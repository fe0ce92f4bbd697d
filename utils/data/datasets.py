"""Datasets as ``uint8`` tensors on the device, and the batches that training and tests see."""

import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from utils.console import InputError, note
from utils.data import shapes
from utils.data.folder import read_folder

CIFAR_NORM = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
SVHN_NORM = ((0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614))
# Pictures and classes of the public data sets, to notice an archive that is only half there.
KNOWN = {
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "SVHN": (604_388, 26_032, 10),
}
DATASETS = ("cifar10", "cifar100", "SVHN", "folder", "shapes")
TORCHVISION, PICTURES = "torchvision", "picture files"


@dataclass(frozen=True)
class Pictures:
    """``images`` uint8 [n, 32, 32, 3] (height, width, RGB) and ``labels`` int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


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
        """CRC-32 of all pictures and labels: what tells one set of pictures from another."""
        crc = 0
        for part in (self.train, self.test):
            crc = zlib.crc32(part.labels.numpy().data, zlib.crc32(part.images.numpy().data, crc))
        return crc


def load(known: Mapping[str, Any]) -> Dataset:
    """The data set that ``known`` settings name, as :func:`load_dataset` does."""
    folder = known.get("data")
    return load_dataset(
        known.get("dataset", DATASETS[0]),
        None if folder is None else Path(folder),
        known.get("subset"),
        known.get("test_subset"),
    )


def load_dataset(
    name: str,
    folder: Path | None = None,
    subset: int | None = None,
    test_subset: int | None = None,
) -> Dataset:
    """Load a data set of ``DATASETS`` into memory.

    ``folder`` holds either what torchvision keeps there or ``train/<class>/*`` and
    ``test/<class>/*``; without it, data sets known to torchvision are downloaded into
    ``./data.<name>``. ``subset`` and ``test_subset`` take that many pictures, always the same ones.

    Raises InputError, one line, when the pictures are not there, not whole or not readable.
    """
    if name == "shapes":
        if folder is not None:
            raise InputError("--dataset shapes is drawn by the program: it takes no --data")
        data = _shapes()
    elif folder is not None and any((folder / part).is_dir() for part in ("train", "test")):
        data = _folder(name, folder)
    elif name == "folder":
        where = "give it with --data DIR" if folder is None else f"{folder} has neither"
        raise InputError(
            f"--dataset folder needs DIR/train/<class>/* and DIR/test/<class>/*: {where}"
        )
    else:
        data = _torchvision(name, folder)
    return replace(
        data,
        train=_subset(data.train, subset, "--subset"),
        test=_subset(data.test, test_subset, "--test-subset"),
    )


def _subset(pictures: Pictures, count: int | None, flag: str) -> Pictures:
    if count is None:
        return pictures
    if count > len(pictures):
        raise InputError(f"{flag} {count} is more than the {len(pictures)} pictures there are")
    # A fixed seed: the same pictures in every run, whatever the run's own seed.
    chosen = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:count]
    return Pictures(pictures.images[chosen], pictures.labels[chosen])


def _shapes() -> Dataset:
    parts = [shapes.draw_shapes(count, seed) for count, seed in ((10_000, 0), (2_000, 1))]
    train, test = (Pictures(torch.from_numpy(x), torch.from_numpy(y)) for x, y in parts)
    return Dataset("shapes", shapes.CLASSES, train, test, *CIFAR_NORM, augment=True)


def _torchvision(name: str, folder: Path | None) -> Dataset:
    """CIFAR or SVHN through torchvision, which downloads what is missing where it may."""
    root = Path(f"data.{name}") if folder is None else folder
    if folder is not None and not folder.is_dir():
        raise InputError(f"--data {folder} is not a folder")
    if name == "SVHN" and find_spec("scipy") is None:  # or torchvision would first download
        raise InputError(
            "torchvision reads SVHN with scipy, which is not installed: pip install scipy"
        )

    def get(**split: bool | str):
        # It unpickles CIFAR's batches, but first compares their MD5 with the known ones.
        return getattr(datasets, name.upper())(root, download=folder is None, **split)

    was_there = root.exists()
    try:
        if name == "SVHN":
            parts = [get(split=split) for split in ("train", "extra", "test")]
            classes = tuple("0123456789")
            arrays = [(x.data.transpose(0, 2, 3, 1), np.asarray(x.labels)) for x in parts]
            images, labels = map(np.concatenate, zip(*arrays[:2], strict=True))
            arrays = [(images, labels), arrays[2]]
        else:
            parts = [get(train=train) for train in (True, False)]
            classes = tuple(parts[0].classes)
            arrays = [(x.data, np.asarray(x.targets)) for x in parts]
    except (OSError, HTTPException, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if folder is None:
            with suppress(OSError):  # it may hold half a download
                if not was_there:
                    root.rmdir()
            missing = f"{name} could not be downloaded into {root}"
        else:
            missing = f"{name} is not, or not whole, in {root}"
        raise InputError(
            f"{missing} ({reason[:200]}): put its archive there and unpack it, or give --data DIR"
            " with DIR/train/<class>/* and DIR/test/<class>/*"
        ) from None
    train, test = (
        Pictures(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)))
        for x, y in arrays
    )
    return Dataset(name, classes, train, test, *_norm(name), name != "SVHN", TORCHVISION)


def _folder(name: str, folder: Path) -> Dataset:
    """Pictures in ``folder/{train,test}/<class>/``."""
    classes, parts = read_folder(folder)
    train, test = (Pictures(torch.from_numpy(x), torch.from_numpy(y)) for x, y in parts)
    if name in KNOWN:
        pictures, test_pictures, count = KNOWN[name]
        if len(classes) != count:
            raise InputError(
                f"{folder}/train has {len(classes)} classes where {name} has {count}:"
                " finish unpacking it, or use --dataset folder for your own classes"
            )
        if (len(train), len(test)) != (pictures, test_pictures):
            note(
                f"note: {folder} has {len(train)} training and {len(test)} test pictures;"
                f" all of {name} has {pictures} and {test_pictures}"
            )
    source = PICTURES if name in KNOWN else ""
    return Dataset(name, classes, train, test, *_norm(name), name != "SVHN", source)


def _norm(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    return SVHN_NORM if name == "SVHN" else CIFAR_NORM
