"""What a training run keeps on disk: checkpoints, its log, its row in the record."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import Network
from utils import checkpoint, records
from utils.cli import InputError, note
from utils.data import Dataset
from utils.device import Execution
from utils.settings import Settings
from utils.slimming import Baseline


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
        own = resumed is not None and resumed.resolve() == self.checkpoint.resolve()
        if self.checkpoint.exists() and not own:
            raise InputError(
                f"{self.checkpoint} is there already: go on with it by --resume {self.checkpoint},"
                " or give this run another --name"
            )
        records.read(self.log, records.LOG)
        records.read(self.record, records.TRAINED)


@dataclass
class Run:
    """A training run: what defines it, and everything that changes while it lasts.

    ``epoch`` counts the finished epochs; ``best`` is the best test accuracy so far, in percent.
    """

    settings: Settings
    files: Files
    network: Network
    data: Dataset
    execution: Execution
    method: Baseline
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    best: float = 0.0

    def log(
        self,
        lr: float,
        train_loss: float,
        test_loss: float,
        accuracy: float,
        train_seconds: float,
        test_seconds: float,
    ) -> dict[str, Any]:
        """Append the line of the epoch just finished to the log; ``accuracy`` is in percent."""
        penalty, ns_penalty = self.method.penalty(), self.method.ns_penalty()
        row = {
            "epoch": self.epoch,
            "lr": f"{lr:.6g}",
            "alpha": f"{1 / lr:.6g}",
            "train_loss": f"{train_loss:.6f}",
            # F of eq. (5), and eq. (2), with the penalties as they stand now
            "objective": None if penalty is None else f"{train_loss + penalty:.6f}",
            "ns_objective": None if ns_penalty is None else f"{train_loss + ns_penalty:.6f}",
            "test_loss": f"{test_loss:.6f}",
            "test_accuracy": f"{accuracy:.4f}",
            "gamma_zeros": self.method.gamma_zeros(),
            "xi_zeros": self.method.xi_zeros(),
            "train_seconds": f"{train_seconds:.3f}",
            "test_seconds": f"{test_seconds:.3f}",
        }
        records.append(self.files.log, records.LOG, row)
        return row

    def save(self, accuracy: float) -> None:
        """Write the checkpoint, and the best one too where ``accuracy`` (percent) is the best."""
        is_best = accuracy >= self.best
        self.best = max(accuracy, self.best)
        content = self._content()
        checkpoint.save(self.files.checkpoint, content)
        if is_best:
            checkpoint.save(self.files.best, content)

    def _content(self) -> dict[str, Any]:
        model = self.network.model
        state = model.state_dict()
        if self.network.is_full:
            state = checkpoint.to_released(state, checkpoint.stream_widths(model))
        return {
            # What the earlier programs keep, ...
            "epoch": self.epoch,
            "state_dict": state,
            "best_prec1": torch.tensor(self.best / 100, dtype=torch.float64),
            "optimizer": self.optimizer.state_dict(),
            # ... and what else it takes to go on exactly, and to prune.
            "layout": "released" if self.network.is_full else "compact",
            "cfg": self.network.cfg,
            "best_accuracy": self.best,  # in percent: 100 · best_prec1 is it only to rounding
            "xi": self.method.xi,
            "run": self.files.run,
            "settings": asdict(self.settings),
            "precision": self.execution.precision,
            "channels_last": self.execution.channels_last,
            "classes": list(self.data.classes),
            "mean": list(self.data.mean),
            "std": list(self.data.std),
        }

    def resume(self, content: Mapping[str, Any], path: str) -> None:
        """Take up all that ``content``, read from ``path``, holds beside the weights."""
        parameters = dict(self.network.model.named_parameters())
        try:
            self.epoch = int(content["epoch"])
            self.best = float(content.get("best_accuracy", 100 * float(content["best_prec1"])))
            if self.epoch < 0 or not 0 <= self.best <= 100:
                raise ValueError("its epoch or best_prec1 is out of range")
            buffers = checkpoint.momentum(content, parameters)
        except (
            KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError
        ) as error:  # fmt: skip
            raise InputError(f"{path} cannot be resumed: {error}") from None
        for name, buffer in buffers.items():
            parameter = parameters[name]
            self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(
                buffer
            )
        if self.method.xi is not None:
            xi = content.get("xi")
            if xi is None:
                note(f"note: {path} has no ξ: it starts again at ξ = γ")
                xi = self.method.gamma
            if not isinstance(xi, Tensor) or xi.shape != self.method.xi.shape:
                raise InputError(f"{path} cannot be resumed: its ξ is not as long as its γ")
            self.method.xi.copy_(xi)

    def is_recorded(self) -> bool:
        rows = records.read(self.files.record, records.TRAINED)
        return any(row["run"] == self.files.run for row in rows)

    def record(self, accuracy: float, seconds_per_epoch: float, argv: Sequence[str]) -> None:
        """Append the finished run's row to the record; ``accuracy`` is in percent."""
        s = self.settings
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
            "channels": len(self.method.gamma),
            "gamma_zeros": self.method.gamma_zeros(),
            "xi_zeros": self.method.xi_zeros(),
            "test_accuracy": f"{accuracy:.4f}",
            "best_accuracy": f"{self.best:.4f}",
            "seconds_per_epoch": f"{seconds_per_epoch:.3f}",
            "checkpoint": self.files.checkpoint.name,
            "command": shlex.join(["python", "main.py", *argv]),
        }
        records.append(self.files.record, records.TRAINED, row)
