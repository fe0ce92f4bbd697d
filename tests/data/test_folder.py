"""Folders of pictures load as they are, once, or are refused in one line."""

import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.datasets.folder import default_loader

from own_pictures import noise, one_line, same, save
from utils.console import InputError
from utils.data import image_folder
from utils.data.datasets import PARTS, load_dataset
from workshop import Payload

pytestmark = pytest.mark.usefixtures("user_cache")


def test_a_folders_classes_and_pictures_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    colours = {
        ("train", "b", "2.PNG"): (1, 0, 0),
        ("train", "b", "10.png"): (2, 0, 0),
        ("train", "a", "z.bmp"): (3, 0, 0),
        ("train", "C", "z.ppm"): (4, 0, 0),
        ("test", "a", "z.png"): (5, 0, 0),
        ("test", "b", "z.png"): (6, 0, 0),
        ("test", "C", "z.png"): (7, 0, 0),
    }
    for place, colour in colours.items():
        save(tmp_path.joinpath("own", *place), colour)
    (tmp_path / "own/train/a/notes.txt").write_text("not a picture")
    (tmp_path / "own/train/readme.txt").write_text("not a class")
    loaded = load_dataset("folder", tmp_path / "own")
    assert loaded.classes == ("C", "a", "b")
    assert loaded.train.images.dtype == torch.uint8
    assert loaded.train.images[:, 0, 0, 0].tolist() == [4, 3, 2, 1]
    assert loaded.train.labels.tolist() == [0, 1, 2, 2]
    assert loaded.test.images[:, 31, 31, 0].tolist() == [7, 5, 6]
    assert loaded.test.labels.tolist() == [0, 1, 2]


def palette() -> Image.Image:
    picture = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32) % 4, "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    return picture


GREY = noise(32, 32)
OTHER_MODES = {
    "grey": (Image.fromarray(GREY), np.stack([GREY] * 3, 2)),
    "grey and alpha": (Image.fromarray(noise(32, 32, 2), "LA"), noise(32, 32, 2)[..., [0, 0, 0]]),
    "black and white": (Image.new("1", (32, 32), 1), np.full((32, 32, 3), 255)),
    "alpha": (Image.fromarray(noise(32, 32, 4)), noise(32, 32, 4)[..., :3]),
    "palette": (
        palette(),
        np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 8, 7)])[
            np.arange(1024).reshape(32, 32) % 4
        ],
    ),
    "16 bit grey": (
        Image.fromarray(GREY.astype(np.uint16) * 257),
        np.stack([GREY] * 3, 2),
    ),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("kind", OTHER_MODES)
def test_whatever_a_picture_is_it_becomes_rgb(own: Path, kind: str) -> None:
    picture, expected = OTHER_MODES[kind]
    save(own / "train/cat/2.png", picture)
    assert np.array_equal(load_dataset("folder", own).train.images[2], expected)


RAMP = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)


def pgm(bits: int, plain: bool = False) -> bytes:
    values = RAMP >> 16 - bits
    if plain:
        return b"P2 32 32 %d\n%s" % (2**bits - 1, " ".join(map(str, values.ravel())).encode())
    return b"P5 32 32 %d\n%s" % (2**bits - 1, values.astype(">u2").tobytes())


def tiff(values: np.ndarray, bits: int, photometric: int = 1, kind: int = 1) -> bytes:
    """Of one channel, in the byte order of ``values``; 12 bits are packed."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    data = values.tobytes()
    if bits == 12:
        data = int("".join(f"{x:012b}" for x in values.ravel()), 2).to_bytes(len(data) * 3 // 4)
    tags = {256: 32, 257: 32, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 32}
    tags |= {279: len(data), 339: kind}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, x) for tag, x in tags.items())
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def colours() -> bytes:
    """16-bit RGB, its channels the ramp, the ramp upside down, and nothing."""
    values = np.stack([RAMP, RAMP[::-1], 0 * RAMP], 2)
    return b"P6 32 32 65535\n" + values.astype(">u2").tobytes()


DEEP = {
    "10-bit PGM": pgm(10),
    "12-bit PGM": pgm(12),
    "16-bit PGM": pgm(16),
    "10-bit PGM in letters": pgm(10, plain=True),
    "16-bit PGM in letters": pgm(16, plain=True),
    "8-bit TIFF, 0 as white": tiff((255 - (RAMP >> 8)).astype(np.uint8), 8, 0),
    "12-bit TIFF": tiff(RAMP >> 4, 12),
    "16-bit TIFF": tiff(RAMP, 16),
    "16-bit TIFF, big-endian": tiff(RAMP.astype(">u2"), 16),
    "16-bit PPM": colours(),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_are_scaled_by_the_maximum_that_their_file_declares(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes(DEEP[kind])
    grey = np.asarray(image_folder.read_image(tmp_path / "0.png")).astype(int)[..., 0]
    assert np.abs(grey - (RAMP >> 8)).max() <= 1
    assert (grey.min(), grey.max()) == (0, 255)


WIDER = RAMP.astype(np.int32)
UNBOUNDED = {
    "32-bit TIFF": tiff(WIDER.astype(np.uint32) << 16, 32),
    "32-bit TIFF, signed": tiff(WIDER, 32, kind=2),
    "16-bit TIFF, signed": tiff((WIDER - 2**15).astype(np.int16), 16, kind=2),
    "8-bit TIFF, signed": tiff((RAMP.astype(int) // 256 - 128).astype(np.int8), 8, kind=2),
    "16-bit TIFF, 0 as white": tiff(RAMP, 16, 0),
    "16-bit TIFF, 0 as white, big-endian": tiff(RAMP.astype(">u2"), 16, 0),
    "float TIFF": tiff((RAMP / 65535).astype(np.float32), 32, kind=3),
    "64-bit float TIFF": tiff(RAMP / 65535, 64, kind=3),
    "PFM": b"Pf\n32 32\n-1.0\n" + (RAMP / 65535).astype(np.float32).tobytes(),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", UNBOUNDED)
def test_images_whose_range_is_not_known_are_refused(kind: str, stream: bool, own: Path) -> None:
    (own / "train/cat/9.tif").write_bytes(UNBOUNDED[kind])
    with pytest.raises(InputError) as error:
        load_dataset("folder", own, stream=stream).train.image(2)
    one_line(error, own / "train/cat/9.tif", "is not a readable image")


def test_cached_images_of_an_earlier_reading_are_not_used(
    own: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deep image may be white in it."""
    with monkeypatch.context() as earlier:
        earlier.setattr(image_folder, "CACHE_VERSION", image_folder.CACHE_VERSION - 1)
        load_dataset("folder", own)
    decoded.clear()
    load_dataset("folder", own)
    assert len(decoded) == 6


def test_an_image_is_not_turned_as_its_exif_says_and_keeps_what_is_transparent(own: Path) -> None:
    """As torchvision's ImageFolder reads it; a TIFF's own orientation is part of its format."""
    pixels = noise(32, 32, 4)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for i, kind in enumerate(("png", "webp")):
        Image.fromarray(pixels).save(own / f"train/cat/{i}.{kind}", exif=exif, lossless=True)
        read = np.asarray(image_folder.read_image(own / f"train/cat/{i}.{kind}"))
        assert np.array_equal(read, np.asarray(default_loader(str(own / f"train/cat/{i}.{kind}"))))
    assert np.array_equal(
        np.asarray(image_folder.read_image(own / "train/cat/0.png")), pixels[..., :3]
    )


@pytest.mark.parametrize("size", [(96, 32), (32, 96), (192, 64), (48, 16), (64, 64), (7, 7)])
def test_other_sizes_are_resized_and_cropped_in_the_middle(
    own: Path, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The square in the middle is green, and what sticks out on the longer side is red."""
    picture, side = Image.new("RGB", size, (255, 0, 0)), min(size)
    left, top = ((length - side) // 2 for length in size)
    picture.paste((0, 255, 0), (left, top, left + side, top + side))
    save(own / "train/dog/1.bmp", picture)
    last = load_dataset("folder", own).train.images[-1]
    # resizing mixes the colours where they meet, but not as far inside as squashing would
    assert (last[4:-4, 4:-4] == torch.tensor([0, 255, 0], dtype=torch.uint8)).all()
    assert "1 images were resized and centre-cropped to 32×32" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_metadata_that_is_damaged_is_not_told_of(own: Path) -> None:
    picture = Image.fromarray(noise(32, 32, 3))
    picture.save(own / "train/cat/0.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01")
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(own / "train/cat/0.jpg"):
        pass
    image_folder.read_image(own / "train/cat/0.jpg")


def test_nothing_is_said_of_sizes_where_all_are_right(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_dataset("folder", own)
    assert "resized" not in capsys.readouterr().err


def cache_of(own: Path) -> Path:
    return own / f"pictures-{32}x{32}.npz"


def test_links_are_not_followed(own: Path, tmp_path: Path) -> None:
    outside = save(tmp_path / "outside/0.png", (1, 2, 3))
    before = load_dataset("folder", own)
    (own / "train/cat/linked.png").symlink_to(outside)
    for part in ("train", "test"):
        (own / part / "linked").symlink_to(outside.parent)
    assert same(before, load_dataset("folder", own))


@pytest.mark.parametrize("readonly", [False, True])
def test_a_folder_is_decoded_once(
    own: Path, user_cache: Path, readonly: bool, decoded: list[Path]
) -> None:
    cache = cache_of(own)
    if readonly:
        cache.mkdir()  # tests may run as root, whom permissions do not stop
    first = load_dataset("folder", own)
    assert sorted(decoded) == sorted(own.glob("*/*/*.bmp"))
    decoded.clear()
    assert same(first, load_dataset("folder", own))
    assert not decoded
    assert cache.is_file() != readonly
    assert user_cache.exists() == readonly


def test_a_folder_that_cannot_be_cached_anywhere_loads_all_the_same(
    own: Path, user_cache: Path, decoded: list[Path]
) -> None:
    cache_of(own).mkdir()
    user_cache.write_text("in the way")
    first = load_dataset("folder", own)
    decoded.clear()
    assert same(first, load_dataset("folder", own))
    assert len(decoded) == 6


def test_folders_do_not_share_a_place_in_the_users_cache(
    own: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    other = tmp_path / "other"
    for part in ("train", "test"):
        save(other / part / "cat/0.png", (9, 9, 9))
    for place in (own, other):
        cache_of(place).mkdir()
    first = load_dataset("folder", own)
    assert load_dataset("folder", other).classes == ("cat",)
    decoded.clear()
    assert same(first, load_dataset("folder", own))
    assert not decoded


def _rewrite(own: Path) -> None:
    """As many bytes as before: only the time tells."""
    before = (own / "test/dog/0.bmp").stat()
    after = save(own / "test/dog/0.bmp", (1, 1, 1))
    assert after.stat().st_size == before.st_size
    os.utime(after, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": _rewrite,
    "added": lambda own: save(own / "train/cat/2.png", (1, 1, 1)),
    "removed": lambda own: (own / "train/cat/1.bmp").unlink(),
    "moved to another class": lambda own: (own / "train/cat/1.bmp").rename(
        own / "train/dog/1b.png"
    ),
    "class renamed": lambda own: [(own / p / "dog").rename(own / p / "wolf") for p in PARTS],
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_folders_are_decoded_again(own: Path, change: str) -> None:
    before = load_dataset("folder", own)
    CHANGES[change](own)
    after = load_dataset("folder", own)
    assert not same(before, after)
    for cache in own.glob("*.npz"):
        cache.unlink()
    assert same(after, load_dataset("folder", own))


def _lie(cache: Path, **entries: Any) -> None:
    with np.load(cache) as stored:
        contents = dict(stored)
    np.savez(cache, **{**contents, **entries})


def _put(cache: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(cache) as archive:
        contents = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(cache, "w") as archive:
        for entry, whole in (contents | {name: content}).items():
            archive.writestr(entry, whole)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda cache: cache.write_bytes(b""),
    "noise": lambda cache: cache.write_bytes(noise(500).tobytes()),
    "truncated": lambda cache: cache.write_bytes(cache.read_bytes()[:-100]),
    "flipped": lambda cache: cache.write_bytes(cache.read_bytes().replace(b"\0" * 9, b"\1" * 9)),
    "pickle": lambda cache: cache.write_bytes(pickle.dumps(Payload())),
    "objects": lambda cache: _lie(cache, images=np.array([Payload()] * 6, dtype=object)),
    "no array": lambda cache: _put(cache, "images.npy", b"no array"),
    "other entries": lambda cache: np.savez(cache, a=1),
    "fewer pictures": lambda cache: _lie(cache, images=noise(5, 32, 32, 3)),
    "other sizes": lambda cache: _lie(cache, images=noise(6, 16, 16, 3)),
    "other type": lambda cache: _lie(cache, images=np.zeros((6, 32, 32, 3))),
    "of other pictures": lambda cache: _lie(
        cache, images=noise(6, 32, 32, 3), fingerprint="somebody else's"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(own: Path, damage: str, decoded: list[Path]) -> None:
    before = load_dataset("folder", own)
    (cache,) = own.glob("*.npz")
    whole = cache.read_bytes()
    DAMAGE[damage](cache)
    assert cache.read_bytes() != whole
    decoded.clear()
    assert same(before, load_dataset("folder", own))
    assert len(decoded) == 6
    decoded.clear()
    assert same(before, load_dataset("folder", own))
    assert not decoded
    assert not Path("owned").exists()


def test_a_cache_that_is_a_pipe_is_not_waited_for(own: Path) -> None:
    os.mkfifo(cache_of(own))
    before = load_dataset("folder", own)
    assert cache_of(own).is_file() and same(before, load_dataset("folder", own))


def test_a_file_name_need_not_be_text(own: Path) -> None:
    picture = (own / "train/cat/0.bmp").read_bytes()
    (own / os.fsdecode(b"train/cat/\xff.bmp")).write_bytes(picture)
    assert len(load_dataset("folder", own).train) == 5


def _spoil(content: bytes) -> Callable[[Path], object]:
    return lambda own: (own / "test/dog/0.bmp").write_bytes(content)


def _truncate(own: Path) -> None:
    path = own / "test/dog/0.bmp"
    path.write_bytes(path.read_bytes()[:-200])


def _break_a_chunk(own: Path) -> None:
    """A PNG that opens well, and breaks where its pixels begin."""
    path = save(own / "test/dog/1.png", noise(32, 32, 3))
    raw = path.read_bytes()
    length = raw.index(b"IDAT") - 4
    path.write_bytes(raw[:length] + bytes(4) + raw[length + 4 :])


def _large(own: Path) -> None:
    """A few kilobytes that unpack to 100 million pixels."""
    save(own / "test/dog/1.png", Image.new("1", (10_000, 10_000)))


def _thin(own: Path) -> None:
    save(own / "test/dog/1.png", Image.new("1", (100_000, 1)))


def _link(own: Path) -> None:
    (own / "test").rename(own / "elsewhere")
    (own / "test").symlink_to(own / "elsewhere")


# Pillow would hand a page to Ghostscript, whatever the file is called.
PAGE = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n"


def _remove(own: Path, *places: str) -> None:
    for place in places:
        for file in (own / place).rglob("*.bmp"):
            file.unlink()
        for empty in sorted((own / place).rglob("*"), reverse=True):
            empty.rmdir()
        (own / place).rmdir()


def _empty_class(own: Path) -> None:
    for file in (own / "train/dog").iterdir():
        file.unlink()


def _empty_part(own: Path) -> None:
    _remove(own, "test")
    (own / "test").mkdir()


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no test": (lambda own: _remove(own, "test"), "test"),
    "no train": (lambda own: _remove(own, "train"), "train"),
    "empty test": (_empty_part, "test"),
    "a class is not tested": (lambda own: _remove(own, "test/dog"), "dog"),
    "a class is not trained": (lambda own: _remove(own, "train/dog"), "dog"),
    "empty class": (_empty_class, "train/dog"),
    "truncated picture": (_truncate, "test/dog/0.bmp"),
    "broken picture": (_break_a_chunk, "test/dog/1.png"),
    "empty picture": (_spoil(b""), "test/dog/0.bmp"),
    "not a picture": (_spoil(b"<html>\n404\n</html>"), "test/dog/0.bmp"),
    "large picture": (_large, "test/dog/1.png"),
    "thin picture": (_thin, "test/dog/1.png"),
    "a page to be printed": (_spoil(PAGE), "test/dog/0.bmp"),
    "a part is a link": (_link, "test is a link"),
    "half a header": (_spoil(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "test/dog/0.bmp"),
}


@pytest.mark.parametrize("bad", BAD_FOLDERS)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(own: Path, bad: str) -> None:
    spoil, culprit = BAD_FOLDERS[bad]
    spoil(own)
    with pytest.raises(InputError) as error:
        load_dataset("folder", own)
    one_line(error, own, culprit)
    assert not list(own.glob("*.npz"))


def test_a_class_of_links_only_is_empty(own: Path, tmp_path: Path) -> None:
    for file in (own / "train/dog").iterdir():
        moved = file.rename(tmp_path / file.name)
        file.symlink_to(moved)
    with pytest.raises(InputError) as error:
        load_dataset("folder", own)
    one_line(error, own / "train/dog")


def test_what_is_ignored_is_counted_and_named_and_dot_files_are_skipped(tmp_path, pictures, capsys):
    own = tmp_path / "own"
    shutil.copytree(pictures, own, ignore=shutil.ignore_patterns("*.npz"))
    before = load_dataset("folder", own)
    assert "ignored" not in capsys.readouterr().err
    for name in (".DS_Store", ".cache/0.png", "blue/._0.png", "blue/.hidden/0.png"):
        path = own / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    assert same(before, load_dataset("folder", own))
    assert "ignored" not in capsys.readouterr().err
    (own / "train" / "readme.md").touch()
    (own / "train" / "red" / "0.heic").touch()
    (own / "train" / "red" / "more").mkdir()
    (own / "train" / "red" / "link.png").symlink_to(own / "train" / "red" / "0.png")
    assert same(before, load_dataset("folder", own))
    err = capsys.readouterr().err
    assert "4 entries" in err
    assert all(name in err for name in ("readme.md", "red/0.heic", "red/more", "red/link.png"))
