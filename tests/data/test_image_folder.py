"""Image folders are decoded exactly and cached, or refused in one line."""

import os
import shutil
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
from utils.data.datasets import load_dataset
from utils.data.image_folder import read_image
from workshop import Payload

pytestmark = pytest.mark.usefixtures("user_cache")
PARTS, CACHE = ("train", "test"), "pictures-32x32.npz"
Change = Callable[[Path], object]


def test_classes_and_images_are_sorted_by_name(tmp_path: Path) -> None:
    places = "train/b/2.PNG", "train/b/10.png", "train/a/z.bmp", "train/C/z.ppm"
    for red, place in enumerate((*places, "test/a/z.png", "test/b/z.png", "test/C/z.png"), 1):
        save(tmp_path / place, (red, 0, 0))
    data = load_dataset("folder", tmp_path)
    assert data.classes == ("C", "a", "b")
    assert data.train.images[:, 0, 0, 0].tolist() == [4, 3, 2, 1]
    assert data.train.labels.tolist() == [0, 1, 2, 2]
    assert data.test.images[:, 31, 31, 0].tolist() == [7, 5, 6]


GREY, RGB, RGBA = noise(32, 32), noise(32, 32, 3), noise(32, 32, 4)
LA_IMAGE = Image.fromarray(RGBA).convert("LA")
PALETTE_IMAGE = Image.fromarray(RGB).quantize(4)
# An image and its pixels; None if it is refused.
MODES: dict[str, tuple[Image.Image, Any]] = {
    "grey": (Image.fromarray(GREY), np.stack([GREY] * 3, 2)),
    "grey and alpha": (LA_IMAGE, np.asarray(LA_IMAGE)[..., [0, 0, 0]]),
    "black and white": (Image.new("1", (32, 32), 1), np.full((32, 32, 3), 255)),
    "alpha": (Image.fromarray(RGBA), RGBA[..., :3]),
    "palette": (PALETTE_IMAGE, np.asarray(PALETTE_IMAGE.convert("RGBA"))[..., :3]),
    "16-bit PNG": (Image.fromarray(GREY.astype(np.uint16)), None),
    "32-bit TIFF": (Image.fromarray(GREY.astype(np.int32)), None),
    "float TIFF": (Image.fromarray(GREY.astype(np.float32)), None),
    "signed TIFF": (Image.fromarray(GREY), None),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_unless_grey_values_are_signed_or_have_over_8_bits(
    tmp_path: Path, mode: str
) -> None:
    (image, expected), path = MODES[mode], tmp_path / "9.png"
    tiff = {"format": "TIFF", "tiffinfo": {339: 2} if mode == "signed TIFF" else {}}
    image.save(path, **(tiff if "TIFF" in mode else {}))
    if expected is None:
        with pytest.raises(InputError) as error:
            read_image(path)
        one_line(error, path, "save it with 8 bits")
    else:
        assert np.array_equal(read_image(path), expected)


@pytest.mark.filterwarnings("error")
def test_metadata_is_ignored_as_in_torchvision(tmp_path: Path) -> None:
    exif, damaged = Image.Exif(), b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"
    exif[ExifTags.Base.Orientation] = 6
    for kind in ("png", "webp"):
        path = tmp_path / f"0.{kind}"
        Image.fromarray(RGBA).save(path, exif=exif, lossless=True)
        assert np.array_equal(read_image(path), default_loader(str(path)))
    assert np.array_equal(read_image(tmp_path / "0.png"), RGBA[..., :3])
    Image.fromarray(RGB).save(tmp_path / "0.jpg", exif=damaged)
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(tmp_path / "0.jpg"):
        pass
    read_image(tmp_path / "0.jpg")


@pytest.mark.parametrize("size", [(96, 32), (7, 7)])
def test_other_sizes_are_resized_and_centre_cropped(
    own: Path, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The square in the centre is green, the rest of the longer side is red."""
    image, side = Image.new("RGB", size, (255, 0, 0)), min(size)
    image.paste((0, 255, 0), ((size[0] - side) // 2, 0, (size[0] + side) // 2, side))
    save(own / "train/dog/1.bmp", image)
    last = load_dataset("folder", own).train.images[-1]
    # resizing mixes the colours at the border only
    assert (last[4:-4, 4:-4] == torch.tensor([0, 255, 0], dtype=torch.uint8)).all()
    assert "1 images were resized and centre-cropped to 32×32" in capsys.readouterr().err


@pytest.mark.parametrize("writable", ["folder", "user cache", None])
def test_a_folder_is_decoded_once_if_a_cache_can_be_written(
    own: Path, user_cache: Path, writable: str | None, decoded: list[Path]
) -> None:
    if writable != "folder":
        (own / CACHE).mkdir()  # tests may run as root, who can write to read-only directories
    if writable is None:
        user_cache.write_text("not a directory")
    first = load_dataset("folder", own)
    assert sorted(decoded) == sorted(own.glob("*/*/*.bmp"))
    decoded.clear()
    assert same(first, load_dataset("folder", own))
    assert len(decoded) == (6 if writable is None else 0)
    assert (own / CACHE).is_file() == (writable == "folder")
    assert user_cache.is_dir() == (writable == "user cache")


def rewrite(own: Path) -> None:
    """Change pixels, but not the file size."""
    before = (own / "test/dog/0.bmp").stat()
    after = save(own / "test/dog/0.bmp", (1, 1, 1))
    assert after.stat().st_size == before.st_size
    os.utime(after, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def modify(**entries: Any) -> Change:
    def change(own: Path) -> None:
        with np.load(own / CACHE) as stored:
            np.savez(own / CACHE, **{**stored, **entries})

    return change


CHANGES: dict[str, Change] = {
    "image rewritten": rewrite,
    "image added": lambda own: save(own / "train/cat/2.png", (1, 1, 1)),
    "image moved": lambda own: (own / "train/cat/1.bmp").rename(own / "train/dog/1b.png"),
    "class renamed": lambda own: [(own / x / "dog").rename(own / x / "ox") for x in PARTS],
    "cache truncated": lambda own: cut_short(own / CACHE),
    "cache of objects": modify(images=np.array([Payload()] * 6, dtype=object)),
    "cache of fewer images": modify(images=noise(5, 32, 32, 3)),
    "cache of other images": modify(images=noise(6, 32, 32, 3), fingerprint="other"),
    "cache of an earlier version": lambda own: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_or_a_damaged_cache_is_decoded_again(
    own: Path, change: str, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_dataset("folder", own)
    CHANGES[change](own)
    if change == "cache of an earlier version":
        monkeypatch.setattr(image_folder, "CACHE_VERSION", image_folder.CACHE_VERSION + 1)
    for count in (7 if change == "image added" else 6, 0):
        decoded.clear()
        after = load_dataset("folder", own)
        assert len(decoded) == count
        assert same(before, after) == change.startswith("cache")
    (own / CACHE).unlink()
    assert same(after, load_dataset("folder", own))
    assert not Path("owned").exists()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def link_part(own: Path) -> None:
    (own / "test").symlink_to((own / "test").rename(own / "elsewhere"))


def link_images(own: Path) -> None:
    for file in (own / "train/dog").iterdir():
        file.symlink_to(file.rename(own / file.name))


def blank(*size: int, kind: str = "PNG") -> Change:
    return lambda own: Image.new("1", size).save(own / "test/dog/1.png", format=kind)


BAD_FOLDERS: dict[str, tuple[Change, str]] = {
    "no test": (lambda own: shutil.rmtree(own / "test"), "test is missing"),
    "empty test": (lambda own: empty(own / "test"), "test is empty"),
    "test is a link": (link_part, "test is a link"),
    "class without test images": (lambda own: shutil.rmtree(own / "test/dog"), "classes dog"),
    "empty class": (lambda own: empty(own / "train/dog"), "train/dog must contain images"),
    "class of links": (link_images, "train/dog must contain images"),
    "broken image": (lambda own: cut_short(own / "test/dog/0.bmp"), "0.bmp is not a readable"),
    "no image": (lambda own: (own / "test/dog/0.bmp").write_bytes(b"<html>\n404\n"), "dog/0.bmp"),
    "PCX, which Pillow reads": (blank(32, 32, kind="PCX"), "test/dog/1.png is not a readable"),
    "100 million pixels": (blank(10_000, 10_000), "test/dog/1.png is not a readable"),
    "100,000×1 pixels": (blank(100_000, 1), "100000×1"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_refused_in_one_line(own: Path, case: str) -> None:
    spoil, message = BAD_FOLDERS[case]
    spoil(own)
    with pytest.raises(InputError) as error:
        load_dataset("folder", own)
    one_line(error, own, message)
    assert not list(own.glob("*.npz"))


def test_other_files_and_links_are_ignored_and_noted_but_hidden_files_are_not(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, cat = load_dataset("folder", own), own / "train/cat"
    for path in (own / "train/.DS_Store", cat / "._0.png", own / "train/.cache/0.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    assert same(before, load_dataset("folder", own))
    assert "ignored" not in capsys.readouterr().err
    (cat / "0.heic").touch()
    (cat / "link.png").symlink_to(cat / "0.bmp")
    (cat / "more").mkdir()
    (own / "train/linked").symlink_to(cat)
    assert same(before, load_dataset("folder", own))
    note = capsys.readouterr().err
    assert ": 4 (" in note and "train/linked" in note and "cat/0.heic" in note


def test_more_images_than_memory_are_refused_with_a_hint_at_stream(
    own: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[Path]
) -> None:
    assert 1e8 < image_folder._memory() < 1e15
    needed = 6 * 24 * 24 * 3
    monkeypatch.setattr(image_folder, "_memory", lambda: needed - 1)
    with pytest.raises(InputError) as error:
        load_dataset("folder", own, size=24)
    one_line(error, "6 images of 24×24", "--stream")
    assert not decoded
    assert len(load_dataset("folder", own, size=24, stream=True).train) == 4
    monkeypatch.setattr(image_folder, "_memory", lambda: needed)
    assert len(load_dataset("folder", own, size=24).train) == 4
