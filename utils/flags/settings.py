"""The flags of ``main.py``, their defaults, and how they meet what a checkpoint already knows."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from models import ARCHITECTURES
from utils import console
from utils.console import InputError
from utils.data.datasets import DATASETS, Dataset, load_dataset
from utils.flags import types
from utils.methods.slimming import METHODS, Baseline, ProximalSlimming, Subgradient
from utils.paper.settings import BATCH_SIZE, EPOCHS, LEARNING_RATE, recipe

DEPTHS = {"vgg": 19, "resnet": 164, "densenet": 40}  # what the paper trains


@dataclass(frozen=True)
class Settings:
    """What defines a run: plain values, kept in its checkpoints. None where a method has none."""

    name: str
    arch: str
    depth: int
    dataset: str
    data: str | None
    subset: int | None
    test_subset: int | None
    seed: int
    method: str
    s: float | None
    beta: float | None
    prox_every: str | None
    xi_init: tuple[float, float] | None
    keep_dead: bool
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool
    precision: str
    deterministic: bool
    refine: str | None

    @property
    def run(self) -> str:
        """What the names of the run's files begin with."""
        refine = "" if self.refine is None else "_refine"
        return f"{self.name}_{self.arch}_{self.depth}_{self.dataset}{refine}"


def parser() -> argparse.ArgumentParser:
    # Every default is suppressed, so that what was given can be told from what was not: a
    # checkpoint's settings stand between the two.
    p = types.Parser(
        prog="main.py",
        description="Train a network by proximal network slimming, or fine-tune a slim one.",
        argument_default=argparse.SUPPRESS,
    )
    network = p.add_argument_group("network and data")
    network.add_argument("--arch", choices=ARCHITECTURES, help="default vgg")
    network.add_argument(
        "--depth",
        type=types.positive_int,
        help="vgg: 11, 13, 16, 19; resnet: 9n+2; densenet: 3n+4 (default 19, 164, 40)",
    )
    network.add_argument("--dataset", choices=DATASETS, help="default cifar10")
    network.add_argument(
        "--data",
        metavar="DIR",
        help="where the data set is: as torchvision keeps it, or DIR/train/<class>/* and"
        " DIR/test/<class>/* (default: downloaded into ./data.<dataset>)",
    )
    network.add_argument("--subset", type=types.positive_int, metavar="N", help="training pictures")
    network.add_argument(
        "--test-subset", type=types.positive_int, metavar="N", help="test pictures"
    )

    slimming = p.add_argument_group("slimming")
    slimming.add_argument(
        "-sr",
        "--sparsity-regularization",
        action="store_true",
        help="train towards zero scaling factors; without it, the baseline",
    )
    slimming.add_argument(
        "--method",
        choices=[m for m in METHODS if m != Baseline.name],
        help="with -sr: the paper's algorithm (default) or original network slimming",
    )
    slimming.add_argument(
        "--s",
        type=types.not_negative,
        metavar="LAMBDA",
        help="λ, the weight of the ℓ1 penalty (default: the paper's for the network)",
    )
    slimming.add_argument(
        "--beta",
        type=types.positive,
        help="β, the weight of the quadratic penalty (default: the paper's for the network)",
    )
    slimming.add_argument(
        "--prox-every",
        choices=("step", "epoch"),
        help="update ξ after every mini-batch (default), or as Algorithm 1 is printed",
    )
    slimming.add_argument(
        "--xi-init",
        nargs=2,
        type=types.number,
        metavar=("LOW", "HIGH"),
        help="ξ starts uniform in this range (default 0.47 0.50)",
    )
    slimming.add_argument(
        "--keep-dead",
        action="store_true",
        help="train channels on that have died: the same result, later (default: cut them out)",
    )

    sgd = p.add_argument_group("training")
    sgd.add_argument("--epochs", type=types.epochs, help=f"default {EPOCHS}")
    sgd.add_argument(
        "--start-epoch",
        type=types.natural,
        metavar="N",
        help="number of the first epoch (default 0)",
    )
    sgd.add_argument(
        "--batch-size", type=types.positive_int, metavar="N", help=f"default {BATCH_SIZE}"
    )
    sgd.add_argument("--test-batch-size", type=types.positive_int, metavar="N", help="default 256")
    sgd.add_argument(
        "--lr",
        type=types.positive,
        help=f"×0.1 at half and at three quarters of the epochs (default {LEARNING_RATE})",
    )
    sgd.add_argument("--momentum", type=types.momentum, help="default 0.9")
    sgd.add_argument("--no-nesterov", action="store_false", dest="nesterov")
    sgd.add_argument(
        "--weight-decay", "--wd", type=types.not_negative, help="on all parameters (default 1e-4)"
    )
    seeds = sgd.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=types.seed, help="default 1")
    seeds.add_argument(
        "--seeds",
        nargs="+",
        type=types.seed,
        metavar="N",
        help="a run for each of these, named NAME_seedN: side by side on a GPU, else in turn",
    )
    sgd.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        help="auto (default) measures which is faster, and the memory format with it",
    )
    sgd.add_argument(
        "--deterministic",
        action="store_true",
        help="only operations that give the same result every time; nothing is measured",
    )
    sgd.add_argument("--no-cuda", action="store_true", help="train on the CPU")
    sgd.add_argument(
        "--no-graph", action="store_true", help="on a GPU: launch every kernel, to debug"
    )

    files = p.add_argument_group("files")
    files.add_argument(
        "--save",
        metavar="DIR",
        help="where all files go (default logs, or the folder of the checkpoint)",
    )
    files.add_argument(
        "--name", type=types.file_name, help="what their names begin with (default: the method)"
    )
    files.add_argument(
        "--log-interval", type=types.positive_int, metavar="N", help="in steps (default 50)"
    )
    files.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        help="go on with this run; auto: with the one of this name, or start it",
    )
    files.add_argument("--refine", metavar="CHECKPOINT", help="fine-tune this slim network")
    files.add_argument("--evaluate", metavar="CHECKPOINT", help="only test this network")
    return p


def resolve(
    given: Mapping[str, Any], stored: Mapping[str, Any], inherited: Mapping[str, Any]
) -> Settings:
    """Settings from the flags ``given``, else what a resumed run ``stored``, else the defaults.

    ``inherited`` is what a slim network to be fine-tuned knows of itself and its data.

    Raises InputError where flags contradict ``stored``, or one another.
    """
    if "xi_init" in given:
        given = {**given, "xi_init": tuple(given["xi_init"])}
        if given["xi_init"][0] > given["xi_init"][1]:
            raise InputError("--xi-init takes LOW HIGH, the lower one first")
    known = {**inherited, **stored, **given}
    if "sparsity_regularization" in given:
        known["method"] = given.get("method", ProximalSlimming.name)
    elif "method" in given and "method" not in stored:
        raise InputError(f"--method {given['method']} needs -sr")
    method = known.setdefault("method", Baseline.name)
    arch = known.setdefault("arch", "vgg")
    depth = known.setdefault("depth", DEPTHS[arch])
    paper = recipe(arch, depth)
    defaults = {
        "name": method,
        "dataset": "cifar10",
        "seed": 1,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "lr": LEARNING_RATE,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "nesterov": True,
        "precision": "auto",
        "deterministic": False,
        "s": paper.subgradient_lambda if method == Subgradient.name else paper.lambda_,
        "beta": paper.beta,
        "prox_every": "step",
        "keep_dead": False,
        # A network to be fine-tuned has its γ already: ξ starts there.
        "xi_init": (0.47, 0.50) if known.get("refine") is None else None,
    }
    values = {f.name: known.get(f.name, defaults.get(f.name)) for f in fields(Settings)}
    unused = {"s", "beta", "prox_every", "xi_init"} - set(METHODS[method].settings)
    values |= dict.fromkeys(unused)
    if idle := sorted("--" + key.replace("_", "-") for key in unused & given.keys()):
        console.note(f"note: {method} training does not use {', '.join(idle)}")
    settings = Settings(**values)
    _check_same_run(settings, stored)
    return settings


def _check_same_run(settings: Settings, stored: Mapping[str, Any]) -> None:
    # Where the data lies may change between two starts; precision is stored as decided.
    for key, value in asdict(settings).items():
        before = stored.get(key, value)
        if key not in ("data", "precision", "refine") and value != before:
            raise InputError(
                f"this run was started with {key} {before}, not {value}: leave the flag out to"
                " go on, or start another run with another --name"
            )


def load_data(settings: Mapping[str, Any]) -> Dataset:
    """The data set that ``settings`` name, as :func:`load_dataset` does."""
    folder = settings.get("data")
    return load_dataset(
        settings.get("dataset", "cifar10"),
        None if folder is None else Path(folder),
        settings.get("subset"),
        settings.get("test_subset"),
    )
