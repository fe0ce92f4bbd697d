"""Counts what training does on the fake CUDA runtime; prints one line of JSON per case.

captured.py KIND:ARCH-DEPTH,METHOD,PRECISION,MEMORY_FORMAT,WIDTH ...

KIND is ``steps`` (three epochs), ``waiting`` (a method that reads a number from the device in every
step), ``removal`` (before and after channels are removed) or ``training`` (``main.train``).
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import stand_ins
import torch

import main
import utils.network as networks
from netslim import surgery
from utils.data.batches import Batches
from utils.data.datasets import CIFAR_NORM, Dataset, ImageSet
from utils.device import Execution, be_deterministic
from utils.files.paths import RunPaths
from utils.flags.config import Config
from utils.network import Network
from utils.training.build import build_network
from utils.training.trainer import Trainer

BATCH, REST = 64, 16
GPU = torch.device("cuda", 0)


def blank_images(count: int) -> ImageSet:
    return ImageSet(torch.zeros(count, 32, 32, 3, dtype=torch.uint8), torch.zeros(count).long())


TRAIN, TEST = blank_images(3 * BATCH + REST), blank_images(40)
DATA = Dataset("own", tuple("0123456789"), TRAIN, TEST, *CIFAR_NORM, True)


def halved(network: Network) -> Network:
    """Removes every other channel."""
    masks = [torch.arange(width) % 2 == 0 for width in network.widths]
    return network.remove(network.plan(masks, streams=False))


def make_trainer(case: str, folder: Path = Path()) -> Trainer:
    model_name, method, precision, memory_format, width = case.split(",")
    arch, depth = model_name.split("-")
    flags = {"arch": arch, "depth": int(depth), "method": method, "batch_size": BATCH, "epochs": 8}
    config = Config.from_dict(flags)
    network = build_network(config, DATA)
    return Trainer(
        config,
        RunPaths(folder, config.run_name),
        halved(network) if width == "pruned" else network,
        DATA,
        Batches(DATA, "train", BATCH, GPU),
        Execution(GPU, precision, memory_format == "last"),
        use_cuda_graphs=True,
    )


def epoch(trainer: Trainer, run_step: Callable, lr: float) -> list[dict[str, int]]:
    """Returns the counts of each step, with the nodes of its capture if there was one."""
    counts = []
    trainer.step.start_epoch(lr)
    for batch_index in trainer.step.batches.epoch_indices(0):
        stand_ins.counts()
        run_step(batch_index)
        counts.append(stand_ins.counts())
        if counts[-1]["captures"]:
            counts[-1]["nodes"] = stand_ins.runtime.gpu_nodes()
    return counts


def steps(case: str) -> dict:
    trainer = make_trainer(case)
    run_step = trainer.compile(main.train_step)
    first, second, dropped = (epoch(trainer, run_step, lr) for lr in (0.1, 0.1, 0.01))
    return {"first": first, "second": second, "dropped": dropped}


def waiting(case: str) -> dict:
    trainer = make_trainer(case)
    method, step = trainer.step.method, trainer.step.method.step

    def reading_step(lr: float) -> None:
        step(lr)
        method.gamma.sum().item()

    method.step = reading_step
    run_step = trainer.compile(main.train_step)
    return {"first": epoch(trainer, run_step, 0.1), "failed": run_step.failed}


def removal(case: str) -> dict:
    trainer = make_trainer(case)
    before = epoch(trainer, trainer.compile(main.train_step), 0.1)
    dead = torch.arange(len(trainer.step.method.gamma)) % 2 == 0
    # Fake kernels leave biases that a dead channel cannot have, and constants to fold.
    surgery.Folding.more_carriers = lambda *_: False
    trainer.step.method.dead = lambda optimizer, lr: dead.to(GPU)
    removed = trainer.remove_dead_channels()
    after = epoch(trainer, trainer.compile(main.train_step), 0.1)
    return {"before": before, "removed": removed, "after": after}


def training(case: str) -> dict:
    """Counts per epoch. Numbers read from the device are made up, and no checkpoint is written."""
    tolist, remove, save = torch.Tensor.tolist, Trainer.remove_dead_channels, Trainer.save

    def made_up(x: torch.Tensor) -> list:
        numbers = tolist(x)
        return [float(i < 3) for i in range(len(numbers))] if x.is_cuda else numbers

    def counting(trainer: Trainer) -> int:
        counts.append(stand_ins.counts())
        return remove(trainer)

    def save_last(trainer: Trainer, accuracy: float) -> None:
        if trainer.epoch == trainer.config.epochs:
            save(trainer, accuracy)

    counts: list[dict[str, int]] = []
    with TemporaryDirectory() as folder:
        trainer = make_trainer(case, Path(folder))
        method = trainer.step.method
        dead, none = method.dead, torch.zeros(len(trainer.removed), dtype=torch.bool).to(GPU)
        method.dead = lambda optimizer, lr: (dead(optimizer, lr), none)[1]
        torch.Tensor.tolist, Trainer.remove_dead_channels = made_up, counting
        Trainer.save = save_last
        main.train(trainer, {"log_interval": 2}, [])
        torch.Tensor.tolist, Trainer.remove_dead_channels, Trainer.save = tolist, remove, save
    return {"epochs": counts[1:]}


if __name__ == "__main__":
    stand_ins.install()
    networks.analyze = stand_ins.torchs_own()(networks.analyze)
    be_deterministic(False)
    kinds = {f.__name__: f for f in (steps, waiting, removal, training)}
    for word in sys.argv[1:]:
        kind, case = word.split(":")
        print(json.dumps({"word": word, **kinds[kind](case)}), flush=True)
