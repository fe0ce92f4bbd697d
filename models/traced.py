"""Surgery of any network of whose chains something can be seen: see :mod:`models.tracing`."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import surgery
from models.surgery import AnyBatchNorm, Slimmable, State, Wiring, norms, offset
from models.tracing import Chains, copied, trace
from netslim.weights import Convolution

Network = TypeVar("Network", bound=nn.Module)


class Traced(Slimmable):
    """A network of any class, its own and this one, and what was seen in it."""

    chains: Chains
    own: type[nn.Module]  # the class that it has without this one

    def wiring(self) -> Wiring:
        return self.chains.wiring

    def ties(self) -> Sequence[Sequence[str]]:
        return self.chains.ties

    def stays(self) -> Mapping[str, str]:
        return self.chains.stays

    def never_cut(self) -> frozenset[str]:
        tied = (tie for tie in self.ties() if self.chains.dropout.intersection(tie))
        return self.chains.dropout.union(*tied)

    def emitted(self, masks: Sequence[Tensor]) -> State:
        activations = self.chains.activations
        named = norms(self)
        constants = {
            name: activations[name](bn.bias).masked_fill(mask, 0)
            for (name, bn), mask in zip(named.items(), masks, strict=True)
        }
        kept = dict(zip(named, masks, strict=True))
        for name, (before, behind) in self.chains.depthwise.items():
            layer, bn = self.get_submodule(name), named[behind]
            assert isinstance(layer, Convolution) and bn.running_mean is not None
            made = offset(layer, constants[before], self.chains.sizes[name])
            made = made if layer.bias is None else made + layer.bias
            statistics = bn.running_mean, bn.running_var
            out = F.batch_norm(made[None], *statistics, bn.weight, bn.bias, eps=bn.eps)[0]
            # A channel that has gone before it, and does not by its own γ, gives this constant.
            goes = ~kept[before] & kept[behind]
            constants[behind] = torch.where(goes, activations[behind](out), constants[behind])
            kept[behind] = kept[before] & kept[behind]
        return constants

    def offsets(self, emitted: Mapping[str, Tensor]) -> State:
        offsets = State()
        for name, (_, reads) in self.wiring().items():
            if reads is None:
                continue
            layer, constants = self.get_submodule(name), emitted[reads]
            if isinstance(layer, Convolution):
                added = offset(layer, constants, self.chains.sizes[name])
            else:
                assert isinstance(layer, nn.Linear)
                pixels = layer.in_features // len(constants)
                added = layer.weight @ constants.repeat_interleave(pixels)
            if (behind := self.chains.behind[name]) is not None:
                offsets[f"{behind}.running_mean"] = -added
            elif layer.bias is not None or added.any():
                offsets[f"{name}.bias"] = added
        return offsets

    def narrowed(self, widths: Sequence[int], **streams: Sequence[int]) -> "Traced":
        """A copy without content, on the meta device, whose batch norms have these ``widths``."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        empty = {
            id(x): nn.Parameter(torch.empty_like(x, device="meta"), x.requires_grad)
            if isinstance(x, nn.Parameter)
            else torch.empty_like(x, device="meta")
            for x in (tensors[name] for name in self.state_dict() if name in tensors)
        }
        small = copied(self, empty)
        full = {name: bn.num_features for name, bn in norms(self).items()}
        width = dict(zip(full, widths, strict=True))
        for tie in self.ties():
            if len({width[name] for name in tie}) > 1:
                raise ValueError(f"{' and '.join(tie)} are not equally wide")
        for name, (writes, reads) in {**self.wiring(), **{n: (n, None) for n in full}}.items():
            layer = small.get_submodule(name)
            if writes is reads is None:
                continue
            rows = width[writes] if writes else None
            columns = None
            match layer:
                case nn.Linear():
                    layer.out_features = rows or layer.out_features
                    if reads:
                        columns = layer.in_features // full[reads] * width[reads]
                        layer.in_features = columns
                case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                    layer.out_channels = rows or layer.out_channels
                    if layer.groups > 1 and rows:
                        layer.in_channels = layer.groups = rows
                    elif reads:
                        layer.in_channels = columns = width[reads]
                case _ if isinstance(layer, AnyBatchNorm):
                    layer.num_features = rows or layer.num_features
            own: tuple[dict[str, Any], ...] = layer._parameters, layer._buffers
            for named in own:
                for key, x in named.items():
                    if x is None or x.dim() == 0:
                        continue
                    shape = [rows or x.shape[0], columns or x.shape[1:2].numel(), *x.shape[2:]]
                    new = x.new_empty(shape[: x.dim()])
                    named[key] = nn.Parameter(new, x.requires_grad) if named is own[0] else new
        return small


View = TypeVar("View", bound=Traced)


def adopt(model: nn.Module, chains: Chains, kind: type[View]) -> View:
    """``model`` with its own layers, as one that knows what it takes to cut its channels.

    Raises ValueError where it has attributes of the names that this takes.
    """
    ours = {"own", "chains", *vars(Slimmable), *vars(Traced)} - {*dir(nn.Module)}
    if not isinstance(model, Traced) and (both := sorted(ours.intersection(dir(model)))):
        raise ValueError(f"the network has an attribute {both[0]}: it needs another name here")
    view = copy.copy(model)
    own = model.own if isinstance(model, Traced) else type(model)
    view.__class__ = type(own.__name__, (kind, own), {"own": own})
    assert isinstance(view, kind)
    view.chains = chains
    return view


def slimmable(model: nn.Module, example: Tensor) -> Traced:
    """``model`` with its own layers, as one whose channels can be cut, in training too.

    ``example`` is a batch that it takes. ``stays()`` says which batch norms stay as they are, and
    why; methods leave these alone. Raises ValueError where the example does not fit.
    """
    return adopt(model, trace(model, example), Traced)


def slim(model: Network, masks: Sequence[Tensor], example: Tensor) -> Network:
    """A new network of the kept channels only, of the class of ``model``, which stays as it is.

    ``masks`` has one bool tensor per batch norm whose channels can go (``norms`` of what
    :func:`slimmable` gives), True where a channel is kept, at least one each. Removed channels are
    taken as γ = 0, and the constants that they emit are folded into what follows, as
    :func:`models.surgery.slim` does. Raises ValueError where the example does not fit.
    """
    small: Any = surgery.slim(slimmable(model, example), masks)
    small.__class__ = small.own
    del small.chains
    for name, module in model.named_modules():  # some may be kept from training
        small.get_submodule(name).training = module.training
    return small
