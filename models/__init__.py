"""The paper's three networks, a fourth, and torchvision's, behind one :func:`build_model`."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models import named
from models.channel_selection import ChannelSelection
from models.densenet import DenseNet
from models.resnet import ResNet
from models.resnet_basic import ResNetBasic
from models.surgery import Slimmable, norms, streams
from models.vgg import SIZE, VGG

__all__ = [
    "SIZE",
    "ChannelSelection",
    "Network",
    "build_model",
    "check_size",
    "family",
    "full_cfg",
    "label",
    "restore",
    "size_of",
]

ARCHITECTURES: dict[str, type[Slimmable]] = {
    "vgg": VGG,
    "resnet": ResNet,
    "resnet-basic": ResNetBasic,
    "densenet": DenseNet,
}
NAMES = (*ARCHITECTURES, *named.DEPTHS)


def family(arch: str) -> str:
    """What the command is called after that prunes networks of this architecture."""
    return arch.partition("-")[0]


def pruner(arch: str) -> list[str]:
    """The program that prunes networks of this architecture: a script, or -m and a module."""
    return ["-m", "utils.prune"] if arch in named.DEPTHS else [f"{family(arch)}_prune.py"]


def label(arch: str, depth: int, between: str = "-") -> str:
    """A network's name: of torchvision's, the depth is in it already."""
    return arch if arch in named.DEPTHS else f"{arch}{between}{depth}"


def size_of(arch: str) -> int:
    """Pixels of the side of a picture that ``arch`` takes, where no other size is asked for."""
    return named.SIZE if arch in named.DEPTHS else SIZE


def check_size(arch: str, size: int) -> None:
    """Raise ValueError where ``arch`` takes no pictures of ``size``×``size`` pixels."""
    if arch in named.DEPTHS:
        if size < (least := named.SMALLEST.get(arch, SIZE)):
            raise ValueError(f"{arch} takes {least}×{least} pixels or more, not {size}×{size}")
    elif size != SIZE and not ARCHITECTURES[arch].any_size:
        raise ValueError(f"{arch} takes pictures of {SIZE}×{SIZE} pixels, not of {size}×{size}")


def full_cfg(arch: str, depth: int) -> list[int | str]:
    """Channels of every batch norm that can be slimmed, unpruned and in module order.

    VGG has ``'M'`` among them.

    Raises ValueError for an unknown ``arch`` or a ``depth`` it does not come in.
    """
    if arch in named.DEPTHS:
        if depth != named.DEPTHS[arch]:
            raise ValueError(f"{arch} has no depth {depth}: leave --depth out")
        return list(named.full(arch, named.SIZE).cfg)
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: choose {', '.join(NAMES)}")
    return list(ARCHITECTURES[arch].full_cfg(depth))


def build_model(
    arch: str,
    depth: int,
    num_classes: int,
    cfg: Sequence[int | str] | None = None,
    size: int | None = None,
    **kept: Sequence[int],
) -> Slimmable:
    """Build a freshly initialised network from [n, 3, size, size] to [n, num_classes] logits.

    ``cfg`` counts the kept channels of every batch norm (default: all, :func:`full_cfg`), and
    ``kept`` says where in a stream those channels are that are not cut (default: everywhere).
    Initial values are section 5.1's: γ = 0.5, convolutions N(0, √(2 / (k²·out))), batch-norm biases
    0. Of torchvision's networks they are its own, but for γ = 0.5 where channels can go; a slim one
    is without content, on the meta device.

    Raises ValueError for an unknown ``arch``, ``depth``, ``size``, or what does not fit them.
    """
    full, size = full_cfg(arch, depth), size or size_of(arch)
    cfg = full if cfg is None else cfg
    if len(cfg) != len(full) or not all(
        kept == width if isinstance(width, str) else type(kept) is int and 1 <= kept <= width
        for kept, width in zip(cfg, full, strict=True)
    ):
        raise ValueError(f"this cfg does not fit {label(arch, depth)}: at full width it is {full}")
    if arch in named.DEPTHS:
        whole = named.build(arch, num_classes, size)
        return whole if cfg == full else whole.narrowed([int(width) for width in cfg])
    model = ARCHITECTURES[arch](num_classes, cfg, **kept)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, math.sqrt(2 / module.weight[:, 0].numel()))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    return model


@dataclass(frozen=True)
class Network:
    """A network and the words that build it again."""

    model: Slimmable
    arch: str
    depth: int

    @property
    def is_full(self) -> bool:
        """Whether nothing is pruned."""
        return self.model.cfg == full_cfg(self.arch, self.depth)

    def with_classes(self, count: int) -> "Network":
        """The same with a fresh last layer, for ``count`` classes."""
        model = copy.deepcopy(self.model)
        name, head = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
        model.set_submodule(name, nn.Linear(head.in_features, count, head.bias is not None))
        model.num_classes = count
        return replace(self, model=model)


def restore(
    state: Mapping[str, Tensor], name: str | None = None, size: int | None = None
) -> Network:
    """The network whose state dict (compact layout) this is; everything follows from its shapes.

    But for torchvision's: ``name`` says which one of these it is, and ``size`` what pictures it
    is for.

    Raises ValueError, naming the first thing that does not fit.
    """
    arch, depth = (name, named.DEPTHS[name]) if name else _identify(state)
    # On the meta device a network takes no memory, however wide the file says that it is.
    with torch.device("meta"):
        full = build_model(arch, depth, 1, size=size)
        linear = (n for n, m in full.named_modules() if isinstance(m, nn.Linear))
        head = f"{list(linear)[-1]}.weight"
        gammas = [f"{name}.weight" for name in norms(full)]
        for key in (head, *gammas):
            if key not in state or state[key].dim() == 0 or state[key].numel() == 0:
                raise ValueError(f"{key} is missing or has no length")
        kept = iter(len(state[gamma]) for gamma in gammas)
        cfg = [width if width == "M" else next(kept) for width in full_cfg(arch, depth)]
        left = {name: f"{name}.index" for name in streams(full) if f"{name}.index" in state}
        for name, key in left.items():
            value, width = state[key], streams(full)[name].width
            if value.dtype != torch.int64 or value.dim() != 1 or len(value) >= width:
                raise ValueError(f"{key} is not a list of some of {width} channels")
        positions = {name: state[key].tolist() for name, key in left.items()}
        model = build_model(arch, depth, len(state[head]), cfg, size, **positions)
    expected = model.state_dict()
    # Checkpoints of before torch 0.4.1 do not count batches.
    counters = [k for k in expected if k.endswith("num_batches_tracked")]
    state = {**dict.fromkeys(counters, torch.tensor(0)), **state}
    if odd := sorted(expected.keys() ^ state.keys()):
        where = "missing" if odd[0] in expected else "not expected"
        raise ValueError(f"{odd[0]} is {where} in {label(arch, depth)}")
    for key, value in state.items():
        due = expected[key]
        if value.shape != due.shape or value.is_floating_point() != due.is_floating_point():
            has, needs = (f"{tuple(x.shape)} of {x.dtype}" for x in (value, due))
            raise ValueError(f"{key} has shape {has}, not {needs}")
    model.to_empty(device="cpu").load_state_dict(state)
    for name, module in model.named_modules():
        if isinstance(module, ChannelSelection) and (index := module.index) is not None:
            outside = (index < 0) | (index >= module.channels)
            if outside.any() or (index.diff() <= 0).any():
                raise ValueError(f"{name} selects channels that are not there")
    return Network(model, arch, depth)


def _identify(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Architecture and depth, by the names of the layers."""

    def count(prefix: str) -> int:
        return sum(key.startswith(prefix) and key.endswith(".conv1.weight") for key in state)

    if convolutions := sum(k.startswith("feature.") and v.dim() == 4 for k, v in state.items()):
        return "vgg", convolutions + 3
    if blocks := count("layer1."):
        bottleneck = "layer1.0.conv3.weight" in state
        return ("resnet", 9 * blocks + 2) if bottleneck else ("resnet-basic", 6 * blocks + 2)
    if layers := count("dense1."):
        return "densenet", 3 * layers + 4
    raise ValueError("no layer of a vgg, resnet or densenet is in it")
