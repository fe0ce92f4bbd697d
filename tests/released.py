"""The earlier programs' networks, evaluated straight from their state dicts.

Written from the description of their layout alone: batch norm at full width, then the selection
that ``select.indexes`` makes, ReLU, and a convolution with the kept inputs.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import build_model

State = dict[str, Tensor]


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Those whose channels can go, in module order: in basic blocks, the first ones."""
    named = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    basic = hasattr(model, "linear")
    return [m for n, m in named if not basic or n.endswith(".bn1")]


def add_indexes(state: State) -> State:
    """A full network's state dict as those programs save it: in their order, nothing removed."""
    released = {}
    for key, value in state.items():
        if key.endswith("conv1.weight") and key != "conv1.weight":
            block = key.removesuffix("conv1.weight")
            released[f"{block}select.indexes"] = torch.ones(len(state[f"{block}bn1.weight"]))
        elif key == "fc.weight":
            released["select.indexes"] = torch.ones(len(state["bn.weight"]))
        released[key] = value
    return released


def remove(state: State, select: str, indexes: Tensor) -> State:
    """Remove channels at one selection: the convolution or linear layer behind loses inputs."""
    prefix = select.removesuffix("select")
    reader = f"{prefix}conv1.weight" if prefix else "fc.weight"
    bn = f"{prefix}bn1" if prefix else "bn"
    kept = indexes.bool()
    removed = {f"{select}.indexes": indexes, reader: state[reader][:, kept]}
    for entry, value in (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        removed[f"{bn}.{entry}"] = state[f"{bn}.{entry}"].clone().masked_fill_(~kept, value)
    return {**state, **removed}


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    entries = (state[f"{name}.{e}"] for e in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, *entries))


def _select(state: State, name: str, x: Tensor) -> Tensor:
    return x[:, state[f"{name}.indexes"].bool()]


def vgg(state: State, x: Tensor) -> Tensor:
    layers = sorted({int(key.split(".")[1]) for key in state if key.startswith("feature.")})
    for position, layer in enumerate(layers):
        name = f"feature.{layer}"
        if state[f"{name}.weight"].dim() == 4:
            if position and layer - layers[position - 1] == 3:  # a ReLU and a pool between
                x = F.max_pool2d(x, 2)
            x = F.conv2d(x, state[f"{name}.weight"], padding=1)
        else:
            x = _norm(state, name, x)
    x = F.avg_pool2d(x, 2).flatten(1)
    return F.linear(x, state["classifier.weight"], state["classifier.bias"])


def resnet(state: State, x: Tensor) -> Tensor:
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in state:
            block = f"layer{stage}.{i}"
            stride = 2 if stage > 1 and i == 0 else 1
            out = _select(state, f"{block}.select", _norm(state, f"{block}.bn1", x))
            out = F.conv2d(out, state[f"{block}.conv1.weight"])
            out = _norm(state, f"{block}.bn2", out)
            out = F.conv2d(out, state[f"{block}.conv2.weight"], stride=stride, padding=1)
            out = F.conv2d(_norm(state, f"{block}.bn3", out), state[f"{block}.conv3.weight"])
            shortcut = state.get(f"{block}.downsample.0.weight")
            x = out + (x if shortcut is None else F.conv2d(x, shortcut, stride=stride))
            i += 1
    return _head(state, x)


def densenet(state: State, x: Tensor) -> Tensor:
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        i = 0
        while f"dense{stage}.{i}.conv1.weight" in state:
            layer = f"dense{stage}.{i}"
            out = _select(state, f"{layer}.select", _norm(state, f"{layer}.bn1", x))
            x = torch.cat((x, F.conv2d(out, state[f"{layer}.conv1.weight"], padding=1)), 1)
            i += 1
        if stage < 3:
            out = _select(state, f"trans{stage}.select", _norm(state, f"trans{stage}.bn1", x))
            x = F.avg_pool2d(F.conv2d(out, state[f"trans{stage}.conv1.weight"]), 2)
    return _head(state, x)


def _head(state: State, x: Tensor) -> Tensor:
    x = _select(state, "select", _norm(state, "bn", x))
    return F.linear(F.avg_pool2d(x, 8).flatten(1), state["fc.weight"], state["fc.bias"])


def trained(arch: str, depth: int) -> nn.Module:
    """A network of two classes with statistics, and a third of its channels dead."""
    torch.manual_seed(0)
    model = build_model(arch, depth, 2).eval()
    with torch.no_grad():
        for bn in batch_norms(model):
            bn.weight.uniform_(0.5, 1)
            bn.bias.uniform_(-0.2, 0.2)
            bn.running_mean.normal_(0, 0.1)
            bn.running_var.uniform_(0.5, 2)
            dead = torch.rand(bn.num_features) < 1 / 3
            bn.weight[dead] = 0
            bn.bias[dead] = -0.1
    return model


def training_checkpoint(path: Path, arch: str, depth: int, best: object) -> dict:
    """What the earlier main.py saves, data-parallel prefix and optimiser state included."""
    model = trained(arch, depth)
    state = add_indexes(model.state_dict())
    names = [k for k in state if not k.endswith(("running_mean", "running_var", "batches_tracked"))]
    torch.manual_seed(1)
    buffers = {i: {"momentum_buffer": torch.randn_like(state[k])} for i, k in enumerate(names)
               if not k.endswith("indexes")}  # fmt: skip
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 1e-4, "nesterov": False}
    content = {
        "epoch": 1,
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "best_prec1": best,
        "optimizer": {
            "state": buffers,
            "param_groups": [{**group, "params": list(range(len(names)))}],
        },
    }
    torch.save(content, path)
    return {**content, "state_dict": state, "names": names}
