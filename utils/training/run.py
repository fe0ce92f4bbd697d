"""What a training run keeps on disk: checkpoints, its log, its row in the record."""

import platform
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Network, restore
from models.cost import cost
from models.surgery import norms, put_back, slim, whereabouts
from utils.console import Diverged, InputError, Stopped, note
from utils.data.datasets import Batches, Dataset
from utils.device import Execution, Group
from utils.files import checkpoint, records
from utils.flags.settings import Settings
from utils.methods.slimming import METHODS
from utils.training.cutting import worth_cutting
from utils.training.graph import Graphs
from utils.training.step import Step, learning_rate

WRITES = 20  # writing checkpoints takes at most about one part in so many of the time


@dataclass(frozen=True)
class Files:
    """Paths of a run's files in ``folder``."""

    folder: Path
    run: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.run}checkpoint.pth.tar"

    @property
    def best(self) -> Path:
        return self.folder / f"{self.run}model_best.pth.tar"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.run}log.csv"

    @property
    def record(self) -> Path:
        refined = self.run.endswith("_refine")
        return self.folder / ("refine_record.csv" if refined else "train_record.csv")

    def check(self, resumed: Path | None) -> None:
        """Raise InputError if a run would overwrite another's files, or cannot write its own.

        ``resumed`` is the checkpoint that is resumed, if one is.
        """
        own = resumed is not None and resumed.resolve() in (
            self.checkpoint.resolve(),
            self.best.resolve(),
        )
        there = [path for path in (self.checkpoint, self.best) if path.exists()]
        if there and not own:
            raise InputError(
                f"{there[0]} is there already: go on with it by --resume {there[0]}, or, if it is"
                " damaged or another run, move it away or give this run another --name"
            )
        records.read(self.log, records.LOG)
        records.read(self.record, records.TRAINED)

    def newest(self) -> tuple[Path, dict[str, Any], Network] | None:
        """The run's checkpoint of the latest epoch that can be read, and what it holds."""
        found = []
        for path in (self.best, self.checkpoint):
            if path.exists():
                try:
                    found.append((path, *checkpoint.load(path, restore)))
                except InputError as error:
                    note(f"note: passed over: {error}")
        found = [each for each in found if isinstance(each[1].get("epoch"), int)]
        return max(found, key=lambda each: each[1]["epoch"], default=None)


@dataclass
class Run:
    """A training run: what defines it, and everything that changes while it lasts.

    ``network`` is as wide as the run began, and so is every checkpoint; ``step`` trains what is
    left of it when the channels in ``cut`` are gone, and ``network`` keeps what these had then.
    ``epoch`` counts the finished epochs; ``best`` is the best test accuracy so far, in percent.
    """

    settings: Settings
    files: Files
    network: Network
    data: Dataset
    batches: Batches
    execution: Execution
    group: Group
    graphs: bool  # whether steps are captured as CUDA graphs
    epoch: int = 0
    best: float = 0.0
    cut: Tensor = field(init=False)  # bool [channels]
    step: Step = field(init=False)
    flops: int = field(init=False)  # of a picture, in what trains
    pictures: int = field(init=False)  # what tells them from others
    _unsaved: dict[str, Any] | None = None
    _unsaved_best: dict[str, Any] | None = None
    _written: float = -float("inf")  # when the last checkpoint was, and how long it took
    _seconds: float = 0.0

    def __post_init__(self) -> None:
        self.pictures = self.data.checksum()
        self.cut = torch.zeros(sum(self._widths()), dtype=torch.bool)
        self._build()

    def _widths(self) -> list[int]:
        return [bn.num_features for bn in norms(self.network.model).values()]

    def _whereabouts(self) -> dict[str, tuple]:
        """Where in ``network`` the tensors are that train."""
        return whereabouts(self.network.model, (~self.cut).split(self._widths()))

    def _build(self) -> None:
        """The step that trains what ``cut`` leaves of ``network``, with the method's own start."""
        s = self.settings
        model = slim(self.network.model, (~self.cut).split(self._widths()))
        self.flops = cost(model).flops
        self.execution.place(model)
        method = METHODS[s.method]
        names = {"s": "lambda_"}
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=s.lr,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
            nesterov=s.nesterov and s.momentum > 0,
            fused=True,
        )
        self.step = Step(
            model,
            self.batches,
            optimizer,
            method(model, **{names.get(k, k): getattr(s, k) for k in method.settings}),
            self.execution,
            self.group,
        )
        if self.graphs:
            self.step.launch = Graphs(self.step)

    def cut_dead(self, lr: float) -> int:
        """Go on without the channels that have died, if these are enough; how many were cut.

        ``lr`` is the largest learning rate still to come. What trains on is what would train on
        after a resume from here: the same content, taken up by the same code.
        """
        if self.settings.keep_dead:
            return 0
        step = self.step
        dead = step.method.dead(step.optimizer, lr)
        masks = worth_cutting(step.model, step.method.split(dead))
        gone = torch.cat(masks)
        self.group.take_from_first([gone])
        if count := int(gone.sum()):
            cut = self.cut.clone()
            cut[~self.cut] = gone.cpu()
            content = checkpoint.snapshot(self._content()) | {"cut": cut}
            step.launch = step.eager  # a CUDA graph goes before what it works on
            self._take_up(content)
        return count

    def full(self, flat: Tensor) -> Tensor:
        """A vector over the channels that train, with 0 for those that were cut; on the CPU."""
        whole = torch.zeros(len(self.cut), dtype=flat.dtype)
        whole[~self.cut] = flat.detach().cpu()
        return whole

    def zeros(self) -> dict[str, int | None]:
        """How many γ and ξ are zero, of all channels that the run began with."""
        method, gone = self.step.method, int(self.cut.sum())
        xi = method.xi_zeros()
        return {
            "gamma_zeros": method.gamma_zeros() + gone,
            "xi_zeros": None if xi is None else xi + gone,
        }

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the training within, no finished epoch is lost, and the way on is said."""
        try:
            yield
        except Diverged as error:
            raise Diverged(
                f"epoch {self.epoch + 1}: {error}: this epoch is not saved; try a smaller --lr than"
                f" {self.settings.lr:g}"
            ) from None
        except (Stopped, RuntimeError) as stopped:
            self.write()
            said = stopped if isinstance(stopped, Stopped) else "stopped"
            if self.files.checkpoint.exists():
                note(
                    f"{said} in epoch {self.epoch + 1}: go on with --resume {self.files.checkpoint}"
                )
            else:
                note(f"{said} in epoch {self.epoch + 1}: nothing is saved yet")
            raise
        finally:
            self.write()

    def keep_log(self) -> list[dict[str, str]]:
        """The log's lines of the finished epochs; what is beyond them is dropped."""
        if self.group.rank > 0:
            return []
        self.files.folder.mkdir(parents=True, exist_ok=True)
        return records.keep_epochs(self.files.log, self.epoch)

    def log(self, train_loss: float, values: Mapping[str, object]) -> dict[str, Any]:
        """Append the line of the epoch just finished to the log."""
        method = self.step.method
        penalty, ns_penalty = method.penalty(), method.ns_penalty()
        row = {
            "epoch": self.epoch,
            "alpha": f"{self.step.alpha:.6g}",
            "train_loss": f"{train_loss:.6f}",
            # F of eq. (5), and what eq. (2) minimises.
            "objective": None if penalty is None else f"{train_loss + penalty:.6f}",
            "ns_objective": None if ns_penalty is None else f"{train_loss + ns_penalty:.6f}",
            **self.zeros(),
            "channels": len(method.gamma),
            "flops": self.flops,
            **values,
        }
        if self.group.rank == 0:
            records.append(self.files.log, records.LOG, row)
        return row

    def save(self, accuracy: float, now: bool) -> None:
        """Keep the epoch just finished, whose test accuracy in percent is ``accuracy``.

        It is written ``now``, or else when the clock says so: short epochs would drown in writes.
        """
        content = None
        if accuracy >= self.best:
            self.best = accuracy
            content = self._unsaved_best = checkpoint.snapshot(self._content())
        self._unsaved = content or checkpoint.snapshot(self._content())
        if now or time.monotonic() - self._written >= WRITES * self._seconds:
            self.write()

    def write(self) -> None:
        """Bring to the disk what is not there yet."""
        if self._unsaved is None or self.group.rank > 0:
            return
        start = time.monotonic()
        # The best one first: whatever happens in between, no state that was the best is lost.
        if self._unsaved_best is not None:
            checkpoint.save(self.files.best, self._unsaved_best)
            self._unsaved_best = None
        checkpoint.save(self.files.checkpoint, self._unsaved)
        self._unsaved = None
        self._written = time.monotonic()
        self._seconds = self._written - start

    def _content(self) -> dict[str, Any]:
        model, index = self.network.model, self._whereabouts()
        put_back(self.step.model.state_dict(), model.state_dict(), index)
        state = model.state_dict()
        if self.network.is_full:
            state = checkpoint.to_released(state, model)
        return {
            # What the earlier programs keep, ...
            "epoch": self.epoch,
            "state_dict": state,
            "best_prec1": torch.tensor(self.best / 100, dtype=torch.float64),
            "optimizer": self._optimizer_state(index),
            # ... and what else it takes to go on exactly, and to prune.
            "layout": "released" if self.network.is_full else "compact",
            "cfg": self.network.cfg,
            "best_accuracy": self.best,  # in percent: 100 · best_prec1 is it only to rounding
            "xi": None if self.step.method.xi is None else self.full(self.step.method.xi),
            "cut": self.cut,
            "run": self.files.run,
            "settings": asdict(self.settings),
            "precision": self.execution.precision,
            "channels_last": self.execution.channels_last,
            "pictures": self.pictures,
            "classes": list(self.data.classes),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
        }

    def _optimizer_state(self, index: Mapping[str, tuple]) -> dict[str, Any]:
        """The optimiser's state dict as of ``network``'s parameters; momentum of cut ones is 0."""
        optimizer = self.step.optimizer
        named = dict(self.step.model.named_parameters())
        momentum = {n: optimizer.state[p]["momentum_buffer"] for n, p in named.items()
                    if "momentum_buffer" in optimizer.state[p]}  # fmt: skip
        full = {n: torch.zeros_like(p) for n, p in self.network.model.named_parameters()}
        put_back(momentum, full, index)
        state = {i: {"momentum_buffer": full[n]} for i, n in enumerate(named) if n in momentum}
        return {**optimizer.state_dict(), "state": state}

    def resume(self, content: Mapping[str, Any], path: str) -> None:
        """Go on from ``content``, read from ``path``: all that it holds beside the weights."""
        try:
            self.epoch = int(content["epoch"])
            self.best = float(content.get("best_accuracy", 100 * float(content["best_prec1"])))
            if self.epoch < 0 or not 0 <= self.best <= 100:
                raise ValueError("its epoch or best_prec1 is out of range")
            if content.get("pictures", self.pictures) != self.pictures:
                raise ValueError("its run was started with other pictures than these")
            self._take_up(content)
        except (
            KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError
        ) as error:  # fmt: skip
            raise InputError(f"{path} cannot be resumed: {error}") from None
        if self.step.method.xi is not None and content.get("xi") is None:
            note(f"note: {path} has no ξ: it starts again at ξ = γ")
        if Path(path).resolve() != self.files.checkpoint.resolve():
            # The run's own checkpoint is elsewhere or damaged, and there may be no epoch left.
            self._unsaved = checkpoint.snapshot(self._content())

    def _take_up(self, content: Mapping[str, Any]) -> None:
        """Build the step of ``content``, whose weights ``network`` has. Raises ValueError."""
        parameters = dict(self.network.model.named_parameters())
        momentum = checkpoint.momentum(content, parameters)
        self.cut = content.get("cut", torch.zeros_like(self.cut))
        self._build()
        index, step = self._whereabouts(), self.step
        for name, parameter in step.model.named_parameters():
            if name in momentum and "momentum_buffer" in step.optimizer.state[parameter]:
                buffer = momentum[name][index[name]]
                step.optimizer.state[parameter]["momentum_buffer"].copy_(buffer)
        # As the last epoch left it: where none is left to train, nothing else sets it.
        for group in step.optimizer.param_groups if self.epoch else ():
            group["lr"] = learning_rate(self.epoch - 1, self.settings.epochs, self.settings.lr)
        method, xi = step.method, content.get("xi")
        if method.xi is not None and xi is None:
            method.xi.copy_(method.gamma)
        elif method.xi is not None:
            if not isinstance(xi, Tensor) or xi.shape != self.cut.shape:
                raise ValueError("its ξ is not as long as its γ")
            if not xi.isfinite().all():
                raise ValueError("its ξ is not finite")
            method.xi.copy_(xi[~self.cut])

    def is_recorded(self) -> bool:
        rows = records.read(self.files.record, records.TRAINED)
        return any(row["run"] == self.files.run for row in rows)

    def record(self, accuracy: float, seconds: Sequence[float], argv: Sequence[str]) -> None:
        """Append the finished run's row to the record.

        ``accuracy`` is in percent, ``seconds`` what the epochs' training took.
        """
        s, device = self.settings, self.execution.device
        on_cpu = device.type == "cpu"
        row = {
            "run": self.files.run,
            "method": s.method,
            "arch": s.arch,
            "depth": s.depth,
            "dataset": s.dataset,
            "seed": s.seed,
            "epochs": s.epochs,
            "s": s.s,
            "beta": s.beta,
            "prox_every": s.prox_every,
            "precision": self.execution.precision,
            "channels": len(self.cut),
            **self.zeros(),
            "test_accuracy": f"{accuracy:.4f}",
            "best_accuracy": f"{self.best:.4f}",
            "seconds_per_epoch": f"{sum(seconds) / len(seconds):.3f}",
            "checkpoint": self.files.checkpoint.name,
            "command": shlex.join(["python", "main.py", *argv]),
            "subset": s.subset,
            "batch_size": s.batch_size,
            "commit": commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": platform.machine() if on_cpu else torch.cuda.get_device_name(device),
            "threads": torch.get_num_threads(),
            "processes": self.group.size,
            "test_subset": s.test_subset,
            "lr": s.lr,
            "momentum": s.momentum,
            "weight_decay": s.weight_decay,
            "nesterov": s.nesterov,
            "xi_init": None if s.xi_init is None else " ".join(map(str, s.xi_init)),
            "source": self.data.source,
            "train_seconds": f"{sum(seconds):.3f}",
            "keep_dead": s.keep_dead,
        }
        records.append(self.files.record, records.TRAINED, row)


def commit() -> str | None:
    """The commit of this program, with a ``+`` where files differ from it; None if not known."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
