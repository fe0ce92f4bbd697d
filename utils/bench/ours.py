"""What the benchmark times: an epoch of this program."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from models import build_model
from utils.data.datasets import Batches
from utils.device import Execution, fastest
from utils.methods.slimming import ProximalSlimming
from utils.paper.settings import LEARNING_RATE, recipe
from utils.training.graph import Graphs
from utils.training.step import Step, evaluate


class Here:
    """This program's epoch: data, augmentation, step, proximal update, tally."""

    def __init__(self, arch: str, depth: int, data: Any, batch_size: int, device: torch.device):
        self.model = build_model(arch, depth, len(data.classes))
        paper = recipe(arch, depth)
        batches = Batches(data, "train", batch_size, device)
        images, labels = batches.cut(batches.order(0)[0])
        self.execution = fastest(self.model, images, labels, device, "auto")
        self.execution.place(self.model)
        method = ProximalSlimming(self.model, paper.lambda_, paper.beta)
        optimizer = torch.optim.SGD(
            self.model.parameters(), LEARNING_RATE, 0.9,
            weight_decay=1e-4, nesterov=True, fused=True,
        )  # fmt: skip
        self.step = Step(self.model, batches, optimizer, method, self.execution)
        if device.type == "cuda":
            self.step.launch = Graphs(self.step)
        self.tests = Batches(data, "test", 256, device)
        self.epochs = 0

    def epoch(self) -> None:
        step, method = self.step, self.step.method
        before = step.z()
        step.begin(LEARNING_RATE)
        order = step.batches.order(self.epochs)
        for where in order:
            step.launch(where)
        step.check(order)
        # What a line of the log says.
        self.line = (str(step.tally), step.change(before), method.penalty(), method.gamma_zeros())
        self.epochs += 1

    def figures(self) -> dict[str, Any]:
        """Beside the epoch: test pass, proximal update, FLOPs of a picture, the machine's peak."""
        execution, order = self.execution, self.step.batches.order(0)
        images, labels = self.step.batches.cut(order[0])
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(execution.logits(self.model, images), labels).backward()
        return {
            "precision": execution.precision + (", channels last" * execution.channels_last),
            "test": timed(lambda: evaluate(self.model, self.tests, execution), execution, 1),
            "update": timed(lambda: self.step.method.on_step(10.0), execution, 200),
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
