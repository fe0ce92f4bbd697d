"""The state of a training step, and evaluation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from netslim.graph import AnyBatchNorm
from utils.console import NonFiniteLoss
from utils.data.batches import Batches
from utils.data.classes import PerClass, class_counts
from utils.device import Execution
from utils.methods.base import Method
from utils.training.distributed import SINGLE_PROCESS, ProcessGroup

TOP_FIVE_ABOVE = 10  # top-five accuracy is reported for more classes than this


@dataclass(frozen=True)
class TrainMetrics:
    """Mean loss, accuracy in percent and zeros by factor, of the epoch so far."""

    loss: float
    accuracy: float
    zeros: dict[str, int]

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, accuracy {self.accuracy:.2f} %"


class EvalMetrics(NamedTuple):
    """Mean cross-entropy, accuracies in percent, and counts per class."""

    loss: float
    accuracy: float
    top_five: float | None  # None for 10 classes or fewer
    per_class: PerClass

    def __str__(self) -> str:
        top_five = "" if self.top_five is None else f" (top five {self.top_five:.2f} %)"
        return f"test accuracy {self.accuracy:.2f} %{top_five}"


@dataclass
class Step:
    """Everything that one training step (``train_step`` in ``main.py``) reads and writes.

    All of it is on the device, and a step never waits for it. If a loss or a γ is not finite,
    ``method.found_inf`` is set: from that step on no parameter and no tensor of the method
    changes. (Running statistics of batch norms still do.)
    """

    model: nn.Module
    batches: Batches
    optimizer: torch.optim.SGD
    method: Method
    execution: Execution
    group: ProcessGroup = SINGLE_PROCESS
    label_smoothing: float = 0.0
    forward: nn.Module = field(init=False)  # the model, or DistributedDataParallel of it
    lr: float = field(init=False)
    sums: Tensor = field(init=False)  # loss, correct answers and images of this epoch, float64
    finite_steps: Tensor = field(init=False)  # number of finite steps in this epoch

    def __post_init__(self) -> None:
        device = self.execution.device
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=device)
        # Fused optimizers skip their step where found_inf is 1 (torch's stubs lack it).
        self.optimizer.found_inf = self.method.found_inf  # type: ignore[attr-defined]
        self.forward = self.group.replicate(self.model)
        (group,) = self.optimizer.param_groups
        for parameter in group["params"] if group["momentum"] else ():
            # SGD creates the buffer lazily; a graph and a checkpoint need it from the start. The
            # first step is the same: 0 · μ + g = g.
            self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @property
    def alpha(self) -> float:
        return 1 / self.lr

    def start_epoch(self, lr: float) -> None:
        """Sets the learning rate and the training mode, and clears the sums."""
        self.lr = self.optimizer.param_groups[0]["lr"] = lr
        self.sums.zero_()
        self.finite_steps.zero_()
        self.model.train()

    def loss(self, batch_index: Tensor) -> Tensor:
        """Returns this process's loss, weighted so that the mean over processes is the batch's.

        Args:
            batch_index: int64 [4, n], see :meth:`Batches.epoch_indices`.
        """
        batch_index, weight = self.group.local_shard(batch_index)
        images, labels = self.batches.get_batch(batch_index)
        with self._counting_batches_at_once():
            logits = self.execution.logits(self.forward, images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            # x − x is 0 for a finite x, else NaN. A γ that is not finite shows in the loss.
            self.method.found_inf.masked_fill_(loss - loss != 0, 1)
            self.finite_steps += self.method.found_inf == 0
            self.sums[0] += loss * len(labels)
            self.sums[1] += (logits.argmax(1) == labels).sum()
            self.sums[2] += len(labels)
        return loss if weight == 1 else loss * weight

    @contextmanager
    def _counting_batches_at_once(self) -> Iterator[None]:
        """Updates ``num_batches_tracked`` of all batch norms in one kernel instead of one each."""
        norms = (m for m in self.model.modules() if isinstance(m, AnyBatchNorm) and m.momentum)
        counters = {m: m.num_batches_tracked for m in norms if m.num_batches_tracked is not None}
        for norm in counters:
            norm.num_batches_tracked = None
        try:
            yield
        finally:
            for norm, counter in counters.items():
                norm.num_batches_tracked = counter
        if counters:
            torch._foreach_add_(list(counters.values()), 1)

    def momentum(self) -> dict[str, Tensor]:
        """Returns the momentum buffers by parameter name, {} without momentum."""
        state, named = self.optimizer.state, self.model.named_parameters()
        return {n: state[p]["momentum_buffer"] for n, p in named if "momentum_buffer" in state[p]}

    def state(self) -> list[Tensor]:
        """Returns every tensor that a step changes, except gradients."""
        method = [self.method.found_inf, self.method.gamma, *self.method.state_dict().values()]
        own = [self.finite_steps, self.sums, *self.momentum().values()]
        return [*self.model.state_dict().values(), *own, *method]

    def iterate(self) -> list[Tensor]:
        """Returns copies of Z = (W, γ, ξ), the iterate of Algorithm 1."""
        own = [x for name, x in self.method.state_dict().items() if name != "budget"]
        tensors = [*self.model.parameters(), *own]
        return [x.detach().clone() for x in tensors if x.is_floating_point()]

    def squared_distance(self, before: list[Tensor]) -> float:
        """Returns ‖Zᵗ⁺¹ − Zᵗ‖², where ``before`` is Zᵗ."""
        norms = torch._foreach_norm(torch._foreach_sub(self.iterate(), before))
        return torch.stack(norms).double().square().sum().item()

    def metrics(self, order: Sequence[Tensor]) -> TrainMetrics:
        """Returns the metrics of the epoch so far; waits for the device once.

        Args:
            order: the batch indices of this epoch.

        Raises:
            NonFiniteLoss: a step was not finite; names the step and the first bad layer.
        """
        method, zeros = self.method, self.method.zero_counts()
        bad_gamma = method.read().isfinite().all().logical_not()
        tensors = [*self.sums, self.finite_steps, method.found_inf, bad_gamma, *zeros.values()]
        numbers = torch.stack([x.double() for x in tensors]).tolist()
        loss, correct, seen, finite_steps, found_inf, gamma_is_bad, *counts = numbers
        if not (found_inf or gamma_is_bad):
            zero_counts = dict(zip(zeros, map(int, counts), strict=True))
            return TrainMetrics(loss / seen, 100 * correct / seen, zero_counts)
        # A γ that is bad after the last finite step shows in the loss of the next one only.
        step = int(finite_steps) - (not found_inf)
        raise NonFiniteLoss(
            f"the loss or a scaling factor is not finite in step {step + 1} of {len(order)}"
            f" (first seen in {self._first_bad_layer(order[step])})"
        )

    @torch.no_grad()
    def _first_bad_layer(self, batch_index: Tensor) -> str:
        """Returns the first layer with parameters or outputs that are not finite."""
        layers = {m: n for n, m in self.model.named_modules() if not list(m.children())}
        bad: list[str] = []

        def check(module: nn.Module, inputs: object, output: Tensor) -> None:
            if (name := layers.get(module)) is None:
                return
            if not all(x.isfinite().all() for x in module.parameters(recurse=False)):
                bad.append(f"the parameters of {name}")
            elif not output.isfinite().all():
                bad.append(f"the output of {name}")

        with register_module_forward_hook(check):
            logits = self.execution.logits(self.model, self.batches.get_batch(batch_index)[0])
        return next(iter(bad), "the loss" if logits.isfinite().all() else "the logits")


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Batches, execution: Execution, group: ProcessGroup = SINGLE_PROCESS
) -> EvalMetrics:
    """Returns the metrics of ``model`` in eval mode; each process evaluates a share."""
    model.eval()
    n = batches.classes
    totals = torch.zeros(2 + 3 * n, dtype=torch.float64, device=execution.device)
    for images, labels in batches.iter_eval(group.rank, group.size):
        logits = execution.logits(model, images)
        totals[0] += F.cross_entropy(logits, labels) * len(labels)
        if n > TOP_FIVE_ABOVE:
            totals[1] += (logits.topk(5).indices == labels[:, None]).sum()
        totals[2:] += class_counts(logits.argmax(1), labels, n).flatten()
    group.all_reduce_(totals)
    loss, in_top_five, *counts = totals.tolist()  # the only wait for the device
    per_class = PerClass(*([int(x) for x in counts[i : i + n]] for i in range(0, 3 * n, n)))
    seen, correct = sum(per_class.images), sum(per_class.correct)
    top_five = 100 * in_top_five / seen if n > TOP_FIVE_ABOVE else None
    return EvalMetrics(loss / seen, 100 * correct / seen, top_five, per_class)
