"""What the files are called that runs and prunings leave in a folder. Nothing else spells one."""

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = "checkpoint.pth.tar"
TRAINED, REFINED, PRUNED = "train_record.csv", "refine_record.csv", "pruned_record.csv"


@dataclass(frozen=True)
class Files:
    """Paths of a run's files in ``folder``, which begin with ``run``."""

    folder: Path
    run: str

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.run}{CHECKPOINT}"

    @property
    def best(self) -> Path:
        return self.folder / f"{self.run}model_best.pth.tar"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.run}log.csv"

    @property
    def record(self) -> Path:
        return self.folder / (REFINED if self.run.endswith("_refine") else TRAINED)

    @property
    def plot(self) -> Path:
        """Without its ending: a figure is written in several formats."""
        return self.folder / f"{self.run}plot"

    @property
    def refined(self) -> "Files":
        """Those of the fine-tuning of what was cut out of this run."""
        return Files(self.folder, f"{self.run}_refine")

    def slim(self, name: str | None = None) -> Path:
        """The slim network cut out of this run, or the one called ``name``."""
        return self.folder / f"{f'{self.run}_' if name is None else name}pruned.pth.tar"

    def output(self, stage: str) -> Path:
        """Where a command prints that runs beside others."""
        return self.folder / f"{self.run}{stage}.out"


def run_of(checkpoint: Path) -> str:
    """The run whose checkpoint has this name."""
    return checkpoint.name.removesuffix(CHECKPOINT)
