"""Data sets as ``uint8`` tensors in memory, wherever their pictures come from."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import SIZE
from utils.console import InputError, note
from utils.data import shapes
from utils.data.folder import PARTS, read_folder
from utils.data.image_files import ImageFiles, list_folder
from utils.shell import format_command

CIFAR_NORM = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
SVHN_NORM = ((0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614))
IMAGENET_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Training and test pictures and classes of the public data sets, to notice half an archive.
KNOWN = {
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "SVHN": (604_388, 26_032, 10),
}
IMAGENET = "imagenet"  # which is streamed, from these folders
IMAGENET_PARTS = ("train", "val")
IN_MEMORY = ("cifar10", "cifar100", "SVHN", "folder", "shapes")
DATASETS = (*IN_MEMORY, IMAGENET)
NORMS = {"cifar": CIFAR_NORM, IMAGENET: IMAGENET_NORM, "SVHN": SVHN_NORM}
NORMALISATIONS = (IMAGENET, "cifar", "data")
UPRIGHT = ("SVHN",)  # mirrored, a digit is none: it is never augmented
MOST_LISTED = 10  # of more classes only the smallest and the largest are counted on screen
MEASURED = 2000  # pictures that --normalise data is measured on
TORCHVISION, PICTURES = "torchvision", "picture files"
Arrays = tuple[np.ndarray, np.ndarray]  # pictures and labels
Norm = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of R, G and B


@dataclass(frozen=True)
class ImageSet:
    """``images`` uint8 [n, size, size, 3] (height, width, RGB) and ``labels`` int64 [n]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def checksum(self, before: int = 0) -> int:
        """CRC-32 of all pictures and labels, behind what has the checksum ``before``."""
        return zlib.crc32(self.labels.numpy().data, zlib.crc32(self.images.numpy().data, before))

    def take(self, chosen: Tensor) -> "ImageSet":
        """Those pictures, int64 [n]."""
        return ImageSet(self.images[chosen], self.labels[chosen])

    def image(self, index: int) -> np.ndarray:
        """Uint8 [size, size, 3]."""
        return self.images[index].numpy()


@dataclass(frozen=True)
class Dataset:
    """A training and a test set, and how their pictures become network input."""

    name: str
    classes: tuple[str, ...]
    train: ImageSet | ImageFiles
    test: ImageSet | ImageFiles
    mean: Sequence[float]
    std: Sequence[float]
    augment: bool  # by crops of padded pictures, on the device
    # Of a public data set: TORCHVISION, whose files' MD5 are known, or PICTURES, a copy of it.
    source: str = ""
    flip: bool = True  # whether what is cropped at random is mirrored at random, too

    def checksum(self) -> int:
        """Of all pictures and labels: what tells one set of pictures from another."""
        return self.test.checksum(self.train.checksum())

    def describe(self) -> list[str]:
        """How many images it has of each class, and how they become input: a line each."""
        train, test = (_counts(part.labels, self.classes) for part in (self.train, self.test))
        names = [f" ({name})" for name, norm in NORMS.items() if is_norm(norm, self.norm)]
        mean, std = (" ".join(f"{x:.3f}" for x in colours) for colours in self.norm)
        augmentation = "none"
        if self.augment or self.name == IMAGENET:
            flips = "mirrored at random (not with --no-flip)" if self.flip else "not mirrored"
            augmentation = f"{'' if self.augment else 'resized '}random crops, {flips}"
        return [
            f"training images: {train}; test images: {test}",
            f"normalised by mean {mean}, deviation {std}{''.join(names)};"
            f" augmentation: {augmentation}",
        ]

    @property
    def norm(self) -> Norm:
        return self.mean, self.std


def load(known: Mapping[str, Any], norm: Norm | None = None) -> Dataset:
    """The data set that ``known`` settings name, as :func:`load_dataset` does."""
    name, data = known.get("dataset", DATASETS[0]), known.get("data")
    folder = None if data is None else Path(data)
    subsets = known.get("subset"), known.get("test_subset")
    size, stream = known.get("size") or SIZE, bool(known.get("stream"))
    flip, normalise = not known.get("no_flip"), known.get("normalise")
    return load_dataset(name, folder, *subsets, size, stream, normalise, norm, flip)


def load_dataset(
    name: str,
    folder: Path | None = None,
    subset: int | None = None,
    test_subset: int | None = None,
    size: int = SIZE,
    stream: bool = False,
    normalise: str | None = None,
    norm: Norm | None = None,
    flip: bool = True,
) -> Dataset:
    """Load a data set of ``DATASETS`` into memory; or only find its files, to ``stream`` them.

    ``folder`` holds either what torchvision keeps there or ``{train,test}/<class>/*`` (of ImageNet
    ``{train,val}/<class>/*``); without it, data sets known to torchvision are downloaded into
    ``./data.<name>``. ``subset`` and ``test_subset`` take that many pictures, always the same ones.
    Pictures have ``size`` pixels a side. ``normalise`` is one of NORMALISATIONS, or the data set's
    own if None; "data" is ``norm`` where that was measured before. ``flip``: they are mirrored at
    random in training, where they are augmented. Raises InputError, one line,
    when the pictures are not there, not whole or not readable.
    """
    source, imagenet = "", name == IMAGENET
    folders = IMAGENET_PARTS if imagenet else PARTS
    if name == "shapes" and folder is not None:
        raise InputError("--dataset shapes is drawn by the program: it takes no --data")
    parts: Iterable[ImageSet | ImageFiles]
    if folder is not None and any((folder / part).is_dir() for part in folders):
        if imagenet or stream:
            classes, parts = list_folder(folder, folders, size, imagenet, flip)
        else:
            classes, arrays = read_folder(folder, size)
            parts = map(_pictures, arrays)
        source = PICTURES if name in KNOWN else ""
    elif name in ("folder", IMAGENET):
        where = "give it with --data DIR" if folder is None else f"{folder} has neither"
        wanted = f"DIR/{{{','.join(folders)}}}/<class>/*"
        raise InputError(f"--dataset {name} needs {wanted}: {where}")
    elif stream or size != SIZE:
        flag = "--stream" if stream else f"--size {size}"
        raise InputError(
            f"{flag} is for picture files, and {name} has none, but {SIZE}×{SIZE} pixels: give"
            f" {'no --stream' if stream else f'--size {SIZE}'}, or --data DIR"
        )
    elif name == "shapes":
        classes, parts = shapes.CLASSES, map(_pictures, _shapes())
    else:
        classes, arrays = _torchvision(name, folder)
        source, parts = TORCHVISION, map(_pictures, arrays)
    train, test = parts
    if source == PICTURES:
        _compare(name, folder, len(train), len(test), len(classes))
    train, test = _subset(train, subset, "--subset"), _subset(test, test_subset, "--test-subset")
    mean, std = norm if normalise == "data" and norm else _norm(name, normalise, train)
    augment = name not in (*UPRIGHT, IMAGENET)  # ImageNet's crops are made where they are read
    return Dataset(name, classes, train, test, mean, std, augment, source, flip)


def _norm(name: str, normalise: str | None, train: ImageSet | ImageFiles) -> Norm:
    return measured(train) if normalise == "data" else NORMS.get(normalise or name, CIFAR_NORM)


def is_norm(one: Norm, other: Norm) -> bool:
    """Whether both are the same numbers."""
    return [list(x) for x in one] == [list(x) for x in other]


def normalisation(norm: Norm, name: str) -> str | None:
    """Which of NORMALISATIONS gives ``norm``; None if none does, or if ``name`` has it anyway."""
    if is_norm(norm, NORMS.get(name, CIFAR_NORM)):
        return None
    return next((n for n in NORMALISATIONS if n in NORMS and is_norm(norm, NORMS[n])), None)


def _counts(labels: Tensor, classes: Sequence[str]) -> str:
    """How many images of each class, in few words."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if len(counts) > 1 and len({*counts}) == 1:
        return f"{counts[0]:,} of each of {len(counts)} classes"
    if len(counts) <= MOST_LISTED:
        pairs = zip(classes, counts, strict=True)
        return ", ".join(f"{name[:30]} {count:,}" for name, count in pairs)
    ends = sorted(zip(counts, classes, strict=True))
    (least, rare), (most, common) = ends[0], ends[-1]
    return f"{least:,} ({rare[:30]}) to {most:,} ({common[:30]}) of each of {len(counts)} classes"


def _pictures(part: Arrays) -> ImageSet:
    images, labels = (torch.from_numpy(np.ascontiguousarray(x)) for x in part)
    return ImageSet(images, labels.long())


def _subset(part: ImageSet | ImageFiles, count: int | None, flag: str) -> ImageSet | ImageFiles:
    """All of ``part``, or ``count`` of it."""
    if count is None:
        return part
    if count > len(part):
        raise InputError(f"{flag} {count} is more than the {len(part)} pictures there are")
    # A fixed seed: the same pictures in every run, whatever the run's own seed.
    generator = torch.Generator().manual_seed(0)
    return part.take(torch.randperm(len(part), generator=generator)[:count])


def measured(pictures: ImageSet | ImageFiles) -> Norm:
    """Mean and standard deviation of the pixels of MEASURED pictures, always the same, or of all.

    As a test sees them, from 0 to 1. Sums are exact, so that it is the same wherever it is taken.
    """
    some = _subset(pictures, min(len(pictures), MEASURED), "")
    sums, squares, count = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
    for i in range(len(some)):
        pixels = some.image(i).reshape(-1, 3).astype(np.int64)
        sums, squares = sums + pixels.sum(0), squares + (pixels**2).sum(0)
        count += len(pixels)
    mean = sums / count
    std = np.sqrt(squares / count - mean**2)
    if not (std > 0).all():
        raise InputError("--normalise data: a colour is the same in all pictures: choose another")
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _shapes() -> Iterable[Arrays]:
    return shapes.draw_shapes(10_000, 0), shapes.draw_shapes(2_000, 1)


def _torchvision(name: str, folder: Path | None) -> tuple[tuple[str, ...], list[Arrays]]:
    """CIFAR or SVHN through torchvision, which downloads what is missing where it may."""
    from torchvision import datasets  # here: its import takes as long as that of all else

    root = Path(f"data.{name}") if folder is None else folder
    if folder is not None and not folder.is_dir():
        raise InputError(f"--data {folder} is not a folder")
    if name == "SVHN" and find_spec("scipy") is None:  # or torchvision would first download
        how = format_command("-m", "pip", "install", "scipy")
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


def _compare(name: str, folder: Path | None, train: int, test: int, classes: int) -> None:
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
