"""Cutting channels out of a network, and putting them back.

A network's ``wiring`` says of every layer whose channels it writes and whose it reads: those of a
batch norm, or of a stream that can get narrower.
All that must follow when channels go comes from there: which rows and columns of a tensor stay.
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.channel_selection import ChannelSelection, Stream
from netslim.weights import Convolution

Wiring = dict[str, tuple[str | None, str | None]]
State = dict[str, Tensor]
EVERYTHING: Mapping[str, Tensor] = {}
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
    for VGG's max-pools; ``streams`` the positions of the channels that there are in a stream, if
    not all of them.
    """

    any_size = False  # whether it takes pictures of other sizes than 32×32

    def __init__(
        self, num_classes: int, cfg: Sequence[int | str], **streams: Sequence[int]
    ) -> None:
        super().__init__()
        self.register_forward_pre_hook(_count_batch)
        self.num_classes, self.cfg = num_classes, list(cfg)

    @staticmethod
    def full_cfg(depth: int) -> Sequence[int | str]:
        """``cfg`` of the unpruned network; ValueError for a ``depth`` it does not come in."""
        raise NotImplementedError

    def wiring(self) -> Wiring:
        """Of every layer: whose channels it writes, and whose it reads (or None).

        A selection writes the channels of the batch norm behind it, and reads a stream; other
        layers write a part of one (see ``Stream.parts``), or the channels of a batch norm. A batch
        norm stands here only if its own channels cannot go.
        """
        raise NotImplementedError

    def offsets(self, emitted: Mapping[str, Tensor]) -> State:
        """What to add to entries of the state dict so that ``emitted`` constants are still felt.

        ``emitted`` is :meth:`emitted`'s, 0 for the channels that stay. Of a layer without a bias
        it may name one.
        """
        raise NotImplementedError

    def ties(self) -> Sequence[Sequence[str]]:
        """Batch norms whose channels go together, in the order in which a picture meets them."""
        return ()

    def never_cut(self) -> Container[str]:
        """Batch norms whose channels training does not cut: dropout behind them draws by width."""
        return ()

    def stays(self) -> Mapping[str, str]:
        """Batch norms whose channels cannot go, and why, where that needs to be said."""
        return {}

    def emitted(self, masks: Sequence[Tensor]) -> State:
        """What channels that go give behind their ReLU, and 0 for the others: [channels] each."""
        named = zip(norms(self).items(), masks, strict=True)
        return {name: bn.bias.relu().masked_fill(mask, 0) for (name, bn), mask in named}

    def narrowed(self, widths: Sequence[int], **streams: Sequence[int]) -> "Slimmable":
        """A fresh network of this shape, whose batch norms have these ``widths``."""
        rest = iter(widths)
        cfg = [width if width == "M" else next(rest) for width in self.cfg]
        return type(self)(self.num_classes, cfg, **streams)


def together(model: Slimmable, masks: Sequence[Tensor]) -> list[Tensor]:
    """What is left where some channels go together: those that all of their ``masks`` keep.

    Where that is none, the first.
    """
    kept = dict(zip(norms(model), masks, strict=True))
    for tie in model.ties():
        all_keep = torch.stack([kept[name] for name in tie]).all(0)
        all_keep[0] |= ~all_keep.any()
        kept |= dict.fromkeys(tie, all_keep)
    return list(kept.values())


def norms(model: nn.Module) -> dict[str, AnyBatchNorm]:
    """The batch norms of ``model`` whose channels can go, by name, in module order."""
    fixed = model.wiring() if isinstance(model, Slimmable) else {}
    named = model.named_modules()
    return {n: m for n, m in named if isinstance(m, AnyBatchNorm) and m.affine and n not in fixed}


def all_channels(model: nn.Module) -> int:
    """Channels of all batch norms with scaling factors, those whose channels stay among them."""
    every = (m for m in model.modules() if isinstance(m, AnyBatchNorm) and m.affine)
    return sum(bn.num_features for bn in every)


def streams(model: nn.Module) -> dict[str, Stream]:
    """The streams of ``model`` that can get narrower, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Stream)}


def selections(model: nn.Module) -> dict[str, ChannelSelection]:
    """The selections of ``model`` by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, ChannelSelection)}


def still_read(model: Slimmable, masks: Sequence[Tensor]) -> State:
    """Which channels of each stream are read where the batch norms keep ``masks``: bool [width].

    The others change neither an answer nor the gradient of anything that is read. A layer that
    writes only such ones keeps its first.
    """
    kept, wiring = dict(zip(norms(model), masks, strict=True)), model.wiring()
    read = {name: masks[0].new_zeros(stream.width) for name, stream in streams(model).items()}
    for name, select in selections(model).items():
        norm, source = wiring[name]
        if norm and source:
            read[source][select.positions().to(masks[0].device)[kept[norm]]] = True
    for name, stream in streams(model).items():
        for part in read[name].split(list(stream.parts.values())):
            part[0] |= ~part.any()
    return read


def _kept(model: Slimmable, masks: Sequence[Tensor], read: Mapping[str, Tensor]) -> State:
    """Where the channels are that stay: of batch norms, streams and parts of streams, by name."""
    named = zip(norms(model), together(model, masks), strict=True)
    kept = {name: mask.nonzero().flatten() for name, mask in named}
    for name, stream in streams(model).items():
        mask = read.get(name, masks[0].new_ones(stream.width))
        parts = (part.nonzero().flatten() for part in mask.split(list(stream.parts.values())))
        kept |= {name: mask.nonzero().flatten(), **dict(zip(stream.parts, parts, strict=True))}
    return kept


def whereabouts(
    model: Slimmable, masks: Sequence[Tensor], read: Mapping[str, Tensor] = EVERYTHING
) -> dict[str, tuple]:
    """Of every parameter and buffer, the index of what stays in it: ``tensor[index]``.

    ``masks`` has one bool tensor per batch norm, True where a channel is kept, and ``read`` one for
    each stream of which not everything is. What a layer reads may be flattened maps: then as many
    columns go with a channel as a map has pixels. The index serves for everything of the tensor's
    shape: the weights, their gradients, their momentum.
    """
    kept = _kept(model, masks, read)
    widths = {name: bn.num_features for name, bn in norms(model).items()}
    wiring = model.wiring() | {name: (name, None) for name in widths}
    index: dict[str, tuple] = dict.fromkeys(model.state_dict(), ())
    index |= {f"{name}.index": (kept[name],) for name in streams(model)}
    for name, (writes, reads) in wiring.items():
        layer = model.get_submodule(name)
        if isinstance(layer, ChannelSelection) and writes:
            index[f"{name}.index"] = (kept[writes],)
            continue
        for key, tensor in layer.state_dict().items():
            rows = kept[writes] if writes else slice(None)
            columns = _columns(kept[reads], tensor, widths.get(reads)) if reads else slice(None)
            if tensor.dim() > 1 and writes and reads:
                rows = kept[writes][:, None]
            index[f"{name}.{key}"] = (rows, columns)[: tensor.dim()]
    return index


def _columns(kept: Tensor, tensor: Tensor, width: int | None) -> Tensor:
    """Which columns stay of a layer's ``tensor`` that reads a batch norm of this ``width``."""
    if width is None or tensor.dim() < 2:
        return kept
    pixels = tensor.shape[1] // width
    return (kept[:, None] * pixels + torch.arange(pixels, device=kept.device)).flatten()


@torch.no_grad()
def slim(
    model: Slimmable, masks: Sequence[Tensor], read: Mapping[str, Tensor] = EVERYTHING
) -> Slimmable:
    """A new network of the kept channels only; ``model`` stays as it is.

    ``masks`` has one bool tensor per batch norm, True where a channel is kept, at least one each;
    where channels go together, one goes if any of its masks says so.
    Removed channels are taken as γ = 0; the ReLU(bias) they emit is folded into what follows,
    exactly but at the border of 3×3 convolutions. Where they emit 0, both networks compute the
    same. A mask chooses what is read of a residual or dense stream; the stream keeps its width, or
    what :func:`still_read` says of these masks if that is given as ``read``.

    Raises ValueError where the masks are not those of its batch norms whose channels can go.
    """
    if [*map(len, masks)] != [bn.num_features for bn in norms(model).values()]:
        raise ValueError(
            "these are not masks of the network's batch norms whose channels can go: what made them"
            " (a method, say) must be given the same network, or the same view of it"
        )
    device = next(model.parameters()).device
    masks = [mask.to(device) for mask in masks]
    read = {name: mask.to(device) for name, mask in read.items()}
    kept, wiring, state = _kept(model, masks, read), model.wiring(), model.state_dict()
    for name, select in selections(model).items():
        positions, source = select.positions().to(device), wiring[name][1]
        if source:  # where they are in what is left of it
            positions = torch.searchsorted(kept[source], positions)
        state[f"{name}.index"] = positions
    left = {}
    for name, stream in streams(model).items():
        state[f"{name}.index"] = stream.positions().to(device)
        left[name] = state[f"{name}.index"][kept[name]].tolist()
    stay = together(model, masks)
    constants = zip(model.emitted(masks).items(), stay, strict=True)
    emitted = {name: constant.masked_fill(mask, 0) for (name, constant), mask in constants}
    index = whereabouts(model, masks, read)
    with torch.device("meta"):
        small = model.narrowed([int(mask.sum()) for mask in stay], **left)
    for key, offset in model.offsets(emitted).items():
        if key not in state:
            small.get_submodule(key.removesuffix(".bias")).bias = nn.Parameter(offset)
            index[key] = ()
        state[key] = state[key] + offset if key in state else offset
    first: dict[int, str] = {}  # names of a tensor: a user's layer, or its weight, may have several
    names = {k: first.setdefault(id(x), k) for k, x in small.state_dict(keep_vars=True).items()}
    cut = {name: state[name][index[name]].clone() for name in first.values()}
    cut |= {n: nn.Parameter(cut[n], False) for n, _ in small.named_parameters()}
    small.load_state_dict({key: cut[name] for key, name in names.items()}, assign=True)
    return small.train(model.training)


@torch.no_grad()
def widened(model: Slimmable) -> Slimmable:
    """The same function, with what was cut out of streams put back as zeros."""
    wide = model.narrowed([bn.num_features for bn in norms(model).values()])
    wide.to(next(model.parameters()))
    state, wiring, narrow = wide.state_dict(), model.wiring(), streams(model)
    masks = [torch.ones(bn.num_features, dtype=torch.bool) for bn in norms(wide).values()]
    there = {name: torch.zeros(stream.channels).bool() for name, stream in narrow.items()}
    for name, stream in narrow.items():
        there[name][stream.positions()] = True
    for tensor in state.values():
        tensor.zero_()
    put_back(model.state_dict(), state, whereabouts(wide, masks, there))
    for name, select in selections(wide).items():
        positions, source = selections(model)[name].positions(), wiring[name][1]
        if select.index is not None:
            select.index.copy_(narrow[source].positions()[positions] if source else positions)
    return wide.train(model.training)


@torch.no_grad()
def put_back(
    part: Mapping[str, Tensor], full: Mapping[str, Tensor], index: Mapping[str, tuple]
) -> None:
    """Write the entries of ``part``, a slim network's, to where in ``full`` they came from.

    ``index`` is what :func:`whereabouts` says of the full network. What was cut stays as ``full``
    has it, and so do selections and streams.
    """
    for key, value in part.items():
        if not key.endswith(".index"):
            full[key][index[key]] = value.to(full[key])


def offset(conv: Convolution, constants: Tensor, size: Sequence[int] = ()) -> Tensor:
    """What constant inputs add to each output of ``conv``, inside the border: [out_channels].

    Where maps of ``size`` are nothing but border, the mean over the map instead.
    """
    padding = [0] * len(size) if isinstance(conv.padding, str) else conv.padding  # the stride is 1
    axes = zip(size, conv.kernel_size, conv.stride, padding, conv.dilation, strict=False)
    # −p mod s: where the first output that begins inside the map does.
    if any(-p % s + d * (k - 1) >= pixels for pixels, k, s, p, d in axes):
        maps = constants[:, *[None] * len(size)].expand(-1, *size)[None]
        return (conv(maps) - conv(torch.zeros_like(maps))).flatten(2).mean((0, 2))
    inside = conv.weight.flatten(2).sum(2)  # [out_channels, in_channels / groups]
    return inside @ constants if conv.groups == 1 else inside[:, 0] * constants
