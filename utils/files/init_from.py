"""The checkpoint that a training goes on with or starts from, and what need not be said again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models import check_size
from models.torchvision_models import DEPTHS as NAMED
from utils.console import InputError, note
from utils.data.datasets import DATASETS, IMAGENET_NORM, Dataset, Norm, is_norm, normalisation
from utils.files import records
from utils.files.checkpoint import Checkpoint, load, sha256
from utils.files.paths import DEFAULT_FOLDER, RunPaths, pruned_name_of
from utils.flags.config import FLAGS, Config
from utils.flags.parser import resolve
from utils.shell import format_command, path_argument


@dataclass(frozen=True)
class InitFrom:
    """A checkpoint that a run goes on with (``resumes``) or starts from, if there is one."""

    path: Path | None = None
    checkpoint: Checkpoint | None = None
    resumes: bool = False

    @classmethod
    def from_flags(cls, given: Mapping[str, Any]) -> "InitFrom":
        """What ``--resume PATH``, ``--refine``, ``--init`` or ``--evaluate`` say."""
        resume = given.get("resume")
        if resume not in (None, "auto"):
            checkpoint = load(Path(resume))
            if checkpoint.why_not_resumable:
                raise InputError(f"{resume} cannot be resumed: {checkpoint.why_not_resumable}")
            return cls(Path(resume), checkpoint, resumes=True)
        path = given.get("refine", given.get("init", given.get("evaluate")))
        start = cls() if path is None else cls(Path(path), load(Path(path), given.get("arch")))
        if "init" in given and start.checkpoint and not start.checkpoint.network.is_full:
            raise InputError(f"{path} is a slim network: --refine is what goes on with it")
        return start

    def latest(self, given: Mapping[str, Any]) -> "InitFrom":
        """This start as the files are now, and ``--resume auto``'s newest checkpoint if any.

        To be called where no other process trains the run: one that did may have gone further since
        this start was read.
        """
        if self.resumes:
            return InitFrom.from_flags(given)
        if given.get("resume") != "auto":
            return self
        found = latest_checkpoint(self.paths(given, self.config(given)))
        if found is None:
            return self
        widths = [c.network.all_widths for c in (self.checkpoint, found[1]) if c]
        if widths[0] != widths[-1]:
            raise InputError(
                f"{found[0]} is the fine-tuning of another network than {self.path}: move it"
                " away, or give this run another --name"
            )
        note(f"going on with {found[0]}")
        return InitFrom(*found, resumes=True)

    def config(self, given: Mapping[str, Any]) -> Config:
        """The run's. Raises InputError where ``given`` contradicts what is known."""
        if self.checkpoint is None or self.path is None:
            return resolve(given, None, {})
        known = config_from_checkpoint(self.checkpoint, given, self.path)
        if self.resumes:
            if self.checkpoint.config is None and "start_epoch" in given:
                raise InputError(f"{self.path} knows its epoch: leave out --start-epoch")
            return resolve(given, self.checkpoint.config, known)
        settings = resolve(given, None, known)
        if "name" in given or settings.refine is None:
            return settings
        # A fine-tuning is named after its file: a run may have several.
        network = settings.run_name.removeprefix(settings.name).removesuffix("_refine")
        name = pruned_name_of(self.path).replace(network, "", 1) or settings.name
        if not FLAGS["name"].accepts(name):
            raise InputError(f"a run cannot be named after {self.path}: give it a --name")
        return replace(settings, name=name)

    def init_checksum(self) -> str | None:
        """SHA-256 of the file that the run's weights began with, None where there was none."""
        if self.resumes and self.checkpoint is not None:
            return self.checkpoint.init_checksum
        return None if self.path is None else sha256(self.path)

    def norm(self, settings: Config) -> Norm | None:
        """How its pictures were normalised, where the run is to go on so."""
        if self.checkpoint is None or not (self.resumes or settings.init is None):
            return None
        return self.checkpoint.norm

    def notes(self, data: Dataset) -> Iterator[str]:
        """How the images of ``data`` are normalised, beside those of the checkpoint's training."""
        norm = None if self.resumes or self.checkpoint is None else norm_of(self.checkpoint)
        if norm is None:
            return
        same = "as" if is_norm(norm, data.norm) else "otherwise than"
        yield f"note: images are normalised {same} those that {self.path} was trained on"

    def paths(self, given: Mapping[str, Any], settings: Config) -> RunPaths:
        folder = DEFAULT_FOLDER if self.path is None else self.path.parent
        return RunPaths(Path(given.get("save", folder)), settings.run_name)


def norm_of(checkpoint: Checkpoint) -> Norm | None:
    """Mean and deviation that its weights were trained with, where that is known."""
    torchvisions = checkpoint.config is None and checkpoint.network.arch in NAMED
    return checkpoint.norm or (IMAGENET_NORM if torchvisions else None)


def config_from_checkpoint(
    checkpoint: Checkpoint, given: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """What the checkpoint at ``path`` knows of its network and data.

    Raises InputError where a flag that was ``given`` contradicts it.
    """
    values = {} if checkpoint.config is None else checkpoint.config.to_dict()
    kept = "dataset data normalise no_flip stream subset test_subset seed".split()
    known = {key: values[key] for key in kept if values.get(key) is not None}
    known |= {"arch": checkpoint.network.arch, "depth": checkpoint.network.depth}
    known["size"] = checkpoint.size
    try:
        check_size(known["arch"], given.get("size", known["size"]))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if "init" in given:  # a run of its own, but for the network and where the same pictures are
        same = given.get("dataset") in (None, known.get("dataset"))
        own = ["arch", "depth", *(("dataset", "data", "normalise") if same else ())]
        known = {key: known[key] for key in own if key in known}
    for key in ("arch", "depth", "dataset"):
        if None not in (given.get(key), known.get(key)) and given[key] != known[key]:
            raise InputError(f"{path} has {key} {known[key]}, not {given[key]}")
    if (norm := norm_of(checkpoint)) is not None:
        dataset = given.get("dataset", known.get("dataset", DATASETS[0]))
        known.setdefault("normalise", normalisation(norm, dataset))
    data = known.get("data")
    if data is not None and given.get("data") is None and not Path(data).is_dir():
        raise InputError(f"{path} was trained on pictures in {data}, which are gone: give --data")
    return known


def latest_checkpoint(files: RunPaths) -> tuple[Path, Checkpoint] | None:
    """The run's checkpoint of the latest epoch that can be read."""
    found = []
    for path in filter(Path.exists, (files.best, files.checkpoint)):
        try:
            checkpoint = load(path)
        except InputError as error:
            note(f"note: passed over: {error}")
        else:
            if not checkpoint.why_not_resumable:
                found.append((path, checkpoint))
    return max(found, key=lambda pair: pair[1].epoch or 0, default=None)


def check_not_overwriting(files: RunPaths, resumed: Path | None) -> None:
    """Raise InputError if a run would overwrite another's files, or cannot go on with its own.

    ``resumed`` is the checkpoint that is resumed, if one is.
    """
    own = (files.checkpoint, files.best)
    there = [path for path in own if path.exists()]
    if there and (resumed is None or resumed.resolve() not in [path.resolve() for path in own]):
        raise InputError(
            f"{there[0]} is there already: go on with it by"
            f" {format_command('main.py', '--resume', path_argument(there[0]))}, or, if it is damaged or another"
            " run, move it away or give this run another --name"
        )
    records.read(files.log, ("epoch",))
    records.read(files.record, ("run",))
