"""The command line of ``main.py``, and its combination with the config of a checkpoint."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models import torchvision_models
from utils import arguments
from utils.arguments import Flag, positive_int
from utils.console import InputError, Parser
from utils.flags.config import CORE_FLAGS, FILES, FLAGS, MODEL, PRUNING, TRAINING, Config
from utils.methods import METHODS, defaults_of
from utils.methods.slimming import BUDGETS

RUNTIME_FLAGS = (  # of the process, not stored in checkpoints
    Flag("test_batch_size", "images per evaluation batch (default 256; GPU: 2000)", positive_int),
    Flag("workers", "processes that load streamed images (default up to 4)", arguments.workers),
    Flag("no_cuda", "training and evaluation on the CPU", default=False),
    Flag("no_graph", "no CUDA graphs, for debugging", default=False),
    Flag("log_interval", "steps between progress lines (default 50)", positive_int),
    Flag("tensorboard", "the log as TensorBoard events in the run's folder, too", default=False),
)
_NAMES = list(torchvision_models.DEPTHS)
ARCHITECTURES = f"""architectures:
  --arch        --depth (default)          example
  vgg           11, 13, 16, 19 (19)        --arch vgg --depth 16
  resnet        9n+2 (164), bottlenecks    --arch resnet --depth 110
  resnet-basic  6n+2 (32), basic blocks    --arch resnet-basic --depth 56
  densenet      3n+4 (40)                  --arch densenet --depth 22
  These take images of 32×32 pixels. torchvision's models take larger ones and have one depth each:
  {", ".join(_NAMES[:5])},
  {", ".join(_NAMES[5:-1])},
  {_NAMES[-1]} (without batch norm: for --method sas-admm)
"""


def runtime_argv(values: Mapping[str, Any], *names: str) -> list[str]:
    """Returns the command-line words of the RUNTIME_FLAGS (or ``names`` of them) in ``values``."""
    flags = [f for f in RUNTIME_FLAGS if f.name in values and (not names or f.name in names)]
    return [word for flag in flags for word in flag.to_argv(values[flag.name])]


def parser() -> argparse.ArgumentParser:
    """Returns the parser of ``main.py``; flags that are not on the command line have no value."""
    p = Parser(
        prog="main.py",
        description="Train a model by proximal network slimming, or fine-tune a pruned model.",
        epilog=ARCHITECTURES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    headings = {}
    for name, flag in FLAGS.items():
        methods = [m.name for m in METHODS.values() if name in {f.name for f in m.flags}]
        one = len(methods) == 1
        headings[name] = f"pruning with --method {methods[0]}" if one else flag.group
    by_method = sorted(set(headings.values()) - {MODEL, PRUNING, TRAINING, FILES})
    order = (MODEL, PRUNING, *by_method, TRAINING, FILES)
    groups = {heading: p.add_argument_group(heading) for heading in order}
    groups[PRUNING].add_argument(
        "-sr",
        "--sparsity-regularization",
        action="store_true",
        help="training with a sparsity penalty (default: without, as a baseline)",
    )
    for name, flag in FLAGS.items():
        if defaults := defaults_of(name):
            flag = replace(flag, help=f"{flag.help} (default of {defaults})")
        flag.add_to(groups[headings[name]])
    for flag in RUNTIME_FLAGS:
        flag.add_to(groups[TRAINING])
    add = groups[FILES].add_argument
    add("--save", metavar="DIR", help="output folder (default logs, or the checkpoint's folder)")
    resume = "checkpoint to resume; auto: that of the run of this name, if there is one"
    add("--resume", metavar="CHECKPOINT", help=resume)
    add("--evaluate", metavar="CHECKPOINT", help="model to evaluate without training")
    add("--list", action="store_true", help="progress of the runs in --save")
    add("--version", action="store_true", help="versions of this program, torch and Python")
    return p


def resolve(
    flags: Mapping[str, Any], stored: Config | None, inherited: Mapping[str, Any]
) -> Config:
    """Returns the config of a run.

    Args:
        flags: the values on the command line; they come first.
        stored: the config of the run to resume, if any.
        inherited: settings of the model and data of the checkpoint to start from.

    Raises InputError: flags contradict ``stored`` or each other.
    """
    flags = {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()}
    if "sparsity_regularization" in flags:
        flags.setdefault("method", next(m.name for m in METHODS.values() if m.prunes()))
    elif "method" in flags and stored is None:
        raise InputError(f"--method {flags['method']} needs -sr")
    before = {} if stored is None else stored.to_dict()
    values = {k: v for k, v in {**inherited, **before, **flags}.items() if k in FLAGS}
    try:
        for method in METHODS.values():  # flags of other methods must be valid too
            method.check(flags)
        config = Config.from_dict(values)
    except ValueError as error:
        raise InputError(str(error)) from None
    budgets = flags.keys() & BUDGETS.keys() - config.options.keys()
    if budgets:  # a training without them would be another one, and may take hours
        option = FLAGS[budgets.pop()].option_strings[-1]
        raise InputError(f"{option} is for proximal slimming: add -sr, without another --method")
    for key, value in config.to_dict().items():
        if stored is not None and FLAGS[key].resume_must_match and value != before[key]:
            name = key if isinstance(value, bool) else FLAGS[key].option_strings[-1]
            raise InputError(
                f"this run was started with {name} {before[key]}, not {value}: leave the flag out"
                " to resume it, or start another run with another --name"
            )
    return config


def unused_flags(flags: Mapping[str, Any], config: Config) -> list[str]:
    """Returns the option strings in ``flags`` that the method of ``config`` does not use."""
    other_methods = FLAGS.keys() - CORE_FLAGS.keys() - config.options.keys()
    unused = flags.keys() & {*other_methods, *METHODS[config.method].unused_flags}
    return sorted(FLAGS[key].option_strings[-1] for key in unused)
