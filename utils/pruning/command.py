"""What the three prune commands share: arguments, plan, tests, report, checkpoint, record."""

import argparse
import copy
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import restore
from models.cost import cost
from models.surgery import Slimmable, norms, slim
from utils import arguments
from utils.atomic import check_writable
from utils.console import InputError, note
from utils.data.batches import Batches
from utils.data.datasets import DATASETS, load
from utils.device import pick_device
from utils.files import checkpoint, records
from utils.files.checkpoint import Checkpoint
from utils.files.layouts import to_released
from utils.files.names import PRUNED, Files, run_of
from utils.files.start import known_of
from utils.pruning.plan import Plan, apply_plan, count_of, plan, smallest_count, zero_channels
from utils.pruning.report import accuracy, differences, kinds, print_comparison, print_report, sizes


def parser(arch: str, name: str) -> argparse.ArgumentParser:
    # Defaults are suppressed: what is not given is what the checkpoint knows.
    p = arguments.Parser(
        prog=f"{arch}_prune.py",
        description=f"Cut the channels with zero scaling factors out of a {arch}.",
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument("--model", required=True, metavar="CHECKPOINT", help="what to prune")
    p.add_argument(
        "--mask",
        default="gamma",
        help="prune where this factor is 0: gamma (default), or another that the checkpoint has,"
        " as xi of proximal training: more, and not always for free",
    )
    share = p.add_mutually_exclusive_group()
    share.add_argument(
        "--percent",
        type=arguments.fraction,
        default=0.0,
        help="share of all channels to prune, the smallest |γ| first, from 0 to 1; channels that"
        " are zero go in any case (default 0: these only)",
    )
    share.add_argument(
        "--target-flops", type=arguments.fraction, metavar="P", help="share of the FLOPs to remove"
    )
    share.add_argument(
        "--target-params",
        type=arguments.fraction,
        metavar="P",
        help="share of the parameters to remove",
    )
    p.add_argument("--save", metavar="DIR", help="where to write (default: the folder of --model)")
    p.add_argument(
        "--name",
        type=arguments.file_name,
        default=name,
        help=f"the slim checkpoint is NAMEpruned.pth.tar (default {name})",
    )
    p.add_argument(
        "--layout",
        choices=("compact", "released"),
        default="compact",
        help="of the slim checkpoint: batch norms on the kept channels only (default), or as the"
        " earlier network-slimming programs read it",
    )
    p.add_argument("--dataset", choices=DATASETS, help="default: the checkpoint's")
    p.add_argument("--data", metavar="DIR", help="where it is (default: the checkpoint's)")
    p.add_argument("--test-subset", type=arguments.positive_int, metavar="N", help="test pictures")
    p.add_argument(
        "--test-batch-size",
        type=arguments.positive_int,
        metavar="N",
        default=256,
        help="default 256",
    )
    p.add_argument("--depth", type=arguments.positive_int, help="default: the checkpoint's")
    p.add_argument("--no-cuda", action="store_true", default=False, help="test on the CPU")
    return p


def prune(arch: str, name: str, argv: list[str] | None) -> None:
    """Prune, test and write one network of architecture ``arch``."""
    args = parser(arch, name).parse_args(argv)
    path = Path(args.model)
    given = checkpoint.load(path)
    known = known_of(given, {**vars(args), "arch": arch}, path)
    folder = Path(getattr(args, "save", path.parent))
    out = Files(folder, "").slim(args.name)
    if out.resolve() == path.resolve():
        raise InputError(f"{out} would overwrite what is to be pruned: choose another --name")
    check_writable(folder)
    records.read(folder / PRUNED, ("run",))

    model = given.network.model.eval()
    layers = norms(model)
    gammas = [bn.weight.detach() for bn in layers.values()]
    biases = [bn.bias.detach() for bn in layers.values()]
    if args.mask not in given.factors:
        has = ", ".join(given.factors)
        raise InputError(f"{path} has no {args.mask}: --mask takes what it has, {has}")
    zeros = zero_channels(given.factors[args.mask].split([len(gamma) for gamma in gammas]))
    count = channels_to_prune(args, model, gammas, biases, zeros)

    data = load({**known, **vars(args)})
    given.check_classes(data, path)
    device = pick_device(args.no_cuda)
    tests = Batches(data, "test", args.test_batch_size, device)

    def carry_out(plan: Plan) -> tuple[Slimmable, Tensor, Tensor]:
        """The slim network, and what the masked and the slim one answer."""
        masked = copy.deepcopy(model)
        apply_plan(masked, plan)
        small = slim(masked, plan.masks)
        return small, predict(masked, tests), predict(small, tests)

    chosen = plan(gammas, biases, zeros, count)
    small, of_masked, of_slim = carry_out(chosen)
    before = predict(model, tests)
    labels, full_cost = tests.labels.cpu(), cost(model)
    row = {
        "model": out.name,
        "run": given.run or run_of(path),
        **({} if given.settings is None else given.settings.cells()),
        "arch": arch,
        "depth": given.network.depth,
        "dataset": data.name,
        "percent": None if "target_flops" in args or "target_params" in args else args.percent,
        **sizes(chosen.masks, full_cost, cost(small)),
        "accuracy_before": accuracy(before, labels),
        "accuracy_masked": accuracy(of_masked, labels),
        "accuracy_slim": accuracy(of_slim, labels),
        "mask": args.mask,
        **kinds(chosen, gammas, biases),
        **differences(before, of_masked, of_slim),
        "target_flops": getattr(args, "target_flops", None),
        "target_params": getattr(args, "target_params", None),
    }
    print_report(row, list(layers), chosen.masks)
    if args.mask != "gamma":
        by_gamma = plan(gammas, biases, zero_channels(gammas), count)
        other, _, answers = carry_out(by_gamma)
        other_row = sizes(by_gamma.masks, full_cost, cost(other))
        print_comparison(row, {**other_row, "accuracy_slim": accuracy(answers, labels)})
    if not count and not any(zero.any() for zero in zeros):
        note(
            "no scaling factor is zero, so nothing was pruned: train with -sr and a larger --s or"
            " more epochs, or choose a share of the channels with --percent"
        )
    checkpoint.save(out, slim_content(small, args.layout, given, row))
    records.append(folder / PRUNED, row)
    print(f"slim network: {out}")
    print(f"to fine-tune it: python main.py --refine {shlex.quote(str(out))}")


def channels_to_prune(
    args: argparse.Namespace,
    model: Slimmable,
    gammas: Sequence[Tensor],
    biases: Sequence[Tensor],
    zeros: Sequence[Tensor],
) -> int:
    """How many of the smallest |γ| go: as --percent says, or the fewest that reach the target."""
    channels = sum(map(len, gammas))
    kind = next((kind for kind in ("flops", "params") if f"target_{kind}" in args), None)
    if kind is None:
        return count_of(args.percent, channels)
    target, what = getattr(args, f"target_{kind}"), {"params": "parameters"}.get(kind, kind)
    full = getattr(cost(model), what)

    def saved(count: int) -> float:
        small = slim(model, plan(gammas, biases, zeros, count).masks)
        return 1 - getattr(cost(small), what) / full

    count = smallest_count(channels, lambda count: saved(count) >= target)
    if count is None:
        raise InputError(
            f"--target-{kind} {target:g} is out of reach: with one channel left in every layer"
            f" {saved(channels):.4f} of the {what} are gone"
        )
    return count


def slim_content(
    small: Slimmable, layout: str, source: Checkpoint, row: Mapping[str, Any]
) -> dict[str, Any]:
    """The slim checkpoint of ``small``, pruned from the network of ``source``."""
    state = small.state_dict()
    kept: dict[str, object] = {"classes": source.classes, "mean": source.mean, "std": source.std}
    if source.settings is not None:
        kept["settings"] = source.settings.values()
    return {
        "cfg": restore(state).cfg,
        "state_dict": to_released(state, small) if layout == "released" else state,
        "layout": layout,
        **{key: value for key, value in kept.items() if value is not None},
        "run": row["run"],
        "percent": row["percent"],
        "mask": row["mask"],
    }


@torch.no_grad()
def predict(model: nn.Module, tests: Batches) -> Tensor:
    """Logits [n, classes] of all test pictures in eval mode and float32, on the CPU."""
    model = copy.deepcopy(model).to(tests.images.device).eval()
    return torch.cat([model(images).cpu() for images, _ in tests.in_order()])
