"""The settings that define a run: one field of :class:`Config`, hence one flag, for each."""

import argparse
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models import DEFAULT_DEPTHS, NAMES, build_model, check_size, display_name, size_of
from utils import arguments
from utils.arguments import Flag, fraction, positive, positive_int, to_cell
from utils.data.datasets import DATASETS, IMAGENET, NORMALISATIONS, UPRIGHT
from utils.device import PRECISIONS
from utils.methods import METHODS, flags_of_all, method_of
from utils.paper.settings import BATCH_SIZE, EPOCHS, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY

MODEL, PRUNING, TRAINING, FILES = "model and data", "pruning", "training", "files"  # in the help
START_FLAGS = ("init", "start_epoch")  # of a training, not of its fine-tuning
INHERITED = ("seed", "precision", "deterministic")  # by every fine-tuning from its training
NOT_IN_KEY: dict[str, Any] = {"in_experiment_key": False}  # see Flag
CHANGEABLE: dict[str, Any] = {"in_experiment_key": False, "resume_must_match": False}


def _option(group: str, *arguments: Any, **keywords: Any) -> Any:
    """Returns a dataclass field with the arguments of its :class:`Flag`, but for the name."""
    return field(metadata={"arguments": arguments, "keywords": {"group": group, **keywords}})


of_model, of_pruning, of_training, of_files = (
    partial(_option, group) for group in (MODEL, PRUNING, TRAINING, FILES)
)


def arch_name(text: str) -> str:
    """Returns ``text``, but for a name with the depth of an architecture that takes --depth."""
    parts = re.fullmatch(r"([a-z-]*[a-z])[-_]?(\d+)", text.lower())
    if parts and text not in NAMES and parts[1] in NAMES:
        with contextlib.suppress(ValueError), torch.device("meta"):
            build_model(parts[1], int(parts[2]), 1)
            advice = f"--arch {parts[1]} --depth {parts[2]}"
            raise argparse.ArgumentTypeError(f"{text!r} has a depth in its name: use {advice}")
    return text


@dataclass(frozen=True)
class Config:
    """The settings of a run, as plain values. Stored in its checkpoints and records.

    ``options`` are the settings of the method's own flags, by name.
    """

    arch: str = of_model(
        "architecture, see below (default vgg)", arch_name, "vgg", choices=NAMES, metavar="NAME"
    )
    depth: int = of_model("depth, see below", positive_int, lambda a, _: DEFAULT_DEPTHS[a])
    dataset: str = of_model("data set", str, "cifar10", choices=DATASETS)
    data: str | None = of_model(
        "folder of the data set: torchvision's, or DIR/train/<class>/* and DIR/test/<class>/*"
        " (imagenet: DIR/val/<class>/*); default: downloaded to ./data.<dataset>",
        metavar="DIR",
        **CHANGEABLE,
    )
    size: int = of_model(
        "image height and width in pixels, from 8 to 4096, to which image files are resized and"
        " cropped (default 32; torchvision's models 224)",
        arguments.size,
    )
    normalise: str | None = of_model(
        "source of the per-channel mean and standard deviation; data: measured on the training"
        " images (default: that of --init's weights, else the data set's own, else cifar)",
        choices=NORMALISATIONS,
    )
    no_flip: bool = of_model(
        "no random flips of training images, e.g. for digits (SVHN: always)", default=False
    )
    stream: bool = of_model(
        "image files read while training (imagenet: always)", str, False, **NOT_IN_KEY
    )
    subset: int | None = of_model("number of training images (default all)", positive_int)
    test_subset: int | None = of_model("number of test images (default all)", positive_int)
    method: str = of_pruning(
        "training method with -sr (default proximal): "
        + "; ".join(f"{m.name}: {m.help}" for m in METHODS.values() if m.help),
        default=next(iter(METHODS)),
        choices=tuple(m.name for m in METHODS.values() if m.help),
    )
    prune_ratio: float | None = of_pruning(
        "fraction of each convolution's weights that is set to zero, smallest first, before"
        " --refine trains the others, in [0, 1]; also of linear layers if these have most weights",
        fraction,
    )
    epochs: int = of_training("number of epochs, up to 10**6", arguments.epochs, EPOCHS)
    start_epoch: int = of_training("first epoch, counted from 0", arguments.natural, 0)
    batch_size: int = of_training("images per mini-batch", positive_int, BATCH_SIZE)
    lr: float = of_training("peak learning rate, > 0", positive, LEARNING_RATE)
    schedule: str = of_training(
        "learning-rate schedule: step, ×0.1 at 1/2 and at 3/4 of the epochs (default), or cosine",
        default="step",
        choices=("step", "cosine"),
    )
    warmup: int = of_training("epochs of linear warm-up", arguments.natural, 0)
    label_smoothing: float = of_training(
        "label smoothing of the training loss, in [0, 1] (default 0)", fraction, 0.0
    )
    momentum: float = of_training("momentum of SGD, in [0, 1)", arguments.momentum, MOMENTUM)
    nesterov: bool = of_training(
        "plain instead of Nesterov momentum", str, True, custom_options=("--no-nesterov",)
    )
    weight_decay: float = of_training(
        "weight decay of all parameters, >= 0",
        arguments.not_negative,
        WEIGHT_DECAY,
        custom_options=("--wd", "--weight-decay"),
    )
    seed: int = of_training("random seed, below 2**63", arguments.seed, 1, **NOT_IN_KEY)
    precision: str = of_training(  # may change on resuming: the checkpoint has the choice of auto
        "fp32 (default), tf32 (GPU only), bf16 (autocast), or auto: the fastest, measured",
        default="fp32",
        choices=("auto", *PRECISIONS),
        **CHANGEABLE,
    )
    deterministic: bool = of_training(
        "deterministic operations only (slower)", str, False, **NOT_IN_KEY
    )
    name: str = of_files(
        "start of the run's name (default METHOD_seedN; for --refine: the pruned file's)",
        arguments.file_name,
        **NOT_IN_KEY,
    )
    refine: str | None = of_files("pruned model to fine-tune", metavar="CHECKPOINT", **CHANGEABLE)
    init: str | None = of_files(
        "unpruned model with the initial weights of a new run",
        metavar="CHECKPOINT",
        resume_must_match=False,
    )
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Config":
        """Returns the config with these settings, by flag name, and defaults for the others.

        Raises ValueError: a setting is unknown, out of range, or contradicts another one.
        """
        for name, value in settings.items():
            if name not in FLAGS or not FLAGS[name].accepts(value):
                raise ValueError(f"{name} is {value!r}")
        settings = {name: value for name, value in settings.items() if value is not None}
        if "prune_ratio" in settings and "refine" not in settings:
            raise ValueError("--prune-ratio needs --refine: it prunes weights of a trained model")
        arch = settings.get("arch", CORE_FLAGS["arch"].default)
        method = METHODS[settings.get("method", CORE_FLAGS["method"].default)]
        network = arch, settings.get("depth", DEFAULT_DEPTHS[arch])
        trained = "refine" in settings or "init" in settings
        variant = method_of(method.name, settings.get("prune_ratio"))
        settings = {k: value for k, value in settings.items() if k not in variant.unused_flags}
        flags = (*CORE_FLAGS.values(), *variant.flags)
        values = {flag.name: flag.default_for(*network, trained) for flag in flags}
        values |= variant.presets(settings) | settings
        values["size"] = values["size"] or size_of(arch)
        check_size(arch, values["size"])
        values["stream"] |= values["dataset"] == IMAGENET
        values["no_flip"] |= values["dataset"] in UPRIGHT
        values["name"] = values["name"] or f"{method.name}_seed{values['seed']}"
        for flag in method.flags:  # methods that share a flag may accept other values
            if not flag.accepts(values[flag.name]):
                accepted = f"{flag.option_strings[-1]} {', '.join(flag.choices or ())}"
                message = f"--method {method.name} takes {accepted}, not {values[flag.name]}"
                raise ValueError(message)
        options = {flag.name: values[flag.name] for flag in method.flags}
        method.check(options)
        for name in ("warmup", "start_epoch"):
            if values[name] >= values["epochs"]:
                text = f"{FLAGS[name].option_strings[-1]} {values[name]}"
                raise ValueError(f"{text} must be below the {values['epochs']} epochs")
        return cls(**{name: values[name] for name in CORE_FLAGS}, options=options)

    def for_finetuning(self, start: Path, **overrides: Any) -> "Config":
        """Returns the config that fine-tunes the model in ``start`` without a penalty.

        Training settings are those of this run (section 5.2), or with ``prune_ratio`` the defaults
        of retraining. ``overrides`` are settings by flag name.
        """
        values = {"refine": str(start), **overrides}
        for name, flag in CORE_FLAGS.items():
            shared = overrides.get("prune_ratio") is None or flag.group != TRAINING
            if name not in ("method", *START_FLAGS) and (shared or name in INHERITED):
                values.setdefault(name, getattr(self, name))
        return Config.from_dict(values)

    def finetuning_argv(self, prunes_weights: bool = False) -> list[str]:
        """Returns the flags to add to ``--refine`` for the config of :meth:`for_finetuning`.

        The checkpoint has those of model and data. ``prunes_weights``: beside ``--prune-ratio``.
        """
        training = [n for n, flag in CORE_FLAGS.items() if flag.group == TRAINING]
        names = INHERITED if prunes_weights else [n for n in training if n not in START_FLAGS]
        changed = [n for n in names if getattr(self, n) != CORE_FLAGS[n].default]
        return [word for n in changed for word in CORE_FLAGS[n].to_argv(getattr(self, n))]

    @property
    def run_name(self) -> str:
        """The run's name, that of its directory."""
        refine = "" if self.refine is None else "_refine"
        return f"{self.name}_{display_name(self.arch, self.depth, '_')}_{self.dataset}{refine}"

    def to_dict(self) -> dict[str, Any]:
        """Returns all settings by flag name, None for the flags of other methods."""
        core = {name: getattr(self, name) for name in CORE_FLAGS}
        return core | {name: self.options.get(name) for name in flags_of_all()}

    def to_row(self) -> dict[str, str | None]:
        """Returns the settings as cells of a record, for :meth:`from_row`."""
        settings = self.to_dict().items()
        return {name: None if value is None else to_cell(value) for name, value in settings}

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> "Config":
        """Returns the config of a record's row.

        Older records have no columns for some settings of other methods or without a default.

        Raises ValueError or KeyError: the row is damaged.
        """
        required = {name for name, flag in CORE_FLAGS.items() if flag.default}
        if row["method"] in METHODS:  # else from_dict raises
            required |= {flag.name for flag in METHODS[row["method"]].flags}
        cells = {name: row[name] if name in required else row.get(name, "") for name in FLAGS}
        return cls.from_dict({name: FLAGS[name].parse(c) for name, c in cells.items() if c})

    def argv(self) -> list[str]:
        """Returns the flags of this config; resuming a run with other settings is refused."""
        settings, words, method = self.to_dict(), list[str](), METHODS[self.method]
        trained = self.refine is not None or self.init is not None
        if self.method != CORE_FLAGS["method"].default:
            words = ["-sr", *CORE_FLAGS["method"].to_argv(self.method)]
        for flag in (*CORE_FLAGS.values(), *method.flags):
            name, value = flag.name, settings[flag.name]
            changed = value != flag.default_for(self.arch, self.depth, trained)
            needed = flag.in_experiment_key or name == "name" or changed
            if needed and value is not None and name not in ("method", *method.unused_flags):
                words += flag.to_argv(value)
        return words


CORE_FLAGS: dict[str, Flag] = {  # the flags of all methods
    f.name: Flag(f.name, *f.metadata["arguments"], **f.metadata["keywords"])
    for f in fields(Config)
    if f.metadata
}
FLAGS: dict[str, Flag] = CORE_FLAGS | flags_of_all()  # and those of single methods
