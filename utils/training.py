"""An epoch of training, and testing."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.cli import Progress
from utils.data import Batches
from utils.device import Execution
from utils.slimming import Baseline


def learning_rate(epoch: int, epochs: int, initial: float) -> float:
    """``initial``, ×0.1 at ⌊epochs/2⌋ and ×0.1 again at ⌊3·epochs/4⌋ (section 5.1)."""
    drops = (epoch >= epochs // 2) + (epoch >= 3 * epochs // 4)
    return initial / 10**drops


@dataclass
class Tally:
    """Sums over the pictures seen so far, kept on the device: reading them waits for it."""

    loss: Tensor
    correct: Tensor
    seen: int = 0

    @classmethod
    def on(cls, device: torch.device) -> "Tally":
        return cls(*torch.zeros(2, dtype=torch.float64, device=device))

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.loss += loss * len(labels)
        self.correct += (logits.argmax(1) == labels).sum()
        self.seen += len(labels)

    def __str__(self) -> str:
        return f"loss {self.mean_loss():.4f}, accuracy {self.accuracy():.2f} %"

    def mean_loss(self) -> float:
        return self.loss.item() / self.seen

    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.correct.item() / self.seen


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    method: Baseline,
    alpha: float,
    execution: Execution,
    tally: Tally,
    progress: Progress,
) -> None:
    """One pass over ``batches`` with the method's hooks around every SGD step.

    The losses that ``tally`` gathers are those of the steps themselves.
    """
    model.train()
    for images, labels in batches:
        optimizer.zero_grad()
        logits = execution.logits(model, images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        method.on_gradient()
        optimizer.step()  # (8a), and the SGD part of (8b)
        method.on_step(alpha)
        tally.add(logits, labels, loss)
        progress.step()
    method.on_epoch(alpha)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, execution: Execution) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent, in eval mode."""
    model.eval()
    tally = Tally.on(execution.device)
    for images, labels in batches.in_order():
        logits = execution.logits(model, images)
        tally.add(logits, labels, F.cross_entropy(logits, labels))
    return tally.mean_loss(), tally.accuracy()
