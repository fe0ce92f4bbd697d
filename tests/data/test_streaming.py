"""Streamed images equal those in memory, or torchvision's ImageNet crops, for all workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

import warm
from own_pictures import epoch_of, one_line, save
from utils.console import InputError, PeerLost
from utils.data.batches import Batches
from utils.data.datasets import IMAGENET_NORM, Dataset, load_dataset
from utils.files.locks import file_lock
from utils.training.distributed import ProcessGroup
from workshop import ROOT, error_line

pytestmark = pytest.mark.usefixtures("user_cache")
CPU = torch.device("cpu")
SIZES = [(32, 32), (40, 90), (61, 33), (20, 20), (200, 150), (32, 35)]
Labelled = Iterable[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes with images of different sizes: 18 train, 10 test and 10 val."""
    folder, rng = tmp_path_factory.mktemp("varied"), np.random.default_rng(0)
    for part, count in (("train", 9), ("test", 5), ("val", 5)):
        for offset, name in enumerate(("cat", "dog")):
            for i in range(count):
                width, height = SIZES[(i + offset) % len(SIZES)]
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                save(folder / part / name / f"{i}.png", pixels)
    return folder


def load(folder: Path, name: str = "folder", stream: bool = True, **options: Any) -> Dataset:
    return load_dataset(name, folder, stream=stream, **{"size": 24, **options})


def streamed(data: Dataset, batch_size: int = 4, workers: int = 0, part: str = "train") -> Batches:
    batches = Batches(data, part, batch_size, CPU, 5, workers)
    assert batches.streamed
    return batches


def assert_equal(first: Labelled, second: Labelled) -> None:
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def images_of(batches: Labelled) -> Tensor:
    return torch.cat([images for images, _ in batches])


@pytest.mark.parametrize(
    "options",
    [{"size": 32}, {"normalise": "data", "subset": 13, "test_subset": 7}, {"flip": False}],
    ids=str,
)
def test_a_streamed_folder_equals_the_folder_in_memory(
    varied: Path, options: dict[str, Any]
) -> None:
    memory, files = (load(varied, stream=stream, **options) for stream in (False, True))
    assert memory.norm == files.norm
    for part in ("train", "test"):
        expected, batches = Batches(memory, part, 4, CPU, 5), streamed(files, part=part)
        assert next(expected.iter_eval())[0].shape[1:] == (3, *[options.get("size", 24)] * 2)
        assert_equal(expected.iter_eval(), batches.iter_eval())
        assert_equal(expected.iter_eval(1, 2), batches.iter_eval(1, 2))
        assert_equal(epoch_of(expected, 3), epoch_of(batches, 3))
        assert all(map(torch.equal, expected.sample(9), batches.sample(9)))
        five_steps = (map(x.get_batch, x.epoch_indices(0, 5)) for x in (expected, batches))
        assert_equal(*five_steps)


def test_file_names_need_not_be_utf8_or_short(own: Path) -> None:
    content = (own / "train/cat/0.bmp").read_bytes()
    for name in (os.fsdecode(b"\xff.bmp"), f"{'ü' * 100}.bmp", "a b\n.bmp"):
        (own / "train/cat" / name).write_bytes(content)
    memory, files = (load(own, stream=stream) for stream in (False, True))
    assert len(files.train) == 7
    assert_equal(Batches(memory, "train", 3, CPU).iter_eval(), streamed(files, 3).iter_eval())


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_crops_depend_on_seed_epoch_and_image_only(varied: Path, name: str) -> None:
    data = load(varied, name)
    batches, with_workers = streamed(data), streamed(data, workers=2)
    rng_state = torch.get_rng_state()
    expected = epoch_of(batches, 1)
    assert not torch.equal(images_of(expected), images_of(epoch_of(batches, 0)))
    assert_equal(expected, epoch_of(with_workers, 1))
    assert torch.equal(rng_state, torch.get_rng_state())
    # batches that are requested out of order, as to find the layer of a non-finite loss
    indices = with_workers.epoch_indices(1)
    for i in (-1, 0):
        assert_equal([with_workers.get_batch(indices[i])], [expected[i]])
    assert_equal(map(with_workers.get_batch, indices[1:]), expected[1:])
    # other batches of the same images
    assert torch.equal(images_of(expected), images_of(epoch_of(streamed(data, 1), 1)))
    # the parts of two processes, which read all of them ahead
    groups = [ProcessGroup(rank, 2) for rank in range(2)]
    halves = [Batches(data, "train", 4, CPU, 5, 0, group.local_part) for group in groups]
    for indices, whole in zip(
        zip(*(half.epoch_indices(1) for half in halves), strict=True), expected, strict=True
    ):
        shards = [g.local_shard(index)[0] for g, index in zip(groups, indices, strict=True)]
        parts = [half.get_batch(shard) for half, shard in zip(halves, shards, strict=True)]
        assert_equal([tuple(map(torch.cat, zip(*parts, strict=True)))], [whole])
    assert not any(half._scheduled for half in halves)


@pytest.mark.parametrize("flip", [True, False])
def test_imagenet_crops_equal_torchvision(varied: Path, flip: bool) -> None:
    data, size = load(varied, "imagenet", size=28, flip=flip), 28
    to_input = [transforms.ToTensor(), transforms.Normalize(*IMAGENET_NORM)]
    mirror = transforms.RandomHorizontalFlip(0.5 if flip else 0)
    train_transform = transforms.Compose([transforms.RandomResizedCrop(size), mirror, *to_input])
    centre = [transforms.Resize(32), transforms.CenterCrop(size)]
    eval_transform = transforms.Compose([*centre, *to_input])

    def open_images(part: str) -> list[Image.Image]:
        return [Image.open(path).convert("RGB") for path in sorted(varied.glob(f"{part}/*/*"))]

    expected = torch.stack([eval_transform(image) for image in open_images("val")])
    assert torch.equal(images_of(streamed(data, 3, part="test").iter_eval()), expected)
    batches, images = streamed(data), open_images("train")
    for batch_index in batches.epoch_indices(2):
        batch, _ = batches.get_batch(batch_index)
        for (i, seed), image in zip(batch_index.T.tolist(), batch, strict=True):
            torch.manual_seed(seed)
            assert torch.equal(image, train_transform(images[i]))
    seeds = [int(seed) for epoch in (2, 3) for x in batches.epoch_indices(epoch) for seed in x[1]]
    assert len({*seeds}) == 36  # each image of each epoch has its own


def test_files_are_read_only_when_needed_and_not_cached(
    own: Path, varied: Path, decoded: list[Path]
) -> None:
    (own / "train/dog/1.bmp").write_bytes(b"<html>\n404\n</html>")
    caches, batches = list(varied.glob("*.npz")), streamed(load(varied), 3)
    assert not decoded
    batches.get_batch(batches.epoch_indices(0)[0])
    assert len(decoded) == 3 and caches == list(varied.glob("*.npz"))
    batches = streamed(load(own), 1, workers=1)
    for read in (lambda: epoch_of(batches, 0), lambda: list(batches.iter_eval())):
        with pytest.raises(InputError) as error:
            read()
        one_line(error, "train/dog/1.bmp", "not a readable image")


def test_the_checksum_is_of_sorted_paths_and_file_sizes(own: Path) -> None:
    def checksums() -> list[int]:
        data = load(own)
        return [data.train.checksum(), data.test.checksum(), data.checksum()]

    first, file = checksums(), own / "train/cat/0.bmp"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[::-1])
    assert checksums() == first
    file.write_bytes(content[:-1])
    assert [x == y for x, y in zip(first, checksums(), strict=True)] == [False, True, False]
    file.write_bytes(content)
    file.rename(own / "train/dog/0b.bmp")
    assert checksums()[0] != first[0]
    assert len({first[0], *(load(own, subset=n).train.checksum() for n in (2, 3))}) == 3


KILL_A_WORKER = """
import multiprocessing, os, signal, sys
import torch
from utils import console
from utils.data.batches import Batches
from utils.data.datasets import load_dataset

def main(argv):
    data = load_dataset("folder", argv[0], stream=True)
    batches = Batches(data, "train", 1, torch.device("cpu"), workers=2)
    indices = batches.epoch_indices(0, 200)  # more than the workers load ahead
    batches.get_batch(indices[0])
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    for batch_index in indices[1:]:
        batches.get_batch(batch_index)

status = console.run(main, sys.argv[1:])
sys.stderr.flush()
os._exit(status)
"""


def test_a_killed_worker_ends_the_command_with_one_line(varied: Path) -> None:
    # In a process of its own: torch may raise whenever the process of a killed worker is looked at.
    command = [warm.PYTHON, "-c", KILL_A_WORKER, varied]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "a process that loads images" in error_line(done.stderr)


def test_a_lost_worker_is_reported_after_torchs_signal_handler_has_raised(varied: Path) -> None:
    """Else it raises while the iterator is deleted, and Python prints a traceback."""
    handled = []

    def handler(*_: object) -> None:
        handled.append(True)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    def iterate() -> Iterator[Tensor]:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        raise ConnectionResetError
        yield

    batches = streamed(load(varied))
    batches._prefetcher.append(iterate())
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(PeerLost, match="try fewer --workers"):
            batches._next()
        assert handled
    finally:
        signal.signal(signal.SIGALRM, before)


def test_workers_ignore_ctrl_c_and_end_with_their_last_batch(varied: Path) -> None:
    others = {*multiprocessing.active_children()}

    def workers() -> set[multiprocessing.process.BaseProcess]:
        return {*multiprocessing.active_children()} - others

    data = load(varied)
    batches = streamed(data, 1, workers=2)
    indices = batches.epoch_indices(0)
    first: Iterator[tuple[Tensor, Tensor]] = iter([batches.get_batch(x) for x in indices[:2]])
    assert len(workers()) == 2
    for worker in workers():
        os.kill(worker.pid, signal.SIGINT)
    rest = [batches.get_batch(x) for x in indices[2:]]
    assert_equal([*first, *rest], epoch_of(streamed(data, 1), 0))
    assert not workers()
    evaluation = streamed(data, workers=2, part="test")
    next(evaluation.iter_eval())
    batches.get_batch(batches.epoch_indices(1)[0])
    assert len(workers()) == 4
    del evaluation, batches
    assert not workers()


LOCK_AND_FORK = """
import os, sys, time
from pathlib import Path
from utils.files.locks import file_lock

with file_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        os.close(1)
    else:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_workers_do_not_hold_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    argv, options = [sys.executable, "-c", LOCK_AND_FORK, lock], {"start_new_session": True}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT, **options)
    try:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(InputError), file_lock(lock):
            pass
        process.kill()
        process.wait()
        time.sleep(0.1)
        with file_lock(lock):
            pass
        os.killpg(process.pid, 0)  # the child is alive
    finally:
        os.killpg(process.pid, signal.SIGKILL)
