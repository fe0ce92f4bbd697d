"""A folder of pictures as arrays: ``DIR/train/<class>/*`` and ``DIR/test/<class>/*``."""

import hashlib
import os
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from models import SIZE
from utils.atomic import replacing
from utils.console import InputError, note

PARTS = ("train", "test")
# Whatever a file is called, it is read as one of these: Pillow knows others, and starts programs
# for some of them (Ghostscript).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = tuple(k for k, v in sorted(Image.registered_extensions().items()) if v in FORMATS)
THINNEST = 100  # times as long as wide: its shorter side is stretched to SIZE


def read_folder(folder: Path) -> tuple[tuple[str, ...], list[tuple[np.ndarray, np.ndarray]]]:
    """Class names, and the training and test set as (uint8 [n, 32, 32, 3], int64 [n]).

    Decodes once and caches: in ``folder`` where that is writable, else in the user's cache folder.
    Raises InputError, one line, when something is missing or is not a picture.
    """
    listings = [_list_pictures(folder / part) for part in PARTS]
    if only := sorted(listings[0].keys() ^ listings[1].keys()):
        some = ", ".join(only[:5])
        raise InputError(f"only one of {folder}/train and {folder}/test has the classes {some}")
    files = [file for listing in listings for names in listing.values() for file in names]
    fingerprint = _fingerprint(folder, files)
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    own_cache = user_cache / "proximal-network-slimming" / f"{folder_id}.npz"
    caches = (folder / f"pictures-{SIZE}x{SIZE}.npz", own_cache)
    stored = (_read_cache(cache, fingerprint, len(files)) for cache in caches)
    images = next((x for x in stored if x is not None), None)
    if images is None:
        images = _decode(files)
        for cache in caches:  # the first that can be written
            with suppress(OSError), replacing(cache) as new, new.open("wb") as file:
                np.savez(file, images=images, fingerprint=fingerprint)
                break
    sizes = [[len(names) for names in listing.values()] for listing in listings]
    labels = [np.repeat(np.arange(len(counts)), counts) for counts in sizes]
    split = np.split(images, [len(labels[0])])
    return tuple(listings[0]), list(zip(split, labels, strict=True))


def _list_pictures(part: Path) -> dict[str, list[Path]]:
    """Picture files by class, both sorted. Links are not followed; what is ignored is named."""
    if part.is_symlink():
        raise InputError(f"{part} is a link, which is not followed: put the folder itself there")
    if not part.is_dir():
        raise InputError(f"{part} is missing: it holds one folder of pictures per class")
    classes, ignored = _split(part, lambda entry: entry.is_dir(follow_symlinks=False))
    if not classes:
        raise InputError(f"{part} is empty: it needs one folder of pictures per class")
    listing = {}
    for folder in classes:
        listing[folder.name], others = _split(folder, _is_picture)
        ignored += others
        if not listing[folder.name]:
            raise InputError(f"{folder} has no pictures ({' '.join(SUFFIXES)})")
    if ignored:
        some = ", ".join(str(path.relative_to(part)) for path in ignored[:5])
        more = ", ..." if len(ignored) > 5 else ""
        note(f"note: {len(ignored)} entries of {part} are ignored, being no pictures: {some}{more}")
    return listing


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and entry.name.lower().endswith(SUFFIXES)


def _split(
    folder: Path, wanted: Callable[[os.DirEntry[str]], bool]
) -> tuple[list[Path], list[Path]]:
    """What is ``wanted`` of ``folder``, and what else is in it; sorted, dot files left out."""
    found: tuple[list[Path], list[Path]] = [], []
    for entry in os.scandir(folder):
        if not entry.name.startswith("."):
            found[not wanted(entry)].append(Path(entry.path))
    return sorted(found[0]), sorted(found[1])


def _decode(files: list[Path]) -> np.ndarray:
    """Decode to uint8 [n, 32, 32, 3]; what has another size is resized and centre-cropped."""
    images = np.empty((len(files), SIZE, SIZE, 3), np.uint8)
    resized = 0
    note(f"reading {len(files)} pictures, once: they are cached")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # disable=None: no bar where nobody watches
        for i, file in enumerate(tqdm(files, desc="reading pictures", leave=False, disable=None)):
            try:
                rgb = _read_picture(file)
            except Exception as error:  # Pillow raises of all kinds on damaged files
                reason = " ".join(str(error).split())
                raise InputError(f"{file} is not a readable picture ({reason[:200]})") from None
            if rgb.size != (SIZE, SIZE):
                from torchvision.transforms.functional import center_crop, resize  # slow: only here

                resized += 1
                rgb = center_crop(resize(rgb, SIZE), SIZE)
            images[i] = np.asarray(rgb)
    if resized:
        note(f"note: {resized} pictures were resized and centre-cropped to {SIZE}×{SIZE}")
    return images


def _read_picture(file: Path) -> Image.Image:
    """The RGB picture in ``file``; it raises whatever Pillow does."""
    with Image.open(file, formats=FORMATS) as picture:
        if max(picture.size) > THINNEST * min(picture.size):
            raise ValueError(f"{picture.width}×{picture.height} is too thin")
        if picture.mode.startswith("I;16"):  # Pillow would clip 16-bit grey, not scale it
            grey = np.asarray(picture).astype(np.uint16) >> 8
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        return picture.convert("RGB")


def _fingerprint(folder: Path, files: list[Path]) -> str:
    """Changes when a picture is added, removed, renamed or written again."""
    stats = ((file.relative_to(folder), file.stat()) for file in files)
    said = "".join(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n" for name, stat in stats)
    return hashlib.sha256(os.fsencode(said)).hexdigest()


def _read_cache(cache: Path, fingerprint: str, count: int) -> np.ndarray | None:
    """The decoded pictures, or None when the cache is absent, damaged or of other files."""
    if not cache.is_file():
        return None
    try:
        with zipfile.ZipFile(cache) as archive:  # np.load takes the memory that a file claims
            if sum(x.file_size for x in archive.infolist()) > count * SIZE * SIZE * 3 + 10_000:
                return None
        with np.load(cache, allow_pickle=False) as stored:
            same, images = str(stored["fingerprint"]) == fingerprint, stored["images"]
        good = images.dtype == np.uint8 and images.shape == (count, SIZE, SIZE, 3)
    except Exception:  # whatever is wrong with a cache, the pictures themselves are there
        return None
    return images if same and good else None
