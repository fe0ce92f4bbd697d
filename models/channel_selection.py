"""Which channels of a stream there are, and which of them the batch norm behind it is given."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn


class Positions(nn.Module):
    """Which of ``channels`` are kept: the int64 buffer ``index``, sorted, part of the state dict.

    Where all are, there is no buffer.
    """

    index: Tensor | None

    def __init__(self, channels: int, kept: Sequence[int]) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("index", None if len(kept) == channels else torch.tensor(kept))

    def positions(self) -> Tensor:
        """Where the kept channels are: int64 [kept]."""
        return torch.arange(self.channels) if self.index is None else self.index


class Stream(Positions):
    """The channels of a residual or dense stream, and where they were in the unpruned network.

    ``parts`` says what is written into the stream, one behind the other: by whom, and how many
    channels; at full width when it is given, and of the ``kept`` positions when it is read.

    Raises ValueError unless ``kept`` is sorted, within the stream and has some of every part.
    """

    def __init__(self, parts: Mapping[str, int], kept: Sequence[int] | None = None) -> None:
        ends = list(accumulate(parts.values(), initial=0))
        kept = range(ends[-1]) if kept is None else kept
        if any(a >= b for a, b in pairwise([-1, *kept, ends[-1]])):
            raise ValueError(f"what is left of a stream is not some of its {ends[-1]} channels")
        counts = (bisect_left(kept, b) - bisect_left(kept, a) for a, b in pairwise(ends))
        self.parts = dict(zip(parts, counts, strict=True))
        if not all(self.parts.values()):
            raise ValueError("nothing is left of what a layer writes into a stream")
        super().__init__(ends[-1], kept)

    @property
    def width(self) -> int:
        """How many channels there are."""
        return sum(self.parts.values())


class ChannelSelection(Positions):
    """Pass on the kept channels of a stream, which several layers read, each of them others.

    ``channels`` is the stream's width, ``kept`` how many are passed on; which ones is ``index``. A
    layer that keeps everything returns its input itself, so it costs nothing.

    Raises ValueError where ``kept`` is more than there are.
    """

    def __init__(self, channels: int, kept: int) -> None:
        if kept > channels:
            raise ValueError(f"{kept} channels of {channels} cannot be selected")
        super().__init__(channels, range(kept))

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
