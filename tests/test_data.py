"""Pictures reach the network as torchvision would hand them over, from wherever they lie."""

import http.client
import os
import pickle
import sys
import urllib.error
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import functional as tv

from utils import data, folder
from utils.cli import InputError
from utils.data import CIFAR_NORM, SVHN_NORM, Batches, Dataset, Pictures, load_dataset

CPU = torch.device("cpu")
# Every way to cut 32×32 out of 40×40, as it is and mirrored.
CROPS = [(top, left, flip) for top in range(9) for left in range(9) for flip in (False, True)]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def dataset(images: np.ndarray, augment: bool = False, norm: Any = ((0,) * 3, (1,) * 3)) -> Dataset:
    """These pictures to train and to test on, each labelled with its own number."""
    pictures = Pictures(torch.from_numpy(images), torch.arange(len(images)))
    mean, std = norm
    return Dataset("own", ("a",), pictures, pictures, mean, std, augment)


def scaled(images: np.ndarray) -> Tensor:
    """What a batch of ``images`` is where mean is 0 and standard deviation 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def torchvision_crop(image: np.ndarray, top: int, left: int, flip: bool) -> np.ndarray:
    padded = tv.pad(torch.from_numpy(image).permute(2, 0, 1), [4])
    cropped = tv.crop(padded, top, left, 32, 32)
    return (tv.hflip(cropped) if flip else cropped).permute(1, 2, 0).numpy()


def one_line(error: pytest.ExceptionInfo[InputError], *culprits: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert all(str(culprit) in message for culprit in culprits), message


# Batches


def test_crops_and_flips_are_torchvisions_for_every_offset() -> None:
    images = noise(len(CROPS), 32, 32, 3)
    top, left, flip = (torch.tensor(column) for column in zip(*CROPS, strict=True))
    ours = data.crop_and_flip(torch.from_numpy(images), top, left, flip)
    theirs = [torchvision_crop(image, *crop) for image, crop in zip(images, CROPS, strict=True)]
    assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("norm", [CIFAR_NORM, SVHN_NORM])
def test_normalisation_is_torchvisions_to_the_last_bit(norm: Any) -> None:
    values = np.arange(256, dtype=np.uint8)
    images = np.resize(np.stack([values, values[::-1], np.roll(values, 100)], 1), (2, 32, 32, 3))
    batch, _ = next(Batches(dataset(images, norm=norm), "train", 2, CPU).in_order())
    theirs = [tv.normalize(tv.to_tensor(image), *norm) for image in images]
    assert torch.equal(batch, torch.stack(theirs))


def test_the_usual_constants() -> None:
    assert CIFAR_NORM == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert SVHN_NORM == (
        (0.4376821, 0.4437697, 0.47280442),
        (0.19803012, 0.20101562, 0.19703614),
    )


def test_every_crop_and_flip_is_drawn_about_equally_often() -> None:
    picture, count = noise(32, 32, 3), 100 * len(CROPS)
    which = {torchvision_crop(picture, *crop).tobytes(): crop for crop in CROPS}
    images = np.broadcast_to(picture, (count, 32, 32, 3)).copy()
    seen: Counter[tuple[int, int, bool]] = Counter()
    for batch, _ in Batches(dataset(images, augment=True), "train", 1000, CPU, seed=1).epoch(0):
        bytes_ = batch.permute(0, 2, 3, 1).mul(255).round().byte().contiguous().numpy()
        seen.update(which[image.tobytes()] for image in bytes_)
    assert seen.keys() == set(CROPS)
    # five standard deviations around 100
    assert min(seen.values()) > 50 and max(seen.values()) < 150


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10_000),
    augment=st.booleans(),
)
def test_an_epoch_is_a_pure_function_of_seed_and_number(
    count: int, batch_size: int, seed: int, epoch: int, augment: bool
) -> None:
    of = dataset(noise(count, 32, 32, 3), augment)
    batches = Batches(of, "train", batch_size, CPU, seed)
    first = list(batches.epoch(epoch))
    # neither torch's own generator nor the epochs before play a part
    torch.manual_seed(count)
    list(batches.epoch(epoch + 1))
    again = list(Batches(of, "train", batch_size, CPU, seed).epoch(epoch))
    for (images, labels), (same_images, same_labels) in zip(first, again, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)

    labels = torch.cat([labels for _, labels in first])
    assert labels.sort().values.tolist() == list(range(count))
    sizes = [len(images) for images, _ in first]
    ragged = [count % batch_size] if count % batch_size else []
    assert sizes == [batch_size] * (count // batch_size) + ragged
    assert len(batches) == len(sizes)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**62), epoch=st.integers(0, 10_000))
def test_other_seeds_and_epochs_are_other_orders_and_crops(seed: int, epoch: int) -> None:
    of = dataset(np.broadcast_to(noise(32, 32, 3), (30, 32, 32, 3)).copy(), augment=True)

    def drawn(seed: int, epoch: int) -> tuple[list[int], Tensor]:
        ((images, labels),) = Batches(of, "train", 30, CPU, seed).epoch(epoch)
        return labels.tolist(), images

    order, images = drawn(seed, epoch)
    # the last one would be the same if seed and epoch were just added up
    for other in ((seed, epoch + 1), (seed + 1, epoch), (seed + 1, max(epoch - 1, 0))):
        other_order, other_images = drawn(*other)
        assert order != other_order and not torch.equal(images, other_images)


@pytest.mark.parametrize("augment", [False, True])
def test_tests_see_everything_in_order_and_as_it_is(augment: bool) -> None:
    images = noise(7, 32, 32, 3)
    batches = list(Batches(dataset(images, augment), "test", 3, CPU).in_order())
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(7))
    assert torch.equal(torch.cat([x for x, _ in batches]), scaled(images))


def test_what_is_not_to_be_augmented_is_only_shuffled() -> None:
    images = noise(20, 32, 32, 3)
    for batch, labels in Batches(dataset(images), "train", 6, CPU).epoch(3):
        assert torch.equal(batch, scaled(images)[labels])


# Folders of pictures


def save(path: Path, picture: Image.Image | np.ndarray | tuple[int, int, int]) -> Path:
    """Write a picture, an array, or a 32×32 area of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, tuple):
        picture = Image.new("RGB", (32, 32), picture)
    elif isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    picture.save(path)
    return path


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's own cache, nor what is in the current folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "user-cache"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two classes, of two training pictures and one test picture each."""
    pictures = iter(noise(6, 32, 32, 3))
    for part, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            for i in range(count):
                save(tmp_path / "own" / part / name / f"{i}.bmp", next(pictures))
    return tmp_path / "own"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were opened as pictures so far."""
    opened: list[Path] = []
    really_open = Image.open

    def record(file: Any, *args: Any, **kwargs: Any) -> Image.Image:
        opened.append(Path(file))
        return really_open(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", record)
    return opened


def same(one: Dataset, other: Dataset) -> bool:
    return one.classes == other.classes and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        for a, b in ((one.train, other.train), (one.test, other.test))
    )


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
    assert "1 pictures were resized and centre-cropped to 32×32" in capsys.readouterr().err


def test_nothing_is_said_of_sizes_where_all_are_right(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_dataset("folder", own)
    assert "resized" not in capsys.readouterr().err


def cache_of(own: Path) -> Path:
    return own / f"pictures-{folder.SIZE}x{folder.SIZE}.npz"


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
    "class renamed": lambda own: [(own / p / "dog").rename(own / p / "wolf") for p in folder.PARTS],
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


class Payload:
    """Unpickling this makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def _lie(cache: Path, **entries: Any) -> None:
    with np.load(cache) as stored:
        contents = dict(stored)
    np.savez(cache, **{**contents, **entries})


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda cache: cache.write_bytes(b""),
    "noise": lambda cache: cache.write_bytes(noise(500).tobytes()),
    "truncated": lambda cache: cache.write_bytes(cache.read_bytes()[:-100]),
    "flipped": lambda cache: cache.write_bytes(cache.read_bytes().replace(b"\0" * 9, b"\1" * 9)),
    "pickle": lambda cache: cache.write_bytes(pickle.dumps(Payload())),
    "objects": lambda cache: _lie(cache, images=np.array([Payload()] * 6, dtype=object)),
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
    assert not Path("unpickled").exists()


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


@pytest.mark.parametrize(
    "name",
    ["cifar10", "cifar100", "SVHN"],
)
def test_a_folder_with_too_few_classes_is_not_a_public_data_set(own: Path, name: str) -> None:
    with pytest.raises(InputError) as error:
        load_dataset(name, own)
    one_line(error, own, name, "2 classes")


def test_a_folder_of_a_part_of_a_public_data_set_is_used_and_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        for name in "abcdefghij":
            save(tmp_path / "cifar" / part / name / "0.png", (0, 0, 0))
    loaded = load_dataset("cifar10", tmp_path / "cifar")
    assert (loaded.name, len(loaded.train), len(loaded.test)) == ("cifar10", 10, 10)
    assert "has 10 training and 10 test pictures" in capsys.readouterr().err


@pytest.mark.parametrize("place", [None, "nowhere", "file", "."])
@pytest.mark.parametrize("name", ["folder", "cifar10"])
def test_data_that_is_not_there_is_named(
    name: str, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("not a folder")
    monkeypatch.setattr(datasets.CIFAR10, "download", _fail(RuntimeError("no network")))
    with pytest.raises(InputError) as error:
        load_dataset(name, None if place is None else Path(place))
    one_line(error, "--data" if place is None else place)


def _fail(error: Exception) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


# Subsets


@pytest.mark.parametrize("parts", [(7, None), (None, 5), (7, 5), (16, 8), (1, 1)])
def test_subsets_are_always_the_same_pictures(
    parts: tuple[int | None, int | None], tmp_path: Path
) -> None:
    for part, count in (("train", 8), ("test", 4)):
        for i in range(count):
            for label, name in enumerate(("cat", "dog")):
                save(tmp_path / "many" / part / name / f"{i}.png", (i, label, part == "test"))

    def chosen(seed: int) -> Dataset:
        torch.manual_seed(seed)
        return load_dataset("folder", tmp_path / "many", *parts)

    loaded = chosen(1)
    assert same(loaded, chosen(2))
    for pictures, wanted, all_ in ((loaded.train, parts[0], 16), (loaded.test, parts[1], 8)):
        assert len(pictures) == (wanted or all_)
        colours = pictures.images[:, 0, 0]
        assert torch.equal(colours[:, 1].long(), pictures.labels)
        assert len(set(map(tuple, colours.tolist()))) == len(pictures)
    # and so a run sees the same ones whatever its --seed
    drawn = [
        torch.cat([x for x, _ in Batches(loaded, "train", 4, CPU, seed).epoch(0)])
        for seed in (1, 2)
    ]
    assert len(drawn[0]) == len(drawn[1]) == len(loaded.train)


def test_a_subset_is_mixed_not_the_first_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(20):
            save(tmp_path / "many/train" / name / f"{i}.png", (i, 0, 0))
        save(tmp_path / "many/test" / name / "0.png", (0, 0, 0))
    assert len(load_dataset("folder", tmp_path / "many", 15).train.labels.unique()) == 2


@pytest.mark.parametrize(("sizes", "flag"), [((5, 1), "--subset 5"), ((1, 3), "--test-subset 3")])
def test_a_subset_of_more_than_there_are_is_refused(
    own: Path, sizes: tuple[int, int], flag: str
) -> None:
    with pytest.raises(InputError) as error:
        load_dataset("folder", own, *sizes)
    one_line(error, flag)


# torchvision's data sets


class Cifar:
    """As torchvision.datasets.CIFAR10: two training pictures of value 1, one test picture of 2."""

    classes = ("plane", "car")
    made: list[dict[str, object]] = []  # noqa: RUF012

    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        self.made.append({"root": Path(root), "train": train, "download": download})
        self.data = np.full((2 if train else 1, 32, 32, 3), 1 if train else 2, np.uint8)
        self.data[:, 0, 0] = (7, 8, 9)
        self.targets = [1, 0] if train else [1]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("given_", [False, True])
def test_cifar_comes_through_torchvision(
    name: str, given_: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, name.upper(), Cifar)
    monkeypatch.setattr(Cifar, "made", [])
    loaded = load_dataset(name, tmp_path if given_ else None)
    root = tmp_path if given_ else Path(f"data.{name}")
    assert Cifar.made == [
        {"root": root, "train": train, "download": not given_} for train in (True, False)
    ]
    assert loaded.classes == ("plane", "car")
    assert loaded.train.images.shape == (2, 32, 32, 3)
    assert loaded.train.images[0, 0, 0].tolist() == [7, 8, 9]
    assert (loaded.train.images[:, 1:] == 1).all() and (loaded.test.images[:, 1:] == 2).all()
    assert loaded.train.labels.tolist() == [1, 0] and loaded.test.labels.tolist() == [1]
    assert loaded.train.labels.dtype == torch.int64
    assert (loaded.mean, loaded.std) == CIFAR_NORM and loaded.augment


class Svhn:
    """As torchvision.datasets.SVHN: channels first."""

    def __init__(self, root: Path, split: str, download: bool = False) -> None:
        number = ("train", "extra", "test").index(split)
        self.data = np.stack([noise(3, 32, 32) + np.uint8(number)] * (number + 1))
        self.labels = np.full(number + 1, number, np.int64)


def test_svhn_trains_on_train_and_extra_unaugmented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "SVHN", Svhn)
    monkeypatch.setattr(data, "find_spec", lambda name: name)  # as if scipy were there
    loaded = load_dataset("SVHN")
    assert loaded.classes == tuple("0123456789")
    assert loaded.train.labels.tolist() == [0, 1, 1] and loaded.test.labels.tolist() == [2] * 3
    upright = noise(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(loaded.train.images, [upright, upright + 1, upright + 1])
    assert np.array_equal(loaded.test.images[0], upright + 2)
    assert (loaded.mean, loaded.std) == SVHN_NORM and not loaded.augment


FAILURES = [
    urllib.error.URLError("no route"),
    urllib.error.HTTPError("http://x", 503, "no route", None, None),
    ConnectionResetError("no route"),
    TimeoutError("no route"),
    RuntimeError("File not found or corrupted:\nno route"),
    http.client.HTTPException("no route"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failed_download_is_told_in_one_line(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "CIFAR10", _fail(failure))
    with pytest.raises(InputError) as error:
        load_dataset("cifar10")
    one_line(error, "cifar10", "no route", "data.cifar10", "--data DIR")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "SVHN"])
def test_a_half_unpacked_archive_is_told_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: name)  # as if scipy were there
    (tmp_path / "half/cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "half/cifar-10-batches-py/data_batch_1").write_bytes(noise(100).tobytes())
    with pytest.raises(InputError) as error:
        load_dataset(name, tmp_path / "half")
    one_line(error, name, tmp_path / "half", "--data DIR")


def test_svhn_without_scipy_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ModuleNotFoundError("No module named 'scipy'", name="scipy")
    monkeypatch.setattr(datasets, "SVHN", _fail(missing))
    with pytest.raises(InputError) as error:
        load_dataset("SVHN")
    one_line(error, "SVHN", "pip install scipy")


def test_svhn_without_scipy_is_not_downloaded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr(datasets.SVHN, "download", _fail(RuntimeError("went to the network")))
    with pytest.raises(InputError) as error:
        load_dataset("SVHN")
    one_line(error, "pip install scipy")


# The built-in pictures, and the real ones


def test_shapes_are_built_in() -> None:
    loaded = load_dataset("shapes", subset=500, test_subset=200)
    assert len(loaded.classes) == 10 and loaded.augment
    assert loaded.train.images.shape == (500, 32, 32, 3)
    assert loaded.test.images.shape == (200, 32, 32, 3)
    assert loaded.train.labels.unique().tolist() == list(range(10))
    trained = {image.numpy().tobytes() for image in loaded.train.images}
    assert not any(image.numpy().tobytes() in trained for image in loaded.test.images)


def test_shapes_lie_nowhere(own: Path) -> None:
    with pytest.raises(InputError) as error:
        load_dataset("shapes", own)
    one_line(error, "--data")


def test_the_real_cifar10() -> None:
    place = os.environ.get("CIFAR10_JPEG")
    if not place:
        pytest.skip("CIFAR10_JPEG does not name a folder with CIFAR-10's train/ and test/")
    loaded = load_dataset("cifar10", Path(place))
    assert loaded.classes == tuple(
        "airplane automobile bird cat deer dog frog horse ship truck".split()
    )
    for pictures, of_each in ((loaded.train, 5000), (loaded.test, 1000)):
        assert pictures.images.shape == (10 * of_each, 32, 32, 3)
        assert pictures.images.dtype == torch.uint8
        assert pictures.labels.bincount().tolist() == [of_each] * 10
    # if they were not decoded as they should be, they would not have the usual mean
    mean = loaded.train.images.float().mean((0, 1, 2)) / 255
    assert torch.allclose(mean, torch.tensor(CIFAR_NORM[0]), atol=0.01)
