"""What the files are called that runs and prunings leave in a folder. Nothing else spells one."""

from pathlib import Path

DEFAULT_FOLDER = "logs"  # where all files go, unless --save says where
CHECKPOINT, LOG, LOCK = "checkpoint.pth.tar", "log.csv", ".lock"
TRAINED, REFINED, PRUNED = "train_record.csv", "refine_record.csv", "pruned_record.csv"


class RunPaths:
    """Paths of a run's files in ``folder``, which begin with ``run``."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run
        self.checkpoint = folder / f"{run}{CHECKPOINT}"
        self.best = folder / f"{run}model_best.pth.tar"
        self.log = folder / f"{run}{LOG}"
        self.record = folder / (REFINED if run.endswith("_refine") else TRAINED)
        self.lock = folder / f"{run}{LOCK}"
        self.plot = folder / f"{run}plot"  # without its ending: there are several formats

    @property
    def refined(self) -> "RunPaths":
        """Those of the fine-tuning of what was cut out of this run."""
        return RunPaths(self.folder, f"{self.run}_refine")

    def pruned(self, name: str | None = None) -> Path:
        """The slim network cut out of this run, or the one called ``name``."""
        return self.folder / f"{f'{self.run}_' if name is None else name}pruned.pth.tar"

    def output(self, stage: str) -> Path:
        """Where a command prints that runs beside others."""
        return self.folder / f"{self.run}{stage}.out"


def runs_in(folder: Path) -> set[str]:
    """The runs that have a checkpoint or a log there, or are at work."""
    endings = CHECKPOINT, LOG, LOCK
    return {path.name.removesuffix(end) for end in endings for path in folder.glob(f"*{end}")}


def run_name_of(checkpoint: Path) -> str:
    """The run whose checkpoint has this name; of any other file, its name without the ending."""
    return checkpoint.name.removesuffix(".tar").removesuffix(".pth").removesuffix("checkpoint")


def pruned_name_of(slim: Path) -> str:
    """What the slim network in this file is called."""
    return run_name_of(slim).removesuffix("pruned").removesuffix("_")
