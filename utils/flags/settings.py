"""What defines a run: one definition for each thing that may be said of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from models import ARCHITECTURES
from utils import arguments
from utils.arguments import Flag
from utils.data.datasets import DATASETS
from utils.methods import METHODS, flags_of_all
from utils.paper.settings import (
    BATCH_SIZE,
    DEPTHS,
    EPOCHS,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
)

NETWORK, SLIMMING, TRAINING, FILES = "network and data", "slimming", "training", "files"


def _said_by(name: str, *said: Any, group: str, **more: Any) -> Any:
    return field(metadata={"flag": Flag(name, *said, group=group, **more)})


@dataclass(frozen=True)
class Settings:
    """What defines a run: plain values, kept in its checkpoints and records.

    ``options`` are those of the method's own flags, by name.
    """

    arch: str = _said_by(
        "arch", "default vgg", default="vgg", choices=tuple(ARCHITECTURES), group=NETWORK
    )
    depth: int = _said_by(
        "depth",
        "vgg: 11, 13, 16, 19; resnet: 9n+2; densenet: 3n+4 (default 19, 164, 40)",
        arguments.positive_int,
        lambda arch, depth: DEPTHS[arch],
        group=NETWORK,
    )
    dataset: str = _said_by(
        "dataset", "default cifar10", default="cifar10", choices=DATASETS, group=NETWORK
    )
    data: str | None = _said_by(
        "data",
        "where the data set is: as torchvision keeps it, or DIR/train/<class>/* and"
        " DIR/test/<class>/* (default: downloaded into ./data.<dataset>)",
        metavar="DIR",
        fixed=False,
        compared=False,
        group=NETWORK,
    )
    subset: int | None = _said_by(
        "subset", "training pictures", arguments.positive_int, metavar="N", group=NETWORK
    )
    test_subset: int | None = _said_by(
        "test_subset", "test pictures", arguments.positive_int, metavar="N", group=NETWORK
    )
    method: str = _said_by(
        "method",
        "with -sr: " + ", or ".join(f"{m.name}, {m.help}" for m in METHODS.values() if m.help),
        default=next(iter(METHODS)),
        choices=tuple(m.name for m in METHODS.values() if m.prunes()),
        group=SLIMMING,
    )
    epochs: int = _said_by("epochs", f"default {EPOCHS}", arguments.epochs, EPOCHS, group=TRAINING)
    batch_size: int = _said_by(
        "batch_size",
        f"default {BATCH_SIZE}",
        arguments.positive_int,
        BATCH_SIZE,
        metavar="N",
        group=TRAINING,
    )
    lr: float = _said_by(
        "lr",
        f"×0.1 at half and at three quarters of the epochs (default {LEARNING_RATE})",
        arguments.positive,
        LEARNING_RATE,
        group=TRAINING,
    )
    momentum: float = _said_by(
        "momentum", f"default {MOMENTUM}", arguments.momentum, MOMENTUM, group=TRAINING
    )
    nesterov: bool = _said_by("nesterov", default=True, words=("--no-nesterov",), group=TRAINING)
    weight_decay: float = _said_by(
        "weight_decay",
        f"on all parameters (default {WEIGHT_DECAY})",
        arguments.not_negative,
        WEIGHT_DECAY,
        words=("--wd", "--weight-decay"),
        group=TRAINING,
    )
    seed: int = _said_by("seed", "default 1", arguments.seed, 1, compared=False, group=TRAINING)
    precision: str = _said_by(
        "precision",
        "auto (default) measures which is faster, and the memory format with it",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        fixed=False,  # what was decided is stored, and kept
        compared=False,
        group=TRAINING,
    )
    deterministic: bool = _said_by(
        "deterministic",
        "only operations that give the same result every time; nothing is measured",
        default=False,
        compared=False,
        group=TRAINING,
    )
    name: str = _said_by(
        "name",
        "what their names begin with (default: the method)",
        arguments.file_name,
        compared=False,
        group=FILES,
    )
    refine: str | None = _said_by(
        "refine",
        "fine-tune this slim network",
        metavar="CHECKPOINT",
        fixed=False,
        compared=False,
        group=FILES,
    )
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> "Settings":
        """What is ``known``, by name, and the defaults. Raises ValueError where it cannot be."""
        for name, said in known.items():
            if name not in FLAGS or not FLAGS[name].accepts(said):
                raise ValueError(f"{name} is {said!r}")
        known = {name: value for name, value in known.items() if value is not None}
        method = known.get("method", OWN["method"].default)
        arch = known.get("arch", OWN["arch"].default)
        depth = known.get("depth", DEPTHS[arch])
        refines = "refine" in known

        def value(flag: Flag) -> Any:
            default = flag.default_for(arch, depth, refines)
            return known.get(flag.name, method if flag.name == "name" else default)

        options = {flag.name: value(flag) for flag in METHODS[method].flags}
        METHODS[method].check(options)
        return cls(**{flag.name: value(flag) for flag in OWN.values()}, options=options)

    @property
    def run(self) -> str:
        """What the names of the run's files begin with."""
        refine = "" if self.refine is None else "_refine"
        return f"{self.name}_{self.arch}_{self.depth}_{self.dataset}{refine}"

    def values(self) -> dict[str, Any]:
        """All of them by name, None for the flags of other methods."""
        own = {name: getattr(self, name) for name in OWN}
        return own | {name: self.options.get(name) for name in flags_of_all()}

    def cells(self) -> dict[str, Any]:
        """As columns of a record: :meth:`of_cells` reads them."""
        return {name: FLAGS[name].cell(value) for name, value in self.values().items()}

    @classmethod
    def of_cells(cls, row: Mapping[str, str]) -> "Settings":
        """The settings in a record's row. Raises ValueError or KeyError where they are damaged."""
        return cls.of({name: flag.parse(row[name]) for name, flag in FLAGS.items()})

    def argv(self) -> list[str]:
        """The flags that make these settings, and that refuse to go on with any others."""
        values, words = self.values(), []
        if self.method != OWN["method"].default:
            words = ["-sr", *OWN["method"].argv(self.method)]
        for name, flag in (OWN | {flag.name: flag for flag in METHODS[self.method].flags}).items():
            default = flag.default_for(self.arch, self.depth, self.refine is not None)
            said = flag.compared or name == "name" or values[name] != default
            if said and values[name] is not None and name != "method":
                words += flag.argv(values[name])
        return words


# Every flag by name: those of all runs, and those of the methods.
OWN: dict[str, Flag] = {
    f.name: f.metadata["flag"] for f in fields(Settings) if "flag" in f.metadata
}
FLAGS: dict[str, Flag] = OWN | flags_of_all()
