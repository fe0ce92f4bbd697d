"""Over the runtime without a GPU: what a run's steps and epochs are, a line of JSON each.

captured.py WHAT:ARCH-DEPTH,METHOD,PRECISION,MEMORY_FORMAT,WIDTH ...

WHAT is ``steps``, of three epochs; ``waiting``, of a method that reads a number from the device in
every step; ``cutting``, before and after a cut; ``training``, epochs of ``main.train``.
"""

import json
import sys
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
from utils.training import trainer as runs
from utils.training.build import build_network
from utils.training.cuda_graphs import CapturedSteps
from utils.training.distributed import SINGLE_PROCESS
from utils.training.trainer import Trainer

BATCH, REST = 64, 16
GPU = torch.device("cuda", 0)


def pictures(count: int) -> ImageSet:
    return ImageSet(torch.zeros(count, 32, 32, 3, dtype=torch.uint8), torch.zeros(count).long())


DATA = Dataset(
    "own", tuple("0123456789"), pictures(3 * BATCH + REST), pictures(40), *CIFAR_NORM, True
)


def halved(network: Network) -> Network:
    """Without every other channel."""
    masks = [torch.arange(width) % 2 == 0 for width in network.widths]
    return network.remove(network.plan(masks, streams=False))


def make(case: str, folder: Path = Path()) -> Trainer:
    network, method, precision, memory_format, width = case.split(",")
    arch, depth = network.split("-")
    known = {"arch": arch, "depth": int(depth), "method": method, "batch_size": BATCH, "epochs": 8}
    settings = Config.from_dict(known)
    whole = build_network(settings, DATA)
    return Trainer(
        settings, RunPaths(folder, settings.run_name), halved(whole) if width == "slim" else whole, DATA,
        Batches(DATA, "train", BATCH, GPU), Execution(GPU, precision, memory_format == "last"),
        SINGLE_PROCESS, main.train_step, use_cuda_graphs=True,
    )  # fmt: skip


def epoch(run: Trainer, lr: float) -> list[dict[str, int]]:
    """What each of its steps did; with the nodes of its capture, where there was one."""
    seen = []
    run.step.begin(lr)
    for where in run.step.batches.epoch_indices(0):
        stand_ins.counts()
        run.step.launch(where)
        seen.append(stand_ins.counts())
        if seen[-1]["captures"]:
            seen[-1]["nodes"] = stand_ins.runtime.gpu_nodes()
    return seen


def steps(case: str) -> dict:
    run = make(case)
    first, second, dropped = (epoch(run, lr) for lr in (0.1, 0.1, 0.01))
    return {"first": first, "second": second, "dropped": dropped}


def waiting(case: str) -> dict:
    run = make(case)
    step = run.step.method.step

    def reads(lr: float) -> None:
        step(lr)
        run.step.method.gamma.sum().item()

    run.step.method.step = reads
    return {"first": epoch(run, 0.1), "graphed": isinstance(run.step.launch, CapturedSteps)}


def cutting(case: str) -> dict:
    run = make(case)
    before = epoch(run, 0.1)
    dead = torch.arange(len(run.step.method.gamma)) % 2 == 0
    # What died is silent, but kernels that compute nothing leave any bias, and constants to carry.
    surgery.Folding.more_carriers = lambda *_: False
    run.step.method.dead = lambda optimizer, lr: dead.to(GPU)
    cut = run.remove_dead_channels()
    return {"before": before, "cut": cut, "after": epoch(run, 0.1)}


def training(case: str) -> dict:
    """What happened in each epoch. Numbers that are read are made up: kernels compute nothing."""
    real, cut_dead, writes = torch.Tensor.tolist, Trainer.remove_dead_channels, runs.WRITES

    def made_up(self: torch.Tensor) -> list:
        numbers = real(self)
        return [float(i < 3) for i in range(len(numbers))] if self.is_cuda else numbers

    def begins(self: Trainer) -> int:
        seen.append(stand_ins.counts())
        return cut_dead(self)

    seen: list[dict[str, int]] = []
    with TemporaryDirectory() as folder:
        run = make(case, Path(folder))
        dead, none = run.step.method.dead, torch.zeros(len(run.removed), dtype=torch.bool).to(GPU)
        run.step.method.dead = lambda optimizer, lr: (dead(optimizer, lr), none)[1]
        torch.Tensor.tolist, Trainer.remove_dead_channels = made_up, begins
        runs.WRITES = 1e9  # only when the learning rate drops, and at the end
        main.train(run, {"log_interval": 2}, [])
        torch.Tensor.tolist, Trainer.remove_dead_channels, runs.WRITES = real, cut_dead, writes
    return {"epochs": seen[1:]}


if __name__ == "__main__":
    stand_ins.install()
    networks.analyze = stand_ins.torchs_own()(networks.analyze)
    be_deterministic(False)
    for word in sys.argv[1:]:
        what, case = word.split(":")
        found = {"steps": steps, "waiting": waiting, "cutting": cutting, "training": training}
        print(json.dumps({"word": word, **found[what](case)}), flush=True)
