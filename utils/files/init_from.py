"""The checkpoint that a run resumes or starts from, and the settings that follow from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models import check_size, torchvision_models
from utils.console import InputError, note
from utils.data.datasets import DATASETS, IMAGENET_NORM, Dataset, Norm, normalisation
from utils.files import records
from utils.files.checkpoint import Checkpoint, load, sha256
from utils.files.paths import DEFAULT_FOLDER, RunPaths, locate
from utils.flags.config import FLAGS, Config
from utils.flags.parser import resolve
from utils.shell import format_command, path_argument

# Settings that a run takes from its checkpoint if they are not on the command line.
DATA_SETTINGS = "dataset data normalise no_flip stream subset test_subset seed".split()


@dataclass(frozen=True)
class InitFrom:
    """The checkpoint that a run resumes (``resumes``) or starts from, if any."""

    path: Path | None = None
    checkpoint: Checkpoint | None = None
    resumes: bool = False

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> "InitFrom":
        """Loads the file of ``--resume PATH``, ``--refine``, ``--init`` or ``--evaluate``."""
        resume = flags.get("resume")
        if resume not in (None, "auto"):
            checkpoint = load(Path(resume))
            if checkpoint.why_not_resumable:
                raise InputError(f"{resume} cannot be resumed: {checkpoint.why_not_resumable}")
            return cls(Path(resume), checkpoint, resumes=True)
        path = flags.get("refine", flags.get("init", flags.get("evaluate")))
        if path is None:
            return cls()
        checkpoint = load(Path(path), flags.get("arch"))
        if "init" in flags and not checkpoint.network.is_full:
            own = checkpoint.config is not None
            way = "use --refine instead of --init" if own else "load it by netslim.load in Python"
            raise InputError(f"{path} is a pruned model: {way}")
        return cls(Path(path), checkpoint)

    def latest(self, flags: Mapping[str, Any]) -> "InitFrom":
        """Returns the newest checkpoint for ``--resume``, or self if there is none.

        Call it with the run's lock: another process may have trained since the file was loaded.
        """
        if self.resumes:
            return InitFrom.from_flags(flags)
        if flags.get("resume") != "auto":
            return self
        latest = latest_checkpoint(self.paths(flags, self.config(flags)))
        if latest is None:
            return self
        path, checkpoint = latest
        if self.checkpoint and self.checkpoint.network.all_widths != checkpoint.network.all_widths:
            raise InputError(
                f"{path} is the fine-tuning of another model than {self.path}: move it away, or"
                " give this run another --name"
            )
        note(f"resuming from {path}")
        return InitFrom(path, checkpoint, resumes=True)

    def config(self, flags: Mapping[str, Any]) -> Config:
        """Returns the run's config. Raises InputError if ``flags`` contradict the checkpoint."""
        if self.checkpoint is None or self.path is None:
            return resolve(flags, None, {})
        inherited = config_from_checkpoint(self.checkpoint, flags, self.path)
        if self.resumes:
            if self.checkpoint.config is None and "start_epoch" in flags:
                raise InputError(f"{self.path} has its epoch: leave out --start-epoch")
            return resolve(flags, self.checkpoint.config, inherited)
        config = resolve(flags, None, inherited)
        if "name" in flags or config.refine is None:
            return config
        # A fine-tuning is named after the pruned model: a run may have several.
        model = config.run_name.removeprefix(config.name).removesuffix("_refine")
        files, file_name = locate(self.path, self.checkpoint.run_name)
        added = file_name.removesuffix("checkpoint").removesuffix("pruned").strip("_")
        name = "_".join(filter(None, (files.run, added))).replace(model, "", 1) or config.name
        if not FLAGS["name"].accepts(name):
            raise InputError(f"a run cannot be named after {self.path}: add --name")
        return replace(config, name=name)

    def init_checksum(self) -> str | None:
        """Returns the SHA-256 of the file with the run's initial weights, if any."""
        if self.resumes and self.checkpoint is not None:
            return self.checkpoint.init_checksum
        return None if self.path is None else sha256(self.path)

    def norm(self, config: Config) -> Norm | None:
        """Returns the normalisation to keep when resuming, fine-tuning or evaluating."""
        if self.checkpoint is None or not (self.resumes or config.init is None):
            return None
        return self.checkpoint.norm

    def notes(self, data: Dataset) -> Iterator[str]:
        """Yields how the normalisation of ``data`` compares with that of the initial weights."""
        norm = None if self.resumes or self.checkpoint is None else norm_of(self.checkpoint)
        if norm is not None:
            same = "as" if norm == data.norm else "otherwise than"
            yield f"note: images are normalised {same} those that {self.path} was trained on"

    def paths(self, flags: Mapping[str, Any], config: Config) -> RunPaths:
        """Returns the paths of the run: beside the run that it resumes or fine-tunes, else logs."""
        folder = Path(DEFAULT_FOLDER)
        if self.path is not None and self.checkpoint is not None and "init" not in flags:
            folder = locate(self.path, self.checkpoint.run_name)[0].folder
        return RunPaths(Path(flags.get("save", folder)), config.run_name)


def norm_of(checkpoint: Checkpoint) -> Norm | None:
    """Returns the normalisation of the images that the weights were trained on, None if unknown."""
    torchvision = checkpoint.network.arch in torchvision_models.DEPTHS
    own_weights = torchvision and checkpoint.config is None  # of torchvision, trained on ImageNet
    return checkpoint.norm or (IMAGENET_NORM if own_weights else None)


def config_from_checkpoint(
    checkpoint: Checkpoint, flags: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Returns the settings of the model and data of the checkpoint at ``path``.

    Raises InputError: ``flags`` contradict them.
    """
    stored = {} if checkpoint.config is None else checkpoint.config.to_dict()
    values = {key: stored[key] for key in DATA_SETTINGS if stored.get(key) is not None}
    network = checkpoint.network
    values |= {"arch": network.arch, "depth": network.depth, "size": network.size}
    try:
        check_size(network.arch, flags.get("size", network.size))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if "init" in flags:  # inherits the architecture, and the images if the data set is the same
        same = flags.get("dataset") in (None, values.get("dataset"))
        names = ("arch", "depth", *(("dataset", "data", "normalise") if same else ()))
        values = {key: values[key] for key in names if key in values}
    for key in ("arch", "depth", "dataset"):
        if None not in (flags.get(key), values.get(key)) and flags[key] != values[key]:
            raise InputError(f"{path} has {key} {values[key]}, not {flags[key]}")
    if (norm := norm_of(checkpoint)) is not None:
        dataset = flags.get("dataset", values.get("dataset", DATASETS[0]))
        values.setdefault("normalise", normalisation(norm, dataset))
    data = values.get("data")
    if data is not None and flags.get("data") is None and not Path(data).is_dir():
        raise InputError(
            f"{path} was trained on images in {data}, which does not exist: add --data"
        )
    return values


def latest_checkpoint(files: RunPaths) -> tuple[Path, Checkpoint] | None:
    """Returns the run's readable and resumable checkpoint of the latest epoch, if any."""
    loaded = []
    for path in filter(Path.exists, (files.checkpoint, files.best)):
        try:
            checkpoint = load(path)
        except InputError as error:
            note(f"note: passed over: {error}")
        else:
            if not checkpoint.why_not_resumable:
                loaded.append((path, checkpoint))
    return max(loaded, key=lambda pair: pair[1].epoch or 0, default=None)


def check_not_overwriting(files: RunPaths, resumed: Path | None) -> None:
    """Raises InputError if a run would overwrite another one's files, or cannot append to its own.

    ``resumed`` is the checkpoint that the run resumes, if any.
    """
    existing = [path for path in (files.checkpoint, files.best) if path.exists()]
    if existing and not (resumed and any(resumed.samefile(path) for path in existing)):
        resume = format_command("main.py", "--resume", path_argument(existing[0]))
        raise InputError(
            f"{existing[0]} exists already: resume it with {resume}; if it is damaged or another"
            " run, move it away or give this run another --name"
        )
    records.read(files.log, ("epoch",))
    records.read(files.record, ("run",))
