"""Names of the files of runs and prunings. No other module spells them."""

import os
from pathlib import Path

DEFAULT_FOLDER = "logs"
CHECKPOINT, BEST, LOG, LOCK = "checkpoint.pth.tar", "model_best.pth.tar", "log.csv", ".lock"
TRAINED, REFINED, PRUNED = "train_record.csv", "refine_record.csv", "pruned_record.csv"


class RunPaths:
    """Paths of the files of the run with this name, which has a directory in ``folder``."""

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run, self.directory = folder, run, folder / run
        self.checkpoint, self.best = self.directory / CHECKPOINT, self.directory / BEST
        self.log, self.lock = self.directory / LOG, self.directory / LOCK
        self.record = folder / (REFINED if run.endswith("_refine") else TRAINED)
        self.plot = self.directory / "plot"  # without the suffix of the format

    def pruned(self, name: str = "pruned") -> Path:
        """Path of the run's pruned model called ``name``."""
        return self.directory / f"{name}.pth.tar"

    def output(self, stage: str) -> Path:
        """Path of the printed output of an experiment's ``stage``: train, prune or refine."""
        return self.directory / f"{stage}.out"

    def recorded(self, path: Path) -> str:
        """Returns ``path`` as records have it: relative to the folder."""
        return Path(os.path.relpath(path, self.folder)).as_posix()


def runs_in(folder: Path) -> set[str]:
    """Returns the names of the runs that have a checkpoint, a log or a lock in ``folder``."""
    return {p.parent.name for name in (CHECKPOINT, LOG, LOCK) for p in folder.glob(f"*/{name}")}


def run_name_of(checkpoint: Path) -> str:
    """Returns the name of a checkpoint's directory, or another file's name without its suffix."""
    if checkpoint.name in (CHECKPOINT, BEST):
        return checkpoint.absolute().parent.name
    return _stem(checkpoint).removesuffix("checkpoint")


def locate(path: Path, run: str | None) -> tuple[RunPaths, str]:
    """Returns the paths of the run of the checkpoint at ``path``, and its name in the run.

    ``run`` is the run's name in the file; a directory that was renamed is known by its log. Files
    of earlier versions begin with the run's name, and lie beside its directory. Files of other
    programs have no run: theirs is the folder itself.
    """
    stem, directory = _stem(path), Path(os.path.abspath(path)).parent
    if run and (directory.name == run or (directory / LOG).exists()):
        return RunPaths(Path(os.path.normpath(path.parent / "..")), directory.name), stem
    if run and stem.startswith(run):
        return RunPaths(path.parent, run), stem.removeprefix(run).strip("_")
    return RunPaths(path.parent, ""), stem


def is_same_file(one: str, other: str) -> bool:
    """Whether two paths, from different folders, end alike as far as both go."""
    parts = reversed(Path(one).parts), reversed(Path(other).parts)
    return bool(one and other) and all(a == b for a, b in zip(*parts, strict=False))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".tar").removesuffix(".pth")
