"""Experiments, and the commands they consist of."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models import pruner
from utils.files.paths import RunPaths
from utils.flags.config import FLAGS, Config
from utils.reports import results
from utils.shell import path_argument

STAGES = ("train", "prune", "refine")
UNKNOWN = "SHARE"  # printed for a --percent that depends on a run that is not pruned yet


@dataclass(frozen=True)
class Experiment:
    """A training, its pruning and its fine-tuning, for any seed.

    Attributes:
        config: settings of the training, except seed and name.
        prunes: whether channels are pruned after the training.
        refine_epochs: epochs of the fine-tuning, 0 for none.
        share: percent of the channels to prune; None for as many as the reference run lost, which
            is the proximal run with the same seed and label.
        label: suffix of the run's name.
        kind: suffix of the method in the run's name.
        target: percent of the FLOPs to prune, instead of a share.
        prune_ratio: fraction of each convolution's weights to prune before the fine-tuning, which
            then starts from the training's checkpoint.
        tuning: settings of the fine-tuning that differ from the training's.
        variant: name of the pruning, where a training has several.
        program: the prune command, by default that of the architecture.
    """

    config: Config
    prunes: bool
    refine_epochs: int
    share: float | None = 0.0
    label: str = ""
    kind: str = ""
    target: float | None = None
    prune_ratio: float | None = None
    tuning: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    program: tuple[str, ...] = ()

    def training(self, seed: int) -> Config:
        return replace(self.config, seed=seed, name=self._name(seed))

    def _name(self, seed: int, variant: str = "") -> str:
        method = "-".join(filter(None, (self.config.method, self.kind, variant)))
        return f"{method}_seed{seed}{self.label}"

    def pruned(self, files: RunPaths) -> Path:
        return files.pruned(self.variant) if self.variant else files.pruned()

    def finetuning(self, seed: int, files: RunPaths) -> Config:
        start = self.pruned(files) if self.prune_ratio is None else files.checkpoint
        options = {"epochs": self.refine_epochs, "prune_ratio": self.prune_ratio}
        name = {"name": self._name(seed, self.variant)}
        return self.training(seed).for_finetuning(start, **{**self.tuning, **options, **name})

    def run(self, seed: int) -> str:
        """The run's name, that of its directory."""
        return self.training(seed).run_name

    def reference(self, seed: int) -> str:
        """The name of the run that sets the share, if ``share`` is None."""
        return replace(self.config, name=f"proximal_seed{seed}{self.label}").run_name

    def share_of(self, seed: int, recorded: Mapping[str, results.Result]) -> float | None:
        """Percent of the channels to prune; None if the reference run is not ``recorded``."""
        if self.share is not None:
            return self.share
        reference = recorded.get(self.reference(seed))
        if not reference or not (row := reference.pruning(0.0)):
            return None
        removed = 1 - float(row["channels_kept"]) / float(row["channels"])
        return math.ceil(1e6 * removed) / 1e4  # rounded up: ⌊share · channels⌋ is exact then


@dataclass(frozen=True)
class Job:
    """A stage of an experiment that is not done.

    ``flags`` are added to its command; ``seconds`` is the expected duration, None if unknown.
    """

    experiment: Experiment
    seed: int
    stage: str
    folder: Path
    flags: tuple[str, ...]
    seconds: float | None

    @property
    def files(self) -> RunPaths:
        return RunPaths(self.folder, self.experiment.run(self.seed))

    def depends_on(self, other: "Job") -> bool:
        """Whether ``other`` must be done before."""
        run, stage = other.files.run, other.stage
        if run == self.files.run:
            same = stage == "train" or other.experiment.variant == self.experiment.variant
            return same and STAGES.index(stage) < STAGES.index(self.stage)
        reference = self.experiment.reference(self.seed)
        unknown_share = self.stage == "prune" and self.experiment.share is None
        return unknown_share and (run, stage) == (reference, "prune")

    def argv(self) -> list[str]:
        """The command: a script, or -m and a module, and its flags. Trainings are resumed."""
        e, config = self.experiment, self.experiment.training(self.seed)
        if self.stage == "prune":
            data = [] if config.data is None else FLAGS["data"].to_argv(config.data)
            if e.target is None:
                share = e.share_of(self.seed, recorded(self.folder))
                amount = ["--percent", UNKNOWN if share is None else f"{share / 100:.6g}"]
            else:
                amount = ["--target-flops", f"{e.target / 100:.6g}"]
            model = ["--model", path_argument(self.files.checkpoint)]
            name = ["--name", e.variant] if e.variant else []
            return [*(e.program or pruner(config.arch)), *model, *amount, *name, *data, *self.flags]
        if self.stage == "refine":
            config = e.finetuning(self.seed, self.files)
        save = ["--save", path_argument(self.folder), "--resume", "auto"]
        return ["main.py", *config.argv(), *save, *self.flags]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.stage, self.files.run, self.experiment.variant)))


def recorded(folder: Path) -> dict[str, results.Result]:
    """The finished trainings in ``folder`` by name."""
    found = results.load(folder) if folder.is_dir() else []
    return {result.row["run"]: result for result in found}
