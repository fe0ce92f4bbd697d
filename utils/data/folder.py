"""A folder of pictures as arrays: ``DIR/train/<class>/*`` and ``DIR/test/<class>/*``."""

import hashlib
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from models import SIZE
from utils.atomic import atomic_write
from utils.console import InputError, note

PARTS = ("train", "test")
# Whatever a file is called, it is read as one of these: Pillow knows others, and starts programs
# for some of them (Ghostscript).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = tuple(k for k, v in sorted(Image.registered_extensions().items()) if v in FORMATS)
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
READING = (
    2  # a cache is of its time: to be counted on where a file becomes other pixels than before
)
THINNEST = 100  # times as long as wide: its shorter side is stretched to the size asked for


def read_folder(
    folder: Path, size: int = SIZE
) -> tuple[tuple[str, ...], list[tuple[np.ndarray, np.ndarray]]]:
    """Class names, and the training and test set as (uint8 [n, size, size, 3], int64 [n]).

    Decodes once and caches: in ``folder`` where that is writable, else in the user's cache folder.
    Raises InputError, one line, when something is missing or is not a picture, or when there is not
    as much memory.
    """
    listings = [dict(list_images(folder / part)) for part in PARTS]
    check_classes(folder, PARTS, *listings)
    files = [
        folder / part / name / file
        for part, listing in zip(PARTS, listings, strict=True)
        for name, names in listing.items()
        for file in names
    ]
    needed, there = len(files) * size * size * 3, _memory()
    if needed > there:
        raise InputError(
            f"{len(files):,} pictures at {size}×{size} take {needed / 1e9:.1f} GB, and there are"
            f" {there / 1e9:.1f} GB of memory: --stream reads them as they are needed"
        )
    fingerprint = _fingerprint(folder, files)
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    own_cache = user_cache / "proximal-network-slimming" / f"{folder_id}-{size}.npz"
    caches = (folder / f"pictures-{size}x{size}.npz", own_cache)
    shape = len(files), size, size, 3
    stored = (_read_cache(cache, fingerprint, shape) for cache in caches)
    images = next((x for x in stored if x is not None), None)
    if images is None:
        images = _decode(files, size)
        for cache in caches:  # the first that can be written
            with suppress(OSError), atomic_write(cache) as new, new.open("wb") as file:
                np.savez(file, images=images, fingerprint=fingerprint)
                break
    counts = [[len(names) for names in listing.values()] for listing in listings]
    labels = [np.repeat(np.arange(len(count)), count) for count in counts]
    split = np.split(images, [len(labels[0])])
    return tuple(listings[0]), list(zip(split, labels, strict=True))


def check_classes(folder: Path, parts: Sequence[str], *listings: Iterable[str]) -> None:
    """Raise InputError unless both ``parts`` of ``folder`` have the same classes."""
    if only := sorted(set(listings[0]) ^ set(listings[1])):
        where, some = " and ".join(f"{folder}/{part}" for part in parts), ", ".join(only[:5])
        raise InputError(f"only one of {where} has the classes {some}")


def _memory() -> float:
    """Bytes of memory that this machine, or its container, has; infinite where it does not say."""
    sizes = [math.inf]
    with suppress(AttributeError, OSError, ValueError):  # Windows
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # it says "max" where there is no limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)


def list_images(part: Path) -> Iterator[tuple[str, list[str]]]:
    """Classes in ``part`` and the names of their picture files, both sorted.

    Links are not followed; what is ignored is counted, and some of it named. Raises InputError,
    one line, where something is missing.
    """
    if part.is_symlink():
        raise InputError(f"{part} is a link, which is not followed: put the folder itself there")
    if not part.is_dir():
        raise InputError(f"{part} is missing: it holds one folder of pictures per class")
    classes, ignored = _split(part, lambda entry: entry.is_dir(follow_symlinks=False))
    if not classes:
        raise InputError(f"{part} is empty: it needs one folder of pictures per class")
    for name in classes:
        pictures, others = _split(part / name, _is_picture)
        ignored += [f"{name}/{other}" for other in others]
        if not pictures:
            raise InputError(f"{part / name} has no pictures ({' '.join(SUFFIXES)})")
        yield name, pictures
    if ignored:
        some = ", ".join(ignored[:5])
        more = ", ..." if len(ignored) > 5 else ""
        note(f"note: {len(ignored)} entries of {part} are ignored, being no pictures: {some}{more}")


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and entry.name.lower().endswith(SUFFIXES)


def _split(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> tuple[list[str], list[str]]:
    """Names of what is ``wanted`` of ``folder``, and of what else is in it; without dot files."""
    found: tuple[list[str], list[str]] = [], []
    for entry in os.scandir(folder):
        if not entry.name.startswith("."):
            found[not wanted(entry)].append(entry.name)
    return sorted(found[0]), sorted(found[1])


def _decode(files: list[Path], size: int) -> np.ndarray:
    """Decode to uint8 [n, size, size, 3]; what has another size is resized and centre-cropped."""
    images = np.empty((len(files), size, size, 3), np.uint8)
    resized = 0
    note(f"reading {len(files)} pictures, once: they are cached")
    # disable=None: no bar where nobody watches
    for i, file in enumerate(tqdm(files, desc="reading pictures", leave=False, disable=None)):
        rgb = read_image(file)
        resized += rgb.size != (size, size)
        images[i] = resize_center_crop(rgb, size, size)
    if resized:
        note(f"note: {resized} pictures were resized and centre-cropped to {size}×{size}")
    return images


def resize_center_crop(rgb: Image.Image, shorter: int, size: int) -> np.ndarray:
    """The middle of ``rgb``, its shorter side being resized: uint8 [size, size, 3]."""
    if rgb.size != (size, size) or shorter != size:
        from torchvision.transforms.functional import center_crop, resize  # slow: only here

        rgb = center_crop(resize(rgb, shorter), size)
    return np.asarray(rgb)


def read_image(file: Path) -> Image.Image:
    """The RGB picture in ``file``. Raises InputError, one line, where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata: ImageNet has some that are damaged
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _rgb(file)
    except Exception as error:  # Pillow raises of all kinds on damaged files
        reason = " ".join(str(error).split())
        raise InputError(f"{file} is not a readable picture ({reason[:200]})") from None


def _rgb(file: Path) -> Image.Image:
    with Image.open(file, formats=FORMATS) as picture:
        if max(picture.size) > THINNEST * min(picture.size):
            raise ValueError(f"{picture.width}×{picture.height} is too thin")
        tags = getattr(picture, "tag_v2", {})  # of a TIFF
        deep = picture.mode.startswith("I;16") or (picture.mode == "I" and not tags)
        signed = 2 in tags.get(SAMPLE_FORMAT, ())
        white_is_zero = tags.get(PHOTOMETRIC) == 0 and deep  # Pillow inverts 8 bits only
        if signed or white_is_zero or (picture.mode in ("I", "F") and not deep):
            kind = "with 0 as white" if white_is_zero else "that are signed, floats or of 32 bits"
            raise ValueError(f"it has grey values {kind}: save it with 8 or 16 bits, 0 being black")
        if deep:  # Pillow would clip it, not scale it
            grey = np.asarray(picture) >> (tags.get(BITS, (16,))[0] - 8)
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        return picture.convert("RGB")


def _fingerprint(folder: Path, files: list[Path]) -> str:
    """Changes when a picture is added, removed, renamed or written again, and with READING."""
    stats = ((file.relative_to(folder), file.stat()) for file in files)
    said = "".join(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n" for name, stat in stats)
    return hashlib.sha256(os.fsencode(f"{READING}\n{said}")).hexdigest()


def _read_cache(
    cache: Path, fingerprint: str, shape: tuple[int, int, int, int]
) -> np.ndarray | None:
    """The decoded pictures, or None when the cache is absent, damaged or of other files."""
    if not cache.is_file():
        return None
    try:
        with zipfile.ZipFile(cache) as archive:  # np.load takes the memory that a file claims
            if sum(x.file_size for x in archive.infolist()) > math.prod(shape) + 10_000:
                return None
        with np.load(cache, allow_pickle=False) as stored:
            same, images = str(stored["fingerprint"]) == fingerprint, stored["images"]
        good = images.dtype == np.uint8 and images.shape == shape
    except Exception:  # whatever is wrong with a cache, the pictures themselves are there
        return None
    return images if same and good else None
