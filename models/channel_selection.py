"""The selection layer that stands before a batch norm fed by a residual or dense stream."""

import torch
from torch import Tensor, nn


class ChannelSelection(nn.Module):
    """Pass on the kept channels of a stream whose own width cannot change.

    A residual or concatenated stream is read by several layers, each of which may keep other
    channels. ``channels`` is the stream's width, ``kept`` how many are passed on; which ones is
    the int64 buffer ``index`` of shape [kept], sorted, part of the state dict. A layer that keeps
    everything has no buffer and returns its input itself, so it costs nothing.
    """

    index: Tensor | None

    def __init__(self, channels: int, kept: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("index", None if kept == channels else torch.arange(kept))

    def positions(self) -> Tensor:
        """Where in the stream the channels are that are passed on: int64 [kept]."""
        return torch.arange(self.channels) if self.index is None else self.index

    def forward(self, x: Tensor) -> Tensor:
        if self.index is None:
            return x
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return x.index_select(1, self.index)
        # Channels last, where index_select is some ten times slower and leaves the format.
        pixels = x.permute(0, 2, 3, 1)
        rows = pixels.flatten(0, 2)
        kept = rows.gather(1, self.index.expand(len(rows), -1))
        return kept.unflatten(0, pixels.shape[:3]).permute(0, 3, 1, 2)
