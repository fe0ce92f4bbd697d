"""What the record files in a folder say of every run: trained, pruned, fine-tuned."""

import argparse
import csv
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.console import InputError
from utils.data.datasets import PICTURES

Row = dict[str, str]

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
# Names of networks and methods, in the order of tables; other methods follow by their own name.
ARCHITECTURES = {"vgg": "VGG", "densenet": "DenseNet", "resnet": "ResNet"}
METHODS = {"baseline": "Baseline", "subgradient": "Original NS", "proximal": "Proximal NS"}
TRAINED = (
    "run method arch depth dataset seed epochs s beta prox_every channels gamma_zeros test_accuracy"
    " seconds_per_epoch command"
).split()
PRUNED = (
    "run percent channels channels_kept channels_pruned_percent paper_parameters_pruned_percent"
    " paper_flops_pruned_percent accuracy_before accuracy_slim mask"
).split()
LOG = (
    "epoch lr train_loss objective ns_objective test_loss test_accuracy gamma_zeros xi_zeros"
).split()
WORDS = {"run", "method", "arch", "dataset", "prox_every", "command", "mask"}
MAY_BE_EMPTY = {"s", "beta", "prox_every", "percent", "objective", "ns_objective", "xi_zeros"}
# Stands for the flags of a run that was resumed by its checkpoint's name alone, in older records.
UNKNOWN = "further flags unknown (resumed)"
# Flags that change a run and stand in no column of older records, with main.py's defaults.
FLAGS: dict[str, Any] = {
    "subset": None,
    "test_subset": None,
    "batch_size": 64,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
}
XI_INIT = [0.47, 0.5]


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """Rows of the CSV file ``path``, which has ``columns`` and may have more; [] without a file.

    Columns not in WORDS hold numbers. A last line that was cut off by a kill is not there. Raises
    InputError, one line, for any other file.
    """
    rows = []
    try:
        text = path.read_bytes().decode()
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1] or text), strict=True)
        missing = [c for c in columns if c not in (reader.fieldnames or columns)]
        if missing:
            raise InputError(
                f"{path} is none of this program's records: it has no column {missing[0]}"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{where}: not as many cells as columns; mend it")
            for column in columns:
                _check_cell(column, row[column], where)
            rows.append(row)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): move it away") from None
    return rows


def _check_cell(column: str, cell: str, where: str) -> None:
    if column in MAY_BE_EMPTY and not cell:
        return
    try:
        good = bool(cell) if column in WORDS else abs(float(cell)) < 1e30
        if column in ("depth", "epochs", "seed"):
            int(cell)
    except ValueError:
        good = False
    if not good:
        raise InputError(f"{where}: {column} is {cell!r}; mend that line or move the file away")


@dataclass(frozen=True)
class Result:
    """One training, all prunings of its final checkpoint, and its fine-tuning if there is one."""

    train: Row
    prunings: list[Row]
    refine: Row | None
    flags: tuple[str, ...]
    refine_flags: tuple[str, ...] | None  # None where an older record does not tell

    @property
    def setting(self) -> tuple[str, float | None, float | None, str]:
        """Method, λ, β and how often it alternates."""
        s, beta = (float(self.train[key]) if self.train[key] else None for key in ("s", "beta"))
        return self.train["method"], s, beta, self.train["prox_every"]

    @property
    def group(self) -> tuple[str, int, str, int, tuple[str, ...]]:
        """What runs must share to be compared: network, depth, data set, epochs, other flags."""
        t = self.train
        return t["arch"], int(t["depth"]), t["dataset"], int(t["epochs"]), self.flags

    @property
    def terms(self) -> tuple[str, int, str, int, tuple[str, ...]]:
        """``group``, in which picture files in place of a public data set count as a flag."""
        *network, flags = self.group
        copied = self.train.get("source") == PICTURES
        return (*network, (*flags, PICTURES) if copied else flags)

    @property
    def network(self) -> str:
        arch = self.train["arch"]
        return f"{ARCHITECTURES.get(arch, arch)}-{self.train['depth']}"

    @property
    def tuned(self) -> Row | None:
        """The fine-tuning if it went as the training did, but for the penalty: section 5.2's."""
        if self.refine is None:
            return None
        t, r = self.train, self.refine
        flags = tuple(flag for flag in self.flags if not flag.startswith("--xi-init"))
        same_flags = self.refine_flags in (None, flags) or UNKNOWN in flags
        same_source = len({t.get("source"), r.get("source")} - {None, ""}) < 2
        same = (r["method"], r["epochs"]) == ("baseline", t["epochs"])
        return r if same and same_flags and same_source else None

    def pruning(self, share: float | None = None) -> Row | None:
        """The last pruning by γ: at percent 0; of original slimming, that near ``share``, or any.

        Of several of the latter, the last that was fine-tuned. ``share`` is in percent of the
        channels.
        """
        fits = [row for row in self.prunings if row["mask"] == "gamma" and row["percent"]]
        if self.train["method"] == "proximal":
            fits = [row for row in fits if float(row["percent"]) == 0]
            return fits[-1] if fits else None
        if share is not None:
            fits = [row for row in fits if abs(100 * float(row["percent"]) - share) < 0.5]
        fits = [row for row in fits if self._is_tuned(row)] or fits
        return fits[-1] if fits else None

    def _is_tuned(self, pruning: Row) -> bool:
        """Whether it is what was fine-tuned, as far as its width tells."""
        refine = self.tuned
        return refine is not None and float(refine["channels"]) == float(pruning["channels_kept"])

    def value(self, quantity: str, share: float | None = None) -> float | None:
        """One of QUANTITIES, None where the run did not come so far. ``share``: see pruning."""
        kind, column = QUANTITIES[quantity]
        pruning = self.pruning(share)
        if quantity == "trained" and pruning:  # as the other two are measured: in float32
            kind, column = "prune", "accuracy_before"
        tuned = self.tuned if pruning and self._is_tuned(pruning) else None
        row = {"train": self.train, "prune": pruning, "refine": tuned}[kind]
        return float(row[column]) if row else None


def load(folder: Path) -> list[Result]:
    """All finished trainings in the record files of ``folder``; of one run's, the last.

    Raises InputError where the folder is missing, or a record is foreign or damaged.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give the one that --save named")
    paths = folder / "train_record.csv", folder / "refine_record.csv"
    trained, refined = ({row["run"]: row for row in read(path, TRAINED)} for path in paths)
    pruned = read(folder / "pruned_record.csv", PRUNED)
    results = []
    for run, row in trained.items():
        refine = refined.get(f"{run}_refine")
        prunings = [p for p in pruned if p["run"] == run]
        told = refine is not None and refine.get("lr")
        refine_flags = flags_of(refine, paths[1]) if told else None
        results.append(Result(row, prunings, refine, flags_of(row, paths[0]), refine_flags))
    return results


def grouped(found: Sequence[Result]) -> dict[tuple, dict[tuple, list[Result]]]:
    """Runs by Result.terms, then by Result.setting; one for each seed."""
    groups: dict[tuple, dict[tuple, dict[int, Result]]] = {}
    for result in found:
        seeds = groups.setdefault(result.terms, {}).setdefault(result.setting, {})
        seeds[int(result.train["seed"])] = result
    order = [*METHODS]

    def place(setting: tuple) -> tuple[int, str]:
        return order.index(setting[0]) if setting[0] in order else len(order), str(setting)

    return {
        group: {key: [settings[key][seed] for seed in sorted(settings[key])]
                for key in sorted(settings, key=place)}
        for group, settings in groups.items()
    }  # fmt: skip


def flags_of(row: Row, path: Path) -> tuple[str, ...]:
    """What a training in the record ``path`` was given that is not the default.

    From the row's columns, or, as far as it is of before there were such, from its command. Raises
    InputError where these cannot be read.
    """
    p = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    for flag, default in FLAGS.items():
        p.add_argument("--" + flag.replace("_", "-"), type=float, default=default)
    p.add_argument("--wd", dest="weight_decay", type=float, default=FLAGS["weight_decay"])
    p.add_argument("--no-nesterov", action="store_false", dest="nesterov")
    p.add_argument("--xi-init", nargs=2, type=float, default=XI_INIT)
    try:
        words = shlex.split(row["command"])
        values = vars(p.parse_known_args(words)[0])
        for flag in FLAGS:
            if row.get("batch_size" if flag in ("subset", "batch_size") else "lr"):
                values[flag] = float(row[flag]) if row[flag] else FLAGS[flag]
        if row.get("lr"):
            values["nesterov"] = row["nesterov"] != "False"
            values["xi_init"] = [float(bound) for bound in row["xi_init"].split()] or XI_INIT
        numbers = [v for v in (*map(values.get, FLAGS), *values["xi_init"]) if v is not None]
        if len(values["xi_init"]) != 2 or not all(map(math.isfinite, numbers)):
            raise ValueError
    except (ValueError, KeyError, argparse.ArgumentError):
        raise InputError(
            f"{path}: the command or the flags of {row['run']} are damaged; mend them"
        ) from None
    flags = [
        f"--{flag.replace('_', '-')} {values[flag]:.15g}"
        for flag, default in FLAGS.items()
        if values[flag] != default
    ]
    flags += [] if values["nesterov"] else ["--no-nesterov"]
    if values["xi_init"] != XI_INIT:
        flags.append("--xi-init " + " ".join(f"{bound:.15g}" for bound in values["xi_init"]))
    if "--resume" in words and "--arch" not in words and not row.get("lr"):
        flags.append(UNKNOWN)
    return tuple(flags)
