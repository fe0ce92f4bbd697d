"""Prunes the state dict of any model: one of torchvision's, or one that a function returns."""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import netslim
from netslim.files import State, take, unwrap
from netslim.graph import AnyBatchNorm
from netslim.surgery import compare
from utils.atomic import atomic_write
from utils.console import InputError, note
from utils.cost import image_shape
from utils.files import safe_load
from utils.files.legacy_formats import find_state_dict, largest_submodule
from utils.files.locks import check_writable
from utils.files.paths import RunPaths
from utils.methods.base import is_zero
from utils.network import Network
from utils.pruning import report
from utils.pruning.selector import Selector

TOLERANCE = 1e-3  # of the largest output: above it the pruned model is not written
# Flags of checkpoints, by destination.
OTHERS = "mask dataset data depth test_subset test_batch_size workers".split()
AUXILIARY = {"googlenet": "aux", "inception_v3": "AuxLogits"}  # heads that a file may lack


def prune_state_dict(args: argparse.Namespace) -> None:
    """Prunes the model of ``args.arch`` with the state dict in ``args.model``, and writes it.

    Channels are removed by |γ|; the constants that they emit with γ = 0 are folded.

    Raises InputError: a flag or file cannot be used; nothing is written.
    """
    unused = [name for name in OTHERS if vars(args).get(name) is not None]
    unused += ["layout"] if args.layout == "released" else []
    if unused:
        flag = "--" + unused[0].replace("_", "-")
        raise InputError(f"{flag} is for checkpoints of this program: leave it out with --arch")
    path = Path(args.model)
    folder = Path(getattr(args, "save", path.parent))
    default = f"{path.name.partition('.')[0]}_pruned"
    output = RunPaths(folder, "").pruned(getattr(args, "name", default))
    check_writable(folder)
    state, _ = find_state_dict(safe_load.read(path))
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise InputError(f"{path} holds no state dict: save model.state_dict() with torch.save")
    if bad := [name for name, x in state.items() if not x.isfinite().all()]:
        raise InputError(f"{path} has values that are not finite in {bad[0]}")
    state = {name: x.detach() for name, x in state.items()}
    build, size, code = find_model(args.arch, state)
    size = getattr(args, "size", size)
    network = load_network(build, state, args, size)
    if output.exists():
        raise InputError(f"{output} exists already: delete it, or pass another --name")

    selector, zeros = Selector(network, args, fold=True), is_zero(network.gamma)
    pruning = selector.select(zeros)
    if all(mask.all() for mask in pruning.masks):
        raise InputError(
            f"nothing of {path} is to be pruned: choose a larger --ratio (--ratio 0.5), or fewer"
            " limits (--keep, --skip, --adjust, --round-to)"
        )
    row = report.sizes(network, pruning.masks, pruning.pruned) | report.count_kinds(pruning)
    report.print_sizes(row, pruning)
    report.print_kinds(row)
    report.note_equal_scores(selector.scores, zeros, pruning.chosen)
    if single := sum(len(mask) > 1 == int(mask.sum()) for mask in pruning.chosen):
        note(
            f"warning: layers of which a single channel is left, as each has to keep one: {single};"
            " choose a smaller share"
        )
    random = torch.Generator().manual_seed(0)
    images = torch.randn(2, *image_shape(network.model, size), generator=random)
    change, largest = compare(network.model, pruning.masked.model, images)
    print(
        f"before -> masked: outputs on random images differ by {change:.3g} at most (largest output"
        f" {largest:.4g}); accuracy was not measured: fine-tune the model"
    )
    try:
        difference, largest = compare(pruning.masked.model, pruning.pruned.model, images)
    except ValueError as error:
        raise InputError(f"{error}, with --skip") from None
    print(
        f"masked -> pruned: outputs on random images differ by {difference:.3g} at most"
        f" (largest output {largest:.4g})"
    )
    if not difference <= TOLERANCE * largest:
        raise InputError("the outputs of the pruned and the masked model differ: not written")
    with atomic_write(output) as new:
        netslim.save(pruning.pruned.model, new)
        read = netslim.load(build(), new).state_dict()
        written = pruning.pruned.model.state_dict().items()
        if not all(torch.equal(read[name].cpu(), x) for name, x in written):
            raise InputError(f"{output} does not read back as written: the disk may be faulty")
    print(f"pruned model: {output}\nto load it: netslim.load({code}, {str(output)!r})")


def load_network(
    build: Callable[[], nn.Module], state: State, args: argparse.Namespace, size: int
) -> Network:
    """Returns the network of ``state`` in float32.

    Prefixes that a wrapper such as DataParallel added are removed, unless the model has them.

    Raises InputError: ``state`` does not fit the model, or the model does not take such images.
    """
    model = build()
    own = model.state_dict().keys()
    if own != state.keys():
        try:
            unwrapped = unwrap(state)
        except ValueError as error:
            raise InputError(f"{args.model}: {error}") from None
        inner, _ = largest_submodule(unwrapped)  # of a LightningModule
        state = max(unwrapped, inner, state, key=lambda x: len(own & x.keys()))
    try:
        model = take(model, state).cpu().float().eval()
    except ValueError as error:
        raise InputError(f"{args.model} does not fit --arch {args.arch}: {error}") from None
    network = Network(model, args.arch, 0, size)
    try:
        if not network.graph.all_norms:
            raise InputError(f"--arch {args.arch} has no batch norm: its channels have no γ")
    except ValueError as error:
        raise InputError(
            f"--arch {args.arch} does not run on {size}×{size} images, see --size: {error}"
        ) from None
    return network


def find_model(arch: str, state: State) -> tuple[Callable[[], nn.Module], int, str]:
    """Returns a function that builds the full model, its image side in pixels, and its code.

    Args:
        arch: the name of one of torchvision's classification models, or ``package:function``.
        state: says how many classes one of torchvision's has.

    Raises InputError: there is no such model, or the function fails.
    """
    if ":" in arch:
        return partial(_call, arch), 224, f"{arch.replace(':', '.')}()"
    from torchvision import models  # here: importing it takes longer than all the rest

    names = models.list_models(module=models)
    if arch not in names:
        near = get_close_matches(arch, names)
        hint = f"did you mean {' or '.join(near)}?" if near else "see torchvision.models"
        raise InputError(
            f"--arch {arch} is neither a classification model of torchvision nor package:function:"
            f" {hint}"
        )

    build = partial(models.get_model, arch, weights=None)
    options: dict[str, Any] = {}
    with suppress(ValueError):  # two entries would get the same name: load_network says so
        state = unwrap(state)
    if arch in AUXILIARY:
        has_heads = any(name.startswith(AUXILIARY[arch]) for name in state)
        options = {"aux_logits": has_heads, "init_weights": False}
    model = build(**options)
    if not any(isinstance(m, AnyBatchNorm) for m in model.modules()):
        raise InputError(f"--arch {arch} has no batch norm: its channels have no γ")
    head = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    weight = state.get(f"{head}.weight", torch.empty(0))
    if weight.dim() == 2 and len(weight) != len(model.get_parameter(f"{head}.weight")):
        options["num_classes"] = len(weight)
    size = models.get_model_weights(arch).DEFAULT.transforms.keywords["crop_size"]
    words = ", ".join([repr(arch), *(f"{name}={value}" for name, value in options.items())])
    return partial(build, **options), size, f"torchvision.models.get_model({words})"


def _call(arch: str) -> nn.Module:
    """Returns the model of ``package:function``, imported from the current directory as well."""
    package, _, function = arch.partition(":")
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, os.getcwd())
    try:
        model = attrgetter(function)(import_module(package))()
    except Exception as error:  # of any kind: it is the user's code
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"--arch {arch} cannot be built: {reason}") from None
    finally:
        sys.path.pop(0)
        sys.dont_write_bytecode = writes_bytecode
    if not isinstance(model, nn.Module):
        raise InputError(f"--arch {arch} returns {type(model).__name__}, not a torch.nn.Module")
    return model
