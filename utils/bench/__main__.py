"""Speed of training against a plain PyTorch loop, or of inference of two checkpoints."""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import copy
import statistics
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim import SGD

from main import train_step
from utils import console
from utils.arguments import positive_int
from utils.console import InputError
from utils.cost import cost
from utils.data.batches import Batches
from utils.data.datasets import Dataset, load_dataset
from utils.device import be_deterministic, pick_device
from utils.engines import ENGINES, in_turn, milliseconds, prepare
from utils.files import checkpoint
from utils.files.checkpoint import Checkpoint
from utils.files.paths import RunPaths
from utils.flags.config import Config
from utils.methods.released import LayerByLayer
from utils.network import empty
from utils.paper.settings import BATCH_SIZE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, recipe
from utils.training.build import build_network
from utils.training.distributed import SINGLE_PROCESS
from utils.training.precision import build_execution, fastest_precision
from utils.training.trainer import Trainer

NETWORKS = ("vgg-19", "resnet-20", "densenet-40", "resnet-164")
IMAGES, GPU_IMAGES = 640, 10_000  # per epoch


def parser() -> argparse.ArgumentParser:
    p = console.Parser(prog="python -m utils.bench", description=__doc__)
    compared = "two checkpoints: print the speed-up of inference of the second"
    p.add_argument("--compare", nargs=2, metavar=("FULL", "PRUNED"), help=compared)
    networks = f"networks to train (default {' '.join(NETWORKS)})"
    p.add_argument("--networks", nargs="+", default=NETWORKS, metavar="ARCH-DEPTH", help=networks)
    subset = f"images per epoch (default {IMAGES}, on a GPU {GPU_IMAGES})"
    p.add_argument("--subset", type=positive_int, metavar="N", help=subset)
    sizes = f"batch sizes (default {BATCH_SIZE} in training, 1 and 64 in inference)"
    p.add_argument("--batch-size", nargs="+", type=positive_int, metavar="N", help=sizes)
    repeats = "measurements (default 5 epochs, or inferences for half a second, 5 to 30)"
    p.add_argument("--repeats", type=positive_int, metavar="N", help=repeats)
    p.add_argument("--no-cuda", action="store_true", help="use the CPU")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    device = pick_device(args.no_cuda)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    loaded = [checkpoint.load(Path(path)) for path in args.compare or ()]
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads")
    if loaded:
        compare(loaded, args, device)
        return
    networks = [parse_network(text) for text in args.networks]
    images = args.subset or (GPU_IMAGES if device.type == "cuda" else IMAGES)
    data, repeats = load_dataset("shapes", None, images), args.repeats or 5
    print(f"{images} images per epoch; medians of {repeats} epochs", flush=True)
    for (arch, depth), batch_size in product(networks, args.batch_size or [BATCH_SIZE]):
        settings = {"arch": arch, "depth": depth, "method": "proximal", "batch_size": batch_size}
        training = Training(Config.from_dict(settings), data, device)
        seconds = in_turn([training.plain_epoch, training.epoch], device, repeats)
        plain, here = map(statistics.median, seconds)
        execution = training.trainer.execution
        print(
            f"{arch}-{depth}, batch {batch_size}: plain loop {plain:.2f} s (fp32), here"
            f" {here:.2f} s ({execution.precision}, {execution.layout}), ratio {plain / here:.2f}",
            flush=True,
        )


def parse_network(text: str) -> tuple[str, int]:
    """Returns architecture and depth of ARCH-DEPTH."""
    arch, _, depth = text.rpartition("-")
    try:
        empty(arch, int(depth), 1)
        return arch, int(depth)
    except ValueError as error:
        raise InputError(f"--networks {text}: give ARCH-DEPTH, such as vgg-19 ({error})") from None


class Training:
    """Training by proximal slimming as ``main.py`` builds it, and in a plain PyTorch loop."""

    def __init__(self, config: Config, data: Dataset, device: torch.device) -> None:
        network, graphs = build_network(config, data), device.type == "cuda"
        batches = Batches(data, "train", config.batch_size, device)
        images, labels = batches.get_batch(batches.epoch_indices(0)[0])
        plain = copy.deepcopy(network)
        self.model = plain.model.to(device)
        paper = recipe(config.arch, config.depth)
        self.proximal_update = LayerByLayer(list(plain.norms.values()), paper)
        weights = self.model.parameters()
        self.optimizer = SGD(weights, LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
        be_deterministic(False)
        precision = fastest_precision(network, images, labels, device, graphs)
        execution = build_execution(network, precision, device)
        parts = network, data, batches, execution, SINGLE_PROCESS, graphs
        self.trainer = Trainer(config, RunPaths(Path(), "bench"), *parts)
        self.run_step = self.trainer.compile(train_step)

    def epoch(self) -> None:
        trainer, step = self.trainer, self.trainer.step
        step.start_epoch(trainer.lr(0))
        step.method.begin_epoch(trainer.epoch)
        indices = step.batches.epoch_indices(trainer.epoch)
        for batch in indices:
            self.run_step(batch)
        step.metrics(indices)
        trainer.epoch += 1

    def plain_epoch(self) -> None:
        """An epoch in float32, channels first, with the proximal update layer by layer."""
        batches = self.trainer.batches
        for batch in batches.epoch_indices(0):
            images, labels = batches.get_batch(batch)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
            self.proximal_update(1 / LEARNING_RATE)


def compare(loaded: Sequence[Checkpoint], args: argparse.Namespace, device: torch.device) -> None:
    """Prints the speed-up of the second model in every engine that is installed.

    Raises:
        InputError: the checkpoints are not of one architecture, image size and number of classes.
    """
    networks = [each.network for each in loaded]
    kinds = [
        f"{n.arch}-{n.depth} for {n.size}×{n.size} images of {n.num_classes} classes"
        for n in networks
    ]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"--compare takes a model and its pruned form: {args.compare[0]} is a {kinds[0]},"
            f" {args.compare[1]} a {kinds[1]}"
        )
    size, models = networks[0].size, [n.model for n in networks]
    flops = [cost(model, size).flops for model in models]
    ratio = flops[0] / flops[1]
    print(f"{kinds[0]}, FLOPs: {flops[0]:,} and {flops[1]:,}, ratio {ratio:.2f}")
    print("engine       batch   full, ms  pruned, ms  ratio  share of the FLOP ratio")
    engines = [engine for engine in ENGINES if not console.missing_packages(ENGINES[engine])]
    for engine, batch_size in product(engines, args.batch_size or [1, 64]):
        images = torch.randn(batch_size, 3, size, size, device=device)
        calls = [prepare(engine, model, images) for model in models]
        full, pruned = milliseconds(calls, device, args.repeats)
        speed_up = full / pruned
        print(
            f"{engine:<12}{batch_size:6}{full:11.2f}{pruned:12.2f}{speed_up:7.2f}"
            f"{speed_up / ratio:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(console.run(main))
