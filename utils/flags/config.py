"""What defines a run: one definition for each thing that may be said of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from models import DEFAULT_DEPTHS, NAMES, check_size, display_name, size_of
from utils import arguments
from utils.arguments import Flag, positive_int
from utils.data.datasets import DATASETS, IMAGENET, NORMALISATIONS, UPRIGHT
from utils.device import PRECISIONS
from utils.methods import METHODS, flags_of_all, method_of
from utils.paper.settings import BATCH_SIZE, EPOCHS, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY

TRAINED = {"refine", "init"}  # flags that name a network that was trained before
NETWORK, SLIMMING, TRAINING, FILES = "network and data", "slimming", "training", "files"
BEGINS = ("init", "start_epoch")  # where a training began, and no fine-tuning of it
KEPT = ("seed", "precision", "deterministic")  # from a training to whatever follows it


def option(group: str, *said: Any, **more: Any) -> Any:
    """A field that is a :class:`Flag` of its name, with these fields."""
    return field(metadata={"group": group, "said": said, "more": more})


@dataclass(frozen=True)
class Config:
    """What defines a run: plain values, kept in its checkpoints and records.

    ``options`` are those of the method's own flags, by name.
    """

    arch: str = option(
        NETWORK,
        "one of the networks below (default vgg)",
        default="vgg",
        choices=NAMES,
        metavar="NAME",
    )
    depth: int = option(
        NETWORK, "see below", positive_int, lambda arch, depth: DEFAULT_DEPTHS[arch], metavar="N"
    )
    dataset: str = option(NETWORK, default="cifar10", choices=DATASETS)
    data: str | None = option(
        NETWORK,
        "where the data set is: as torchvision keeps it, or DIR/train/<class>/* and"
        " DIR/test/<class>/*, of imagenet DIR/val/<class>/* (default: downloaded into"
        " ./data.<dataset>)",
        metavar="DIR",
        resume_must_match=False,
        in_experiment_key=False,
    )
    size: int = option(
        NETWORK,
        "pixels of the side of a picture, to which picture files are resized and cropped (default"
        " the network's: 32, and 224 of torchvision's)",
        arguments.size,
        metavar="N",
    )
    normalise: str | None = option(
        NETWORK,
        "with whose mean and deviation of colours; data: with those measured on the training"
        " pictures (default: that of --init's weights, else the data set's own, else CIFAR-10's)",
        choices=NORMALISATIONS,
    )
    no_flip: bool = option(
        NETWORK,
        "do not mirror training images at random: for digits, letters, signs, left and right"
        " (SVHN's never are)",
        default=False,
    )
    stream: bool = option(
        NETWORK,
        "read picture files as they are needed, not all into memory (imagenet's always)",
        default=False,
        in_experiment_key=False,
    )
    subset: int | None = option(NETWORK, "training pictures", positive_int, metavar="N")
    test_subset: int | None = option(NETWORK, "test pictures", positive_int, metavar="N")
    method: str = option(
        SLIMMING,
        "with -sr: " + ", or ".join(f"{m.name}, {m.help}" for m in METHODS.values() if m.help),
        default=next(iter(METHODS)),
        choices=tuple(m.name for m in METHODS.values() if m.help),
    )
    prune_ratio: float | None = option(
        SLIMMING,
        "with --refine: cut this share of each convolution's weights, the smallest ones (of linear"
        " layers', too, where these have most), and train on with zeros that stay 0",
        arguments.fraction,
        metavar="P",
    )
    epochs: int = option(TRAINING, None, arguments.epochs, EPOCHS)
    start_epoch: int = option(
        TRAINING, "the first one (default 0)", arguments.natural, 0, metavar="N"
    )
    batch_size: int = option(TRAINING, None, positive_int, BATCH_SIZE, metavar="N")
    lr: float = option(
        TRAINING,
        f"the learning rate at its highest (default {LEARNING_RATE})",
        arguments.positive,
        LEARNING_RATE,
    )
    schedule: str = option(
        TRAINING,
        "of the learning rate: step, ×0.1 at half and at three quarters of the epochs (default),"
        " or cosine, down to almost 0",
        default="step",
        choices=("step", "cosine"),
    )
    warmup: int = option(
        TRAINING,
        "the learning rate rises in the first N epochs (default 0)",
        arguments.natural,
        0,
        metavar="N",
    )
    label_smoothing: float = option(
        TRAINING,
        "share of a label that is spread over all classes in training (default 0)",
        arguments.fraction,
        0.0,
        metavar="SHARE",
    )
    momentum: float = option(TRAINING, None, arguments.momentum, MOMENTUM)
    nesterov: bool = option(TRAINING, default=True, custom_options=("--no-nesterov",))
    weight_decay: float = option(
        TRAINING,
        f"on all parameters (default {WEIGHT_DECAY})",
        arguments.not_negative,
        WEIGHT_DECAY,
        custom_options=("--wd", "--weight-decay"),
    )
    seed: int = option(TRAINING, None, arguments.seed, 1, in_experiment_key=False)
    precision: str = option(
        TRAINING,
        "fp32 (default), tf32 (on a GPU), bf16 (autocast), or auto: the fastest one, measured",
        default="fp32",
        choices=("auto", *PRECISIONS),
        resume_must_match=False,  # what was decided is stored, and kept
        in_experiment_key=False,
    )
    deterministic: bool = option(
        TRAINING,
        "only operations that give the same result every time",
        default=False,
        in_experiment_key=False,
    )
    name: str = option(
        FILES,
        "what their names begin with (default METHOD_seedN; of a fine-tuning, the slim file's)",
        arguments.file_name,
        in_experiment_key=False,
    )
    refine: str | None = option(
        FILES,
        "fine-tune this slim network",
        metavar="CHECKPOINT",
        resume_must_match=False,
        in_experiment_key=False,
    )
    init: str | None = option(
        FILES,
        "begin with this network's weights, in a run of its own",
        metavar="CHECKPOINT",
        resume_must_match=False,
    )
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> "Config":
        """What is ``known``, by name, and the defaults. Raises ValueError where it cannot be."""
        for name, said in known.items():
            if name not in FLAGS or not FLAGS[name].accepts(said):
                raise ValueError(f"{name} is {said!r}")
        known = {name: value for name, value in known.items() if value is not None}
        arch, method = (known.get(name, CORE_FLAGS[name].default) for name in ("arch", "method"))
        network = arch, known.get("depth", DEFAULT_DEPTHS[arch]), bool(known.keys() & TRAINED)
        if "prune_ratio" in known and "refine" not in known:
            raise ValueError("--prune-ratio needs --refine: it cuts weights of a trained network")
        kind = method_of(method, known.get("prune_ratio"))
        known = {name: value for name, value in known.items() if name not in kind.unused_flags}
        flags = [*CORE_FLAGS.values(), *kind.flags]
        default = {flag.name: flag.default_for(*network) for flag in flags}
        values = default | kind.presets(known) | known
        values["size"] = values["size"] or size_of(arch)
        check_size(arch, values["size"])
        values["stream"] |= values["dataset"] == IMAGENET
        values["no_flip"] |= values["dataset"] in UPRIGHT
        values["name"] = values["name"] or f"{method}_seed{values['seed']}"
        options = {flag.name: values[flag.name] for flag in METHODS[method].flags}
        for flag in METHODS[method].flags:  # a method may take less than others that share a flag
            if not flag.accepts(options[flag.name]):
                takes = f"--method {method} takes {flag.option_strings[-1]} {', '.join(flag.choices or ())}"
                raise ValueError(f"{takes}, not {options[flag.name]}")
        METHODS[method].check(options)
        for name in ("warmup", "start_epoch"):
            if values[name] >= values["epochs"]:
                raise ValueError(
                    f"{FLAGS[name].option_strings[-1]} must be below the {values['epochs']} epochs"
                )
        return cls(**{name: values[name] for name in CORE_FLAGS}, options=options)

    def for_finetuning(self, start: Path, **otherwise: Any) -> "Config":
        """Those of the fine-tuning of ``start``: the same without a penalty, as in section 5.2.

        ``otherwise`` are flags by name. Where weights are cut, their retraining has settings of
        its own.
        """
        cuts = otherwise.get("prune_ratio") is not None
        shared = [n for n, f in CORE_FLAGS.items() if not cuts or f.group != TRAINING or n in KEPT]
        changed = {
            "method": CORE_FLAGS["method"].default,
            "refine": str(start),
            **dict.fromkeys(BEGINS),
        }
        return Config.from_dict({**{n: getattr(self, n) for n in shared}, **changed, **otherwise})

    def finetuning_argv(self, cuts: bool = False) -> list[str]:
        """What to type with --refine, which knows the network and the data, for :meth:`refining`.

        ``cuts``: weights are cut.
        """
        own = (name for name, flag in CORE_FLAGS.items() if flag.group == TRAINING)
        said = KEPT if cuts else [name for name in own if name not in BEGINS]
        told = {
            name: value
            for name in said
            if (value := getattr(self, name)) != CORE_FLAGS[name].default
        }
        return [word for name, value in told.items() for word in CORE_FLAGS[name].to_argv(value)]

    @property
    def run_name(self) -> str:
        """What the names of the run's files begin with."""
        refine = "" if self.refine is None else "_refine"
        return f"{self.name}_{display_name(self.arch, self.depth, '_')}_{self.dataset}{refine}"

    def to_dict(self) -> dict[str, Any]:
        """All of them by name, None for the flags of other methods."""
        own = {name: getattr(self, name) for name in CORE_FLAGS}
        return own | {name: self.options.get(name) for name in flags_of_all()}

    def to_row(self) -> dict[str, Any]:
        """As columns of a record: :meth:`of_cells` reads them."""
        cells = self.to_dict().items()
        return {k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in cells}

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> "Config":
        """The settings in a record's row. Raises ValueError or KeyError where they are damaged.

        What is of other methods, or off by default, needs no column: older records have none.
        """
        own = {name for name, flag in CORE_FLAGS.items() if flag.default}
        if row["method"] in METHODS:  # :meth:`of` refuses others
            own |= {flag.name for flag in METHODS[row["method"]].flags}
        cells = {name: row[name] if name in own else row.get(name, "") for name in FLAGS}
        return cls.from_dict({name: FLAGS[name].parse(cell) for name, cell in cells.items()})

    def argv(self) -> list[str]:
        """The flags that make these settings, and that refuse to go on with any others."""
        values, words = self.to_dict(), []
        trained = any(values[name] is not None for name in TRAINED)
        left_out = ("method", *METHODS[self.method].unused_flags)
        if self.method != CORE_FLAGS["method"].default:
            words = ["-sr", *CORE_FLAGS["method"].to_argv(self.method)]
        for flag in (*CORE_FLAGS.values(), *METHODS[self.method].flags):
            name, value = flag.name, values[flag.name]
            default = flag.default_for(self.arch, self.depth, trained)
            said = flag.in_experiment_key or name == "name" or value != default
            if said and value is not None and name not in left_out:
                words += flag.to_argv(value)
        return words


# Every flag by name: those of all runs, and those of the methods.
CORE_FLAGS: dict[str, Flag] = {
    f.name: Flag(f.name, *f.metadata["said"], group=f.metadata["group"], **f.metadata["more"])
    for f in fields(Config)
    if f.metadata
}
FLAGS: dict[str, Flag] = CORE_FLAGS | flags_of_all()
