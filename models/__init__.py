"""The paper's three networks, full or slim, behind one :func:`build_model`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import densenet, resnet, vgg
from models.channel_selection import ChannelSelection
from models.surgery import Slimmable
from models.vgg import SIZE

__all__ = [
    "ARCHITECTURES",
    "SIZE",
    "ChannelSelection",
    "Network",
    "build_model",
    "full_cfg",
    "restore",
]

ARCHITECTURES = {"vgg": vgg, "resnet": resnet, "densenet": densenet}


def full_cfg(arch: str, depth: int) -> list[int | str]:
    """Channels of every batch norm of the unpruned network, in module order (VGG: with ``'M'``).

    Raises ValueError for an unknown ``arch`` or a ``depth`` it does not come in.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: choose {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[arch].full_cfg(depth)


def build_model(
    arch: str, depth: int, num_classes: int, cfg: Sequence[int | str] | None = None
) -> Slimmable:
    """Build a freshly initialised network that maps [n, 3, 32, 32] to [n, num_classes] logits.

    ``cfg`` counts the kept channels of every batch norm (default: all, :func:`full_cfg`). Initial
    values are section 5.1's: γ = 0.5, convolutions N(0, √(2 / (k²·out))), batch-norm biases 0.

    Raises ValueError for an unknown ``arch``, ``depth`` or a ``cfg`` that does not fit them.
    """
    full = full_cfg(arch, depth)
    cfg = full if cfg is None else list(cfg)
    fits = len(cfg) == len(full) and all(
        kept == width if isinstance(width, str) else type(kept) is int and 1 <= kept <= width
        for kept, width in zip(cfg, full, strict=False)
    )
    if not fits:
        raise ValueError(
            f"this cfg does not fit {arch}-{depth}: it takes {len(full)} entries,"
            " each from 1 to the full width" + (", 'M' where the pools are" * (arch == "vgg"))
        )
    if num_classes < 1:
        raise ValueError(f"a classifier needs at least one class, not {num_classes}")
    if arch == "vgg":
        model: Slimmable = vgg.VGG(num_classes, cfg)
    else:
        network = resnet.ResNet if arch == "resnet" else densenet.DenseNet
        model = network(num_classes, [width for width in cfg if isinstance(width, int)])
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            k_h, k_w = module.kernel_size
            nn.init.normal_(module.weight, 0, math.sqrt(2 / (k_h * k_w * module.out_channels)))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.5)
    return model


@dataclass(frozen=True)
class Network:
    """A network and the words that build it again."""

    model: Slimmable
    arch: str
    depth: int
    num_classes: int
    cfg: list[int | str]

    @property
    def is_full(self) -> bool:
        """Whether nothing is pruned."""
        return self.cfg == full_cfg(self.arch, self.depth)


def restore(state: Mapping[str, Tensor]) -> Network:
    """The network whose state dict (compact layout) this is; everything follows from its shapes.

    Raises ValueError, naming the first thing that does not fit.
    """
    arch, depth = _identify(state)
    head = "classifier.weight" if arch == "vgg" else "fc.weight"
    # On the meta device a network takes no memory, however wide the file says that it is.
    with torch.device("meta"):
        full = build_model(arch, depth, 1)
        norms = [name for name, m in full.named_modules() if isinstance(m, nn.BatchNorm2d)]
        for key in (head, *(f"{name}.weight" for name in norms)):
            if key not in state or state[key].dim() == 0 or state[key].numel() == 0:
                raise ValueError(f"{key} is missing or has no length")
        num_classes = len(state[head])
        kept = iter(len(state[f"{name}.weight"]) for name in norms)
        cfg = [width if width == "M" else next(kept) for width in full_cfg(arch, depth)]
        model = build_model(arch, depth, num_classes, cfg)
    expected = model.state_dict()
    # Checkpoints of before torch 0.4.1 do not count batches.
    counters = [k for k in expected if k.endswith("num_batches_tracked")]
    state = {**dict.fromkeys(counters, torch.tensor(0)), **state}
    if odd := sorted(expected.keys() ^ state.keys()):
        where = "missing" if odd[0] in expected else "not expected"
        raise ValueError(f"{odd[0]} is {where} in {arch}-{depth}")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(expected[key].shape)}"
            raise ValueError(f"{key} has shape {shapes}")
        if value.is_floating_point() != expected[key].is_floating_point():
            raise ValueError(f"{key} is of type {value.dtype}, not {expected[key].dtype}")
    own = {
        key: torch.empty_like(expected[key], device="cpu").copy_(value)
        for key, value in state.items()
    }
    for name, module in model.named_modules():
        if isinstance(module, ChannelSelection) and module.index is not None:
            index = own[f"{name}.index"]
            outside = (index < 0) | (index >= module.channels)
            if outside.any() or (index.diff() <= 0).any():
                raise ValueError(f"{name} selects channels that are not there")
    model.load_state_dict(own, assign=True)
    return Network(model, arch, depth, num_classes, cfg)


def _identify(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Architecture and depth, by the names of the layers."""

    def count(prefix: str, suffix: str = ".conv1.weight") -> int:
        return sum(key.startswith(prefix) and key.endswith(suffix) for key in state)

    if convolutions := sum(k.startswith("feature.") and v.dim() == 4 for k, v in state.items()):
        return "vgg", convolutions + 3
    if blocks := count("layer1."):
        return "resnet", 9 * blocks + 2
    if layers := count("dense1."):
        return "densenet", 3 * layers + 4
    raise ValueError("no layer of a vgg, resnet or densenet is in it")
