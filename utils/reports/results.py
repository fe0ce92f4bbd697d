"""What the record files in a folder say of every run: trained, pruned, fine-tuned."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from models import display_name, size_of
from utils.arguments import Flag
from utils.console import InputError
from utils.data.datasets import TORCHVISION
from utils.files import paths, records
from utils.files.records import Row
from utils.flags.config import BEGINS, CORE_FLAGS, FLAGS, Config
from utils.methods import METHODS
from utils.paper import published

# What a table shows of a run, and where it stands. Compression is in the paper's accounting;
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
ARCHITECTURES = {
    "vgg": "VGG",
    "densenet": "DenseNet",
    "resnet": "ResNet",
    "resnet-basic": "ResNet-basic",
}
# Methods in the order of tables: the paper's, then others.
ORDER = [*dict.fromkeys([*published.METHODS.values(), *METHODS])]
# What is read of the records, beside the settings. All but run, mask and model are numbers.
TRAINED = "run channels gamma_zeros test_accuracy seconds_per_epoch".split()
PRUNED = (
    "run mask model channels channels_kept channels_pruned_percent paper_parameters_pruned_percent"
    " paper_flops_pruned_percent accuracy_before accuracy_slim"
).split()
# Where the rows of a training and of a pruning of its final checkpoint, on its own test pictures,
# are the same.
SHARED = ("run", "checksum", "test_pictures")
# What pictures a run saw: columns of its record, and flags.
PICTURES = ("source", "pictures", "test_pictures")
PICTURE_FLAGS = ("dataset", "size", "subset", "test_subset")
# The flags of a pruning, by column of its record.
HOW = {"mask": "--mask", "target_flops": "--target-flops", "target_params": "--target-params",
       "percent": "--percent", "criterion": "--criterion", "adjust": "--adjust"}  # fmt: skip
Options = tuple[tuple[str, Any], ...]  # flags by name, and their values


class ExperimentKey(NamedTuple):
    """What runs must share to be compared. ``terms`` are to be read: how they trained."""

    arch: str
    depth: int
    dataset: str
    terms: tuple[str, ...]

    @property
    def network(self) -> str:
        return display_name(ARCHITECTURES.get(self.arch, self.arch), self.depth)


class MethodVariant(NamedTuple):
    """A method and its flags, but for defaults that are the same for all networks."""

    method: str
    options: Options
    precision: str = ""  # where there are runs of several: see grouped


def format_options(told: Options) -> list[str]:
    """As they are typed."""
    return [" ".join(FLAGS[name].to_argv(value)) for name, value in told if value is not None]


def pruning_flags(pruning: Row) -> list[str]:
    """What of a pruning's command says what goes."""
    return [f"{word} {pruning[name]}" for name, word in HOW.items() if pruning.get(name)]


def experiment_of(settings: Config, row: Row | None = None) -> tuple[ExperimentKey, MethodVariant]:
    """What runs must share to be averaged: the values of all flags that are compared, the pictures.

    And the precision, which the paper's do not name: see :func:`grouped`. ``row`` is a run's in the
    record. Without it, or where it names none, the pictures are those of the public data set, whose
    files' MD5 were compared.
    """
    s, known = settings, settings.to_dict()

    def told(flags: Iterable[Flag]) -> Options:
        compared = (flag for flag in flags if flag.in_experiment_key)
        return tuple((f.name, known[f.name]) for f in compared if known[f.name] != f.default)

    apart = ("arch", "depth", "dataset", "size", "epochs", "method", *BEGINS)
    others = format_options(told(flag for flag in CORE_FLAGS.values() if flag.name not in apart))
    others += [] if s.size == size_of(s.arch) else CORE_FLAGS["size"].to_argv(s.size)
    source, checksum, tested = ((row or {}).get(column) for column in PICTURES)
    own = []
    if checksum and source != TORCHVISION:
        own = [f"{source or 'pictures'} {checksum}", *([f"tested on {tested}"] if tested else [])]
    # Each normalises its own part of a batch.
    several = (row or {}).get("processes") or "1"
    own += [f"{several} processes"] if several != "1" else []
    terms = f"{s.epochs} epoch{'s' * (s.epochs > 1)}", *others, *own
    # Where it began is the training's, and not the fine-tuning's.
    own_flags = [*METHODS[s.method].flags, *(CORE_FLAGS[name] for name in BEGINS)]
    variant = MethodVariant(s.method, told(own_flags))
    return ExperimentKey(s.arch, s.depth, s.dataset, terms), variant


def paper_config(table: published.Table, row: Sequence[str], dataset: str) -> Config | None:
    """Those that a row of the paper's is about: the defaults. None where it is about no run."""
    method, (arch, depth) = table.method(row), published.NETWORKS[row[0]]
    if method is None or not dataset:
        return None
    return Config.from_dict({"arch": arch, "depth": depth, "dataset": dataset, "method": method})


@dataclass(frozen=True)
class Training:
    """A finished training: what it was told, and its line in the record."""

    config: Config
    row: Row

    @property
    def experiment(self) -> tuple[ExperimentKey, MethodVariant]:
        return experiment_of(self.config, self.row)


@dataclass(frozen=True)
class Result(Training):
    """A training, all prunings of its final checkpoint, and the fine-tunings of these."""

    prunings: Sequence[Row]
    finetunings: Sequence[Training]

    def refined(self, pruning: Row) -> list[Training]:
        """The fine-tunings of what a ``pruning`` left, as file, its checksum and width tell."""
        alike = (row for row in self.prunings if row["model"] == pruning["model"])
        written = {
            row.get("slim_checksum", "")
            for row in alike
            if pruning_flags(row) == pruning_flags(pruning)
        }
        return [
            refine
            for refine in self.finetunings
            if Path(refine.config.refine or "").name == pruning["model"]
            and float(refine.row["channels"]) == float(pruning["channels_kept"])
            and ("" in written or refine.row.get("init_checksum", "") in {*written, ""})  # older
        ]

    def otherwise(self, refine: Training) -> list[str]:
        """What ``refine``, a fine-tuning, has otherwise than the training, but for the penalty."""
        # What a group of processes trained is fine-tuned by however many.
        row = refine.row | {"processes": self.row.get("processes", "")}
        (group, variant), own = experiment_of(refine.config, row), self.experiment[0]
        terms, before = ([f"on {g.dataset}", *g.terms] for g in (group, own))
        flags = {term.partition(" ")[0] for term in terms}
        gone = (t for t in before if t.startswith("-") and t.partition(" ")[0] not in flags)
        found = [t for t in terms if t not in before] + [f"without {term}" for term in gone]
        if group != own and not found:
            found.append("on pictures that its record does not name")
        if METHODS[variant.method].prunes():
            found.append(f"with a penalty, --method {variant.method}")
        precision = refine.config.precision
        return [*found, *([precision] if precision != self.config.precision else [])]

    def sees(self, settings: Config, row: Row) -> bool:
        """Whether a training with these, as far as they say, saw the same pictures as this one."""
        same = all(getattr(self.config, n) == getattr(settings, n) for n in PICTURE_FLAGS)
        known = ((self.row.get(column), row.get(column)) for column in PICTURES)
        return same and all(a == b for a, b in known if a and b)

    def tuning(self, pruning: Row | None, exactly: bool = True) -> Training | None:
        """The last of them that went as the training did, but for the penalty: section 5.2's.

        Where there is none and that need not be ``exactly`` so, the last on the same pictures and
        without a penalty.
        """
        refines = self.refined(pruning)[::-1] if pruning else []
        alike = [refine for refine in refines if not self.otherwise(refine)]
        if not (alike or exactly):
            alike = [
                refine
                for refine in refines
                if self.sees(refine.config, refine.row)
                and not METHODS[refine.config.method].prunes()
            ]
        return next(iter(alike), None)

    def tuned(self, pruning: Row | None, exactly: bool = True) -> Row | None:
        """The row of :meth:`tuning`."""
        tuning = self.tuning(pruning, exactly)
        return tuning.row if tuning else None

    def pruning(self, share: float | None = None, target: float | None = None) -> Row | None:
        """The last pruning by the method's mask: near a ``share``, or to a ``target``; or any, but
        at percent 0 where the method needs no other and there is one.

        Where a share is chosen, the last that was fine-tuned. ``share`` is in percent of the
        channels, ``target`` of the FLOPs. By |γ|, and without a floor for every layer.
        """
        own = METHODS[self.config.method]
        plain = ("", "gamma"), ("", "0.0")
        fits = [
            row
            for row in self.prunings
            if row["mask"] == own.pruned_by
            and row.get("criterion", "") in plain[0]
            and row.get("adjust", "") in plain[1]
        ]

        def at(column: str, percent: float, apart: float) -> list[Row]:
            cells = ((row, float(row.get(column) or "nan")) for row in fits)
            return [row for row, cell in cells if abs(100 * cell - percent) < apart]

        if target is not None:
            fits = at("target_flops", target, 1e-3)
        elif share is not None:
            fits = at("percent", share, 0.5)
        elif own.prune_flags == ():
            fits = at("percent", 0, 1e-9) or fits
        if own.prune_flags:
            exact, other = (
                [r for r in fits if self.tuned(r, exactly)] for exactly in (True, False)
            )
            fits = exact or other or fits
        return fits[-1] if fits else None

    def value(
        self, quantity: str, share: float | None = None, exactly: bool = True
    ) -> float | None:
        """One of QUANTITIES, None where the run did not come so far.

        ``share``: see :meth:`pruning`; ``exactly``: see :meth:`tuning`.
        """
        kind, column = QUANTITIES[quantity]
        pruning = self.pruning(share)
        if quantity == "trained" and pruning:  # as the other two are measured: in float32
            kind, column = "prune", "accuracy_before"
        tuned = self.tuned(pruning, exactly)
        row = {"train": self.row, "prune": pruning, "refine": tuned}[kind]
        return float(row[column]) if row else None


Groups = Mapping[ExperimentKey, Mapping[MethodVariant, Sequence[Result]]]


def load(folder: Path) -> list[Result]:
    """All finished trainings in the record files of ``folder``; of a run's repetitions, the last.

    Raises InputError where the folder is missing, or a record is foreign or damaged.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give the one that --save named")
    trained, refined = (trainings(folder / name) for name in (paths.TRAINED, paths.REFINED))
    prunings = records.read(folder / paths.PRUNED, PRUNED, ("percent", *PRUNED[3:]))
    found = []
    for training in trained:
        own = [row for row in prunings if _shared(row) == _shared(training.row)]
        made = {row["model"] for row in own}
        of_run = paths.RunPaths(folder, training.row["run"]).refined.run
        refines = [
            each
            for each in refined
            if each.row["run"] == of_run or Path(each.config.refine or "").name in made
        ]
        found.append(Result(training.config, training.row, own, refines))
    return found


def _shared(row: Row) -> list[str]:
    return [row.get(column) or "" for column in SHARED]


def trainings(path: Path) -> list[Training]:
    """Those in a record, without what was repeated later."""
    told = [name for name, flag in CORE_FLAGS.items() if flag.default]
    found: dict[Hashable, Training] = {}
    for row in records.read(path, (*TRAINED, *told), TRAINED[1:]):
        try:
            training = Training(Config.from_row(row), row)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: the settings of {row['run']} are damaged or missing ({error}); mend them"
                " or move the file away"
            ) from None
        settings = training.config
        same = row["run"], settings.seed, settings.precision, training.experiment
        found.pop(same, None)  # the later one stands where it was made
        found[same] = training
    return list(found.values())


def grouped(found: Iterable[Result]) -> Groups:
    """Runs by what they must share; of those that share all, one for each seed, in order.

    Where they are of several precisions, each variant says its own. Variants stand in the order of
    tables, small values first.
    """
    found = list(found)
    groups: dict[ExperimentKey, dict[MethodVariant, dict[int, Result]]] = {}
    several = len({result.config.precision for result in found}) > 1
    for result in found:
        group, variant = result.experiment
        if several:
            variant = variant._replace(precision=result.config.precision)
        groups.setdefault(group, {}).setdefault(variant, {})[result.config.seed] = result

    def place(item: tuple[MethodVariant, object]) -> tuple[Any, ...]:
        method, options, precision = item[0]
        values = [(name, value is not None, value) for name, value in options]
        return ORDER.index(method), values, precision

    return {
        group: {
            variant: [runs[seed] for seed in sorted(runs)]
            for variant, runs in sorted(variants.items(), key=place)
        }
        for group, variants in groups.items()
    }
