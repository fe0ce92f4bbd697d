"""Cutting channels out of a network, and putting them back.

A network's ``wiring`` says of every layer which batch norm's channels it writes and which it reads.
All that must follow when channels go comes from there: which rows and columns of a tensor stay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.channel_selection import ChannelSelection

Wiring = dict[str, tuple[str | None, str | None]]
State = dict[str, Tensor]
AnyBatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class BatchNorm(nn.BatchNorm2d):
    """torch's, but its network counts its batches: all layers' in one kernel."""

    def forward(self, input: Tensor) -> Tensor:
        m = self.momentum
        if m is None:  # the statistics are means over all batches so far, this one included
            m = 1 / max(int(self.get_buffer("num_batches_tracked")), 1)
        statistics = self.running_mean, self.running_var
        return F.batch_norm(input, *statistics, self.weight, self.bias, self.training, m, self.eps)


def _count_batch(model: nn.Module, inputs: Any) -> None:
    if model.training:
        layers = (m for m in model.modules() if isinstance(m, BatchNorm))
        torch._foreach_add_([bn.get_buffer("num_batches_tracked") for bn in layers], 1)


class Slimmable(nn.Module):
    """[n, 3, 32, 32] pictures to [n, num_classes] logits; knows what it takes to cut its channels.

    ``cfg`` has the width of every batch norm whose channels can go, in module order, and ``'M'``
    for VGG's max-pools.
    """

    def __init__(self, num_classes: int, cfg: Sequence[int | str]) -> None:
        super().__init__()
        self.register_forward_pre_hook(_count_batch)
        self.num_classes, self.cfg = num_classes, list(cfg)

    @staticmethod
    def full_cfg(depth: int) -> Sequence[int | str]:
        """``cfg`` of the unpruned network; ValueError for a ``depth`` it does not come in."""
        raise NotImplementedError

    def wiring(self) -> Wiring:
        """Of every layer: the batch norm whose channels it writes, and reads (or None).

        A selection writes the channels of the batch norm behind it. A batch norm stands here only
        if its own channels cannot go.
        """
        raise NotImplementedError

    def offsets(self, emitted: Mapping[str, Tensor]) -> State:
        """What to add to entries of the state dict so that ``emitted`` constants are still felt.

        ``emitted`` has for every batch norm what its removed channels give behind their ReLU: 0 for
        those that stay, [channels].
        """
        raise NotImplementedError

    def narrowed(self, widths: Sequence[int]) -> "Slimmable":
        """A fresh network of this shape, whose batch norms have these ``widths``."""
        rest = iter(widths)
        cfg = [width if width == "M" else next(rest) for width in self.cfg]
        return type(self)(self.num_classes, cfg)


def norms(model: nn.Module) -> dict[str, AnyBatchNorm]:
    """The batch norms of ``model`` whose channels can go, by name, in module order."""
    fixed = model.wiring() if isinstance(model, Slimmable) else {}
    named = model.named_modules()
    return {n: m for n, m in named if isinstance(m, AnyBatchNorm) and m.affine and n not in fixed}


def whereabouts(model: Slimmable, masks: Sequence[Tensor]) -> dict[str, tuple]:
    """Of every parameter and buffer, the index of what stays in it: ``tensor[index]``.

    ``masks`` has one bool tensor per batch norm, True where a channel is kept. The index serves for
    everything of the tensor's shape: the weights, their gradients, their momentum.
    """
    kept = {n: mask.nonzero().flatten() for n, mask in zip(norms(model), masks, strict=True)}
    wiring = model.wiring() | {name: (name, None) for name in kept}
    index: dict[str, tuple] = {}
    for name, (writes, reads) in wiring.items():
        layer = model.get_submodule(name)
        for key, tensor in layer.state_dict().items():
            rows = kept[writes] if writes else slice(None)
            columns = kept[reads] if reads else slice(None)
            if tensor.dim() > 1 and writes and reads:
                rows = kept[writes][:, None]
            index[f"{name}.{key}"] = (rows, columns)[: tensor.dim()]
        if isinstance(layer, ChannelSelection) and writes:
            index[f"{name}.index"] = (kept[writes],)
    return index


@torch.no_grad()
def slim(model: Slimmable, masks: Sequence[Tensor]) -> Slimmable:
    """A new network of the kept channels only; ``model`` stays as it is.

    ``masks`` has one bool tensor per batch norm, True where a channel is kept, at least one each.
    Removed channels are taken as γ = 0; the ReLU(bias) they emit is folded into what follows,
    exactly but at the border of 3×3 convolutions. Where they emit 0, both networks compute the
    same. A residual or dense stream keeps its width: a mask only chooses what is read of it.
    """
    device = next(model.parameters()).device
    masks = [mask.to(device) for mask in masks]
    state = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, ChannelSelection):
            state[f"{name}.index"] = layer.positions().to(device)
    emitted = {
        name: bn.bias.relu().masked_fill(mask, 0)
        for (name, bn), mask in zip(norms(model).items(), masks, strict=True)
    }
    for key, offset in model.offsets(emitted).items():
        state[key] = state[key] + offset
    index = whereabouts(model, masks)
    with torch.device("meta"):
        small = model.narrowed([int(mask.sum()) for mask in masks])
    small.load_state_dict({k: state[k][index[k]].clone() for k in small.state_dict()}, assign=True)
    return small.train(model.training)


@torch.no_grad()
def put_back(
    part: Mapping[str, Tensor], full: Mapping[str, Tensor], index: Mapping[str, tuple]
) -> None:
    """Write the entries of ``part``, a slim network's, to where in ``full`` they came from.

    ``index`` is what :func:`whereabouts` says of the full network. What was cut stays as ``full``
    has it, and so do its selections.
    """
    for key, value in part.items():
        if not key.endswith("select.index"):
            full[key][index[key]] = value.to(full[key])


def offset(conv: nn.Conv2d, constants: Tensor, size: int | None = None) -> Tensor:
    """What constant inputs add to each output of ``conv``, inside the border: [out_channels].

    Where maps of ``size`` × ``size`` are nothing but border, the mean over the map instead.
    """
    if size is not None and size < conv.kernel_size[0]:
        return conv(constants[None, :, None, None].expand(-1, -1, size, size)).mean((0, 2, 3))
    return conv.weight.sum((2, 3)) @ constants
