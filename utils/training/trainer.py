"""The trainer: a run's model, optimizer and method, its checkpoints, and removal of channels."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from netslim.surgery import Removal
from utils.console import Interrupted, NonFiniteLoss, PeerLost, note
from utils.cost import cost
from utils.data.batches import Batches
from utils.data.classes import PerClass
from utils.data.datasets import Dataset
from utils.device import Execution
from utils.files import checkpoint
from utils.files.checkpoint import Checkpoint
from utils.files.paths import RunPaths
from utils.flags.config import Config
from utils.methods import method_of
from utils.methods.base import TrainingSetup, is_zero
from utils.network import Network
from utils.paper.settings import Schedule, learning_rate, recipe
from utils.training.cuda_graphs import CapturedSteps
from utils.training.distributed import SINGLE_PROCESS, ProcessGroup
from utils.training.removal import select_removable
from utils.training.step import Step, TrainMetrics


@dataclass
class Trainer:
    """A training run.

    ``network`` has full width, as every checkpoint has; removed channels keep their last values
    there. ``step`` trains what ``removed`` leaves of it. To resume, pass ``resume_from``, whose
    weights ``network`` has.

    Raises:
        ValueError: ``resume_from`` is of another run.
    """

    config: Config
    paths: RunPaths
    network: Network
    data: Dataset
    batches: Batches
    execution: Execution
    group: ProcessGroup = SINGLE_PROCESS
    use_cuda_graphs: bool = False
    resume_from: InitVar[Checkpoint | None] = None
    epoch: int = 0  # finished epochs
    init_checksum: str | None = None  # SHA-256 of the file that the weights came from
    best: float = 0.0  # best test accuracy so far, percent
    removed: Tensor = field(init=False)  # bool [channels], on the CPU
    removal: Removal = field(init=False)  # from ``network`` to ``step.model``
    step: Step = field(init=False)
    flops: int = field(init=False)  # of ``step.model`` per image
    images_checksum: int = field(init=False)

    def __post_init__(self, resume_from: Checkpoint | None) -> None:
        self.images_checksum = self.data.checksum()
        self.removed = torch.zeros(sum(self.network.widths), dtype=torch.bool)
        if resume_from is None:
            self._build()
        elif resume_from.images_checksum not in (None, self.images_checksum):
            raise ValueError("its run was started with other images")
        else:
            self.load_state_dict(resume_from)

    def _build(self) -> None:
        """Builds the step for the channels that are left, with the method's initial state."""
        config = self.config
        masks = (~self.removed).split(self.network.widths)
        self.removal = self.network.plan(masks, streams=bool(self.removed.any()))
        model = self.network.remove(self.removal).model
        self.flops = cost(model, config.size).flops
        self.execution.place(model)
        steps = sum(count for count, _ in self.schedule())
        options = {**config.options, "steps": steps, "lr": config.lr}
        method_class = method_of(config.method, config.prune_ratio)
        method = method_class.from_options(self.network.graph, model, options)
        optimizer = torch.optim.SGD(
            [{"params": method.trained_parameters(model)}],
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov and config.momentum > 0,
            fused=True,
        )
        setup = self.execution, self.group, config.label_smoothing
        self.step = Step(model, self.batches, optimizer, method, *setup)

    @cached_property
    def full_flops(self) -> int:
        """The FLOPs of ``network`` per image."""
        return cost(self.network.model, self.config.size).flops

    def compile(self, train_step: Callable[[Step, Tensor], None]) -> Callable[[Tensor], None]:
        """Returns ``train_step`` of this step, as CUDA graphs where these are used.

        Call again after channels were removed.
        """
        if self.use_cuda_graphs:
            return CapturedSteps(train_step, self.step)
        return partial(train_step, self.step)

    def lr(self, epoch: int) -> float:
        """Returns the learning rate of an epoch, counted from 0."""
        c = self.config
        return learning_rate(epoch, c.epochs, c.lr, c.schedule, c.warmup)

    def schedule(self) -> Schedule:
        """Returns mini-batches and learning rate of every epoch."""
        steps = -(-len(self.data.train) // self.config.batch_size)
        return [(steps, self.lr(e)) for e in range(self.config.start_epoch, self.config.epochs)]

    def setup(self) -> TrainingSetup:
        """Returns the properties on which the method's warnings and verdict depend."""
        config = self.config
        paper = recipe(config.arch, config.depth)
        return TrainingSetup(self.schedule(), config.momentum, paper)

    def metrics(self, order: Sequence[Tensor]) -> TrainMetrics:
        """Like :meth:`Step.metrics`; removed channels count as zeros."""
        metrics, removed = self.step.metrics(order), int(self.removed.sum())
        return replace(metrics, zeros={n: count + removed for n, count in metrics.zeros.items()})

    def zeros(self) -> dict[str, int]:
        """Returns the number of zeros by factor, removed channels included."""
        removed = int(self.removed.sum())
        return {name: int(n) + removed for name, n in self.step.method.zero_counts().items()}

    def factors(self) -> dict[str, list[Tensor]]:
        """Returns the method's factors by name, one tensor per layer, at full width."""
        method, widths = self.step.method, self.network.widths
        full = {name: self._to_full_width(method.factor(name)) for name in method.factors}
        return {name: list(factor.split(widths)) for name, factor in full.items()}

    def verdict(self, per_class: PerClass) -> str:
        """Returns the method's verdict on λ and on a collapse, "" if all is well.

        A model has collapsed if its predictions have, or if all factors of a layer are 0.
        """
        method, layers = self.step.method, self.network.layers
        reasons = [per_class.collapse(self.data.classes)]
        for factor, parts in self.factors().items() if method.prunes() else ():
            empty = [n for n, part in zip(layers, parts, strict=True) if is_zero(part).all()]
            more = f" and of {len(empty) - 1} more layers" if len(empty) > 1 else ""
            reasons += [f"every {method.factors[factor]} of {empty[0]}{more} is 0"] if empty else []
        return method.verdict(self.zeros(), "; ".join(filter(None, reasons)), self.setup())

    def remove_dead_channels(self) -> int:
        """Removes dead channels if there are enough of them; returns how many.

        Continues exactly as a run that is resumed here: from the same state, by the same code.
        """
        method, optimizer = self.step.method, self.step.optimizer

        def select() -> Tensor:
            highest_lr = max(map(self.lr, range(self.epoch, self.config.epochs)))
            dead = torch.zeros_like(self.removed)
            dead[~self.removed] = method.dead(optimizer, highest_lr).cpu()
            if not dead.any():
                return dead
            self.state_dict()  # select_removable reads the biases of ``network``
            return select_removable(self.network, self.removed, dead)

        selected = self.group.broadcast_object(select)
        if count := int(selected.sum()):
            self.load_state_dict(replace(self.state_dict(), removed=self.removed | selected))
        return count

    def check(self, test_loss: float) -> None:
        """Raises NonFiniteLoss, or PeerLost if the processes disagree, before an epoch is saved."""
        method = self.step.method
        if not math.isfinite(test_loss):
            raise NonFiniteLoss("the test loss is not finite")
        if not self.group.all_equal([self.removed, method.read(), *method.state_dict().values()]):
            raise PeerLost(
                f"the processes' scaling factors differ after epoch {self.epoch + 1}, which is not"
                " saved"
            )

    @contextmanager
    def explaining_errors(self, resume_command: str) -> Iterator[None]:
        """Says which epoch an error or a signal ended, and how to resume."""
        try:
            yield
        except NonFiniteLoss as error:
            hint = self.step.method.divergence_hint(self.config.lr)
            raise NonFiniteLoss(
                f"epoch {self.epoch + 1}: {error}; this epoch is not saved; {hint}"
            ) from None
        except (Interrupted, RuntimeError, BrokenPipeError) as error:
            reason = error if isinstance(error, Interrupted) else "stopped"
            saved = self.paths.checkpoint.exists()
            hint = f"resume with {resume_command}" if saved else "nothing is saved yet"
            note(f"{reason} in epoch {self.epoch + 1}: {hint}")
            raise

    def save(self, accuracy: float | None = None) -> None:
        """Writes the checkpoint, and the best one if ``accuracy`` (percent) is the best so far."""
        is_best = accuracy is not None and accuracy >= self.best
        self.best = max(self.best, accuracy or 0.0)
        if self.group.rank > 0:
            return
        content = self.state_dict().to_dict()
        if is_best:  # first: a kill in between loses no best state
            checkpoint.save(self.paths.best, content)
        checkpoint.save(self.paths.checkpoint, content)

    def state_dict(self) -> Checkpoint:
        """Returns the state at full width, which ``network`` then has too."""
        step, parameters = self.step, dict(self.network.model.named_parameters())
        model_state, momentum = step.model.state_dict(), step.momentum()
        self.removal.scatter_into(model_state, self.network.model.state_dict())
        names = map(self.removal.full_name, momentum)
        full_momentum = {name: torch.zeros_like(parameters[name]) for name in names}
        self.removal.scatter_into(momentum, full_momentum)
        param_group = step.optimizer.param_groups[0]
        return Checkpoint(
            network=self.network,
            run_name=self.paths.run,
            config=self.config,
            classes=list(self.data.classes),
            mean=list(self.data.mean),
            std=list(self.data.std),
            epoch=self.epoch,
            best=self.best,
            momentum=full_momentum,
            optimizer_settings={k: v for k, v in param_group.items() if k != "params"},
            method_state={n: self._to_full_width(x) for n, x in step.method.state_dict().items()},
            removed=self.removed,
            precision=self.execution.precision,
            channels_last=self.execution.channels_last,
            images_checksum=self.images_checksum,
            init_checksum=self.init_checksum,
        )

    def _to_full_width(self, x: Tensor) -> Tensor:
        """Returns ``x`` on the CPU; a vector over channels gets 0 for the removed ones."""
        x = x.detach().cpu()
        if not self.removed.any() or x.shape != self.step.method.gamma.shape:
            return x
        full = torch.zeros(len(self.removed), dtype=x.dtype)
        full[~self.removed] = x
        return full

    def load_state_dict(self, state: Checkpoint) -> None:
        """Continues from ``state``, whose weights ``network`` has.

        Raises:
            ValueError: a tensor of the method has another length.
        """
        self.epoch, self.best = state.epoch or 0, state.best
        if state.removed is not None:
            self.removed = state.removed
        self._build()
        step = self.step
        for name, buffer in step.momentum().items():
            full_name = self.removal.full_name(name)
            if full_name in state.momentum:
                buffer.copy_(self.removal.part(full_name, state.momentum[full_name]))
        if self.epoch:  # that of the last epoch: start_epoch() is not called if none is left
            step.optimizer.param_groups[0]["lr"] = self.lr(self.epoch - 1)
        if step.method.state_dict().keys() - state.method_state.keys():
            restart = step.method.reset_state()
            note(f"note: the checkpoint lacks a part of the method's state: {restart}")
            return
        full = self.removed.shape
        method_state = {
            name: x[~self.removed] if x.shape == full else x
            for name, x in state.method_state.items()
        }
        step.method.load_state_dict(method_state)
