"""When channels that died are cut out of a network in training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models import ChannelSelection
from models.surgery import Slimmable, norms

# Both are measured on a CPU. Building the step anew is not worth less than this share of channels;
LEAST = 0.01
# and a selection costs about what half of the width behind it saves.
LEAST_SELECTED = 0.5


def worth_cutting(model: Slimmable, dead: Sequence[Tensor]) -> list[Tensor]:
    """Which of the channels of ``model`` to cut now, one bool tensor per batch norm.

    ``dead`` says which have died, on the CPU. A pure function of these and of the batch norms'
    biases: a run that is interrupted cuts as the uninterrupted one does. A layer in which all have
    died keeps that of the largest bias, and one that a selection would have to be made for waits
    until half of it is dead.
    """
    full_readers = {
        norm
        for name, (norm, _) in model.wiring().items()
        if isinstance(layer := model.get_submodule(name), ChannelSelection) and layer.index is None
    }
    cut = []
    for (name, bn), gone in zip(norms(model).items(), dead, strict=True):
        gone = gone.clone()
        if gone.all():
            gone[int(bn.bias.argmax())] = False
        if name in full_readers and gone.sum() < LEAST_SELECTED * len(gone):
            gone.zero_()
        cut.append(gone)
    everything = torch.cat(cut)
    if everything.sum() <= LEAST * len(everything):
        return [torch.zeros_like(gone) for gone in cut]
    return cut
