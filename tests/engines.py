# ruff: noqa: E402  # the repository comes first on the path, before tests/netslim
"""Speed of pruned networks in inference engines, beside Torch-Pruning's with equal FLOPs.

    OMP_NUM_THREADS=1 python tests/engines.py CHECKPOINT ...

takes full-width checkpoints of proximal slimming and measures, in one process and in turn, for
every installed engine:

* zeros removed: the network without the channels for which γ = 0;
* fastest form: the one that ``python -m utils.prune --for`` chooses (``utils/pruning/latency.py``);
* Torch-Pruning: the full network, cut to at most as many FLOPs as each of these, as its README
  recommends (``GroupMagnitudeImportance``, one share for all layers), with ``round_to=8`` and
  without.

Prints FLOPs as a share of the full network's, median milliseconds, and speed-ups over it. Takes 5
to 20 minutes for a checkpoint.
"""

import argparse
import copy
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch
import torch_pruning as tp
from torch import nn

from utils.console import missing_packages
from utils.cost import cost
from utils.engines import ENGINES, milliseconds, prepare
from utils.files import checkpoint
from utils.methods.base import is_zero
from utils.network import Network
from utils.pruning.command import parser
from utils.pruning.latency import Search
from utils.pruning.selector import Selector

CPU = torch.device("cpu")
CASES = [("onnxruntime", 64), ("onnxruntime", 1), ("torch", 64)]
CASES += [("torch-bf16", 64), ("openvino", 64)]
REPEATS = {64: 9, 1: 60}  # by batch size
STEPS = 100  # of Torch-Pruning from full width to nothing


def torch_pruned(network: Network, flops: float, round_to: int | None) -> nn.Module:
    """Returns the full ``network`` as Torch-Pruning cuts it to at most ``flops``."""
    model, x = copy.deepcopy(network.model), torch.zeros(1, 3, network.size, network.size)
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)][-1:],
        round_to=round_to,
    )
    for _ in range(STEPS):
        if cost(model, network.size).flops <= flops:
            break
        pruner.step()
    return model.eval()


def compare(path: Path, cases: list[tuple[str, int]]) -> None:
    network = checkpoint.load(path).network
    network.model.eval()
    full = cost(network.model, network.size).flops
    zeros = is_zero(torch.cat([bn.weight.detach() for bn in network.norms.values()]))
    pruning = Selector(network, parser(None).parse_args(["--model", str(path)])).select(zeros)

    def build(masks: list[torch.Tensor]) -> Network:
        return network.remove(network.plan(masks))

    def theirs(model: nn.Module, name: str) -> dict[str, nn.Module]:
        flops = cost(model, network.size).flops
        forms = {"": None, ", to 8": 8}
        return {
            f"Torch-Pruning, as {name}{text}": torch_pruned(network, flops, round_to)
            for text, round_to in forms.items()
        }

    always = {"full": network.model, "zeros removed": build(pruning.chosen).model}
    same_as_zeros = theirs(always["zeros removed"], "zeros")
    print(f"{path}: {network.arch}-{network.depth}")
    print(f"{'engine':<12}{'batch':>6}  {'network':<32}{'FLOPs':>8}{'ms':>10}{'speed-up':>10}")
    for engine, size in cases:
        with redirect_stdout(io.StringIO()) as out:
            search = Search(network, engine, size, CPU)
            masks, _ = search.fastest(pruning.chosen, pruning.masked.model, build)
        print(out.getvalue(), file=sys.stderr)
        form = build(masks).model
        models = always | {"fastest form": form} | same_as_zeros | theirs(form, "form")
        calls = [prepare(engine, model, search.images) for model in models.values()]
        times = milliseconds(calls, CPU, REPEATS.get(size))
        for (name, model), ms in zip(models.items(), times, strict=True):
            flops = f"{100 * cost(model, network.size).flops / full:6.1f} %"
            line = f"{engine:<12}{size:6}  {name:<32}{flops}{ms:10.3f}{times[0] / ms:10.2f}"
            print(line, flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("checkpoints", nargs="+", type=Path)
    text = "engines (default: all that are installed)"
    p.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help=text)
    args = p.parse_args()
    cases = [(e, n) for e, n in CASES if e in args.engines and not missing_packages(ENGINES[e])]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for path in args.checkpoints:
        compare(path, cases)


if __name__ == "__main__":
    main()
