"""Directories of images, ``DIR/<part>/<class>/*``: find, read and decode them."""

import hashlib
import math
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import filterfalse
from operator import methodcaller
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils.atomic import atomic_write
from utils.console import InputError, note

TIFF_SAMPLE_FORMAT = 339  # its tag; 2 is signed
# The only formats read, whatever a file is called: for some others Pillow starts programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = tuple(k for k, v in sorted(Image.registered_extensions().items()) if v in FORMATS)
CACHE_VERSION = 2  # raise it when a file is decoded to other pixels than before
RESIZE_RATIO = 8 / 7  # ImageNet evaluation: shorter side to crop, 256 to 224 pixels


@dataclass(frozen=True)
class ImageFiles:
    """Image files of one part of a data set, read on access.

    ``names`` is one array: a million Python strings would take over 100 MB, and every worker
    process that uses them would copy them.
    """

    part: Path
    classes: tuple[str, ...]
    names: np.ndarray  # bytes [n]: <class>/<file>
    labels: Tensor  # int64 [n]
    size: int  # side in pixels of the images that are returned
    imagenet: bool  # resize and crop as usual for ImageNet
    flip: bool  # mirror random crops with probability 0.5
    crc: int  # CRC-32 of the sorted names and the file sizes
    fingerprint: str  # SHA-256 of names, file sizes and modification times

    @classmethod
    def scan(cls, part: Path, size: int, imagenet: bool, flip: bool) -> "ImageFiles":
        """Finds the images ``part/<class>/*``; skips links and hidden files.

        Raises InputError if there are no classes or a class has no images.
        """
        link, is_class = part.is_symlink(), methodcaller("is_dir", follow_symlinks=False)
        classes, ignored = _scan(part, is_class) if part.is_dir() and not link else ([], [])
        if not classes:
            problem = "a link (not followed)" if link else "empty" if part.is_dir() else "missing"
            raise InputError(
                f"{part} is {problem}: it must contain a directory of images per class"
            )
        names, counts, crc, digest = [], [], 0, hashlib.sha256()
        for folder in classes:
            files, others = _scan(folder, _is_image)
            if not files:
                kinds = f"{' '.join(SUFFIXES)}, and no links to them"
                raise InputError(f"{folder.path} must contain images ({kinds}), not in folders")
            ignored += others
            stats = [file.stat(follow_symlinks=False) for file in files]
            paths = [os.fsencode(f"{folder.name}/{file.name}") for file in files]
            lines = (b"%s\0%d\n" % (p, s.st_size) for p, s in zip(paths, stats, strict=True))
            crc = zlib.crc32(content := b"".join(lines), crc)
            digest.update(content + str([stat.st_mtime_ns for stat in stats]).encode())
            names.append(np.array(paths))
            counts.append(len(files))
        if ignored:
            some = ", ".join(entry.path for entry in ignored[:3]) + ", …" * (len(ignored) > 3)
            note(f"note: ignored, because no images, or links: {len(ignored):,} ({some})")
        labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
        class_names = tuple(folder.name for folder in classes)
        files_info = np.concatenate(names), labels, size, imagenet, flip, crc, digest.hexdigest()
        return cls(part, class_names, *files_info)

    def __len__(self) -> int:
        return len(self.labels)

    def checksum(self, start: int = 0) -> int:
        """Returns the CRC-32 of paths and file sizes, continuing from the checksum ``start``."""
        return zlib.crc32(self.crc.to_bytes(4), start)

    def take(self, chosen: Tensor) -> "ImageFiles":
        """Returns the images of the indices ``chosen``, int64 [n]."""
        crc = zlib.crc32(chosen.numpy().data, self.crc)
        names, labels = self.names[chosen.numpy()], self.labels[chosen]
        return replace(self, names=names, labels=labels, crc=crc)

    def path(self, index: int) -> Path:
        return self.part / os.fsdecode(self.names[index])

    def image(self, index: int, crop_seed: int | None = None) -> np.ndarray:
        """Reads an image, uint8 [size, size, 3]: its centre, or a random crop for ``crop_seed``.

        Raises InputError if the file cannot be read.
        """
        rgb = read_image(self.path(index))
        if crop_seed is None:
            return resize_center_crop(rgb, shorter_side(self.size, self.imagenet), self.size)
        from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

        flip = RandomHorizontalFlip(0.5 if self.flip else 0)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.default_generator.manual_seed(crop_seed)
            return np.asarray(Compose([RandomResizedCrop(self.size), flip])(rgb))

    def __getitem__(self, batch_index: np.ndarray) -> Tensor | InputError:
        """Reads the images of a batch index, uint8 [n, size, size, 3].

        An InputError is returned: raised in a worker, it would get a traceback in its message.
        """
        rows = batch_index[:2] if self.imagenet else batch_index[:1]
        try:
            return torch.from_numpy(np.stack([self.image(*column) for column in rows.T.tolist()]))
        except InputError as error:
            return error


def _scan(
    folder: str | os.PathLike[str], accept: Callable[[os.DirEntry[str]], bool]
) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Returns the accepted and the other entries of ``folder``, by name, without hidden ones."""
    with os.scandir(folder) as entries:
        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    return list(filter(accept, visible)), list(filterfalse(accept, visible))


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and entry.name.lower().endswith(SUFFIXES)


def decode(parts: Sequence[ImageFiles]) -> list[np.ndarray]:
    """Decodes the parts of a folder to uint8 [n, size, size, 3], once: the result is cached.

    The cache is in the folder, or in the user's cache directory if the folder is read-only.
    Raises InputError if an image cannot be read or there is too little memory.
    """
    folder, size, count = parts[0].part.parent, parts[0].size, sum(map(len, parts))
    shape = (count, size, size, 3)
    needed, memory = math.prod(shape), _memory()
    if needed > memory:
        raise InputError(
            f"{count:,} images of {size}×{size} pixels need {needed / 1e9:.1f} GB of memory, and"
            f" there are {memory / 1e9:.1f} GB: use --stream to read them when they are needed"
        )
    fingerprint = " ".join([str(CACHE_VERSION), *(part.fingerprint for part in parts)])
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    caches = (
        folder / f"pictures-{size}x{size}.npz",
        user_cache / "proximal-network-slimming" / f"{folder_id}-{size}.npz",
    )
    for cache in caches:
        # np.load raises exceptions of many types on damaged files
        with suppress(Exception), np.load(cache, allow_pickle=False) as stored:
            images = stored["images"]
            same_files = str(stored["fingerprint"]) == fingerprint
            if same_files and (images.dtype, images.shape) == (np.uint8, shape):
                return np.split(images, [len(parts[0])])
    note(f"decoding {count} images (once: they are cached)")
    images, resized = np.empty(shape, np.uint8), 0
    paths = (part.path(i) for part in parts for i in range(len(part)))
    # disable=None: show the progress bar only on a terminal
    bar = tqdm(paths, desc="decoding images", total=count, leave=False, disable=None)
    for i, path in enumerate(bar):
        rgb = read_image(path)
        resized += rgb.size != (size, size)
        images[i] = resize_center_crop(rgb, size, size)
    if resized:
        note(f"note: {resized} images were resized and centre-cropped to {size}×{size}")
    for cache in caches:
        with suppress(OSError), atomic_write(cache) as new, new.open("wb") as file:
            np.savez(file, images=images, fingerprint=fingerprint)
            break
    return np.split(images, [len(parts[0])])


def _memory() -> float:
    """Returns the bytes of memory of this machine or its container, infinity if unknown."""
    limits = [math.inf]
    with suppress(AttributeError, OSError, ValueError):  # Windows
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max" if unlimited
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def shorter_side(size: int, imagenet: bool) -> int:
    """Returns the pixels of an image's shorter side before it is cropped to ``size``."""
    return round(RESIZE_RATIO * size) if imagenet else size


def resize_center_crop(rgb: Image.Image, resized: int, size: int) -> np.ndarray:
    """Resizes the shorter side to ``resized`` and crops the centre, uint8 [size, size, 3]."""
    if rgb.size != (size, size) or resized != size:
        from torchvision.transforms.functional import center_crop, resize  # slow import

        rgb = center_crop(resize(rgb, resized), size)
    return np.asarray(rgb)


def read_image(path: Path) -> Image.Image:
    """Reads an image as RGB with 8 bits per channel. Raises InputError if that is impossible."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata, which ImageNet has
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if max(image.size) > 100 * min(image.size):  # resizing would take too much memory
                    raise ValueError(f"{image.width}×{image.height} exceeds an aspect ratio of 100")
                signed = 2 in getattr(image, "tag_v2", {}).get(TIFF_SAMPLE_FORMAT, ())
                if signed or image.mode.startswith(("I", "F")):  # Pillow would clip these to 255
                    raise ValueError(
                        "its grey values are signed or over 8 bits: save it with 8 bits"
                    )
                return image.convert("RGB")
    except Exception as error:  # Pillow raises exceptions of many types on damaged files
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a readable image: {reason[:200]}") from None
