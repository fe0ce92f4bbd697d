"""When channels that died are cut out of a network in training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.surgery import Slimmable, norms, selections, still_read

# Both are measured on a CPU. Building the step anew is not worth less than this share of channels;
LEAST = 0.01
# and a selection costs about what half of the width behind it saves.
LEAST_SELECTED = 0.5


def worth_cutting(model: Slimmable, dead: Sequence[Tensor]) -> list[Tensor]:
    """Which of the channels of ``model`` to cut now, one bool tensor per batch norm.

    Channels that go together are cut when all of them have died.

    ``dead`` says which have died, on the CPU. A pure function of these and of the batch norms'
    biases: a run that is interrupted cuts as the uninterrupted one does. A layer in which all have
    died keeps that of the largest bias, and one that a selection would have to be made for waits
    until half of it is dead; what no other reader needs either goes from the stream, and needs no
    selection.
    """
    wiring = model.wiring()
    full_readers = dict(wiring[n] for n, s in selections(model).items() if s.index is None)
    named = norms(model)
    together = {name: gone.clone() for name, gone in zip(named, dead, strict=True)}
    for tie in model.ties():  # one tensor for all of a tie
        together |= dict.fromkeys(tie, torch.stack([together[name] for name in tie]).all(0))
    never = model.never_cut()
    for name, gone in together.items():
        if name in never:
            gone.zero_()
        if gone.all():
            gone[int(named[name].bias.argmax())] = False
    cut = list(together.values())
    read = still_read(model, [~gone for gone in cut])
    for name, gone in zip(norms(model), cut, strict=True):
        if name in full_readers and gone.sum() < LEAST_SELECTED * len(gone):
            stream = full_readers[name]
            gone &= ~read[stream][: len(gone)] if stream else False
    everything = torch.cat(cut)
    if everything.sum() <= LEAST * len(everything):
        return [torch.zeros_like(gone) for gone in cut]
    return cut
