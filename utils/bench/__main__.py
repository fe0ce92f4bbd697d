"""Compare speeds in one run.

``python -m utils.bench`` times training epochs of this program and of one with the released
program's structure, in turn; ``--compare FULL SLIM`` times inference of two checkpoints.
"""

import argparse
import copy
import resource
import signal
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as processes
from torch import Tensor, nn

from models import SIZE, full_cfg
from models.cost import cost
from utils import arguments, console
from utils.bench.ours import Ours
from utils.bench.released import Reference
from utils.console import InputError
from utils.data.datasets import DATASETS, Pictures, load_dataset
from utils.device import pick_device
from utils.files import checkpoint
from utils.paper.settings import BATCH_SIZE

NETWORKS = ("vgg-19", "resnet-20", "densenet-40", "resnet-164")
PICTURES = 640  # an epoch's on a CPU, where an epoch of 50,000 takes an hour


def parser() -> argparse.ArgumentParser:
    p = arguments.Parser(
        prog="python -m utils.bench",
        description="Time training here and in the released program's structure, in turn;"
        " or inference of two networks.",
    )
    p.add_argument(
        "--compare",
        nargs=2,
        metavar=("FULL", "SLIM"),
        help="two checkpoints; prints how many times faster inference of the second is",
    )
    p.add_argument(
        "--networks", nargs="+", default=NETWORKS, metavar="ARCH-DEPTH",
        help=f"to train (default {' '.join(NETWORKS)})",
    )  # fmt: skip
    p.add_argument("--dataset", choices=DATASETS, default="shapes", help="default shapes")
    p.add_argument("--data", metavar="DIR", help="where the data set is")
    p.add_argument(
        "--subset", type=arguments.positive_int, metavar="N",
        help=f"pictures in an epoch (default {PICTURES}, on a GPU all)",
    )  # fmt: skip
    p.add_argument(
        "--batch-size", nargs="+", type=arguments.positive_int, metavar="N",
        help=f"pictures at a time (default: training {BATCH_SIZE}, inference 1 and 64)",
    )  # fmt: skip
    p.add_argument(
        "--repeats", type=arguments.positive_int, help="of each (default: 5 epochs, 30 inferences)"
    )
    p.add_argument("--no-cuda", action="store_true", help="on the CPU")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    device = pick_device(args.no_cuda)
    if args.compare:
        compare(args, device)
    else:
        train(args, device)


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads"


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Print a row per network: seconds per epoch, this program's and the reference's."""
    subset = args.subset or (None if device.type == "cuda" else PICTURES)
    folder = None if args.data is None else Path(args.data)
    data = load_dataset(args.dataset, folder, subset)
    networks = []
    for name in args.networks:
        arch, _, depth = name.partition("-")
        try:
            networks.append((arch, int(depth)))
            full_cfg(*networks[-1])
        except ValueError as error:
            raise InputError(f"--networks {name}: give ARCH-DEPTH, as vgg-19 ({error})") from None
    count = len(data.train)
    tests = Pictures(data.test.images[:count], data.test.labels[:count])
    data = replace(data, test=tests)
    print(machine(device))
    print(
        f"{count} pictures of {args.dataset}; seconds of a training epoch, medians of"
        f" {args.repeats or 5}; ratio with its quartiles; a test pass of {len(tests)} pictures\n"
        "reference: float32, PIL transforms in the training process (on a GPU in one worker),"
        " selection layers that gather, the proximal update layer by layer through the host, a"
        " second pass for the loss"
    )
    print(
        "| network | batch | precision | reference, s | here, s | ratio | pictures/s | test pass, s"
        " | proximal update | GFLOP/s | of peak | peak memory, reference and here |\n"
        f"|{' --- |' * 12}"
    )
    for arch, depth in networks:
        for batch_size in args.batch_size or [BATCH_SIZE]:
            setting = (arch, depth, data, batch_size, device)
            print(_row(setting, args.repeats or 5), flush=True)


def _row(setting: tuple, repeats: int) -> str:
    arch, depth, data, batch_size, _ = setting
    workers = [_Worker(Ours, setting)]
    times: tuple[list[float], list[float]] = ([], [])
    try:
        workers[0].ask("memory")  # it has measured what is fastest, alone
        workers.append(_Worker(Reference, setting))
        for _ in range(repeats + 1):
            for worker, seconds in zip(workers, times, strict=True):
                seconds.append(worker.ask("epoch"))
        memory = [worker.ask("memory") / 2**20 for worker in workers]
        figures = workers[0].ask("figures")
    finally:
        for worker in workers:
            worker.close()
    here, there = (seconds[1:] for seconds in times)  # the first ones warm up
    low, ratio, high = quartiles([b / a for a, b in zip(here, there, strict=True)])
    seconds = statistics.median(here)
    steps = -(-len(data.train) // batch_size)
    flops = figures["flops"] * len(data.train) / seconds
    return (
        f"| {arch}-{depth} | {batch_size} | {figures['precision']}"
        f" | {statistics.median(there):.2f} | {seconds:.2f} | {ratio:.2f} ({low:.2f} to {high:.2f})"
        f" | {len(data.train) / seconds:.0f} | {figures['test']:.2f}"
        f" | {100 * figures['update'] * steps / seconds:.2f} %"
        f" | {flops / 1e9:.0f} | {100 * flops / figures['peak']:.0f} %"
        f" | {memory[1]:.0f} and {memory[0]:.0f} MiB |"
    )


class _Worker:
    """One of the two in a process and memory of its own, idle unless asked."""

    def __init__(self, side: type, setting: tuple) -> None:
        context = processes.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, side, setting))
        self.process.start()
        other.close()  # the process has its own

    def ask(self, what: str) -> Any:
        self.connection.send(what)
        answer = self.connection.recv()
        if isinstance(answer, str):
            raise InputError(f"the benchmark stopped: {answer}")
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Any, side: type, setting: tuple) -> None:
    """Answer: seconds of an epoch, bytes of memory at their peak, or other figures."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process ends, and this one with it
    try:
        _answer(connection, side, setting)
    except EOFError:  # nothing more is asked
        return
    except Exception as error:  # of all kinds: it is said by the process that asks
        connection.send(" ".join(str(error).split()) or type(error).__name__)


def _answer(connection: Any, side: type, setting: tuple) -> None:
    device = setting[-1]
    pick_device(device.type == "cpu")
    subject = side(*setting)
    while True:
        what = connection.recv()
        start = time.perf_counter()
        if what == "epoch":
            subject.epoch()
            if device.type == "cuda":
                torch.cuda.synchronize()
            connection.send(time.perf_counter() - start)
        elif what == "memory":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
            connection.send(torch.cuda.max_memory_allocated() if device.type == "cuda" else peak)
        else:
            connection.send(subject.figures())


def compare(args: argparse.Namespace, device: torch.device) -> None:
    """Print how many times faster inference of the second checkpoint is, in float32.

    Each network in the memory format that is faster for it: small ones gain the most.
    """
    models = [checkpoint.load(Path(path)).network.model.eval() for path in args.compare]
    flops = [cost(model).flops for model in models]
    ratio = flops[0] / flops[1]
    print(machine(device))
    print(f"float32, FLOPs: {flops[0]:,} and {flops[1]:,}, ratio {ratio:.2f}")
    formats = (torch.contiguous_format, torch.channels_last)
    placed = [
        [copy.deepcopy(model).to(device, memory_format=f) for f in formats] for model in models
    ]
    for batch_size in args.batch_size or [1, 64]:
        pictures = torch.randn(batch_size, 3, SIZE, SIZE, device=device)
        inputs = [pictures.contiguous(memory_format=f) for f in formats]
        times = interleaved(placed, inputs, args.repeats or 30, device)
        best = [min(each, key=statistics.median) for each in times]
        low, middle, high = quartiles([full / slim for full, slim in zip(*best, strict=True)])
        full, slim = (1000 * statistics.median(t) for t in best)
        print(
            f"batch {batch_size}: {full:.2f} ms and {slim:.2f} ms, speed-up {middle:.2f}"
            f" (quartiles {low:.2f} to {high:.2f}), {middle / ratio:.2f} of the FLOP ratio"
        )


@torch.inference_mode()
def interleaved(
    models: list[list[nn.Module]], inputs: list[Tensor], repeats: int, device: torch.device
) -> list[list[list[float]]]:
    """Seconds of a forward pass of every model on its input, timed in turn, after a warm-up.

    ``models`` lists the networks, and of each network one model for each of ``inputs``.
    """
    times: list[list[list[float]]] = [[[] for _ in inputs] for _ in models]
    for turn in range(repeats + 3):
        for network, of_network in zip(models, times, strict=True):
            for model, pictures, seconds in zip(network, inputs, of_network, strict=True):
                start = time.perf_counter()
                model(pictures)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn >= 3:
                    seconds.append(time.perf_counter() - start)
    return times


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


if __name__ == "__main__":
    sys.exit(console.run(main))
