"""A folder of pictures, found but not read: ``DIR/<part>/<class>/*``."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.data.folder import check_classes, list_images, read_image, resize_center_crop

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop: its area, and width to height
BORDER = 8 / 7  # to test: the shorter side is resized to so many times what is cropped, 256 for 224


@dataclass(frozen=True)
class ImageFiles:
    """Picture files of one part, ``labels`` int64 [n], and what size to read them in.

    A million names as Python strings are 100 MB and more, and are copied by all that touch them:
    here they are one array of bytes.
    """

    part: Path
    classes: tuple[str, ...]
    names: np.ndarray  # uint8: all files' names, one behind the other
    offsets: np.ndarray  # int64 [n, 2]: where in it each begins and ends
    labels: Tensor
    size: int
    as_imagenet: bool  # resized and cropped as ImageNet's pictures are; else as other folders are
    crc: int  # CRC-32 of the sorted paths in ``part`` and of the files' sizes
    flip: bool = True  # whether a random crop is mirrored at random

    @classmethod
    def scan(cls, part: Path, size: int, as_imagenet: bool, flip: bool) -> "ImageFiles":
        """What is in ``part``. Raises InputError, one line, where it is no folder of pictures."""
        classes, counts, names, lengths, crc = list[str](), list[int](), bytearray(), [], 0
        for name, files in list_images(part):
            bytes_ = [os.lstat(os.path.join(part, name, file)).st_size for file in files]
            said = "".join(f"{name}/{f}\0{n}\n" for f, n in zip(files, bytes_, strict=True))
            crc = zlib.crc32(os.fsencode(said), crc)
            encoded = [os.fsencode(file) for file in files]
            names += b"".join(encoded)
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            classes.append(name)
            counts.append(len(files))
        last = np.concatenate(lengths).cumsum()
        where = np.stack([np.concatenate([[0], last[:-1]]), last], 1)
        labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
        array = np.frombuffer(names, np.uint8)
        return cls(part, tuple(classes), array, where, labels, size, as_imagenet, crc, flip)

    def __len__(self) -> int:
        return len(self.labels)

    def checksum(self, before: int = 0) -> int:
        """CRC-32 of paths and sizes, behind what has the checksum ``before``."""
        return zlib.crc32(self.crc.to_bytes(4), before)

    def take(self, chosen: Tensor) -> "ImageFiles":
        """Those pictures, int64 [n]."""
        crc = zlib.crc32(chosen.numpy().data, self.crc)
        return replace(
            self, offsets=self.offsets[chosen.numpy()], labels=self.labels[chosen], crc=crc
        )

    def image(self, index: int, crop: int | None = None) -> np.ndarray:
        """Uint8 [size, size, 3]: the middle of a picture, or a random crop, drawn from ``crop``.

        Raises InputError, one line, where it cannot be read.
        """
        first, last = self.offsets[index]
        name = os.fsdecode(self.names[first:last].tobytes())
        rgb = read_image(self.part / self.classes[int(self.labels[index])] / name)
        if crop is not None:
            return _random_crop(rgb, self.size, crop, self.flip)
        shorter = round(BORDER * self.size) if self.as_imagenet else self.size
        return resize_center_crop(rgb, shorter, self.size)


def list_folder(
    folder: Path, parts: Sequence[str], size: int, as_imagenet: bool, flip: bool
) -> tuple[tuple[str, ...], list[ImageFiles]]:
    """Class names, and the training and test set, which ``parts`` of ``folder`` hold.

    Raises InputError, one line, when something is missing.
    """
    train, test = (ImageFiles.scan(folder / part, size, as_imagenet, flip) for part in parts)
    check_classes(folder, parts, train.classes, test.classes)
    return train.classes, [train, test]


def _random_crop(rgb: Image.Image, size: int, number: int, flip: bool) -> np.ndarray:
    """torchvision's random resized crop, with ``flip`` mirrored or not, by ``number`` alone."""
    from torchvision.transforms import RandomResizedCrop, functional  # slow: only here

    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
        torch.default_generator.manual_seed(number)
        box = RandomResizedCrop.get_params(rgb, SCALE, RATIO)
        mirrored = flip and bool(torch.rand(()) < 0.5)
    cut = functional.resized_crop(rgb, *box, [size, size])
    return np.asarray(functional.hflip(cut) if mirrored else cut)
