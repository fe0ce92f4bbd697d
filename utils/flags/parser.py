"""The command line of ``main.py``, and how it meets what a checkpoint already knows."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models.torchvision_models import DEPTHS as NAMED
from utils import arguments
from utils.arguments import Flag, Parser, positive_int
from utils.console import InputError
from utils.flags.config import CORE_FLAGS, FILES, FLAGS, NETWORK, SLIMMING, TRAINING, Config
from utils.methods import METHODS, defaults_of

# What is said of the process and not of the run: no checkpoint has it.
RUNTIME_FLAGS = (
    Flag("test_batch_size", "default 256, on a GPU 2000, streamed 64", positive_int, metavar="N"),
    Flag(
        "workers",
        "processes that read what is streamed (default up to 4; 0: none but the training)",
        arguments.workers,
        metavar="N",
    ),
    Flag("no_cuda", "train on the CPU", default=False),
    Flag("no_graph", "on a GPU: launch every kernel, to debug", default=False),
    Flag("log_interval", "in steps (default 50)", positive_int, metavar="N"),
)


def runtime_argv(given: Mapping[str, Any], *names: str) -> list[str]:
    """The flags of PROCESS, or those of these ``names``, as they were ``given``."""
    said = [f for f in RUNTIME_FLAGS if f.name in given and (not names or f.name in names)]
    return [word for flag in said for word in flag.to_argv(given[flag.name])]


_NAMED = list(NAMED)
NETWORKS = f"""networks:
  --arch        --depth (default)               as in
  vgg           11, 13, 16, 19 (19)             --arch vgg --depth 16
  resnet        9n+2 (164), bottlenecks         --arch resnet --depth 110
  resnet-basic  6n+2 (32), basic blocks         --arch resnet-basic --depth 56
  densenet      3n+4 (40)                       --arch densenet --depth 22
  These are for pictures of 32×32. torchvision's are for larger ones; their depth is in the name:
  {", ".join(_NAMED[:5])},
  {", ".join(_NAMED[5:-1])},
  {_NAMED[-1]} (it has no batch norm: for --method sas-admm)
"""


def parser() -> argparse.ArgumentParser:
    # Every default is suppressed, so that what was given can be told from what was not: a
    # checkpoint's settings stand between the two.
    p = Parser(
        prog="main.py",
        description="Train a network by proximal network slimming, or fine-tune a slim one.",
        epilog=NETWORKS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    groups = {name: p.add_argument_group(name) for name in (NETWORK, SLIMMING, TRAINING, FILES)}
    groups[SLIMMING].add_argument(
        "-sr",
        "--sparsity-regularization",
        action="store_true",
        help="train towards zero scaling factors; without it, the baseline",
    )
    for flag in FLAGS.values():
        if defaults := defaults_of(flag.name):
            flag = replace(flag, help=f"{flag.help} (default of {defaults})")
        if flag.name != "seed":
            flag.add_to(groups[flag.group])
    seeds = groups[TRAINING].add_mutually_exclusive_group()
    FLAGS["seed"].add_to(seeds)
    seeds.add_argument(
        "--seeds",
        nargs="+",
        type=arguments.seed,
        metavar="N",
        help="a run for each of these, named NAME_seedN: side by side on a GPU, else in turn",
    )
    for flag in RUNTIME_FLAGS:
        flag.add_to(groups[TRAINING])
    add = groups[FILES].add_argument
    add("--save", metavar="DIR", help="for all files (default logs, or the checkpoint's folder)")
    said = "go on with this run; auto: with the one of this name, or start it"
    add("--resume", metavar="CHECKPOINT", help=said)
    add("--evaluate", metavar="CHECKPOINT", help="only test this network")
    add("--list", action="store_true", help="only show how far the runs in --save are")
    add("--version", action="store_true", help="only say which program this is")
    return p


def resolve(
    given: Mapping[str, Any], stored: Config | None, inherited: Mapping[str, Any]
) -> Config:
    """Settings from the flags ``given``, else what a resumed run ``stored``, else the defaults.

    ``inherited`` is what a slim network to be fine-tuned knows of itself and its data.

    Raises InputError where flags contradict ``stored``, or one another.
    """
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    if "sparsity_regularization" in given:
        given.setdefault("method", next(m.name for m in METHODS.values() if m.prunes()))
    elif "method" in given and stored is None:
        raise InputError(f"--method {given['method']} needs -sr")
    before = {} if stored is None else stored.to_dict()
    known = {k: v for k, v in {**inherited, **before, **given}.items() if k in FLAGS}
    try:
        for each in METHODS.values():  # what the run's own method does not use must make sense too
            each.check(given)
        settings = Config.from_dict(known)
    except ValueError as error:
        raise InputError(str(error)) from None
    for key, value in settings.to_dict().items():
        if stored is not None and FLAGS[key].resume_must_match and value != before[key]:
            raise InputError(
                f"this run was started with {key} {before[key]}, not {value}: leave the flag out to"
                " go on, or start another run with another --name"
            )
    return settings


def unused_flags(given: Mapping[str, Any], settings: Config) -> list[str]:
    """The flags ``given`` that the method of ``settings`` makes no use of, as they are typed."""
    not_its_own = FLAGS.keys() - CORE_FLAGS.keys() - settings.options.keys()
    others = given.keys() & (not_its_own | set(METHODS[settings.method].unused_flags))
    return sorted(FLAGS[key].option_strings[-1] for key in others)
