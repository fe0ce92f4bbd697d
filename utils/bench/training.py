"""Epochs of this program and of the reference in turn, each in a process and memory of its own."""

import argparse
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from main import train_step
from utils.bench.released import Reference
from utils.console import InputError
from utils.data.batches import Batches
from utils.data.datasets import Dataset, load
from utils.device import (
    be_deterministic,
    build_execution,
    fastest_precision,
    pick_device,
    time_call,
)
from utils.files.paths import RunPaths
from utils.flags.config import Config
from utils.network import empty
from utils.paper.settings import BATCH_SIZE
from utils.training.build import build_network
from utils.training.cuda_graphs import CapturedSteps, preserved
from utils.training.distributed import SINGLE_PROCESS
from utils.training.step import evaluate
from utils.training.trainer import Trainer

NODE = 2.5e-6  # seconds that a node of a graph takes on a large GPU, whatever is in it


def in_turn(
    measures: Sequence[Callable[[], float]], repeats: int, warm_up: int = 1
) -> list[list[float]]:
    """What each of ``measures`` gives, in ``repeats`` rounds of all, after some to warm up."""
    rounds = [[measure() for measure in measures] for _ in range(warm_up + repeats)]
    return [list(figures) for figures in zip(*rounds[warm_up:], strict=True)]


def quartiles(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Those of the ratio, round by round."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3


class Ours:
    """This program's training, as ``main.py`` builds it."""

    def __init__(
        self,
        arch: str,
        depth: int,
        data: Dataset,
        batch_size: int,
        device: torch.device,
        method: str,
    ) -> None:
        known = {"arch": arch, "depth": depth, "batch_size": batch_size, "method": method}
        settings, files = Config.from_dict(known), RunPaths(Path(), "bench")
        network, batches = build_network(settings, data), Batches(data, "train", batch_size, device)
        self.tests = Batches(data, "test", None, device)
        self.first = batches.get_batch(batches.epoch_indices(0)[0])
        be_deterministic(False)
        graphs = device.type == "cuda"
        precision = fastest_precision(network, *self.first, device, graphs)
        execution = build_execution(network, precision, device)
        self.run = Trainer(
            settings, files, network, data, batches, execution, SINGLE_PROCESS, train_step, graphs
        )

    def epoch(self) -> None:
        """Train on every picture, and make up a line of the log."""
        run, step = self.run, self.run.step
        before = step.iterate()
        step.begin(run.lr(0))
        step.method.begin(run.epoch)
        order = step.batches.epoch_indices(run.epoch)
        for where in order:
            step.launch(where)
        reading = step.metrics(order)
        self.line = (
            step.method.log_metrics(reading.loss),
            step.squared_distance(before),
            reading.zeros,
        )
        run.epoch += 1

    def figures(self) -> dict[str, Any]:
        """Seconds of a test pass and of the method's update, FLOPs of a picture, the precision.

        And the FLOP/s of a large matrix product in it: the machine's ``peak``.
        """
        how, step = self.run.execution, self.run.step
        images, labels = self.first

        def update() -> None:
            step.method.before_forward()
            step.method.before_step()
            step.method.step(0.1)

        def timed(work: Callable[[], object], repeats: int) -> float:
            return median(in_turn([lambda: time_call(work, how.device)], repeats)[0])

        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(how.logits(step.model, images), labels).backward()
        update_seconds = timed(update, 200)
        step.optimizer.zero_grad()
        size = 4096 if how.device.type == "cuda" else 2048
        dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
        a, b = torch.randn(2, size, size, device=how.device).to(dtype)
        with how.arithmetic():
            product = timed(lambda: a @ b, 5)
        return {
            "step": self._captured() if how.device.type == "cuda" else None,
            "precision": f"{how.precision}, {how.layout}",
            "test": timed(lambda: evaluate(step.model, self.tests, how), 1),
            "update": update_seconds,
            "flops": counter.get_total_flops() / len(labels),
            "peak": 2 * size**3 / product,
        }

    def _captured(self) -> tuple[int | None, int | None]:
        """Nodes of a captured step, None where they cannot be counted, and launches of a step."""
        step, nodes = self.run.step, None
        where = step.batches.epoch_indices(0)[0]
        with suppress(Exception), preserved(step.state()):  # of any kind, as in training
            from cuda.bindings import runtime

            graph = torch.cuda.CUDAGraph(keep_graph=True)
            with torch.cuda.graph(graph):
                step.eager(where)
            nodes = runtime.cudaGraphGetNodes(graph.raw_cuda_graph())[2]
        # A replay is a copy of which pictures, and the graph.
        return nodes, 2 if isinstance(step.launch, CapturedSteps) else nodes


def said_of_step(network: str, nodes: int | None, launches: int | None, seconds: float) -> str:
    """A line on a step of a GPU, and how much of it is the bound of its nodes."""
    known = ["?" if x is None else f"{x:,}" for x in (nodes, launches)]
    said = f"{network}: a step is {known[0]} nodes in {known[1]} launches, {1e3 * seconds:.2f} ms"
    return f"{said}, {1e3 * NODE * nodes:.2f} ms at {1e6 * NODE:g} µs a node" if nodes else said


def train(args: argparse.Namespace, device: torch.device, machine: str) -> None:
    """Print a row per network: seconds per epoch, this program's and the reference's."""
    networks = []
    for name in args.networks:
        arch, _, depth = name.partition("-")
        try:
            networks.append((arch, int(depth)))
            empty(*networks[-1], 1)
        except ValueError as error:
            raise InputError(f"--networks {name}: give ARCH-DEPTH, as vgg-19 ({error})") from None
    data = load(vars(args))
    count, repeats = len(data.train), args.repeats or 5
    data = replace(data, test=data.test.take(torch.arange(min(count, len(data.test)))))
    print(
        f"{machine}\n{count} pictures of {args.dataset}, {args.method}; seconds of a training"
        f" epoch, medians of {repeats}; ratio with its quartiles; a test pass of {len(data.test)}"
        " pictures\n"
        "reference: float32, PIL transforms in the training process (on a GPU in one worker),"
        " selection layers that gather, the proximal update layer by layer through the host, a"
        " second pass for the loss\n"
        "| network | batch | precision | reference, s | here, s | ratio | pictures/s | test pass, s"
        " | method's update | GFLOP/s | of peak | peak memory, reference and here |\n"
        f"|{' --- |' * 12}",
        flush=True,
    )
    of_steps, here_by = [], partial(Ours, method=args.method)
    for (arch, depth), batch_size in product(networks, args.batch_size or [BATCH_SIZE]):
        setting = (arch, depth, data, batch_size, device)
        with _beside(here_by, *setting) as here, _beside(Reference, *setting) as there:
            ours, theirs = in_turn([partial(side, "epoch") for side in (here, there)], repeats)
            memory = [side("memory") / 2**20 for side in (here, there)]
            figures = here("figures")
        low, ratio, high = quartiles(theirs, ours)
        epoch, steps = median(ours), -(-count // batch_size)
        flops = figures["flops"] * count / epoch
        print(
            f"| {arch}-{depth} | {batch_size} | {figures['precision']}"
            f" | {median(theirs):.2f} | {epoch:.2f} | {ratio:.2f} ({low:.2f} to {high:.2f})"
            f" | {count / epoch:.0f} | {figures['test']:.2f}"
            f" | {100 * figures['update'] * steps / epoch:.2f} % | {flops / 1e9:.0f}"
            f" | {100 * flops / figures['peak']:.0f} % | {memory[1]:.0f} and {memory[0]:.0f} MiB |",
            flush=True,
        )
        if figures["step"]:
            name = f"{arch}-{depth}, batch {batch_size}"
            nodes, launches = figures["step"]
            of_steps.append(said_of_step(name, nodes, launches, epoch / steps))
    print(*of_steps, sep="\n", end="\n" * bool(of_steps))


@contextmanager
def _beside(side: Callable[..., Any], *setting: Any) -> Iterator[Callable[[str], Any]]:
    """Within, one of the two in a process and memory of its own, idle unless asked."""
    context = get_context("spawn")
    connection, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, side, *setting))
    process.start()
    other.close()  # the process has its own

    def ask(what: str) -> Any:
        try:
            connection.send(what)
            answer = connection.recv()
        except (EOFError, OSError):
            answer = "its process is gone"
        if isinstance(answer, str):
            raise InputError(f"the benchmark stopped: {answer}")
        return answer

    try:
        ask("memory")  # it is there: what it measures of itself, it has measured alone
        yield ask
    finally:
        connection.close()
        process.join()


def _serve(connection: Connection, side: Callable[..., Any], *setting: Any) -> None:
    """Answer seconds of an epoch, bytes of memory at their peak, or other figures."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process ends, and this one with it
    try:
        device = pick_device(setting[-1].type == "cpu")
        subject: Any = side(*setting)
        while True:
            what = connection.recv()
            if what == "epoch":
                connection.send(time_call(subject.epoch, device))
            elif what == "figures":
                connection.send(subject.figures())
            elif device.type == "cuda":
                connection.send(torch.cuda.max_memory_allocated())
            else:  # KiB on Linux
                connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except (EOFError, BrokenPipeError):  # nothing more is asked
        return
    except Exception as error:  # of all kinds: it is said by the process that asks
        connection.send(" ".join(str(error).split()) or type(error).__name__)
