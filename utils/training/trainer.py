"""A training run: its step, its cuts, and what it keeps on disk."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from netslim.surgery import Removal
from utils.console import Interrupted, NonFiniteLoss, PeerLost, note
from utils.data.batches import Batches
from utils.data.datasets import Dataset
from utils.device import Execution
from utils.files import checkpoint
from utils.files.checkpoint import Checkpoint
from utils.files.paths import RunPaths
from utils.flags.config import Config
from utils.methods import method_of
from utils.methods.base import is_zero
from utils.network import Network
from utils.paper.accounting import cost
from utils.paper.settings import Schedule, learning_rate
from utils.training.classes import PerClass
from utils.training.cuda_graphs import CapturedSteps
from utils.training.distributed import ProcessGroup
from utils.training.packed import PackedTensors
from utils.training.removal import select_removable
from utils.training.step import Step, TrainMetrics

MODEL, MOMENTUM, METHOD = range(3)  # whose a tensor of a Moment is
WRITES = 20  # writing checkpoints takes at most about one part in so many of the time


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint needs and later epochs change; its tensors on the device still."""

    epoch: int
    best: float
    group: dict[str, Any]  # the optimiser's settings
    copies: PackedTensors[tuple[int, str]]  # MODEL, MOMENTUM or METHOD, and the name there


@dataclass
class Trainer:
    """A training run: what defines it, and everything that changes while it lasts.

    ``network`` is as wide as the run began, and so is every checkpoint; ``step`` trains what is
    left of it when the channels in ``cut`` are gone, and ``network`` keeps what these had then.
    ``epoch`` counts the finished epochs; ``best`` is the best test accuracy so far, in percent.
    A run that is resumed has the weights that were ``found`` in ``network``, and the rest from it.

    Raises ValueError where what was ``found`` is another run's.
    """

    config: Config
    paths: RunPaths
    network: Network
    data: Dataset
    batches: Batches
    execution: Execution
    group: ProcessGroup
    train_step: Callable[[Step, Tensor], None]
    use_cuda_graphs: bool  # whether steps are captured as CUDA graphs
    found: InitVar[Checkpoint | None] = None
    epoch: int = 0
    init_checksum: str | None = None  # the checksum of the file that it was begun with
    best: float = 0.0
    removed: Tensor = field(init=False)  # bool [channels]
    removal: Removal = field(init=False)  # of what was cut, from ``network``
    step: Step = field(init=False)
    flops: int = field(init=False)  # of a picture, in what trains
    images_checksum: int = field(init=False)  # what tells them from others
    _unsaved: "Snapshot | None" = None
    _unsaved_best: "Snapshot | None" = None
    _written: float = -float("inf")  # when the last checkpoint was, and how long it took
    _seconds: float = 0.0

    def __post_init__(self, found: Checkpoint | None) -> None:
        self.images_checksum = self.data.checksum()
        self.removed = torch.zeros(sum(self.network.widths), dtype=torch.bool)
        if found is None:
            self._build()
        elif found.images_checksum not in (None, self.images_checksum):
            raise ValueError("its run was started with other pictures than these")
        else:
            self._take_up(found)

    def _removal(self) -> Removal:
        """What has to be removed of ``network`` so that it trains without what was ``cut``."""
        masks = (~self.removed).split(self.network.widths)
        return self.network.plan(masks, streams=bool(self.removed.any()))

    def lr(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        s = self.config
        return learning_rate(epoch, s.epochs, s.lr, s.schedule, s.warmup)

    def _build(self) -> None:
        """The step that trains what ``cut`` leaves of ``network``, with the method's own start."""
        s = self.config
        self.removal = self._removal()
        model = self.network.remove(self.removal).model
        self.flops = cost(model, s.size).flops
        self.execution.place(model)
        steps = sum(count for count, _ in self.schedule())
        options = {**s.options, "steps": steps, "lr": s.lr}
        method = method_of(s.method, s.prune_ratio).from_options(self.network.graph, model, options)
        optimizer = torch.optim.SGD(
            [{"params": method.trained_parameters(model)}],
            lr=s.lr,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
            nesterov=s.nesterov and s.momentum > 0,
            fused=True,
        )
        how = self.execution, self.train_step, self.group, s.label_smoothing
        self.step = Step(model, self.batches, optimizer, method, *how)
        if self.use_cuda_graphs:
            self.step.launch = CapturedSteps(self.step)

    def to_full_width(self, flat: Tensor) -> Tensor:
        """A vector over the channels that train, with 0 for those that were cut; on the CPU."""
        whole = torch.zeros(len(self.removed), dtype=flat.dtype)
        whole[~self.removed] = flat.detach().cpu()
        return whole

    def factors(self) -> dict[str, list[Tensor]]:
        """The method's scaling factors of every layer that the run began with."""
        method = self.step.method
        full = {name: self.to_full_width(method.factor(name)) for name in method.factors}
        return {name: list(factor.split(self.network.widths)) for name, factor in full.items()}

    def schedule(self) -> Schedule:
        """Mini-batches and learning rate of all its epochs."""
        s = self.config
        steps = -(-len(self.data.train) // s.batch_size)
        return [(steps, self.lr(epoch)) for epoch in range(s.start_epoch, s.epochs)]

    def verdict(self, by_class: PerClass) -> str:
        """What there is to say of the training, and of the method's λ; '' where all is well.

        The network is ruined where its answers say so, or where a layer has no factor left that is
        not 0 though channels were to stay.
        """
        s, method, layers = self.config, self.step.method, self.network.layers
        ruined = [by_class.collapse(self.data.classes)]
        for factor, parts in self.factors().items() if method.prunes() else ():
            empty = [n for n, part in zip(layers, parts, strict=True) if is_zero(part).all()]
            more = f" and of {len(empty) - 1} more layers" if len(empty) > 1 else ""
            ruined += [f"every {method.factors[factor]} of {empty[0]}{more} is 0"] if empty else []
        collapse = "; ".join(filter(None, ruined))
        return method.verdict(self.zeros(), collapse, self.schedule(), s.arch, s.depth)

    def zeros(self) -> dict[str, int]:
        """How many of the method's factors are zero, of all channels that the run began with."""
        gone = int(self.removed.sum())
        return {name: int(count) + gone for name, count in self.step.method.zero_counts().items()}

    def metrics(self, order: Sequence[Tensor]) -> TrainMetrics:
        """As :meth:`Step.check`, with the zeros of :meth:`zeros`."""
        reading, gone = self.step.metrics(order), int(self.removed.sum())
        return replace(reading, zeros={n: count + gone for n, count in reading.zeros.items()})

    def remove_dead_channels(self) -> int:
        """Go on without the channels that have died, if these are enough; how many were cut.

        What trains on is what would train on after a resume from here: the same content, taken up
        by the same code.
        """
        step = self.step
        if not len(self.removed):  # a network without batch norms
            return 0

        def gone_now() -> Tensor:
            highest = max(map(self.lr, range(self.epoch, self.config.epochs)))  # still to come
            dead = torch.zeros_like(self.removed)
            dead[~self.removed] = step.method.dead(step.optimizer, highest).cpu()
            if dead.any():
                self.checkpoint(self._now())  # ``network`` has the biases of now, too
            return select_removable(self.network, self.removed, dead)

        gone = self.group.broadcast_object(gone_now)
        if count := int(gone.sum()):
            self.flush()  # what is kept is as wide as it was
            now = replace(self.checkpoint(self._now()), removed=self.removed | gone)
            step.launch = step.eager  # a CUDA graph goes before what it works on
            self._take_up(now)
        return count

    def check(self, test_loss: float) -> None:
        """Raise Diverged if the epoch's end is not fit to be saved, Lost if processes disagree."""
        method = self.step.method
        if not math.isfinite(test_loss):
            raise NonFiniteLoss("the test loss is not finite")
        if not self.group.all_equal([self.removed, method.read(), *method.state_dict().values()]):
            raise PeerLost(
                f"the processes' scaling factors differ after epoch {self.epoch + 1}: it is not"
                " saved"
            )

    @contextmanager
    def saving_on_exit(self, way_on: str) -> Iterator[None]:
        """Whatever ends the training within, no finished epoch is lost, and the way on is said."""
        try:
            yield
        except NonFiniteLoss as error:
            raise NonFiniteLoss(
                f"epoch {self.epoch + 1}: {error}: this epoch is not saved;"
                f" {self.step.method.divergence_hint(self.config.lr)}"
            ) from None
        except (Interrupted, RuntimeError, BrokenPipeError) as stopped:
            self.flush()
            said = stopped if isinstance(stopped, Interrupted) else "stopped"
            there = self.paths.checkpoint.exists()
            how = f"go on with {way_on}" if there else "nothing is saved yet"
            note(f"{said} in epoch {self.epoch + 1}: {how}")
            raise
        finally:
            self.flush()

    def save(self, accuracy: float, now: bool) -> None:
        """Keep the epoch just finished, whose test accuracy in percent is ``accuracy``.

        It is written ``now``, or else when the clock says so: short epochs would drown in writes.
        """
        best = accuracy >= self.best
        self.best = max(self.best, accuracy)
        self.snapshot()
        if best:
            self._unsaved_best = self._unsaved
        if now or time.monotonic() - self._written >= WRITES * self._seconds:
            self.flush()

    def snapshot(self) -> None:
        """Have the state of now written before the program ends, if not earlier."""
        self._unsaved = self._now()

    def flush(self) -> None:
        """Bring to the disk what is not there yet."""
        if self._unsaved is None or self.group.rank > 0:
            return
        start = time.monotonic()
        content = None
        # The best one first: whatever happens in between, no state that was the best is lost.
        if self._unsaved_best is not None:
            content = self.checkpoint(self._unsaved_best).to_dict()
            checkpoint.save(self.paths.best, content)
        if content is None or self._unsaved is not self._unsaved_best:
            content = self.checkpoint(self._unsaved).to_dict()
        self._unsaved_best = None
        checkpoint.save(self.paths.checkpoint, content)
        self._unsaved = None
        self._written = time.monotonic()
        self._seconds = self._written - start

    def _now(self) -> Snapshot:
        step, group = self.step, self.step.optimizer.param_groups[0]
        kinds = step.model.state_dict(), step.momentum(), step.method.state_dict()
        copies = PackedTensors({(i, n): x for i, kind in enumerate(kinds) for n, x in kind.items()})
        settings = {key: value for key, value in group.items() if key != "params"}
        return Snapshot(self.epoch, self.best, settings, copies)

    def checkpoint(self, moment: Snapshot) -> Checkpoint:
        """Everything that it takes to go on from there, as wide as the run began."""
        kinds: tuple[dict[str, Tensor], ...] = {}, {}, {}
        for (kind, name), x in moment.copies.to_cpu().items():
            kinds[kind][name] = x
        self.removal.put_back(kinds[MODEL], self.network.model.state_dict())
        parameters = dict(self.network.model.named_parameters())
        trained = map(self.removal.full_name, kinds[MOMENTUM])
        momentum = {name: torch.zeros_like(parameters[name]) for name in trained}
        self.removal.put_back(kinds[MOMENTUM], momentum)
        return Checkpoint(
            self.network,
            self.paths.run,
            self.config,
            list(self.data.classes),
            list(self.data.mean),
            list(self.data.std),
            moment.epoch,
            moment.best,
            momentum,
            moment.group,
            {name: self._whole(x) for name, x in kinds[METHOD].items()},
            self.removed,
            self.execution.precision,
            self.execution.channels_last,
            self.images_checksum,
            self.init_checksum,
        )

    def _whole(self, tensor: Tensor) -> Tensor:
        """A tensor of the method's, as a checkpoint has it: what is cut is over the channels."""
        over_channels = tensor.shape == self.step.method.gamma.shape
        return self.to_full_width(tensor) if self.removed.any() and over_channels else tensor

    def _take_up(self, found: Checkpoint) -> None:
        """Go on from ``found``, whose weights ``network`` has."""
        self.epoch, self.best = found.epoch or 0, found.best
        if found.removed is not None:
            self.removed = found.removed
        self._build()
        step = self.step
        for small_name, buffer in step.momentum().items():
            name = self.removal.full_name(small_name)
            if name in found.momentum:
                buffer.copy_(self.removal.part(name, found.momentum[name]))
        # As the last epoch left it: where none is left to train, nothing else sets it.
        for group in step.optimizer.param_groups if self.epoch else ():
            group["lr"] = self.lr(self.epoch - 1)
        own = step.method.state_dict()
        if own.keys() - found.method_state.keys():
            said = step.method.reset_state()
            note(f"note: the checkpoint does not say all of the method's state: {said}")
            return
        for name, tensor in own.items():
            value = found.method_state[name]
            value = value[~self.removed] if value.shape == self.removed.shape else value
            if value.shape != tensor.shape:
                raise ValueError(
                    f"its {step.method.factors.get(name, name)} is not as long as its γ"
                )
            tensor.copy_(value)
