"""Speed of training against the released program's structure, or of inference of two models."""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch

from main import train_step
from utils import arguments, console
from utils.arguments import positive_int
from utils.bench.released import ReleasedProgram
from utils.console import InputError
from utils.data.batches import Batches
from utils.data.datasets import IN_MEMORY, Dataset, load
from utils.device import (
    Execution,
    be_deterministic,
    build_execution,
    fastest_precision,
    pick_device,
    time_call,
)
from utils.files import checkpoint
from utils.files.paths import RunPaths
from utils.flags.config import Config
from utils.methods import METHODS
from utils.methods.slimming import ProximalSlimming
from utils.network import empty
from utils.paper.accounting import cost
from utils.paper.settings import BATCH_SIZE
from utils.training.build import build_network
from utils.training.distributed import SINGLE_PROCESS
from utils.training.trainer import Trainer

NETWORKS = ("vgg-19", "resnet-20", "densenet-40", "resnet-164")
IMAGES = 640  # per epoch on a CPU, where 50,000 take an hour


def parser() -> argparse.ArgumentParser:
    p = arguments.Parser(prog="python -m utils.bench", description=__doc__)
    add = p.add_argument
    compared = "two checkpoints: print the speed-up of inference of the second"
    add("--compare", nargs=2, metavar=("FULL", "PRUNED"), help=compared)
    networks = f"networks to train (default {' '.join(NETWORKS)})"
    add("--networks", nargs="+", default=NETWORKS, metavar="ARCH-DEPTH", help=networks)
    default = ProximalSlimming.name
    method = f"training method; the released program's is {default} (default {default})"
    add("--method", choices=METHODS, default=default, help=method)
    add("--dataset", choices=IN_MEMORY, default="shapes", help="data set (default shapes)")
    add("--data", metavar="DIR", help="folder of the data set")
    subset = f"images per epoch (default {IMAGES}, on a GPU all)"
    add("--subset", type=positive_int, metavar="N", help=subset)
    sizes = f"batch sizes (default {BATCH_SIZE} in training, 1 and 64 in inference)"
    add("--batch-size", nargs="+", type=positive_int, metavar="N", help=sizes)
    repeats = "measurements (default 5 epochs, 30 inferences)"
    add("--repeats", type=positive_int, metavar="N", help=repeats)
    add("--no-cuda", action="store_true", help="use the CPU")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    device = pick_device(args.no_cuda)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads")
    if args.compare:
        compare(args, device)
    else:
        args.subset = args.subset or (None if device.type == "cuda" else IMAGES)
        train(args, device)


def in_turn(
    calls: Sequence[Callable[[], object]], device: torch.device, repeats: int, warm_up: int
) -> list[list[float]]:
    """Seconds of each of ``calls``, made in turn ``repeats`` times after ``warm_up`` rounds."""
    rounds = [[time_call(call, device) for call in calls] for _ in range(warm_up + repeats)]
    return [list(seconds) for seconds in zip(*rounds[warm_up:], strict=True)]


class Training:
    """Epochs of this program's training, as ``main.py`` builds it."""

    def __init__(
        self,
        arch: str,
        depth: int,
        data: Dataset,
        batch_size: int,
        device: torch.device,
        method: str,
    ) -> None:
        settings = {"arch": arch, "depth": depth, "batch_size": batch_size, "method": method}
        config, batches = Config.from_dict(settings), Batches(data, "train", batch_size, device)
        network, graphs = build_network(config, data), device.type == "cuda"
        images, labels = batches.get_batch(batches.epoch_indices(0)[0])
        be_deterministic(False)
        precision = fastest_precision(network, images, labels, device, graphs)
        self.execution = build_execution(network, precision, device)
        parts = network, data, batches, self.execution, SINGLE_PROCESS, train_step, graphs
        self.trainer = Trainer(config, RunPaths(Path(), "bench"), *parts)

    def epoch(self) -> None:
        trainer, step = self.trainer, self.trainer.step
        step.begin(trainer.lr(0))
        step.method.begin(trainer.epoch)
        indices = step.batches.epoch_indices(trainer.epoch)
        for batch in indices:
            step.launch(batch)
        step.metrics(indices)
        trainer.epoch += 1


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Print seconds per epoch of this program and of the released program's structure."""
    networks = [parse_network(text) for text in args.networks]
    data, repeats = load(vars(args)), args.repeats or 5
    print(f"{len(data.train)} images of {args.dataset}; medians of {repeats} epochs", flush=True)
    for (arch, depth), batch_size in product(networks, args.batch_size or [BATCH_SIZE]):
        ours = Training(arch, depth, data, batch_size, device, args.method)
        released = ReleasedProgram(arch, depth, data, batch_size, device)
        times = in_turn([released.epoch, ours.epoch], device, repeats, warm_up=1)
        reference, here = map(statistics.median, times)
        precision = f"{ours.execution.precision}, {ours.execution.layout}"
        print(
            f"{arch}-{depth}, batch {batch_size}: released structure {reference:.2f} s, here"
            f" {here:.2f} s ({precision}), ratio {reference / here:.2f}",
            flush=True,
        )


def parse_network(text: str) -> tuple[str, int]:
    """Architecture and depth from ARCH-DEPTH."""
    arch, _, depth = text.rpartition("-")
    try:
        empty(arch, int(depth), 1)
        return arch, int(depth)
    except ValueError as error:
        raise InputError(f"--networks {text}: give ARCH-DEPTH, such as vgg-19 ({error})") from None


def compare(args: argparse.Namespace, device: torch.device) -> None:
    """Print the speed-up of inference in float32, each model in its faster memory format."""
    loaded = [checkpoint.load(Path(path)) for path in args.compare]
    models, size = [each.network.model.eval() for each in loaded], loaded[0].size
    flops = [cost(model, size).flops for model in models]
    ratio = flops[0] / flops[1]
    print(f"float32, FLOPs: {flops[0]:,} and {flops[1]:,}, ratio {ratio:.2f}")
    formats = [Execution(device, channels_last=last) for last in (False, True)]
    placed = [(f.place(copy.deepcopy(m)), f.memory_format) for m in models for f in formats]
    for batch_size in args.batch_size or [1, 64]:
        images = torch.randn(batch_size, 3, size, size, device=device)
        calls = [partial(m, images.contiguous(memory_format=f)) for m, f in placed]
        with torch.inference_mode():
            times = in_turn(calls, device, args.repeats or 30, warm_up=3)
        medians = [1000 * statistics.median(each) for each in times]
        full, pruned = min(medians[:2]), min(medians[2:])
        print(
            f"batch {batch_size}: {full:.2f} ms and {pruned:.2f} ms, speed-up {full / pruned:.2f},"
            f" {full / pruned / ratio:.2f} of the FLOP ratio"
        )


if __name__ == "__main__":
    sys.exit(console.run(main))
