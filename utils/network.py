"""A model of this program with its architecture, its widths and its dependency graph."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from models import SIZE, build_model, display_name, size_of, torchvision_models
from netslim.files import take
from netslim.graph import AnyBatchNorm, Graph, analyze
from netslim.selection import name_in, selections
from netslim.surgery import Removal, apply_removal, plan_removal
from utils.cost import Cost, cost, image_shape


@dataclass(frozen=True)
class Network:
    """A model, and the architecture and image size from which it is built again.

    Attributes:
        model: full or pruned, from [n, channels, size, size] images to [n, classes] logits.
        arch, depth: its architecture.
        size: side of an image in pixels.
        coupled: whether channels of residual streams, which several layers write, can be removed.
    """

    model: nn.Module
    arch: str
    depth: int
    size: int
    coupled: bool = False

    @cached_property
    def graph(self) -> Graph:
        """The dependency graph."""
        return analyze(self.model, torch.zeros(1, *image_shape(self.model, self.size)))

    @cached_property
    def layers(self) -> list[str]:
        """Names in the full model of the batch norms with removable channels, in module order."""
        full_names = {f"{name}.norm": name for name, _ in selections(self.model)}
        prunable = self.graph.prunable(self.coupled)
        return [full_names.get(n, n) for n, _ in self.model.named_modules() if n in prunable]

    @property
    def norms(self) -> dict[str, AnyBatchNorm]:
        """The batch norms of :attr:`layers` by name, which differs behind a channel selection."""
        names = {name_in(self.model, layer) for layer in self.layers}
        modules = self.model.named_modules()
        return {n: m for n, m in modules if n in names and isinstance(m, AnyBatchNorm)}

    @property
    def gamma(self) -> Tensor:
        """The scaling factors γ of all :attr:`norms`, float32 [channels]."""
        return torch.cat([torch.empty(0), *(bn.weight.detach() for bn in self.norms.values())])

    @cached_property
    def cost(self) -> Cost:
        """Parameters and FLOPs of an image."""
        return cost(self.model, self.size, self.arch)

    @property
    def widths(self) -> list[int]:
        """Numbers of channels of :attr:`norms`."""
        return [bn.num_features for bn in self.norms.values()]

    @property
    def all_widths(self) -> list[int]:
        """Numbers of channels of all batch norms with γ; needs no dependency graph."""
        norms = (m for m in self.model.modules() if isinstance(m, AnyBatchNorm) and m.affine)
        return [bn.num_features for bn in norms]

    @property
    def all_channels(self) -> int:
        """The sum of :attr:`all_widths`."""
        return sum(self.all_widths)

    @property
    def cfg(self) -> list[int | str]:
        """The :attr:`widths`; in a VGG with ``'M'`` for max-pooling, as in earlier programs."""
        if self.arch != "vgg":
            return list(self.widths)
        widths, layers = iter(self.widths), self.model.get_submodule("feature").children()
        shown = (layer for layer in layers if isinstance(layer, nn.MaxPool2d | AnyBatchNorm))
        return ["M" if isinstance(layer, nn.MaxPool2d) else next(widths) for layer in shown]

    @property
    def num_classes(self) -> int:
        return _head(self.model)[1].out_features

    @cached_property
    def is_full(self) -> bool:
        """Whether the model is unpruned."""
        full, own = (n.model.state_dict().items() for n in (self.full(), self))
        return {name: x.shape for name, x in full} == {name: x.shape for name, x in own}

    def full(self) -> "Network":
        """Returns the unpruned network, on the meta device."""
        return self._with_model(empty(self.arch, self.depth, self.num_classes))

    def with_classes(self, count: int) -> "Network":
        """Returns a copy with a newly initialised last layer for ``count`` classes."""
        model = copy.deepcopy(self.model)
        _set_classes(model, count)
        return replace(self, model=model)

    def _with_model(self, model: nn.Module) -> "Network":
        """Returns the network with a ``model`` of other widths, without another analysis."""
        other = replace(self, model=model)
        if "layers" in vars(self):
            vars(other)["layers"] = self.layers
        return other

    def keep(self, masks: Sequence[Tensor]) -> dict[str, Tensor]:
        """Returns {name: mask} for ``masks`` in the order of :attr:`norms`."""
        return dict(zip(self.norms, masks, strict=True))

    def plan(self, masks: Sequence[Tensor], streams: bool = True) -> Removal:
        """Returns the removal of all channels that ``masks`` do not keep.

        Args:
            masks: bool [channels] for each of :attr:`norms`.
            streams: whether unused channels of residual and dense streams are removed as well.
        """
        return plan_removal(self.graph, self.keep(masks), self.model, streams)

    def remove(self, removal: Removal) -> "Network":
        """Returns a copy without the channels of ``removal``."""
        return self._with_model(apply_removal(self.graph, self.model, removal))


def _head(model: nn.Module) -> tuple[str, nn.Linear]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]


def _set_classes(model: nn.Module, count: int) -> None:
    name, head = _head(model)
    model.set_submodule(name, nn.Linear(head.in_features, count, head.bias is not None))


def with_weights(network: Network, model: nn.Module) -> Network:
    """Returns ``network`` with a ``model`` of the same shapes; they share the dependency graph."""
    other = replace(network, model=model)
    vars(other)["graph"] = network.graph
    return other


def empty(arch: str, depth: int, num_classes: int) -> nn.Module:
    """Builds an unpruned model on the meta device."""
    with torch.device("meta"):
        return build_model(arch, depth, num_classes)


def fresh(arch: str, depth: int, num_classes: int, size: int, coupled: bool = False) -> Network:
    """Builds an initialised network; γ of removable channels is 0.5."""
    network = Network(build_model(arch, depth, num_classes), arch, depth, size, coupled)
    if arch in torchvision_models.DEPTHS:
        for bn in network.norms.values():
            nn.init.constant_(bn.weight, 0.5)
    return network


def restore(
    state: Mapping[str, Tensor],
    name: str | None = None,
    size: int | None = None,
    depth: int | None = None,
) -> Network:
    """Builds the network of a state dict in the compact layout, with the widths of its tensors.

    Args:
        state: of a full or a pruned model.
        name, depth: the architecture; by default they follow from the names in ``state``, which
            is possible for the paper's.
        size: side of an image in pixels, by default the architecture's.

    Raises ValueError: the first entry that does not fit.
    """
    arch, depth = (name, depth or torchvision_models.DEPTHS[name]) if name else _identify(state)
    size, title = size or size_of(arch), display_name(arch, depth)
    model = empty(arch, depth, 1)
    key = f"{_head(model)[0]}.weight"
    if key not in state or state[key].dim() == 0 or state[key].numel() == 0:
        raise ValueError(f"{key} is missing or has no length")
    with torch.device("meta"):
        _set_classes(model, len(state[key]))
    try:  # in torch's own types, whatever the file has
        take(model, {k: x.float() if x.is_floating_point() else x.long() for k, x in state.items()})
    except ValueError as error:
        raise ValueError(f"{error} in {title}") from None
    is_torchvisions = arch in torchvision_models.DEPTHS
    smallest = torchvision_models.SMALLEST.get(arch, SIZE) if is_torchvisions else size
    _check_widths(model, smallest, title)
    return Network(model, arch, depth, size)


@torch.no_grad()
def _check_widths(model: nn.Module, size: int, title: str) -> None:
    """Runs ``model``; raises ValueError with the first layer whose input does not fit."""
    entered = [""]

    def enter(name: str, *_: object) -> None:
        entered.append(name)

    hooks = [m.register_forward_pre_hook(partial(enter, n)) for n, m in model.named_modules()]
    try:
        model.eval()(torch.zeros(1, *image_shape(model, size)))
    except (RuntimeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        layer = f"{entered[-1]} of {title}"
        raise ValueError(f"{layer} does not fit the layers before it: {reason}") from None
    finally:
        model.train()
        for hook in hooks:
            hook.remove()


def _identify(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Returns architecture and depth, from the names of the layers."""

    def count(prefix: str) -> int:
        return sum(key.startswith(prefix) and key.endswith(".conv1.weight") for key in state)

    if convolutions := sum(k.startswith("feature.") and v.dim() == 4 for k, v in state.items()):
        return "vgg", convolutions + 3
    if blocks := count("layer1."):
        bottleneck = "layer1.0.conv3.weight" in state
        return ("resnet", 9 * blocks + 2) if bottleneck else ("resnet-basic", 6 * blocks + 2)
    if layers := count("dense1."):
        return "densenet", 3 * layers + 4
    raise ValueError("it has no layer of a vgg, resnet or densenet")
