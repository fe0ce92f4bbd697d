"""What the three prune commands share: arguments, tests, report, checkpoint, record."""

import argparse
import copy
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import restore
from utils import checkpoint, cli, records
from utils.cli import note
from utils.data import DATASETS, Batches, load_dataset
from utils.device import pick_device
from utils.flops import Cost, cost
from utils.pruning import apply_masks, prune_masks
from utils.settings import check_classes, check_said, inherit
from utils.slimming import TINY, batch_norms

Slim = Callable[[nn.Module, Sequence[Tensor]], nn.Module]


def parser(arch: str, name: str) -> argparse.ArgumentParser:
    # Defaults are suppressed: what is not given is what the checkpoint knows.
    p = argparse.ArgumentParser(
        prog=f"{arch}_prune.py",
        description=f"Cut the channels with zero scaling factors out of a {arch}.",
        argument_default=argparse.SUPPRESS,
    )
    p.add_argument("--model", required=True, metavar="CHECKPOINT", help="what to prune")
    p.add_argument(
        "--percent",
        type=cli.fraction,
        help="share of all channels to prune, the smallest |γ| first, from 0 to 1; channels with"
        " γ = 0 go in any case (default 0: these only)",
    )
    p.add_argument("--save", metavar="DIR", help="where to write (default: the folder of --model)")
    p.add_argument(
        "--name", type=cli.file_name, help=f"the slim checkpoint is NAMEpruned.pth.tar ({name})"
    )
    p.add_argument("--dataset", choices=DATASETS, help="default: the checkpoint's")
    p.add_argument("--data", metavar="DIR", help="where it is (default: the checkpoint's)")
    p.add_argument("--test-subset", type=cli.positive_int, metavar="N", help="test pictures")
    p.add_argument("--test-batch-size", type=cli.positive_int, metavar="N", help="default 256")
    p.add_argument("--depth", type=cli.positive_int, help="default: the checkpoint's")
    p.add_argument("--no-cuda", action="store_true", help="test on the CPU")
    return p


def prune(arch: str, name: str, slim: Slim, argv: list[str] | None) -> None:
    """Prune, test and write one network of architecture ``arch`` with its surgery ``slim``."""
    given = vars(parser(arch, name).parse_args(argv))
    path = Path(given["model"])
    content, network = checkpoint.load(path, restore)
    known = inherit(content, network)
    check_said({**given, "arch": arch}, known, given["model"])
    folder = Path(given.get("save", path.parent))
    cli.check_writable(folder)
    records.read(folder / "pruned_record.csv", records.PRUNED)
    where = {**known, **given}
    data = load_dataset(
        where.get("dataset", "cifar10"),
        Path(where["data"]) if "data" in where else None,
        test_subset=where.get("test_subset"),
    )
    check_classes(content, network, data, given["model"])

    model = network.model.eval()
    norms = batch_norms(model)
    gammas = [bn.weight.detach() for bn in norms]
    masks = prune_masks(gammas, [bn.bias.detach() for bn in norms], given.get("percent", 0.0))
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    small = slim(masked, masks)

    device = pick_device("no_cuda" in given)
    torch.backends.cudnn.allow_tf32 = False  # tests are in full float32
    tests = Batches(data, "test", given.get("test_batch_size", 256), device)
    networks = {"before": model, "masked": masked, "slim": small}
    logits = {label: predict(net.to(device), tests) for label, net in networks.items()}
    accuracy = {
        label: 100 * (out.argmax(1) == tests.labels.cpu()).double().mean().item()
        for label, out in logits.items()
    }
    costs = {label: cost(net) for label, net in networks.items()}

    out_path = folder / f"{given.get('name', name)}pruned.pth.tar"
    source = content.get("settings", {})
    row = {
        "model": out_path.name,
        "run": content.get("run", path.name.removesuffix("checkpoint.pth.tar")),
        "method": source.get("method"),
        "arch": arch,
        "depth": network.depth,
        "dataset": data.name,
        "seed": source.get("seed"),
        "s": source.get("s"),
        "beta": source.get("beta"),
        "percent": given.get("percent", 0.0),
        "channels": sum(map(len, masks)),
        "channels_kept": sum(int(mask.sum()) for mask in masks),
        **_savings(costs["before"], costs["slim"]),
        **{f"accuracy_{label}": f"{value:.4f}" for label, value in accuracy.items()},
    }
    row["channels_pruned_percent"] = _percent_less(row["channels"], row["channels_kept"])
    _report(row, [n for n, m in model.named_modules() if m in norms], masks)
    difference = (logits["masked"] - logits["slim"]).abs().max().item()
    print(f"largest difference between masked and slim outputs: {difference:.2g}")
    if all(bool((g.abs() >= TINY).all()) for g in gammas) and not given.get("percent"):
        note(
            "no scaling factor is zero, so nothing was pruned: train with -sr and a larger --s or"
            " more epochs, or choose a share of the channels with --percent"
        )
    small_cfg = restore(small.state_dict()).cfg
    checkpoint.save(
        out_path,
        {
            "cfg": small_cfg,
            "state_dict": small.state_dict(),
            "layout": "compact",
            **{
                key: content[key]
                for key in ("classes", "mean", "std", "settings")
                if key in content
            },
            "run": row["run"],
            "percent": row["percent"],
        },
    )
    records.append(folder / "pruned_record.csv", records.PRUNED, row)
    print(f"slim network: {out_path}")
    print(f"to fine-tune it: python main.py --refine {shlex.quote(str(out_path))}")


@torch.no_grad()
def predict(model: nn.Module, tests: Batches) -> Tensor:
    """Logits [n, classes] of all test pictures in eval mode and float32, on the CPU."""
    model.eval()
    return torch.cat([model(images.contiguous()).cpu() for images, _ in tests.in_order()])


def _percent_less(before: int, after: int) -> str:
    return f"{100 * (1 - after / before):.2f}"


def _savings(before: Cost, after: Cost) -> dict[str, int | str]:
    return {
        "parameters": before.parameters,
        "parameters_kept": after.parameters,
        "parameters_pruned_percent": _percent_less(before.parameters, after.parameters),
        "flops": before.flops,
        "flops_kept": after.flops,
        "flops_pruned_percent": _percent_less(before.flops, after.flops),
        "paper_parameters_pruned_percent": _percent_less(
            before.paper_parameters, after.paper_parameters
        ),
        "paper_flops_pruned_percent": _percent_less(before.paper_flops, after.paper_flops),
    }


def _report(row: Mapping[str, Any], names: Sequence[str], masks: Sequence[Tensor]) -> None:
    print(f"{'layer':<24}channels  kept")
    for name, mask in zip(names, masks, strict=True):
        print(f"{name:<24}{len(mask):8}{int(mask.sum()):6}")
    for what in ("channels", "parameters", "flops"):
        print(
            f"{what}: {row[what]:,} -> {row[f'{what}_kept']:,},"
            f" {row[f'{what}_pruned_percent']} % pruned"
        )
    print(
        f"test accuracy: {row['accuracy_before']} % before, {row['accuracy_masked']} % masked,"
        f" {row['accuracy_slim']} % slim"
    )
