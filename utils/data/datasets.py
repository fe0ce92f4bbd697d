"""Datasets as ``uint8`` tensors on the device, and the batches that training and tests see."""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets

from models import SIZE
from utils.console import InputError, note
from utils.data import shapes
from utils.data.folder import read_folder

PAD = 4
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
            crc = zlib.crc32(part.labels.numpy(), zlib.crc32(part.images.numpy(), crc))
        return crc


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
            arrays = [tuple(map(np.concatenate, zip(*arrays[:2], strict=True))), arrays[2]]
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


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Pad 4 black pixels, crop back to 32×32 at (``top``, ``left``), mirror where ``flip``.

    ``images`` uint8 [n, 32, 32, 3]; ``top`` and ``left`` int64 [n], 0 to 8; ``flip`` bool [n].
    The same pictures as torchvision's pad, crop and hflip give, one gather for the batch.
    """
    padded = F.pad(images, (0, 0, PAD, PAD, PAD, PAD))
    along = torch.arange(SIZE, device=images.device)
    rows = top[:, None] + along
    columns = left[:, None] + torch.where(flip[:, None], along.flip(0), along)
    picture = torch.arange(len(images), device=images.device)
    return padded[picture[:, None, None], rows[:, :, None], columns[:, None, :]]


class Batches:
    """Normalised float32 batches of one set of pictures, cut on the device they live on.

    To train, :meth:`cut` each batch of :meth:`order` (shuffled and, where the data set says so,
    augmented); to test, iterate over :meth:`in_order`. Both give ([n, 3, 32, 32], int64 [n]) with
    ``batch_size`` pictures each but for the last.
    """

    def __init__(
        self, data: Dataset, part: str, batch_size: int, device: torch.device, seed: int = 0
    ) -> None:
        pictures: Pictures = getattr(data, part)
        self.images, self.labels = pictures.images.to(device), pictures.labels.to(device)
        self.mean = torch.tensor(data.mean, device=device)
        self.std = torch.tensor(data.std, device=device)
        self.augment, self.batch_size, self.seed = data.augment, batch_size, seed

    def _normalised(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)

    def order(self, epoch: int) -> tuple[Tensor, ...]:
        """What training epoch ``epoch`` sees, batch by batch: a pure function of it and the seed.

        A batch is int64 [4, n] on the device: which pictures, the top and the left of their crops,
        and whether they are mirrored. All is drawn on the CPU and uploaded once, so that a CPU and
        a GPU, an interrupted and a resumed run see the same batches.
        """
        count = len(self.labels)
        state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state))
        chosen = torch.randperm(count, generator=generator)
        top, left = torch.randint(2 * PAD + 1, (2, count), generator=generator)
        flip = torch.randint(2, (count,), generator=generator)
        where = torch.stack((chosen, top, left, flip)).to(self.images.device)
        return where.split(self.batch_size, dim=1)

    def cut(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """The batch that ``where`` says, one of :meth:`order`'s."""
        chosen, top, left, flip = where
        images = self.images[chosen]
        if self.augment:
            images = crop_and_flip(images, top, left, flip.bool())
        return self._normalised(images), self.labels[chosen]

    def in_order(self, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in the order of the files, as they are: from ``first``, ``every`` so many."""
        images, labels = (x.split(self.batch_size) for x in (self.images, self.labels))
        for pictures, classes in list(zip(images, labels, strict=True))[first::every]:
            yield self._normalised(pictures), classes
