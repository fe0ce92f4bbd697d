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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"dataset": "folder"}, ["--data DIR is missing"]),
        ({"dataset": "folder", "data": "nowhere"}, ["nowhere has neither train nor test"]),
        ({"dataset": "imagenet"}, ["needs DIR/{train,val}/<class>/*", "--data DIR is missing"]),
        ({"dataset": "imagenet", "data": "."}, [". has neither train nor val"]),
        ({"dataset": "cifar10"}, ["--data DIR", "offline"]),
        ({"dataset": "cifar10", "data": "file"}, ["--data file is not a directory"]),
        ({"dataset": "cifar10", "data": "."}, ["cifar10 is missing or incomplete in ."]),
        ({"dataset": "cifar100", "data": "../own"}, ["own/train has 2 classes, and cifar100"]),
        ({"dataset": "folder", "data": "../own", "subset": 5}, ["--subset 5"]),
        ({"dataset": "folder", "data": "../own", "test_subset": 3}, ["--test-subset 3"]),
        ({"dataset": "shapes", "data": "own"}, ["remove --data own"]),
        ({"dataset": "shapes", "stream": True}, ["--stream needs image files"]),
        ({"dataset": "shapes", "size": 24}, ["give --size 32"]),
        ({"dataset": "cifar10", "data": ".", "stream": True}, ["--stream needs image files"]),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_missing_data_and_flags_that_do_not_fit_it_are_named_in_one_line(
    flags: dict[str, Any], words: list[str], own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("not a directory")
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "download", failing(RuntimeError("offline")))
    with pytest.raises(InputError) as error:
        load(flags)
    one_line(error, *words)


def test_a_partial_copy_of_a_public_data_set_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        for name in "abcdefghij":
            save(tmp_path / part / name / "0.png", (0, 0, 0))
    data = load_dataset("cifar10", tmp_path)
    assert (data.name, data.source, len(data.train)) == ("cifar10", "picture files", 10)
    assert "has 10 training and 10 test images; all of cifar10" in capsys.readouterr().err


@pytest.mark.parametrize("counts", [(15, None), (None, 5), (16, 8), (1, 1)])
def test_subsets_are_fixed_and_mix_the_classes(counts: Any, tmp_path: Path) -> None:
    for i in range(8):
        for label, name in enumerate(("cat", "dog")):
            save(tmp_path / f"train/{name}/{i}.png", (i, label, 0))
            save(tmp_path / f"test/{name}/{i}.png", (i, label, 1))
    torch.manual_seed(1)
    data = load_dataset("folder", tmp_path, *counts)
    torch.manual_seed(2)
    assert same(data, load_dataset("folder", tmp_path, *counts))
    for images, wanted in zip((data.train, data.test), counts, strict=True):
        assert len(images) == (wanted or 16)
        colours = images.images[:, 0, 0]
        assert torch.equal(colours[:, 1].long(), images.labels)
        assert len(set(map(tuple, colours.tolist()))) == len(images)
        assert len(images) < 5 or len(images.labels.unique()) == 2


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
    labels = torch.arange(12).repeat_interleave(torch.tensor([3, 1, *[2] * 8, 1200, 4]))
    many = ImageSet(torch.zeros(len(labels), 1, 1, 3, dtype=torch.uint8), labels)
    counts, _ = replace(data, classes=tuple("abcdefghijkl"), train=many, test=many).describe()
    assert counts.endswith("test images: 1 (b) to 1,200 (k) of each of 12 classes")
    assert replace(data, name="SVHN", augment=False).describe()[1].endswith("augmentation: none")
    imagenet = replace(data, name="imagenet", augment=False, flip=True).describe()[1]
    assert "augmentation: resized random crops, mirrored" in imagenet
    for part in ("train", "test"):
        shutil.rmtree(own / part / "dog")
    assert "warning: there is a single class" in load_dataset("folder", own).describe()[0]


class Torchvision:
    """Like torchvision's CIFAR10 (an image of 1 and one of 2 if ``train``), and SVHN."""

    classes = ("plane", "car")

    def __init__(
        self, root: Path, train: bool = True, split: str = "", download: bool = False
    ) -> None:
        assert download == (Path(root) != Path("data"))
        by_split = {"train": [0], "extra": [1, 1], "test": [2, 2, 2]}
        values = by_split[split] if split else [1, 2] if train else [3]
        image = noise(3, 32, 32) if split else noise(32, 32, 3)
        self.data = np.stack([image + np.uint8(value) for value in values])
        self.labels = self.targets = [value % 2 for value in values]


@pytest.mark.usefixtures("scipy_found")
@pytest.mark.parametrize("folder", [None, Path("data")])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "SVHN"])
def test_public_data_is_loaded_with_torchvision_and_downloaded_only_without_data(
    name: str, folder: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data").mkdir()
    monkeypatch.setattr(torchvision_datasets, name.upper(), Torchvision)
    data, svhn = load_dataset(name, folder), name == "SVHN"
    image = noise(3, 32, 32).transpose(1, 2, 0) if svhn else noise(32, 32, 3)
    train, test = ([0, 1, 1], [2, 2, 2]) if svhn else ([1, 2], [3])
    assert np.array_equal(data.train.images, [image + np.uint8(value) for value in train])
    assert np.array_equal(data.test.images, [image + np.uint8(value) for value in test])
    assert data.train.labels.tolist() == [value % 2 for value in train]
    assert data.train.labels.dtype == torch.int64
    assert data.classes == (tuple("0123456789") if svhn else ("plane", "car"))
    assert data.source == "torchvision" and data.augment == (not svhn)
    assert data.norm == (SVHN_NORM if svhn else CIFAR_NORM)


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


def test_modified_cifar_pickles_are_not_unpickled(tmp_path: Path) -> None:
    cls = torchvision_datasets.CIFAR10
    (tmp_path / "cifar-10-batches-py").mkdir()
    for file, _ in (*cls.train_list, *cls.test_list, [cls.meta["filename"], ""]):
        dump(tmp_path / "cifar-10-batches-py" / file, Payload())
    with pytest.raises(InputError):
        load_dataset("cifar10", tmp_path)
    assert not Path("owned").exists()
