"""Public data sets, subsets and the built-in pictures, and what is said where they are not."""

import http.client
import os
import sys
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from own_pictures import epoch_of, noise, one_line, same, save
from utils.console import InputError
from utils.data import datasets as data
from utils.data.batches import Batches
from utils.data.datasets import CIFAR_NORM, SVHN_NORM, Dataset, ImageSet, load_dataset
from workshop import Payload, dump

pytestmark = pytest.mark.usefixtures("user_cache")
CPU = torch.device("cpu")


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
    assert "has 10 training and 10 test images" in capsys.readouterr().err


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
        torch.cat([x for x, _ in epoch_of(Batches(loaded, "train", 4, CPU, seed), 0)])
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


def test_images_are_counted_by_class_and_augmentation_is_said(own: Path) -> None:
    counts, how = load_dataset("folder", own).describe()
    assert counts == "training images: 2 of each of 2 classes; test images: 1 of each of 2 classes"
    assert "deviation 0.202 0.199 0.201 (cifar); " in how
    assert how.endswith("augmentation: random crops, mirrored at random (not with --no-flip)")
    save(own / "train/dog/2.bmp", (1, 2, 3))
    more = load_dataset("folder", own, flip=False, normalise="data")
    counts, how = more.describe()
    assert counts.startswith("training images: cat 2, dog 3; test images: 1 of each")
    assert "(" not in how and how.endswith("augmentation: random crops, not mirrored")
    # a class that --subset left out
    some = replace(more, train=more.train.take(torch.tensor([0])))
    assert some.describe()[0].startswith("training images: cat 1, dog 0; ")
    labels = torch.arange(12).repeat_interleave(torch.tensor([3, 1, *[2] * 8, 1200, 4]))
    many = ImageSet(torch.zeros(len(labels), 1, 1, 3, dtype=torch.uint8), labels)
    several = replace(more, classes=tuple("abcdefghijkl"), train=many, test=many)
    counts = "1 (b) to 1,200 (k) of each of 12 classes"
    assert several.describe()[0] == f"training images: {counts}; test images: {counts}"
    assert replace(more, name="SVHN", augment=False).describe()[1].endswith("augmentation: none")
    imagenet = replace(more, name="imagenet", augment=False, flip=True).describe()[1]
    assert "augmentation: resized random crops, mirrored" in imagenet


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


@pytest.mark.parametrize(
    ("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
@pytest.mark.parametrize("believed", [False, True])
def test_a_strangers_batches_run_no_code(
    name: str, folder: str, believed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision unpickles them, but compares each with the known MD5 first."""
    of_class = getattr(datasets, name.upper())
    (tmp_path / folder).mkdir()
    for file, _ in (*of_class.train_list, *of_class.test_list, [of_class.meta["filename"], ""]):
        dump(tmp_path / folder / file, Payload())
    if believed:  # else this would show nothing
        monkeypatch.setattr(of_class, "_check_integrity", lambda self: True)
        with pytest.raises(TypeError):  # what os.mkdir gives is no batch
            load_dataset(name, tmp_path)
    else:
        with pytest.raises(InputError, match="corrupted"):
            load_dataset(name, tmp_path)
    assert Path("owned").exists() == believed


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
