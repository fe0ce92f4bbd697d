# ruff: noqa: E402  # the repository comes first on the path, before tests/netslim
"""Which channels of public networks can be removed, and whether what is left is equal.

    python tests/reach.py [NAME ...] > reach.csv

needs timm beside the development requirements, and takes some 30 minutes for all of ``NAMES``. The
networks have random weights, biases and statistics, and γ = 0 for half of the channels, the same in
all batch norms that write a stream. Columns, of the channels of all batch norms and in float64:

* alone, coupled: the share that can be removed without and with ``graph.coupled``;
* eval, train: the largest change of an output, relative to the largest one, in both modes;
* gradient: the same of the gradient of the input, where all removed channels are silent (bias 0);
* seconds: of CPU time, for analysis and removal;
* tp_…: the same of Torch-Pruning, removing the channels for which γ = 0 that it can; tp_silent
  where their biases are 0, too.
"""

import csv
import resource
import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import timm
import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn

import netslim
from netslim.graph import AnyBatchNorm
from netslim.surgery import apply_removal, plan_removal
from netslim.trace import copied, passed

TORCHVISION = """
    resnet18 resnet50 wide_resnet50_2 resnext50_32x4d densenet121 efficientnet_b0
    efficientnet_v2_s mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_y_400mf
    regnet_x_400mf shufflenet_v2_x1_0 inception_v3 googlenet mnasnet1_0 vgg11_bn
"""
TIMM = """
    eca_resnet33ts convmixer_768_32 cs3darknet_focus_m cspresnet50 cspdarknet53 dla34
    dla60_res2net dpn68 ese_vovnet19b_dw ecaresnet26t efficientnet_lite0 mixnet_s
    tinynet_a fbnetc_100 spnasnet_100 semnasnet_075 efficientvit_b0 efficientvit_m0
    fasternet_t0 fastvit_t8 fbnetv3_b ghostnet_100 ghostnetv2_100 hardcorenas_a hgnet_tiny
    hgnetv2_b0 hrnet_w18_small inception_resnet_v2 inception_v4 lcnet_050 lcnetv2_base
    legacy_seresnet18 legacy_seresnext26_32x4d legacy_xception mobilevit_xxs
    mobilevitv2_050 mobilenetv4_conv_small mobilenetv1_100 nasnetalarge nextvit_small
    repghostnet_050 repvit_m0_9 res2net50_26w_4s resnest14d resnet26d resnetv2_50
    seresnet18 skresnet18 rexnet_100 selecsls42b shvit_s1 starnet_s1 swiftformer_xs
    tiny_vit_5m_224 tresnet_m xception41 xception41p regnetz_005 repvgg_a0 gernet_s
    mobileone_s0 darknet53 lowformer_b0 iformer_t cpubone_b0_bfrobust visformer_tiny
    levit_128s coatnet_0_rw_224 efficientformer_l1
"""
NAMES = [f"torchvision:{name}" for name in TORCHVISION.split()] + TIMM.split()


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name.startswith("torchvision:"):
        model = torchvision.models.get_model(name.partition(":")[2], weights=None)
        size = 299 if "inception" in name else 128
    else:
        model = timm.create_model(name)
        side = model.default_cfg["input_size"][-1]
        size = side if model.default_cfg.get("fixed_input_size") else min(side, 160)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    for m in model.double().train().modules():
        if isinstance(m, AnyBatchNorm):
            m.momentum = None  # statistics of one batch
            if m.affine:
                m.weight.data.uniform_(0.5, 1.5)
                m.bias.data.normal_(0, 0.3)
        elif "Drop" in type(m).__name__:
            m.train = lambda mode=True, m=m: nn.Module.train(m, False)  # draws nothing
    with torch.no_grad(), suppress(ValueError):  # of code that does not train on so few images
        model(x)
    return model.eval(), x


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(0)  # of dropout
    return [*passed(model(x))]


def change(small: nn.Module, full: nn.Module, x: Tensor, training: bool = False) -> float:
    """The largest change of an output; infinite where there is none."""
    try:
        with torch.no_grad():
            pairs = [outputs(copied(m).train(training), x) for m in (small, full)]
    except Exception:
        return float("inf")
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*pairs, strict=True))


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    sum(y.square().sum() for y in outputs(model, x)).backward()
    return x.grad


Row = dict[str, float | str]


def ours(model: nn.Module, x: Tensor) -> Row:
    start = time.process_time()
    graph = netslim.analyze(model, x)
    seconds = time.process_time() - start
    every = sum(norm.num_features for norm in graph.all_norms.values())
    if not every:
        return {"reasons": "no batch norm"}
    shares = {"alone": graph.removable, "coupled": graph.prunable()}
    row: Row = {key: sum(int(m.sum()) for m in v.values()) / every for key, v in shares.items()}
    staying = [why for name, why in graph.reasons.items() if name not in graph.coupled]
    row["reasons"] = max(staying, key=staying.count, default="")
    zero = torch.rand(len(graph.classes)) < 0.5
    keep = {name: ~zero[graph.norm_classes(name)] for name in graph.prunable()}
    for silent in (False, True):
        removal = plan_removal(graph, keep)
        for name, mask in keep.items():  # what stays because it is needed keeps its γ
            carriers = removal.carriers[graph.norm_classes(name)] & ~mask
            keep[name] = removal.keep[name] & ~carriers
            graph.all_norms[name].weight.data[~keep[name]] = 0
            graph.all_norms[name].bias.data[~keep[name] & torch.tensor(silent)] = 0
        start = time.process_time()
        removal = plan_removal(graph, keep)
        small = apply_removal(graph, model, removal)
        if not silent:
            row["seconds"] = seconds + time.process_time() - start
            row |= {"eval": change(small, model, x), "train": change(small, model, x, True)}
            row["removed"] = sum(int((~kept).sum()) for kept in removal.keep.values()) / every
            row |= torch_pruning(copied(model), model, x)
    mine, theirs = gradient(small, x), gradient(model, x)
    row["gradient"] = float((mine - theirs).abs().max() / theirs.abs().max())
    silent = torch_pruning(copied(model), model, x)
    return row | {"tp_silent": silent.get("tp_eval", "")}


def torch_pruning(model: nn.Module, full: nn.Module, x: Tensor) -> Row:
    start = time.process_time()
    norms = [m for m in model.modules() if isinstance(m, AnyBatchNorm) and m.affine]
    every, reached = sum(m.num_features for m in norms), 0
    signal.alarm(PATIENCE)
    try:
        graph = tp.DependencyGraph().build_dependency(model, x[:1])
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
        for group in graph.get_all_groups(ignored_layers=last):
            modules = [(dep.target.module, places) for dep, places in group]
            own = [m.weight[places] for m, places in modules if isinstance(m, AnyBatchNorm)]
            reached += sum(map(len, own))
            zero = torch.stack(own).eq(0).all(0) if own else torch.zeros(1)
            if zero.any() and not zero.all():
                root, idxs = group[0].dep, group[0].idxs
                removed = [i for i, z in zip(idxs, zero, strict=True) if z]
                graph.get_pruning_group(root.target.module, root.handler, removed).prune()
    except Exception as error:
        return {"tp_error": type(error).__name__}
    finally:
        signal.alarm(0)
    seconds = time.process_time() - start
    return {"tp_share": reached / every, "tp_eval": change(model, full, x), "tp_seconds": seconds}


MEMORY = 16 * 2**30  # bytes; beyond it an allocation raises
PATIENCE = 60  # seconds that Torch-Pruning has for a network
COLUMNS = ["network", "alone", "coupled", "removed", "eval", "train", "gradient", "seconds"]
COLUMNS += ["tp_share", "tp_eval", "tp_silent", "tp_seconds", "tp_error", "reasons"]


def give_up(*_: object) -> None:
    raise TimeoutError


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, give_up)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    table = csv.DictWriter(sys.stdout, COLUMNS)
    table.writeheader()
    for name in names:
        row: Row = {"network": name}
        try:
            row |= ours(*build(name))
        except Exception as error:
            row["reasons"] = f"{type(error).__name__}: {error}"[:200]
        table.writerow({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()})
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:] or NAMES)
