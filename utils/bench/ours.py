"""What the benchmark times: an epoch of this program."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from main import alternate, fresh
from utils.data.batches import Batches
from utils.data.datasets import Dataset
from utils.device import Execution, fastest
from utils.files.names import Files
from utils.flags.settings import Settings
from utils.methods import METHODS
from utils.training.group import ALONE
from utils.training.run import Run
from utils.training.step import evaluate


class Ours:
    """This program's training, as ``main.py`` builds it."""

    def __init__(
        self, arch: str, depth: int, data: Dataset, batch_size: int, device: torch.device
    ) -> None:
        method = next(m.name for m in METHODS.values() if m.prunes())
        known = {"arch": arch, "depth": depth, "batch_size": batch_size, "method": method}
        settings = Settings.of(known)
        network = fresh(settings, data)
        batches = Batches(data, "train", batch_size, device)
        images, labels = batches.cut(batches.order(0)[0])
        self.run = Run(
            settings,
            Files(Path(), "bench"),
            network,
            data,
            batches,
            fastest(network.model, images, labels, device, settings.precision),
            ALONE,
            alternate,
            graphs=device.type == "cuda",
        )
        self.tests = Batches(data, "test", 256, device)

    def epoch(self) -> None:
        """Train on every picture, and make up a line of the log."""
        run, step = self.run, self.run.step
        before = step.z()
        step.begin(run.lr(0))
        order = step.batches.order(run.epoch)
        for where in order:
            step.launch(where)
        step.check(order)
        self.line = (step.method.figures(step.tally.mean_loss()), step.change(before), run.zeros())
        run.epoch += 1

    def figures(self) -> dict[str, Any]:
        """Beside the epoch: test pass, proximal update, FLOPs of a picture, the machine's peak."""
        execution, step = self.run.execution, self.run.step
        images, labels = step.batches.cut(step.batches.order(0)[0])
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(execution.logits(step.model, images), labels).backward()
        return {
            "precision": execution.precision + (", channels last" * execution.channels_last),
            "test": timed(lambda: evaluate(step.model, self.tests, execution), execution, 1),
            "update": timed(lambda: step.method.on_step(10.0), execution, 200),
            "flops": counter.get_total_flops() / len(labels),
            "peak": _matrix_peak(execution),
        }


def _matrix_peak(execution: Execution) -> float:
    """FLOP/s of a large matrix product in this precision."""
    size = 4096 if execution.device.type == "cuda" else 2048
    dtype = torch.bfloat16 if execution.precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=execution.device).to(dtype)
    return 2 * size**3 / timed(lambda: a @ b, execution, 5)


def timed(work: Callable[[], object], execution: Execution, repeats: int) -> float:
    """Median seconds of ``work``, after one for warming up."""
    seconds = []
    for _ in range(repeats + 1):
        execution.synchronize()
        start = time.perf_counter()
        work()
        execution.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
