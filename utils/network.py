"""A network of this program: its module, the words that build it again, its dependency graph."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from models import SIZE, build_model, display_name, size_of
from models import torchvision_models as theirs
from netslim.files import take
from netslim.graph import AnyBatchNorm, Graph, analyze
from netslim.selection import selections
from netslim.surgery import Removal, apply_removal, plan_removal


@dataclass(frozen=True)
class Network:
    """``model``, of architecture ``arch`` and ``depth``, for images of ``size`` pixels a side.

    ``coupled``: whether channels count as removable that only go together, those of streams.
    """

    model: nn.Module
    arch: str
    depth: int
    size: int
    coupled: bool = False

    @cached_property
    def graph(self) -> Graph:
        """What can be removed of it."""
        return analyze(self.model, torch.zeros(1, 3, self.size, self.size))

    @property
    def all_widths(self) -> list[int]:
        """Channels of every batch norm with scaling factors, removable or not: not analyzed."""
        norms = (m for m in self.model.modules() if isinstance(m, AnyBatchNorm) and m.affine)
        return [bn.num_features for bn in norms]

    @property
    def norms(self) -> dict[str, AnyBatchNorm]:
        """The batch norms whose channels can be removed, by name, in module order."""
        names, modules = self.graph.prunable(self.coupled), self.model.named_modules()
        return {n: m for n, m in modules if isinstance(m, AnyBatchNorm) and n in names}

    @property
    def layers(self) -> list[str]:
        """What :attr:`norms` are called in the full network: one that selects got another name."""
        selecting = {f"{name}.norm": name for name, _ in selections(self.model)}
        return [selecting.get(name, name) for name in self.norms]

    @property
    def all_channels(self) -> int:
        """Channels of all batch norms with scaling factors, also of those that stay."""
        return sum(self.all_widths)

    @property
    def widths(self) -> list[int]:
        """Channels of each of :attr:`norms`."""
        return [bn.num_features for bn in self.norms.values()]

    @property
    def cfg(self) -> list[int | str]:
        """The :attr:`widths`, and ``'M'`` for VGG's max-pools, as in the earlier programs."""
        if self.arch != "vgg":
            return list(self.widths)
        kept, cfg = iter(self.widths), list[int | str]()
        for layer in self.model.get_submodule("feature").children():
            if isinstance(layer, nn.MaxPool2d):
                cfg.append("M")
            elif isinstance(layer, AnyBatchNorm):
                cfg.append(next(kept))
        return cfg

    def keep(self, masks: Sequence[Tensor]) -> dict[str, Tensor]:
        """Masks of all :attr:`norms`, in their order, by name."""
        return dict(zip(self.norms, masks, strict=True))

    def plan(self, masks: Sequence[Tensor], streams: bool = True) -> Removal:
        """What it takes to remove the channels that ``masks`` do not keep: see ``plan_removal``."""
        return plan_removal(self.graph, self.keep(masks), self.model, streams)

    def remove(self, removal: Removal) -> "Network":
        """The network without these channels; this one stays as it is."""
        return replace(self, model=apply_removal(self.graph, self.model, removal))

    @property
    def num_classes(self) -> int:
        return _head(self.model)[1].out_features

    @cached_property
    def is_full(self) -> bool:
        """Whether nothing is pruned."""
        full, own = (n.model.state_dict().items() for n in (self.full(), self))
        return {name: x.shape for name, x in full} == {name: x.shape for name, x in own}

    def full(self) -> "Network":
        """The unpruned one, without content, on the meta device."""
        return replace(self, model=empty(self.arch, self.depth, self.num_classes))

    def with_classes(self, count: int) -> "Network":
        """The same with a fresh last layer, for ``count`` classes."""
        model = copy.deepcopy(self.model)
        _set_classes(model, count)
        return replace(self, model=model)


def _head(model: nn.Module) -> tuple[str, nn.Linear]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]


def _set_classes(model: nn.Module, count: int) -> None:
    name, head = _head(model)
    model.set_submodule(name, nn.Linear(head.in_features, count, head.bias is not None))


def with_weights(network: Network, model: nn.Module) -> Network:
    """``network`` with other weights of the same shapes: its graph serves for both."""
    other = replace(network, model=model)
    other.__dict__["graph"] = network.graph
    return other


def empty(arch: str, depth: int, num_classes: int) -> nn.Module:
    """An unpruned network without content: it takes no memory, however wide."""
    with torch.device("meta"):
        return build_model(arch, depth, num_classes)


def fresh(arch: str, depth: int, num_classes: int, size: int, coupled: bool = False) -> Network:
    """A network with its initial values; of torchvision's, removable channels have γ = 0.5."""
    network = Network(build_model(arch, depth, num_classes), arch, depth, size, coupled)
    if arch in theirs.DEPTHS:
        for bn in network.norms.values():
            nn.init.constant_(bn.weight, 0.5)
    return network


def restore(
    state: Mapping[str, Tensor],
    name: str | None = None,
    size: int | None = None,
    depth: int | None = None,
) -> Network:
    """The network whose state dict (compact layout) this is; everything follows from its shapes.

    But for networks other than the paper's: ``name`` says which one it is, ``depth`` how deep, and
    ``size`` what images it is for.

    Raises:
        ValueError: names the first thing that does not fit.
    """
    arch, depth = (name, depth or theirs.DEPTHS[name]) if name else _identify(state)
    size, network = size or size_of(arch), display_name(arch, depth)
    model = empty(arch, depth, 1)
    key = f"{_head(model)[0]}.weight"
    if key not in state or state[key].dim() == 0 or state[key].numel() == 0:
        raise ValueError(f"{key} is missing or has no length")
    with torch.device("meta"):
        _set_classes(model, len(state[key]))
    try:  # as torch's networks have them, whatever they were saved as
        take(model, {k: x.float() if x.is_floating_point() else x.long() for k, x in state.items()})
    except ValueError as error:
        raise ValueError(f"{error} in {network}") from None
    least = theirs.SMALLEST.get(arch, SIZE) if arch in theirs.DEPTHS else size
    _check_widths(model, least, network)
    return Network(model, arch, depth, size)


@torch.no_grad()
def _check_widths(model: nn.Module, size: int, network: str) -> None:
    """Run ``model``; raise ValueError with the first layer that cannot take what it is given."""
    at = ""

    def enter(name: str, *_: object) -> None:
        nonlocal at
        at = name

    named, training = dict(model.named_modules()), model.training
    hooks = [m.register_forward_pre_hook(partial(enter, name)) for name, m in named.items()]
    try:
        model.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{at} of {network} does not fit what is before it: {reason}") from None
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()


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
