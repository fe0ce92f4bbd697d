"""Prunes a checkpoint by one of Torch-Pruning's pruners, for comparisons.

    python -m utils.experiments.torch_pruning --model FILE --pruner bn-scale --target-flops 0.5

The model is written and recorded as by the prune command, so that main.py --refine fine-tunes it.
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import copy
import sys
from pathlib import Path

import torch
from torch import nn

from netslim.cost import cost
from utils import arguments, console
from utils.console import InputError, require_packages
from utils.data.batches import test_batches
from utils.data.datasets import load
from utils.device import pick_device
from utils.files import checkpoint, records
from utils.files.init_from import config_from_checkpoint
from utils.files.paths import PRUNED, locate
from utils.network import restore
from utils.pruning import report
from utils.pruning.command import predict

PACKAGE = "torch_pruning"
PRUNERS = {  # its classes: of the pruner and of the importance, whose options these are
    "bn-scale": ("BNScalePruner", "BNScaleImportance", {}),
    "group-norm": ("GroupNormPruner", "GroupMagnitudeImportance", {"p": 2}),
    "magnitude": ("MagnitudePruner", "MagnitudeImportance", {"p": 1}),
}
STEPS = 400  # as in Torch-Pruning's own experiments


def prune(model: nn.Module, example: torch.Tensor, name: str, share: float) -> None:
    """Removes channels from ``model`` in place until ``share`` of its FLOPs are removed.

    The loop is that of Torch-Pruning's experiments (``progressive_pruning``): one ranking of all
    layers' channels, in small steps, without training between them; the classifier keeps its
    outputs.

    Raises InputError: Torch-Pruning is not installed, or ``share`` is out of reach.
    """
    require_packages("Torch-Pruning's part of the comparison", PACKAGE)
    import torch_pruning as tp

    pruner, importance, options = PRUNERS[name]
    steps = getattr(tp.pruner, pruner)(
        model,
        example,
        importance=getattr(tp.importance, importance)(**options),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)],
    )
    full = cost(model, example).flops
    while 1 - cost(model, example).flops / full < share:
        if steps.current_step == STEPS:
            raise InputError(f"--target-flops {share} is out of reach of --pruner {name}")
        steps.step()


def main(argv: list[str] | None = None) -> None:
    text = "Prune a checkpoint of main.py by one of Torch-Pruning's pruners."
    p = console.Parser(prog="python -m utils.experiments.torch_pruning", description=text)
    add = p.add_argument
    add("--model", required=True, metavar="FILE", help="checkpoint of main.py")
    add("--pruner", required=True, choices=PRUNERS, help=", ".join(PRUNERS))
    text = "share of the FLOPs to remove (0.3 or 30: 30 %%)"
    add("--target-flops", required=True, type=arguments.share, metavar="P", help=text)
    text = "the output is NAME.pth.tar, beside FILE (default: torch-pruning)"
    add("--name", type=arguments.file_name, default="torch-pruning", help=text)
    add("--data", metavar="DIR", help="folder of the data set (default: the checkpoint's)")
    add("--no-cuda", action="store_true", help="evaluate on the CPU")
    args = p.parse_args(argv)
    flags = {name: value for name, value in vars(args).items() if value is not None}
    path = Path(args.model)
    loaded = checkpoint.load(path)
    network = loaded.network
    files, _ = locate(path, loaded.run_name)
    output = files.pruned(args.name)
    if loaded.config is None or output in (path, files.checkpoint, files.best):
        raise InputError(f"{path} is no checkpoint of main.py, or --name is one of its files")
    data = load(config_from_checkpoint(loaded, flags, path) | flags, loaded.norm)
    batches = test_batches(data, flags, pick_device(args.no_cuda))

    model = copy.deepcopy(network.model).eval()
    prune(model, torch.zeros(1, 3, network.size, network.size), args.pruner, args.target_flops)
    pruned = restore(model.state_dict(), network.arch, network.size, network.depth)
    widths = zip(network.widths, pruned.widths, strict=True)
    masks = [torch.arange(width) < kept for width, kept in widths]
    sizes = report.sizes(network, masks, pruned)
    before, after = (
        report.accuracy(predict(net.model, batches), batches.labels.cpu())
        for net in (network, pruned)
    )
    state = {"cfg": pruned.cfg, "state_dict": pruned.model.state_dict(), "layout": "compact"}
    checkpoint.save(output, state | loaded.metadata())
    row = {
        "model": files.recorded(output),
        "run": files.run,
        "checkpoint": files.recorded(path),
        "epoch": loaded.epoch,
        "checksum": checkpoint.checksum(path),
        "test_pictures": f"{data.test.checksum():08x}",
        **loaded.config.to_row(),
        "mask": "gamma",
        "criterion": f"torch-pruning {args.pruner}",
        "target_flops": args.target_flops,
        "slim_checksum": checkpoint.sha256(output),
        **sizes,
        "accuracy_before": before,
        "accuracy_slim": after,
    }
    records.append(files.folder / PRUNED, row)
    print(
        f"FLOPs removed: {sizes['flops_pruned_percent']} %; accuracy {before} % before and"
        f" {after} % after pruning\npruned model: {output}"
    )


if __name__ == "__main__":
    sys.exit(console.run(main))
