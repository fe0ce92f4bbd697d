"""What the three prune commands share: arguments, plan, tests, report, checkpoint, record."""

import argparse
import copy
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import Network, restore
from models.cost import cost
from models.surgery import slim
from utils.atomic import check_writable
from utils.console import InputError, note
from utils.data.datasets import DATASETS, Batches
from utils.device import pick_device
from utils.files import checkpoint, records
from utils.flags import types
from utils.flags.settings import load_data
from utils.flags.source import check_classes, check_said, inherit
from utils.methods.slimming import batch_norms
from utils.pruning.plan import Plan, apply_plan, count_of, plan, smallest_count, zero_channels
from utils.pruning.report import accuracy, differences, kinds, print_comparison, print_report, sizes


def parser(arch: str, name: str) -> argparse.ArgumentParser:
    # Defaults are suppressed: what is not given is what the checkpoint knows.
    p = types.Parser(
        prog=f"{arch}_prune.py",
        description=f"Cut the channels with zero scaling factors out of a {arch}.",
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument("--model", required=True, metavar="CHECKPOINT", help="what to prune")
    p.add_argument(
        "--mask",
        choices=("gamma", "xi"),
        default="gamma",
        help="prune where γ = 0 (default), or where ξ = 0: more, and not always for free",
    )
    share = p.add_mutually_exclusive_group()
    share.add_argument(
        "--percent",
        type=types.fraction,
        default=0.0,
        help="share of all channels to prune, the smallest |γ| first, from 0 to 1; channels that"
        " are zero go in any case (default 0: these only)",
    )
    share.add_argument(
        "--target-flops", type=types.fraction, metavar="P", help="share of the FLOPs to remove"
    )
    share.add_argument(
        "--target-params",
        type=types.fraction,
        metavar="P",
        help="share of the parameters to remove",
    )
    p.add_argument("--save", metavar="DIR", help="where to write (default: the folder of --model)")
    p.add_argument(
        "--name",
        type=types.file_name,
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
    p.add_argument("--test-subset", type=types.positive_int, metavar="N", help="test pictures")
    p.add_argument(
        "--test-batch-size", type=types.positive_int, metavar="N", default=256, help="default 256"
    )
    p.add_argument("--depth", type=types.positive_int, help="default: the checkpoint's")
    p.add_argument("--no-cuda", action="store_true", default=False, help="test on the CPU")
    return p


def prune(arch: str, name: str, argv: list[str] | None) -> None:
    """Prune, test and write one network of architecture ``arch``."""
    args = parser(arch, name).parse_args(argv)
    path = Path(args.model)
    content, network = checkpoint.load(path, restore)
    known = inherit(content, network, args.model)
    check_said({**vars(args), "arch": arch}, known, args.model)
    folder = Path(getattr(args, "save", path.parent))
    out = folder / f"{args.name}pruned.pth.tar"
    if out.resolve() == path.resolve():
        raise InputError(f"{out} would overwrite what is to be pruned: choose another --name")
    record_path = folder / "pruned_record.csv"
    check_writable(folder)
    records.read(record_path, records.PRUNED)

    model = network.model.eval()
    norms = batch_norms(model)
    gammas = [bn.weight.detach() for bn in norms]
    biases = [bn.bias.detach() for bn in norms]
    zeros = zero_channels(gammas if args.mask == "gamma" else xi_of(content, gammas, path))
    count = channels_to_prune(args, network, gammas, biases, zeros)

    data = load_data({**known, **vars(args)})
    check_classes(content, network, data, args.model)
    device = pick_device(args.no_cuda)
    tests = Batches(data, "test", args.test_batch_size, device)

    def carry_out(plan: Plan) -> tuple[nn.Module, Tensor, Tensor]:
        """The slim network, and what the masked and the slim one answer."""
        masked = copy.deepcopy(model)
        apply_plan(masked, plan)
        small = slim(masked, plan.masks)
        return small, predict(masked, tests), predict(small, tests)

    chosen = plan(gammas, biases, zeros, count)
    small, of_masked, of_slim = carry_out(chosen)
    before = predict(model, tests)
    labels, full_cost = tests.labels.cpu(), cost(model)
    source = content.get("settings", {})
    row = {
        "model": out.name,
        "run": content.get("run", path.name.removesuffix("checkpoint.pth.tar")),
        "method": source.get("method"),
        "arch": arch,
        "depth": network.depth,
        "dataset": data.name,
        "seed": source.get("seed"),
        "s": source.get("s"),
        "beta": source.get("beta"),
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
    print_report(row, [n for n, m in model.named_modules() if m in norms], chosen.masks)
    if args.mask == "xi":
        by_gamma = plan(gammas, biases, zero_channels(gammas), count)
        other, _, answers = carry_out(by_gamma)
        other_row = sizes(by_gamma.masks, full_cost, cost(other))
        print_comparison(row, {**other_row, "accuracy_slim": accuracy(answers, labels)})
    if not count and not any(zero.any() for zero in zeros):
        note(
            "no scaling factor is zero, so nothing was pruned: train with -sr and a larger --s or"
            " more epochs, or choose a share of the channels with --percent"
        )
    checkpoint.save(out, slim_content(small, args.layout, content, row))
    records.append(record_path, records.PRUNED, row)
    print(f"slim network: {out}")
    print(f"to fine-tune it: python main.py --refine {shlex.quote(str(out))}")


def xi_of(content: Mapping[str, Any], gammas: Sequence[Tensor], path: Path) -> list[Tensor]:
    """The checkpoint's ξ, cut as γ is."""
    xi = content.get("xi")
    if not isinstance(xi, Tensor) or xi.shape != (sum(map(len, gammas)),):
        raise InputError(
            f"{path} has no ξ, so --mask xi cannot be: it takes a checkpoint of proximal training"
            " by this program"
        )
    return list(xi.split([len(gamma) for gamma in gammas]))


def channels_to_prune(
    args: argparse.Namespace,
    network: Network,
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
    full = getattr(cost(network.model), what)

    def saved(count: int) -> float:
        small = slim(network.model, plan(gammas, biases, zeros, count).masks)
        return 1 - getattr(cost(small), what) / full

    count = smallest_count(channels, lambda count: saved(count) >= target)
    if count is None:
        raise InputError(
            f"--target-{kind} {target:g} is out of reach: with one channel left in every layer"
            f" {saved(channels):.4f} of the {what} are gone"
        )
    return count


def slim_content(
    small: nn.Module, layout: str, content: Mapping[str, Any], row: Mapping[str, Any]
) -> dict[str, Any]:
    """The slim checkpoint of ``small``, pruned from the network whose checkpoint is ``content``."""
    state = small.state_dict()
    cfg = restore(state).cfg
    if layout == "released":
        state = checkpoint.to_released(state, small)
    inherited = ("classes", "mean", "std", "settings")
    return {
        "cfg": cfg,
        "state_dict": state,
        "layout": layout,
        **{key: content[key] for key in inherited if key in content},
        "run": row["run"],
        "percent": row["percent"],
        "mask": row["mask"],
    }


@torch.no_grad()
def predict(model: nn.Module, tests: Batches) -> Tensor:
    """Logits [n, classes] of all test pictures in eval mode and float32, on the CPU."""
    model = copy.deepcopy(model).to(tests.images.device).eval()
    return torch.cat([model(images).cpu() for images, _ in tests.in_order()])
