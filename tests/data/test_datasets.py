"""Public data sets, subsets, normalisation, and the messages when data is missing."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets as torchvision_datasets

from own_pictures import noise, one_line, same, save
from utils import console
from utils.console import InputError
from utils.data.datasets import CIFAR_NORM, SVHN_NORM, ImageSet, load, load_dataset
from workshop import Payload, dump

pytestmark = pytest.mark.usefixtures("user_cache")


def failing(error: Exception) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


@pytest.fixture
def scipy_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "find_spec", lambda name: name)


# Image folders in place of public data sets


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "SVHN"])
def test_a_folder_with_too_few_classes_is_no_public_data_set(own: Path, name: str) -> None:
    with pytest.raises(InputError) as error:
        load_dataset(name, own)
    one_line(error, own, name, "2 classes")


def test_a_partial_copy_of_a_public_data_set_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        for name in "abcdefghij":
            save(tmp_path / part / name / "0.png", (0, 0, 0))
    data = load_dataset("cifar10", tmp_path)
    assert (data.name, data.source, len(data.train)) == ("cifar10", "picture files", 10)
    assert "has 10 training and 10 test images; all of cifar10" in capsys.readouterr().err


@pytest.mark.parametrize("place", [None, "nowhere", "file", "."])
@pytest.mark.parametrize("name", ["folder", "cifar10", "imagenet"])
def test_missing_data_is_named(
    name: str, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("not a directory")
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "download", failing(RuntimeError("offline")))
    with pytest.raises(InputError) as error:
        load_dataset(name, None if place is None else Path(place))
    one_line(error, "--data" if place is None else place)
    if name == "imagenet":
        one_line(error, "needs DIR/{train,val}/<class>/*")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset": "shapes", "data": "own"}, "remove --data own"),
        ({"dataset": "shapes", "stream": True}, "--stream needs image files"),
        ({"dataset": "shapes", "size": 24}, "give --size 32"),
        ({"dataset": "cifar10", "data": ".", "stream": True}, "--stream needs image files"),
    ],
)
def test_flags_that_need_image_files_are_refused_without_them(
    flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        load(flags)
    one_line(error, message)


# Subsets and normalisation


@pytest.mark.parametrize("counts", [(15, None), (None, 5), (7, 5), (16, 8), (1, 1)])
def test_subsets_are_fixed_and_mix_the_classes(
    counts: tuple[int | None, int | None], tmp_path: Path
) -> None:
    for part, count in (("train", 8), ("test", 4)):
        for i in range(count):
            for label, name in enumerate(("cat", "dog")):
                save(tmp_path / part / name / f"{i}.png", (i, label, part == "test"))
    torch.manual_seed(1)
    data = load_dataset("folder", tmp_path, *counts)
    torch.manual_seed(2)
    assert same(data, load_dataset("folder", tmp_path, *counts))
    for images, wanted, total in ((data.train, counts[0], 16), (data.test, counts[1], 8)):
        assert len(images) == (wanted or total)
        colours = images.images[:, 0, 0]
        assert torch.equal(colours[:, 1].long(), images.labels)
        assert len(set(map(tuple, colours.tolist()))) == len(images)
        assert len(images) < 5 or len(images.labels.unique()) == 2


@pytest.mark.parametrize(("counts", "flag"), [((5, 1), "--subset 5"), ((1, 3), "--test-subset 3")])
def test_a_subset_larger_than_the_data_set_is_refused(
    own: Path, counts: tuple[int, int], flag: str
) -> None:
    with pytest.raises(InputError) as error:
        load_dataset("folder", own, *counts)
    one_line(error, flag)


def test_normalisation_is_measured_or_taken_from_an_earlier_measurement(own: Path) -> None:
    data = load_dataset("folder", own, normalise="data")
    pixels = data.train.images.double().div(255).flatten(0, 2)
    torch.testing.assert_close(torch.tensor(data.mean).double(), pixels.mean(0))
    torch.testing.assert_close(torch.tensor(data.std).double(), pixels.std(0, correction=0))
    earlier = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    assert load_dataset("folder", own, normalise="data", norm=earlier).norm == earlier
    assert load_dataset("folder", own, normalise="cifar", norm=earlier).norm == CIFAR_NORM
    for path in own.glob("*/*/*.bmp"):
        save(path, (1, 2, 3))
    with pytest.raises(InputError) as error:
        load_dataset("folder", own, normalise="data")
    one_line(error, "--normalise data")


def test_description_has_class_counts_normalisation_and_augmentation(own: Path) -> None:
    counts, how = load_dataset("folder", own).describe()
    assert counts == "training images: 2 of each of 2 classes; test images: 1 of each of 2 classes"
    assert "deviation 0.202 0.199 0.201 (cifar); " in how
    assert how.endswith("augmentation: random crops, mirrored at random (not with --no-flip)")
    save(own / "train/dog/2.bmp", (1, 2, 3))
    data = load_dataset("folder", own, flip=False, normalise="data")
    counts, how = data.describe()
    assert counts == "training images: 2 cat, 3 dog; test images: 1 of each of 2 classes"
    assert "(" not in how and how.endswith("augmentation: random crops, not mirrored")
    subset = replace(data, train=data.train.take(torch.tensor([0])))
    assert subset.describe()[0].startswith("training images: 1 cat, 0 dog; ")
    labels = torch.arange(12).repeat_interleave(torch.tensor([3, 1, *[2] * 8, 1200, 4]))
    many = ImageSet(torch.zeros(len(labels), 1, 1, 3, dtype=torch.uint8), labels)
    counts, _ = replace(data, classes=tuple("abcdefghijkl"), train=many, test=many).describe()
    assert counts.endswith("test images: 1 (b) to 1,200 (k) of each of 12 classes")
    assert replace(data, name="SVHN", augment=False).describe()[1].endswith("augmentation: none")
    imagenet = replace(data, name="imagenet", augment=False, flip=True).describe()[1]
    assert "augmentation: resized random crops, mirrored" in imagenet


# torchvision's data sets


class Cifar:
    """Like torchvision.datasets.CIFAR10: two training images of value 1, one test image of 2."""

    classes = ("plane", "car")
    calls: list[dict[str, object]] = []  # noqa: RUF012

    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        self.calls.append({"root": Path(root), "train": train, "download": download})
        self.data = np.full((2 if train else 1, 32, 32, 3), 1 if train else 2, np.uint8)
        self.data[:, 0, 0] = (7, 8, 9)
        self.targets = [1, 0] if train else [1]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("has_folder", [False, True])
def test_cifar_is_loaded_with_torchvision_and_downloaded_only_without_data(
    name: str, has_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_datasets, name.upper(), Cifar)
    monkeypatch.setattr(Cifar, "calls", [])
    data = load_dataset(name, tmp_path if has_folder else None)
    root = tmp_path if has_folder else Path(f"data.{name}")
    assert Cifar.calls == [
        {"root": root, "train": train, "download": not has_folder} for train in (True, False)
    ]
    assert data.classes == ("plane", "car") and data.source == "torchvision"
    assert data.train.images.shape == (2, 32, 32, 3)
    assert data.train.images[0, 0, 0].tolist() == [7, 8, 9]
    assert (data.train.images[:, 1:] == 1).all() and (data.test.images[:, 1:] == 2).all()
    assert data.train.labels.tolist() == [1, 0] and data.test.labels.tolist() == [1]
    assert data.train.labels.dtype == torch.int64
    assert data.norm == CIFAR_NORM and data.augment


class Svhn:
    """Like torchvision.datasets.SVHN: channels first."""

    def __init__(self, root: Path, split: str, download: bool = False) -> None:
        number = ("train", "extra", "test").index(split)
        self.data = np.stack([noise(3, 32, 32) + np.uint8(number)] * (number + 1))
        self.labels = np.full(number + 1, number, np.int64)


@pytest.mark.usefixtures("scipy_found")
def test_svhn_is_train_and_extra_without_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_datasets, "SVHN", Svhn)
    data = load_dataset("SVHN")
    assert data.classes == tuple("0123456789")
    assert data.train.labels.tolist() == [0, 1, 1] and data.test.labels.tolist() == [2] * 3
    image = noise(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(data.train.images, [image, image + 1, image + 1])
    assert np.array_equal(data.test.images[0], image + 2)
    assert data.norm == SVHN_NORM and not data.augment


def test_svhn_without_scipy_is_refused_before_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setattr(torchvision_datasets.SVHN, "download", failing(RuntimeError("downloaded")))
    with pytest.raises(InputError) as error:
        load_dataset("SVHN")
    one_line(error, "SVHN", "pip install scipy")


@pytest.mark.parametrize("kind", [URLError, RuntimeError, HTTPException])
def test_a_failed_download_is_reported_in_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_datasets, "CIFAR10", failing(kind("corrupted:\nno route")))
    with pytest.raises(InputError) as error:
        load_dataset("cifar10")
    one_line(error, "cifar10", "no route", "data.cifar10", "--data DIR")


@pytest.mark.usefixtures("scipy_found")
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "SVHN"])
def test_an_incomplete_archive_is_reported_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_dataset(name, tmp_path)
    one_line(error, name, tmp_path, "--data DIR")


@pytest.mark.parametrize(
    ("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
def test_modified_cifar_pickles_are_not_unpickled(name: str, folder: str, tmp_path: Path) -> None:
    cls = getattr(torchvision_datasets, name.upper())
    (tmp_path / folder).mkdir()
    for file, _ in (*cls.train_list, *cls.test_list, [cls.meta["filename"], ""]):
        dump(tmp_path / folder / file, Payload())
    with pytest.raises(InputError):
        load_dataset(name, tmp_path)
    assert not Path("owned").exists()


def test_a_single_class_is_warned_of(pictures: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(pictures / part / "red", tmp_path / part / "red")
    assert "warning: there is a single class" in load_dataset("folder", tmp_path).describe()[0]
    assert "warning" not in load_dataset("folder", pictures).describe()[0]


def test_shapes_have_ten_classes_and_distinct_parts() -> None:
    data = load_dataset("shapes", subset=400, test_subset=100)
    assert len(data.classes) == 10 and data.augment
    assert data.train.images.shape == (400, 32, 32, 3)
    assert data.test.images.shape == (100, 32, 32, 3)
    assert data.train.labels.unique().tolist() == list(range(10))
    images = {image.numpy().tobytes() for image in (*data.train.images, *data.test.images)}
    assert len(images) == 500
