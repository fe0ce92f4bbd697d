"""One step of training, and testing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netslim.graph import AnyBatchNorm
from utils.console import NonFiniteLoss
from utils.data.batches import Batches
from utils.device import Execution
from utils.methods.base import Method
from utils.training.classes import PerClass, class_counts
from utils.training.distributed import SINGLE_PROCESS, ProcessGroup

MANY = 10  # of more classes than these, top-five accuracy is told too


class MetricSums:
    """Sums over the pictures seen so far, kept on the device: to be read, they wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct, seen

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        correct = (logits.argmax(1) == labels).sum()
        self.sums[0] += loss * len(labels)
        self.sums[1] += correct
        self.sums[2] += len(labels)


@dataclass(frozen=True)
class TrainMetrics:
    """What the device said of an epoch so far: mean loss, accuracy in percent, zeros by factor."""

    loss: float
    accuracy: float
    zeros: dict[str, int]

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, accuracy {self.accuracy:.2f} %"


class EvalMetrics(NamedTuple):
    """Of a test: mean cross-entropy, accuracies in percent, and what came of each class."""

    loss: float
    accuracy: float
    top_five: float | None  # whether the class is among the five likeliest; of many classes only
    per_class: PerClass

    def __str__(self) -> str:
        more = "" if self.top_five is None else f" (top five {self.top_five:.2f} %)"
        return f"test accuracy {self.accuracy:.2f} %{more}"


@dataclass
class Step:
    """What one mini-batch of Algorithm 1 works on: all on the device, and nothing waits for it.

    ``alternate`` makes the step, as ``main.py`` has it; ``launch`` is that, or a graph of it.
    A step whose loss, or whose γ, is not finite sets ``method.halted``: it and all later ones
    change no parameter and no tensor of the method's. (Batch norm's running statistics still move.)
    """

    model: nn.Module
    batches: Batches
    optimizer: torch.optim.SGD
    method: Method
    execution: Execution
    train_step: Callable[["Step", Tensor], None]
    group: ProcessGroup = SINGLE_PROCESS
    label_smoothing: float = 0.0
    forward: nn.Module = field(init=False)  # the model, or what averages its gradients
    launch: Callable[[Tensor], None] = field(init=False)
    lr: float = field(init=False)
    sums: MetricSums = field(init=False)
    finite_steps: Tensor = field(init=False)  # how many steps of the epoch were finite

    def __post_init__(self) -> None:
        self.launch = self.eager
        self.sums = MetricSums(self.execution.device)
        self.finite_steps = torch.zeros((), dtype=torch.int64, device=self.execution.device)
        # What a fused optimiser obeys, and torch's stubs do not know.
        self.optimizer.found_inf = self.method.found_inf  # type: ignore[attr-defined]
        self.forward = self.group.replicate(self.model)
        for group in self.optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                # SGD would make it at its first step: a buffer that is there from the start is
                # saved, restored and captured like all else. 0 · μ + g is g.
                self.optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def begin(self, lr: float) -> None:
        """Start an epoch with learning rate ``lr``, α = 1/``lr``."""
        self.lr = lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.sums.sums.zero_()
        self.finite_steps.zero_()
        self.model.train()

    @property
    def alpha(self) -> float:
        return 1 / self.lr

    def eager(self, where: Tensor) -> None:
        """``where`` says which pictures, and how to crop them: see :meth:`Batches.order`."""
        with self.execution.arithmetic():
            self.train_step(self, where)

    def loss(self, where: Tensor) -> Tensor:
        """Mean loss of this process's part of a mini-batch, weighted as the whole needs it.

        Halts the training where it is not finite.
        """
        where, weight = self.group.local_shard(where)
        images, labels = self.batches.get_batch(where)
        with self._counting():
            logits = self.execution.logits(self.forward, images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self._halt_unless_finite(loss.detach())
        self.sums.add(logits.detach(), labels, loss.detach())
        return loss if weight == 1 else loss * weight

    @torch.no_grad()
    def _halt_unless_finite(self, loss: Tensor) -> None:
        # A γ that is not finite shows in the loss. The difference is 0 if that is finite, else NaN.
        self.method.found_inf.masked_fill_(loss - loss != 0, 1)
        self.finite_steps += self.method.found_inf == 0

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Within, batch norms count no batches: behind it all are counted in one kernel."""
        modules = (m for m in self.model.modules() if isinstance(m, AnyBatchNorm) and m.momentum)
        counters = {m: m.num_batches_tracked for m in modules if m.num_batches_tracked is not None}
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
        """The optimiser's buffers by parameter, {} without momentum."""
        state = self.optimizer.state
        named = self.model.named_parameters()
        return {n: state[p]["momentum_buffer"] for n, p in named if "momentum_buffer" in state[p]}

    def state(self) -> list[Tensor]:
        """Every tensor that a step changes, gradients apart."""
        method = [self.method.found_inf, self.method.gamma, *self.method.state_dict().values()]
        own = [self.finite_steps, self.sums.sums, *self.momentum().values()]
        return [*self.model.state_dict().values(), *own, *method]

    def iterate(self) -> list[Tensor]:
        """Copies of Z = (W, γ, ξ), Algorithm 1's iterate."""
        own = [x for name, x in self.method.state_dict().items() if name != "budget"]
        tensors = [*self.model.parameters(), *own]
        return [x.detach().clone() for x in tensors if x.is_floating_point()]

    def squared_distance(self, before: list[Tensor]) -> float:
        """‖Zᵗ⁺¹ − Zᵗ‖², Zᵗ being what :meth:`z` said ``before``."""
        norms = torch._foreach_norm(torch._foreach_sub(self.iterate(), before))
        return torch.stack(norms).double().square().sum().item()

    def metrics(self, order: Sequence[Tensor]) -> TrainMetrics:
        """How the epoch stands. Waits for the device, once. ``order`` is the epoch's.

        Raises Diverged, naming step and layer, if a step so far was not finite.
        """
        method, zeros = self.method, self.method.zero_counts()
        odd = method.read().isfinite().all().logical_not()
        found = [*self.sums.sums, self.finite_steps, method.found_inf, odd, *zeros.values()]
        numbers = torch.stack([x.double() for x in found]).tolist()
        loss, correct, seen, good, halted, odd_now, *counts = numbers
        if not (halted or odd_now):
            zero_counts = dict(zip(zeros, map(int, counts), strict=True))
            return TrainMetrics(loss / seen, 100 * correct / seen, zero_counts)
        # Steps so far, or, where one was seen to be bad, its number counted from 0.
        step = int(good) - (not halted)
        raise NonFiniteLoss(
            f"the loss or a scaling factor is not finite in step {step + 1} of {len(order)}"
            f" (first seen in {self._first_bad(order[step])})"
        )

    @torch.no_grad()
    def _first_bad(self, where: Tensor) -> str:
        """The first layer that holds or gives a number that is not finite, on these pictures."""
        bad: list[str] = []

        def look(name: str) -> Callable:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                if not all(x.isfinite().all() for x in module.parameters(recurse=False)):
                    bad.append(f"the parameters of {name}")
                elif not output.isfinite().all():
                    bad.append(f"the output of {name}")

            return hook

        layers = [(n, m) for n, m in self.model.named_modules() if not list(m.children())]
        hooks = [module.register_forward_hook(look(name)) for name, module in layers]
        logits = self.execution.logits(self.model, self.batches.get_batch(where)[0])
        for hook in hooks:
            hook.remove()
        return next(iter(bad), "the loss" if logits.isfinite().all() else "the logits")


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Batches, execution: Execution, group: ProcessGroup = SINGLE_PROCESS
) -> EvalMetrics:
    """How good ``model`` is in eval mode."""
    model.eval()
    tally, many = MetricSums(execution.device), False
    in_five = torch.zeros(1, dtype=torch.float64, device=execution.device)
    n = batches.classes
    classes = torch.zeros(3, n, dtype=torch.float64, device=execution.device)
    for images, labels in batches.iter_eval(group.rank, group.size):
        logits = execution.logits(model, images)
        tally.add(logits, labels, F.cross_entropy(logits, labels))
        classes += class_counts(logits.argmax(1), labels, n)
        if many := logits.shape[1] > MANY:
            in_five += (logits.topk(5).indices == labels[:, None]).sum()
    sums = torch.cat([tally.sums, in_five, classes.flatten()])
    group.all_reduce_(sums)
    loss, correct, seen, five, *counts = sums.tolist()  # at once: it waits for the device
    top_five = 100 * five / seen if many else None
    by_class = PerClass(*([*map(int, counts[i * n : (i + 1) * n])] for i in range(3)))
    return EvalMetrics(loss / seen, 100 * correct / seen, top_five, by_class)
