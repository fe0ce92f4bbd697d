"""Trainings, prunings and fine-tunings, read from the record files of a folder."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from models import display_name, size_of
from utils.arguments import Flag
from utils.console import InputError
from utils.data.datasets import TORCHVISION
from utils.files import paths, records
from utils.files.records import Row
from utils.flags.config import CORE_FLAGS, FLAGS, START_FLAGS, Config
from utils.methods import METHODS
from utils.paper import published

# The record and the column of every quantity in a table. Compression is in the paper's accounting;
# accuracies are those of the final checkpoint, in percent.
QUANTITIES = {
    "train_seconds": ("train", "seconds_per_epoch"),
    "tune_seconds": ("refine", "seconds_per_epoch"),
    "zeros": ("train", "gamma_zeros"),
    "channels": ("prune", "channels_pruned_percent"),
    "parameters": ("prune", "paper_parameters_pruned_percent"),
    "flops": ("prune", "paper_flops_pruned_percent"),
    "trained": ("train", "test_accuracy"),
    "pruned": ("prune", "accuracy_slim"),
    "tuned": ("refine", "test_accuracy"),
}
TITLES = {"densenet": "DenseNet", "resnet": "ResNet", "resnet-basic": "ResNet-basic", "vgg": "VGG"}
METHOD_ORDER = [*dict.fromkeys([*published.METHODS.values(), *METHODS])]  # of lines in a table
# Required columns of the records, besides the settings. All but run, mask and model are numbers.
TRAINED = "run channels gamma_zeros test_accuracy seconds_per_epoch".split()
PRUNED = (
    "run mask model channels channels_kept channels_pruned_percent paper_parameters_pruned_percent"
    " paper_flops_pruned_percent accuracy_before accuracy_slim"
).split()
# Columns that match a pruning to the training whose final checkpoint it pruned and evaluated.
JOIN_KEYS = ("run", "checksum", "test_pictures")
# Columns and settings that identify the images of a run.
IMAGE_COLUMNS = ("source", "pictures", "test_pictures")
IMAGE_FLAGS = ("dataset", "size", "subset", "test_subset")
# Columns of a pruning's record that are flags of its command.
PRUNE_FLAGS = "mask target_flops target_params percent criterion adjust".split()
PaperKey = tuple[str, int, str, str]  # architecture, depth, data set and method


class ExperimentKey(NamedTuple):
    """Settings that runs must share to be compared; ``terms`` are the others, as text."""

    arch: str
    depth: int
    dataset: str
    terms: tuple[str, ...] = ()

    @property
    def network(self) -> str:
        return display_name(TITLES.get(self.arch, self.arch), self.depth)

    @property
    def task(self) -> str:
        """Network and data set, e.g. "VGG-19 on cifar10"."""
        return f"{self.network} on {self.dataset}"


class MethodVariant(NamedTuple):
    """A method, its options that are not fixed defaults, and the precision of the training."""

    method: str
    options: tuple[tuple[str, Any], ...]  # (name of a flag, value) pairs
    precision: str

    @property
    def settings(self) -> str:
        return " ".join([*_format_options(self.options), self.precision])


def _format_options(options: Iterable[tuple[str, Any]]) -> list[str]:
    return [" ".join(FLAGS[name].to_argv(value)) for name, value in options if value is not None]


def pruning_flags(pruning: Row) -> str:
    """The flags that chose the removed channels of a pruning."""
    used = [name for name in PRUNE_FLAGS if pruning.get(name)]
    return " ".join(f"--{name.replace('_', '-')} {pruning[name]}" for name in used)


def experiment_of(config: Config, row: Row | None = None) -> tuple[ExperimentKey, MethodVariant]:
    """The key and the method variant of a run with these settings and this row of a record.

    Without a row, or where it names no images, the images are those of the public data set.
    """
    values, row = config.to_dict(), row or {}

    def non_default(flags: Iterable[Flag]) -> tuple[tuple[str, Any], ...]:
        compared = (flag for flag in flags if flag.in_experiment_key)
        return tuple((f.name, values[f.name]) for f in compared if values[f.name] != f.default)

    separate = ("arch", "depth", "dataset", "size", "epochs", "method", *START_FLAGS)
    terms = [f"{config.epochs} epoch{'s' * (config.epochs > 1)}"]
    terms += _format_options(non_default(f for f in CORE_FLAGS.values() if f.name not in separate))
    terms += [f"--size {config.size}"] if config.size != size_of(config.arch) else []
    source, checksum, test_checksum = (row.get(column) for column in IMAGE_COLUMNS)
    if checksum and source != TORCHVISION:
        terms.append(f"{source or 'images'} {checksum}")
        terms += [f"evaluated on {test_checksum}"] if test_checksum else []
    processes = row.get("processes") or "1"  # each normalises its own part of a batch
    terms += [f"{processes} processes"] if processes != "1" else []
    start_flags = (CORE_FLAGS[name] for name in START_FLAGS)
    options = non_default([*METHODS[config.method].flags, *start_flags])
    key = ExperimentKey(config.arch, config.depth, config.dataset, tuple(terms))
    return key, MethodVariant(config.method, options, config.precision)


@dataclass(frozen=True, eq=False)
class Result:
    """A finished training or fine-tuning: its settings and its row of the record.

    ``prunings`` are those of its final checkpoint, ``finetunings`` start from one of these.
    """

    config: Config
    row: Row
    prunings: Sequence[Row] = ()
    finetunings: Sequence["Result"] = ()

    @cached_property
    def experiment(self) -> tuple[ExperimentKey, MethodVariant]:
        return experiment_of(self.config, self.row)

    @property
    def paper_key(self) -> PaperKey:
        return self.config.arch, self.config.depth, self.config.dataset, self.config.method

    @cached_property
    def has_paper_settings(self) -> bool:
        """Whether all settings but the precision are the defaults, which are the paper's."""
        names = ("arch", "depth", "dataset", "method", "precision")
        default = Config.from_dict({name: getattr(self.config, name) for name in names})
        return self.experiment == experiment_of(default)

    def finetunings_of(self, pruning: Row) -> list["Result"]:
        """The fine-tunings of a pruning's file, matched by its name, checksum and width."""
        own = pruning["model"], pruning_flags(pruning)
        repeated = (row for row in self.prunings if (row["model"], pruning_flags(row)) == own)
        checksums = {row.get("slim_checksum", "") for row in repeated}
        return [
            t
            for t in self.finetunings
            if paths.is_same_file(t.config.refine or "", pruning["model"])
            and float(t.row["channels"]) == float(pruning["channels_kept"])
            and ("" in checksums or t.row.get("init_checksum", "") in {*checksums, ""})  # older
        ]

    def differences(self, finetuning: "Result") -> list[str]:
        """Settings of a fine-tuning that differ from the training's, the penalty left aside."""
        own, other = self.config.to_dict(), finetuning.config.to_dict()
        texts = []
        for name, flag in CORE_FLAGS.items():
            compared = flag.in_experiment_key or name == "precision"
            if compared and name not in ("method", *START_FLAGS) and own[name] != other[name]:
                words = [] if other[name] is None else flag.to_argv(other[name])
                texts.append(" ".join(words) or f"without {flag.option_strings[-1]}")
        if not self.same_images(finetuning):
            texts.append("other images")
        if METHODS[finetuning.config.method].prunes():
            texts.append(f"with a penalty, --method {finetuning.config.method}")
        return texts

    def same_images(self, finetuning: "Result") -> bool:
        """Whether a fine-tuning had the training's images, as far as recorded."""
        own, other = ([getattr(t.config, n) for n in IMAGE_FLAGS] for t in (self, finetuning))
        checksums = ((self.row.get(name), finetuning.row.get(name)) for name in IMAGE_COLUMNS)
        return own == other and all(a == b for a, b in checksums if a and b)

    def finetuning(self, pruning: Row | None, exact: bool = True) -> "Result | None":
        """The latest fine-tuning of ``pruning`` with the training's settings but the penalty.

        If there is none and not ``exact``, the latest one on the same images without a penalty.
        """
        latest_first = self.finetunings_of(pruning)[::-1] if pruning else []
        found = [t for t in latest_first if not self.differences(t)]
        if not exact:
            unpenalised = (t for t in latest_first if not METHODS[t.config.method].prunes())
            found += filter(self.same_images, unpenalised)
        return next(iter(found), None)

    def pruning(self, share: float | None = None, target: float | None = None) -> Row | None:
        """The latest pruning by the method's own mask and |γ|, without a floor for each layer.

        Args:
            share: percent of the channels removed.
            target: percent of the FLOPs to be removed. With neither: any, but preferably at
                percent 0, or for methods that need a ratio one that was fine-tuned.
        """
        method = METHODS[self.config.method]
        rows = [
            row
            for row in self.prunings
            if row["mask"] == method.pruned_by
            and row.get("criterion", "") in ("", "gamma")
            and row.get("adjust", "") in ("", "0.0")
            and not any(map(row.get, ("keep", "skip", "round_to", "engine")))
        ]

        def near(column: str, percent: float, tolerance: float) -> list[Row]:
            values = ((row, float(row.get(column) or "nan")) for row in rows)
            return [row for row, value in values if abs(100 * value - percent) < tolerance]

        if target is not None:
            rows = near("target_flops", target, 1e-3)
        elif share is not None:
            rows = near("percent", share, 0.5)
        elif method.prune_flags == ():
            rows = near("percent", 0, 1e-9) or rows
        if method.prune_flags:
            exact, other = ([r for r in rows if self.finetuning(r, e)] for e in (True, False))
            rows = exact or other or rows
        return rows[-1] if rows else None

    def values(self, share: float | None = None, exact: bool = True) -> dict[str, float]:
        """Returns {quantity: value} for those QUANTITIES whose stage was run.

        ``share`` selects the :meth:`pruning`, ``exact`` the :meth:`finetuning`.
        """
        pruning = self.pruning(share)
        tuning = self.finetuning(pruning, exact)
        stages = {"train": self.row, "prune": pruning, "refine": tuning.row if tuning else None}
        found = {
            quantity: float(row[column])
            for quantity, (record, column) in QUANTITIES.items()
            if (row := stages[record])
        }
        if pruning:  # evaluated in float32, as after pruning
            found["trained"] = float(pruning["accuracy_before"])
        return found


Groups = dict[tuple[ExperimentKey, MethodVariant], list[Result]]


def quantities_of(
    runs: Iterable[Result], share: float | None = None, exact: bool = True
) -> dict[str, list[float]]:
    """Each of QUANTITIES for all runs that have it: see :meth:`Result.values`."""
    found = [run.values(share, exact) for run in runs]
    return {name: [values[name] for values in found if name in values] for name in QUANTITIES}


def load(folder: Path) -> list[Result]:
    """All finished trainings recorded in ``folder``: see :func:`read_records`."""
    return read_records(folder)[0]


def read_records(folder: Path) -> tuple[list[Result], list[Result]]:
    """All finished trainings, and all finished fine-tunings, of repeated runs the latest.

    Raises InputError: ``folder`` does not exist, or a record is damaged or another program's.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give the one that --save named")
    trained, tuned = (_trainings(folder / name) for name in (paths.TRAINED, paths.REFINED))
    prunings = records.read(folder / paths.PRUNED, PRUNED, ("percent", *PRUNED[3:]))

    def joined(run: Result) -> Result:
        key = [run.row.get(name, "") for name in JOIN_KEYS]
        own = [row for row in prunings if [row.get(name, "") for name in JOIN_KEYS] == key]
        found = [
            t
            for t in tuned
            if t.row["run"] == f"{run.row['run']}_refine"
            or any(paths.is_same_file(t.config.refine or "", row["model"]) for row in own)
        ]
        return replace(run, prunings=own, finetunings=found)

    return list(map(joined, trained)), list(map(joined, tuned))


def _trainings(path: Path) -> list[Result]:
    """The trainings in a record; of repeated ones the latest."""
    required = [name for name, flag in CORE_FLAGS.items() if flag.default]
    latest: dict[Hashable, Result] = {}
    for row in records.read(path, (*TRAINED, *required), TRAINED[1:]):
        try:
            training = Result(Config.from_row(row), row)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: the settings of {row['run']} are damaged or missing ({error}): correct"
                " them or move the file away"
            ) from None
        config = training.config
        key = row["run"], config.seed, config.precision, training.experiment
        latest.pop(key, None)  # the order is that of the latest rows
        latest[key] = training
    return list(latest.values())


def group_runs(results: Iterable[Result]) -> Groups:
    """Comparable runs in the order of tables, one for each seed."""
    latest = {(*result.experiment, result.config.seed): result for result in results}
    keys = list(dict.fromkeys(key for key, *_ in latest))

    def order(run: tuple[ExperimentKey, MethodVariant, int]) -> tuple[Any, ...]:
        key, variant, seed = run
        options = [(name, value is not None, value) for name, value in variant.options]
        place = keys.index(key), METHOD_ORDER.index(variant.method)
        return *place, options, variant.precision, seed

    groups = defaultdict[tuple[ExperimentKey, MethodVariant], list[Result]](list)
    for key, variant, seed in sorted(latest, key=order):
        groups[key, variant].append(latest[key, variant, seed])
    return groups
