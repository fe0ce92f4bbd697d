"""Data sets: their names, normalisation and loading."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import SIZE
from utils.console import InputError, note, require_packages
from utils.data import shapes
from utils.data.image_folder import ImageFiles, decode

Norm = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of R, G and B
CIFAR_NORM = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
SVHN_NORM = ((0.4376821, 0.4437697, 0.47280442), (0.19803012, 0.20101562, 0.19703614))
IMAGENET_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Training images, test images and classes of the public data sets, to notice incomplete copies.
PUBLIC_COUNTS = {
    "cifar10": (50_000, 10_000, 10),
    "cifar100": (50_000, 10_000, 100),
    "SVHN": (604_388, 26_032, 10),
}
IMAGENET = "imagenet"  # always streamed
DATASETS = (*PUBLIC_COUNTS, "folder", "shapes", IMAGENET)
NORMS = {"cifar": CIFAR_NORM, IMAGENET: IMAGENET_NORM, "SVHN": SVHN_NORM}
NORMALISATIONS = (IMAGENET, "cifar", "data")
UPRIGHT = ("SVHN",)  # never augmented, as a mirrored digit is none
MAX_LISTED_CLASSES = 10
NORM_IMAGES = 2000  # images that --normalise data measures
TORCHVISION, IMAGE_FILES = "torchvision", "picture files"  # "source" in records


@dataclass(frozen=True)
class ImageSet:
    """``images`` uint8 [n, size, size, 3] (height, width, RGB) and ``labels`` int64 [n]."""

    images: Tensor
    labels: Tensor

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: Any) -> "ImageSet":
        return cls(torch.from_numpy(np.ascontiguousarray(images)), torch.as_tensor(labels).long())

    def __len__(self) -> int:
        return len(self.labels)

    def checksum(self, start: int = 0) -> int:
        """Returns the CRC-32 of all images and labels, continuing from the checksum ``start``."""
        return zlib.crc32(self.labels.numpy().data, zlib.crc32(self.images.numpy().data, start))

    def take(self, chosen: Tensor) -> "ImageSet":
        """Returns the images of the indices ``chosen``, int64 [n]."""
        return ImageSet(self.images[chosen], self.labels[chosen])

    def image(self, index: int) -> np.ndarray:
        """Returns an image, uint8 [size, size, 3]."""
        return self.images[index].numpy()


@dataclass(frozen=True)
class Dataset:
    """Training and test images, and how they are normalised and augmented."""

    name: str
    classes: tuple[str, ...]
    train: ImageSet | ImageFiles
    test: ImageSet | ImageFiles
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: bool  # with random crops of padded images
    source: str = ""  # of a public data set: TORCHVISION (MD5 was compared) or IMAGE_FILES
    flip: bool = True  # mirror random crops with probability 0.5

    @property
    def norm(self) -> Norm:
        return self.mean, self.std

    def checksum(self) -> int:
        """Returns the checksum of the training and test set together."""
        return self.test.checksum(self.train.checksum())

    def describe(self) -> list[str]:
        """Returns a line on the images per class and one on normalisation and augmentation."""
        train, test = (_class_counts(x.labels, self.classes) for x in (self.train, self.test))
        names = "".join(f" ({name})" for name, norm in NORMS.items() if norm == self.norm)
        mean, std = (" ".join(f"{x:.3f}" for x in channels) for channels in self.norm)
        augmentation = "none"
        if self.augment or self.name == IMAGENET:
            flips = "mirrored at random (not with --no-flip)" if self.flip else "not mirrored"
            augmentation = f"{'' if self.augment else 'resized '}random crops, {flips}"
        single = "; warning: there is a single class" if len(self.classes) == 1 else ""
        return [
            f"training images: {train}; test images: {test}{single}",
            f"normalised by mean {mean}, deviation {std}{names}; augmentation: {augmentation}",
        ]


def load(config: Mapping[str, Any], norm: Norm | None = None) -> Dataset:
    """Loads the data set of the flags in ``config``; see :func:`load_dataset`."""
    names = "data", "subset", "test_subset", "size", "stream", "normalise"
    flags = {name: config[name] for name in names if config.get(name) is not None}
    folder, flip = flags.pop("data", None), not config.get("no_flip")
    name = config.get("dataset", DATASETS[0])
    return load_dataset(name, folder, norm=norm, flip=flip, **flags)


def check_folder(name: str, path: str | Path | None) -> list[Path]:
    """Returns the directories of training and test images in ``path``, [] if there are none.

    Raises InputError if the data set ``name`` cannot be in that folder.
    """
    parts = "train", "val" if name == IMAGENET else "test"
    folders = [] if path is None else [Path(path, part) for part in parts]
    if name == "shapes" and folders:
        raise InputError(f"--dataset shapes is drawn by the program: remove --data {path}")
    if any(folder.is_dir() for folder in folders):
        return folders
    if name in ("folder", IMAGENET):
        reason = "--data DIR is missing"
        if path is not None:
            reason = f"{Path(path)} has neither {' nor '.join(parts)}"
        raise InputError(f"--dataset {name} needs DIR/{{{','.join(parts)}}}/<class>/*: {reason}")
    if path is not None and not Path(path).is_dir():
        raise InputError(f"--data {path} is not a directory")
    return []


def load_dataset(
    name: str,
    data: str | Path | None = None,
    subset: int | None = None,
    test_subset: int | None = None,
    size: int = SIZE,
    stream: bool = False,
    normalise: str | None = None,
    norm: Norm | None = None,
    flip: bool = True,
) -> Dataset:
    """Loads a data set into memory; with ``stream``, and ImageNet always, only finds its files.

    Args:
        name: one of DATASETS.
        data: folder with torchvision's files or ``{train,test}/<class>/*`` (ImageNet:
            ``{train,val}/<class>/*``); if None, torchvision downloads to ``./data.<name>``.
        subset, test_subset: number of training and test images to take, always the same ones.
        size: side of the images in pixels.
        normalise: one of NORMALISATIONS; if None, the default of the data set.
        norm: an earlier measurement, used if ``normalise`` is "data".
        flip: mirror images at random if they are augmented.

    Raises InputError if images are missing, incomplete or unreadable.
    """
    parts, source = check_folder(name, data), ""
    train: ImageSet | ImageFiles
    test: ImageSet | ImageFiles
    if parts:
        train, test = files = [ImageFiles.scan(p, size, name == IMAGENET, flip) for p in parts]
        classes = train.classes
        source = IMAGE_FILES if name in PUBLIC_COUNTS else ""
        _check_parts(name, train, test)
        if not (name == IMAGENET or stream):
            labels = [part.labels for part in files]
            train, test = map(ImageSet.from_arrays, decode(files), labels)
    elif stream or size != SIZE:
        flag, advice = ("--stream", "no --stream") if stream else (f"--size {size}", "--size 32")
        raise InputError(
            f"{flag} needs image files, and {name} consists of 32×32 arrays: give {advice}, or"
            " --data DIR with image files"
        )
    elif name == "shapes":
        # Only images that are used: each takes 0.2 ms.
        counts = min(subset or 10_000, 10_000), min(test_subset or 2_000, 2_000)
        drawn = (shapes.draw_shapes(count, seed) for seed, count in enumerate(counts))
        classes, (train, test) = shapes.CLASSES, (ImageSet.from_arrays(*x) for x in drawn)
    else:
        source, (classes, train, test) = TORCHVISION, _load_torchvision(name, data)
    train, test = _subset(train, subset, "--subset"), _subset(test, test_subset, "--test-subset")
    if normalise != "data":
        norm = NORMS.get(normalise or name, CIFAR_NORM)
    mean, std = norm or measure_norm(train)
    augment = name not in (*UPRIGHT, IMAGENET)  # ImageFiles crops ImageNet's images
    return Dataset(name, classes, train, test, mean, std, augment, source, flip)


def normalisation(norm: Norm, name: str) -> str | None:
    """Returns the --normalise value of ``norm``, None if it is ``name``'s default or has none."""
    if norm == NORMS.get(name, CIFAR_NORM):
        return None
    return next((n for n in NORMALISATIONS if norm == NORMS.get(n)), None)


def measure_norm(data: ImageSet | ImageFiles) -> Norm:
    """Measures mean and standard deviation, 0 to 1, of the pixels of NORM_IMAGES images.

    The images are always the same ones and the sums exact, so that every machine gets equal bits.
    """
    data = _subset(data, min(len(data), NORM_IMAGES), "")
    histogram, values = np.zeros((3, 256), np.int64), np.arange(256)
    for i in range(len(data)):
        channels = data.image(i).reshape(-1, 3).T
        histogram += [np.bincount(channel, minlength=256) for channel in channels]
    pixels = histogram[0].sum()
    mean = histogram @ values / pixels
    std = np.sqrt(histogram @ values**2 / pixels - mean**2)
    if not (std > 0).all():
        raise InputError(
            "--normalise data: a colour channel is constant, so that its standard deviation is 0:"
            " use --normalise cifar or imagenet"
        )
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _class_counts(labels: Tensor, classes: Sequence[str]) -> str:
    """Returns the images per class as text; with many classes, only the least and the most."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    named = [(count, name[:30]) for count, name in zip(counts, classes, strict=True)]
    if len({*counts}) > 1 and len(counts) <= MAX_LISTED_CLASSES:
        return ", ".join(f"{count:,} {name}" for count, name in named)
    (least, rare), (most, common) = min(named), max(named)
    spread = f"{least:,} ({rare}) to {most:,} ({common})" if least < most else f"{least:,}"
    return f"{spread} of each of {len(counts)} classes"


def _subset(data: ImageSet | ImageFiles, count: int | None, flag: str) -> ImageSet | ImageFiles:
    """Returns ``count`` images, the same ones for every seed of a run; all if it is None."""
    if count is None:
        return data
    if count > len(data):
        raise InputError(f"{flag} {count} is more than the {len(data)} images of the data set")
    return data.take(torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count])


def _check_parts(name: str, train: ImageFiles, test: ImageFiles) -> None:
    """Raises InputError if classes are missing; notes missing images of a public data set."""
    if different := sorted({*train.classes} ^ {*test.classes}):
        raise InputError(
            f"only one of {train.part} and {test.part} has the classes {', '.join(different[:5])}:"
            " both need the same ones"
        )
    counts = len(train), len(test), len(train.classes)
    expected = PUBLIC_COUNTS.get(name, counts)
    if counts[2] != expected[2]:
        raise InputError(
            f"{train.part} has {counts[2]} classes, and {name} has {expected[2]}:"
            " finish unpacking it, or use --dataset folder for your own classes"
        )
    if counts != expected:
        note(
            f"note: {train.part.parent} has {counts[0]} training and {counts[1]} test images;"
            f" all of {name} has {expected[0]} and {expected[1]}"
        )


def _load_torchvision(
    name: str, folder: str | Path | None
) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """Loads classes, training and test set of CIFAR or SVHN, downloaded if ``folder`` is None."""
    from torchvision import datasets  # slow import

    root, svhn = folder or Path(f"data.{name}"), name == "SVHN"
    splits: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    if svhn:
        require_packages("torchvision's reader of SVHN", "scipy")  # before the download
        splits = [{"split": "train"}, {"split": "extra"}, {"split": "test"}]
    load_split = partial(getattr(datasets, name.upper()), root, download=folder is None)
    try:
        loaded = [load_split(**split) for split in splits]  # CIFAR's MD5 is checked: it is pickled
    except (OSError, HTTPException, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = "could not be downloaded to" if folder is None else "is missing or incomplete in"
        raise InputError(
            f"{name} {problem} {root} ({reason[:200]}): put its archive there and unpack it, or"
            " give --data DIR with DIR/{train,test}/<class>/*"
        ) from None
    if svhn:
        arrays, classes = [(x.data.transpose(0, 2, 3, 1), x.labels) for x in loaded], "0123456789"
    else:
        arrays, classes = [(x.data, x.targets) for x in loaded], loaded[0].classes
    images, labels = map(np.concatenate, zip(*arrays[:-1], strict=True))
    return tuple(classes), ImageSet.from_arrays(images, labels), ImageSet.from_arrays(*arrays[-1])
