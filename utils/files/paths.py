"""Names of the files of runs and prunings. No other module spells them."""

from pathlib import Path

DEFAULT_FOLDER = "logs"
CHECKPOINT, LOG, LOCK = "checkpoint.pth.tar", "log.csv", ".lock"
TRAINED, REFINED, PRUNED = "train_record.csv", "refine_record.csv", "pruned_record.csv"


class RunPaths:
    """Paths of the files in ``folder`` of the run with this name."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self.checkpoint = folder / f"{run}{CHECKPOINT}"
        self.best = folder / f"{run}model_best.pth.tar"
        self.log = folder / f"{run}{LOG}"
        self.record = folder / (REFINED if run.endswith("_refine") else TRAINED)
        self.lock = folder / f"{run}{LOCK}"
        self.plot = folder / f"{run}plot"  # without the suffix of the format

    @property
    def refined(self) -> "RunPaths":
        """Paths of the fine-tuning of this run's pruned model."""
        return RunPaths(self.folder, f"{self.run}_refine")

    def pruned(self, name: str | None = None) -> Path:
        """Path of this run's pruned model, or of the one that is called ``name``."""
        return self.folder / f"{f'{self.run}_' if name is None else name}pruned.pth.tar"

    def output(self, stage: str) -> Path:
        """Path for the output of a command of an experiment."""
        return self.folder / f"{self.run}{stage}.out"


def runs_in(folder: Path) -> set[str]:
    """Returns the names of the runs that have a checkpoint, a log or a lock in ``folder``."""
    suffixes = CHECKPOINT, LOG, LOCK
    return {path.name.removesuffix(s) for s in suffixes for path in folder.glob(f"*{s}")}


def run_name_of(checkpoint: Path) -> str:
    """Returns the run name in the name of a checkpoint, or a file's name without its suffix."""
    return checkpoint.name.removesuffix(".tar").removesuffix(".pth").removesuffix("checkpoint")


def pruned_name_of(pruned: Path) -> str:
    """Returns the name of the pruned model in this file."""
    return run_name_of(pruned).removesuffix("pruned").removesuffix("_")
