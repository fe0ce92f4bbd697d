"""Time training here and in the released program's structure; or inference of two networks."""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import copy
import statistics
import sys
from functools import partial
from pathlib import Path

import torch

from utils import arguments, console
from utils.arguments import positive_int
from utils.bench.training import in_turn, quartiles, train
from utils.data.datasets import IN_MEMORY
from utils.device import Execution, pick_device, time_call
from utils.files import checkpoint
from utils.methods import METHODS
from utils.methods.slimming import ProximalSlimming
from utils.paper.accounting import cost
from utils.paper.settings import BATCH_SIZE

NETWORKS = ("vgg-19", "resnet-20", "densenet-40", "resnet-164")
PICTURES = 640  # an epoch's on a CPU, where an epoch of 50,000 takes an hour


def parser() -> argparse.ArgumentParser:
    p = arguments.Parser(prog="python -m utils.bench", description=__doc__)
    said = "two checkpoints; prints how many times faster inference of the second is"
    p.add_argument("--compare", nargs=2, metavar=("FULL", "SLIM"), help=said)
    said = f"to train (default {' '.join(NETWORKS)})"
    p.add_argument("--networks", nargs="+", default=NETWORKS, metavar="ARCH-DEPTH", help=said)
    own = ProximalSlimming.name  # and the reference's
    said = f"that trains here; the reference is always {own} (default {own})"
    p.add_argument("--method", choices=METHODS, default=own, help=said)
    p.add_argument("--dataset", choices=IN_MEMORY, default="shapes", help="default shapes")
    p.add_argument("--data", metavar="DIR", help="where the data set is")
    said = f"pictures in an epoch (default {PICTURES}, on a GPU all)"
    p.add_argument("--subset", type=positive_int, metavar="N", help=said)
    said = f"pictures at a time (default: training {BATCH_SIZE}, inference 1 and 64)"
    p.add_argument("--batch-size", nargs="+", type=positive_int, metavar="N", help=said)
    said = "of each (default: 5 epochs, 30 inferences)"
    p.add_argument("--repeats", type=positive_int, help=said)
    p.add_argument("--no-cuda", action="store_true", help="on the CPU")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    device = pick_device(args.no_cuda)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    machine = f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads"
    if args.compare:
        compare(args, device, machine)
    else:
        args.subset = args.subset or (None if on_gpu else PICTURES)
        train(args, device, machine)


def compare(args: argparse.Namespace, device: torch.device, machine: str) -> None:
    """Print how many times faster inference of the second checkpoint is, in float32.

    Each network in the memory format that is faster for it: small ones gain the most.
    """
    given = [checkpoint.load(Path(path)) for path in args.compare]
    models, size = [each.network.model.eval() for each in given], given[0].size
    flops = [cost(model, size).flops for model in models]
    ratio = flops[0] / flops[1]
    print(f"{machine}\nfloat32, FLOPs: {flops[0]:,} and {flops[1]:,}, ratio {ratio:.2f}")
    formats = [Execution(device, channels_last=last) for last in (False, True)]
    placed = [(f.place(copy.deepcopy(m)), f.memory_format) for m in models for f in formats]
    for batch_size in args.batch_size or [1, 64]:
        pictures = torch.randn(batch_size, 3, size, size, device=device)
        passes = [partial(m, pictures.contiguous(memory_format=f)) for m, f in placed]
        measures = [partial(time_call, each, device) for each in passes]
        with torch.inference_mode():
            times = in_turn(measures, args.repeats or 30, warm_up=3)
        full, slim = (min(each, key=statistics.median) for each in (times[:2], times[2:]))
        low, middle, high = quartiles(full, slim)
        print(
            f"batch {batch_size}: {1000 * statistics.median(full):.2f} ms and"
            f" {1000 * statistics.median(slim):.2f} ms, speed-up {middle:.2f}"
            f" (quartiles {low:.2f} to {high:.2f}), {middle / ratio:.2f} of the FLOP ratio"
        )


if __name__ == "__main__":
    sys.exit(console.run(main))
