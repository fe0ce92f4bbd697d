"""Pictures that are read as they are needed are those of memory, or cut as torchvision does."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from own_pictures import epoch_of, one_line, save
from utils import console
from utils.atomic import file_lock
from utils.console import InputError
from utils.data import image_folder
from utils.data.batches import Batches
from utils.data.datasets import IMAGENET_NORM, Dataset, load_dataset
from utils.data.streaming import StreamedBatches, batches_of
from utils.training.distributed import ProcessGroup
from workshop import ROOT, error_line

pytestmark = pytest.mark.usefixtures("user_cache")
CPU = torch.device("cpu")
SIZES = [(32, 32), (40, 90), (61, 33), (20, 20), (200, 150), (32, 35)]


def draw(place: Path, parts: dict[str, int]) -> Path:
    """Two classes of noise, of all sizes and shapes, so many pictures each."""
    for part, count in parts.items():
        for name in ("cat", "dog"):
            for i in range(count):
                width, height = SIZES[(i + (name == "dog")) % len(SIZES)]
                pixels = np.random.default_rng((i, len(part), name == "dog")).integers(
                    0, 256, (height, width, 3), np.uint8
                )
                save(place / part / name / f"{i}.png", pixels)
    return place


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("varied"), {"train": 9, "test": 5, "val": 5})


def loaded(place: Path, name: str = "folder", stream: bool = True, **more: Any) -> Dataset:
    return load_dataset(name, place, stream=stream, **{"size": 24, **more})


def assert_equal(one: Any, other: Any) -> None:
    """The same batches, bit by bit."""
    for (images, labels), (same_images, same_labels) in zip(one, other, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)


@pytest.mark.parametrize("normalise", [None, "imagenet", "data"])
@pytest.mark.parametrize(("size", "subsets"), [(32, (None, None)), (24, (13, 7))])
def test_a_streamed_folder_is_the_folder_in_memory(
    varied: Path, size: int, subsets: tuple[int | None, int | None], normalise: str | None
) -> None:
    how = {"size": size, "normalise": normalise, "subset": subsets[0], "test_subset": subsets[1]}
    memory, files = (loaded(varied, stream=stream, **how) for stream in (False, True))
    assert memory.mean == files.mean and memory.std == files.std
    for part in ("train", "test"):
        kept, read = (batches_of(data, part, 4, CPU, 5, workers=0) for data in (memory, files))
        assert type(kept) is Batches and type(read) is StreamedBatches
        assert next(kept.iter_eval())[0].shape[1:] == (3, size, size)
        assert_equal(kept.iter_eval(), read.iter_eval())
        assert_equal(kept.iter_eval(1, 2), read.iter_eval(1, 2))
        assert_equal(epoch_of(kept, 3), epoch_of(read, 3))
        samples = zip(kept.sample(9), read.sample(9), strict=True)
        assert all(torch.equal(images, same) for images, same in samples)
        several = kept.epoch_indices(0, 5), read.epoch_indices(0, 5)
        assert_equal(map(kept.get_batch, several[0]), map(read.get_batch, several[1]))


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_streamed_images_are_not_mirrored_where_that_is_said(varied: Path, name: str) -> None:
    mirrored, upright = (loaded(varied, name, flip=flip) for flip in (True, False))
    epochs = [
        epoch_of(StreamedBatches(data, "train", 4, CPU, 5, 0, _all), 0)
        for data in (mirrored, upright)
    ]
    flipped, plain = (torch.cat([images for images, _ in epoch]) for epoch in epochs)
    same = [torch.equal(x, y) for x, y in zip(flipped, plain, strict=True)]
    assert 0 < sum(same) < len(same)
    if name == "imagenet":  # a folder's crops reach beyond the image on another side
        for x, y, as_it_was in zip(flipped, plain, same, strict=True):
            assert as_it_was or torch.equal(x.flip(2), y)
    if name == "folder":
        memory = loaded(varied, name, stream=False, flip=False)
        assert_equal(epochs[1], epoch_of(Batches(memory, "train", 4, CPU, 5), 0))


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_every_process_of_a_group_takes_the_same_sample(varied: Path, name: str) -> None:
    data = loaded(varied, name)
    parts = ProcessGroup(0, 2).local_part, ProcessGroup(1, 2).local_part
    streams = [StreamedBatches(data, "train", 4, CPU, 5, n, part) for n, part in enumerate(parts)]
    epoch_of(streams[0], 0)
    one, other, again = (torch.cat(list(streams[i].sample(9))) for i in (0, 1, 1))
    assert torch.equal(one, other) and torch.equal(one, again)
    every = torch.cat([images for images, _ in streams[0].iter_eval()])  # not cropped at random
    assert all(any(torch.equal(x, y) for y in every) for x in one)


@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10_000),
    batch_size=st.integers(1, 20),
    workers=st.sampled_from([2, 3]),
    name=st.sampled_from(["folder", "imagenet"]),
)
def test_crops_are_a_pure_function_of_seed_epoch_and_picture(
    varied: Path, seed: int, epoch: int, batch_size: int, workers: int, name: str
) -> None:
    data = loaded(varied, name)
    alone, helped = (
        StreamedBatches(data, "train", batch_size, CPU, seed, n, _all) for n in (0, workers)
    )
    torch.manual_seed(seed)
    epoch_of(alone, epoch)  # one that a run made before it was killed
    before = torch.get_rng_state()
    wanted = epoch_of(alone, epoch + 1)
    assert_equal(wanted, epoch_of(helped, epoch + 1))
    assert torch.equal(before, torch.get_rng_state())
    # asked for out of turn, as when a layer is looked for that is not finite
    order = helped.epoch_indices(epoch + 1)
    for i in (-1, 0):
        assert_equal([helped.get_batch(order[i])], [wanted[i]])
    assert_equal(map(helped.get_batch, order[1:]), wanted[1:])
    # and in other batches: a picture's crop does not depend on its neighbours
    ones = StreamedBatches(data, "train", 1, CPU, seed, 0, _all)
    assert torch.equal(torch.cat([x for x, _ in wanted]), torch.cat([x for x, _ in
                       epoch_of(ones, epoch + 1)]))  # fmt: skip
    labels = torch.cat([labels for _, labels in wanted])
    assert labels.bincount().tolist() == [9, 9]


def _all(where: torch.Tensor) -> torch.Tensor:
    return where


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**62), epoch=st.integers(0, 10_000))
def test_other_seeds_and_epochs_are_other_random_crops(varied: Path, seed: int, epoch: int) -> None:
    data = loaded(varied, "imagenet")

    def of_first(seed: int, epoch: int) -> torch.Tensor:
        stream = StreamedBatches(data, "train", 1, CPU, seed, 0, _all)
        (where,) = [where for where in stream.epoch_indices(epoch) if where[0] == 0]
        return stream.get_batch(where)[0]

    images = of_first(seed, epoch)
    for other in ((seed, epoch + 1), (seed + 1, epoch), (seed + 1, max(epoch - 1, 0))):
        assert not torch.equal(images, of_first(*other))


def test_imagenets_pictures_are_cut_as_torchvision_does(varied: Path) -> None:
    """To train: RandomResizedCrop and RandomHorizontalFlip; to test: Resize and CenterCrop."""
    data, size = loaded(varied, "imagenet", size=28), 28
    to_input = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*IMAGENET_NORM)])
    crop = transforms.Compose(
        [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), to_input]
    )
    middle = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(size), to_input])

    def files(part: str) -> list[Path]:
        return sorted((varied / part).glob("*/*.png"))

    def opened(path: Path) -> Image.Image:
        return Image.open(path).convert("RGB")

    tests = StreamedBatches(data, "test", 3, CPU, 0, 0, _all).iter_eval()
    expected = torch.stack([middle(opened(path)) for path in files("val")])
    assert torch.equal(torch.cat([images for images, _ in tests]), expected)

    stream = StreamedBatches(data, "train", 5, CPU, 1, 0, _all)
    mirrored = set()
    for where in stream.epoch_indices(2):
        images, labels = stream.get_batch(where)
        for (index, number), image, label in zip(where.T.tolist(), images, labels, strict=True):
            path = files("train")[index]
            torch.manual_seed(number)
            assert torch.equal(image, crop(opened(path)))
            assert data.classes[label] == path.parent.name
            torch.manual_seed(number)
            transforms.RandomResizedCrop.get_params(opened(path), (0.08, 1), (3 / 4, 4 / 3))
            mirrored.add(bool(torch.rand(1) < 0.5))
    assert mirrored == {True, False}


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_processes_share_a_streamed_batch_as_any_other(varied: Path, name: str) -> None:
    data, groups = loaded(varied, name), [ProcessGroup(rank, 2) for rank in range(2)]
    whole = epoch_of(StreamedBatches(data, "train", 4, CPU, 7, 0, _all), 1)
    halves = [StreamedBatches(data, "train", 4, CPU, 7, 0, group.local_part) for group in groups]
    orders = [half.epoch_indices(1) for half in halves]
    for step, (images, labels) in enumerate(whole):
        parts = [
            half.get_batch(group.local_shard(order[step])[0])
            for half, group, order in zip(halves, groups, orders, strict=True)
        ]
        assert torch.equal(torch.cat([images for images, _ in parts]), images)
        assert torch.equal(torch.cat([labels for _, labels in parts]), labels)


def test_only_what_is_asked_for_is_read(varied: Path, decoded: list[Path]) -> None:
    before, data = list(varied.glob("*.npz")), loaded(varied)
    assert not decoded
    stream = StreamedBatches(data, "train", 3, CPU, 0, 0, _all)
    stream.get_batch(stream.epoch_indices(0)[0])
    assert len(decoded) == 3
    assert before == list(varied.glob("*.npz"))  # nothing is cached: a disk may be too small


def test_a_file_name_need_not_be_text_nor_be_short(own: Path) -> None:
    picture = (own / "train/cat/0.bmp").read_bytes()
    names = [os.fsdecode(b"\xff.bmp"), f"{'ü' * 100}.bmp", "a b\n.bmp"]
    for name in names:
        (own / "train/cat" / name).write_bytes(picture)
    memory, files = (loaded(own, stream=stream) for stream in (False, True))
    assert len(files.train) == 7
    kept, read = (batches_of(data, "train", 3, CPU, workers=0) for data in (memory, files))
    assert_equal(kept.iter_eval(), read.iter_eval())


def _checksums(place: Path) -> list[int]:
    data = loaded(place)
    return [data.train.checksum(), data.test.checksum(), data.checksum()]


def test_the_checksum_is_that_of_sorted_paths_and_sizes(own: Path) -> None:
    first = _checksums(own)
    file = own / "train/cat/0.bmp"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[::-1])  # as long, and written later in the folder
    assert _checksums(own) == first
    file.write_bytes(content[:-1])
    shorter = _checksums(own)
    assert shorter[0] != first[0] and shorter[1] == first[1] and shorter[2] != first[2]
    file.write_bytes(content)
    file.rename(own / "train/dog/0b.bmp")
    assert _checksums(own)[0] != first[0]
    (own / "train/dog/0b.bmp").rename(file)
    assert _checksums(own) == first
    some = [loaded(own, subset=n).train.checksum() for n in (2, 3)]
    assert len({first[0], *some}) == 3


def test_colours_are_measured(own: Path) -> None:
    data = loaded(own, stream=False, size=32, normalise="data")
    pixels = data.train.images.double().div(255)
    torch.testing.assert_close(torch.tensor(data.mean).double(), pixels.mean((0, 1, 2)))
    deviation = pixels.flatten(0, 2).std(0, correction=0)
    torch.testing.assert_close(torch.tensor(data.std).double(), deviation)
    before = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    assert loaded(own, normalise="data", norm=before).mean == before[0]
    assert loaded(own, normalise="cifar", norm=before).mean != before[0]


def _spoil(own: Path) -> None:
    (own / "train/dog/1.bmp").write_bytes(b"<html>\n404\n</html>")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named_in_one_line_when_it_is_read(own: Path, workers: int) -> None:
    _spoil(own)
    stream = batches_of(loaded(own), "train", 1, CPU, workers=workers)
    with pytest.raises(InputError) as error:
        epoch_of(stream, 0)
    one_line(error, "train/dog/1.bmp", "not a readable image")
    with pytest.raises(InputError) as error:
        list(stream.iter_eval())
    one_line(error, "train/dog/1.bmp")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no test": ({"name": "folder"}, "test is missing"),
    "no val": ({"name": "imagenet"}, "val is missing"),
    "not files": ({"name": "cifar10", "place": Path("empty")}, "--stream needs image files"),
    "nowhere": ({"name": "imagenet", "place": None}, "needs DIR/{train,val}/<class>/*"),
    "neither": ({"name": "imagenet", "place": Path("empty")}, "has neither"),
    "drawn": ({"name": "shapes", "place": None}, "--stream needs image files"),
    "drawn, large": ({"name": "shapes", "place": None, "stream": False}, "give --size 32"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_streamed_is_said_in_one_line(own: Path, case: str) -> None:
    Path("empty").mkdir()
    for file in (own / "test").rglob("*.bmp"):
        file.unlink()
    for empty in sorted((own / "test").rglob("*"), reverse=True):
        empty.rmdir()
    (own / "test").rmdir()
    how, said = BAD[case]
    with pytest.raises(InputError) as error:
        loaded(**{"place": own, **how})
    one_line(error, said)


def test_one_colour_cannot_be_normalised_by_itself(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part / "a/0.png", (1, 2, 3))
    with pytest.raises(InputError) as error:
        loaded(tmp_path, normalise="data")
    one_line(error, "--normalise data")


def test_more_than_the_memory_is_told_of_stream(
    own: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[Path]
) -> None:
    needed = 6 * 24 * 24 * 3
    assert 1e8 < image_folder._memory() < 1e15
    monkeypatch.setattr(image_folder, "_memory", lambda: needed - 1)
    with pytest.raises(InputError) as error:
        loaded(own, stream=False)
    one_line(error, "6 images of 24×24", "--stream")
    assert not decoded
    assert len(loaded(own).train) == 4
    monkeypatch.setattr(image_folder, "_memory", lambda: needed)
    assert len(loaded(own, stream=False).train) == 4


def test_a_worker_that_is_killed_ends_the_command_in_one_line(
    varied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = StreamedBatches(loaded(varied), "train", 1, CPU, 0, 2, _all)

    def read(argv: list[str] | None) -> None:
        order = stream.epoch_indices(0)
        stream.get_batch(order[0])
        children = multiprocessing.active_children()
        assert len(children) == 2
        os.kill(children[0].pid, signal.SIGKILL)  # torch raises wherever it learns of that
        for where in order[1:]:
            stream.get_batch(where)
        time.sleep(10)

    assert console.run(read) == 1
    assert "a process that reads" in error_line(capsys.readouterr().err)


def test_an_interrupt_from_the_terminal_is_left_to_the_training(varied: Path) -> None:
    data = loaded(varied)
    stream = StreamedBatches(data, "train", 1, CPU, 0, 2, _all)
    order = stream.epoch_indices(0)
    for step in range(2):  # both workers have started
        stream.get_batch(order[step])
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
    others = epoch_of(StreamedBatches(data, "train", 1, CPU, 0, 0, _all), 0)
    assert_equal(map(stream.get_batch, order[2:]), others[2:])


def test_workers_end_with_what_they_are_for(varied: Path) -> None:
    stream = StreamedBatches(loaded(varied), "train", 4, CPU, 0, 2, _all)
    order = stream.epoch_indices(0)
    for where in order[:-1]:
        stream.get_batch(where)
        assert len(multiprocessing.active_children()) == 2
    stream.get_batch(order[-1])
    assert not multiprocessing.active_children()
    tests = StreamedBatches(loaded(varied), "test", 4, CPU, 0, 2, _all)
    next(tests.iter_eval())
    assert len(multiprocessing.active_children()) == 2
    stream.get_batch(stream.epoch_indices(0)[0])
    assert len(multiprocessing.active_children()) == 4
    del stream, tests
    assert not multiprocessing.active_children()


FORKS = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from utils.atomic import file_lock

with file_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_lock_is_free_when_its_process_is_killed_though_its_workers_live(tmp_path: Path) -> None:
    """As the readers do, for some seconds."""
    lock, script = tmp_path / "run.lock", tmp_path / "script.py"
    script.write_text(FORKS.format(root=str(ROOT)))
    argv = [sys.executable, str(script), str(lock)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(InputError), file_lock(lock):
            pass
        process.kill()
        process.wait()
        time.sleep(0.1)
        with file_lock(lock):
            pass
        os.killpg(process.pid, 0)  # its child is still there
    finally:
        os.killpg(process.pid, signal.SIGKILL)
