"""When channels that died are removed from a network in training."""

import torch
from torch import Tensor

from utils.network import Network

# Both are measured on a CPU. Building the step anew is not worth less than this share of channels;
LEAST = 0.01
# and a selection costs about what half of the width behind it saves.
LEAST_SELECTED = 0.5


def select_removable(network: Network, cut: Tensor, dead: Tensor) -> Tensor:
    """Which channels of ``network`` to remove now, bool [channels].

    ``cut`` says which are removed already, and ``dead`` which of the others have died; both are
    over the channels of all its batch norms, on the CPU. A pure function of these and of the
    biases: a run that is interrupted removes what the uninterrupted one does. Channels that can
    only be removed together are removed when all of them have died. A layer in which all have died
    keeps that of the largest bias, and one for which a selection would have to be made waits until
    half of it is dead; what no other reader needs either goes from the stream, and needs no
    selection.
    """
    if not dead.any():
        return dead
    graph, widths = network.graph, network.widths
    before = dict(zip(network.norms, cut.split(widths), strict=True))
    gone = {name: part.clone() for name, part in zip(before, dead.split(widths), strict=True)}
    for tie in graph.ties:  # one tensor for all of a tie
        gone |= dict.fromkeys(tie, torch.stack([gone[name] for name in tie]).all(0))
    # Where γ = 0 and a bias of at most 0 do not give 0, or where dropout draws by width.
    never = gone.keys() - graph.rectified | graph.drawn_for
    for name, bn in network.norms.items():
        if name in never:
            gone[name].zero_()
        if (gone[name] | before[name]).all():
            left = bn.bias.detach().cpu().masked_fill(before[name], -torch.inf)
            gone[name][int(left.argmax())] = False
    removal = network.plan([~(gone[name] | before[name]) for name in gone])
    selects = network.plan([~part for part in before.values()]).selects if cut.any() else {}
    for name in gone.keys() & (removal.selects.keys() - selects.keys()):
        if gone[name].sum() < LEAST_SELECTED * (~before[name]).sum():
            gone[name] &= removal.gone[graph.read_by(name)]
    everything = torch.cat(list(gone.values()))
    if everything.sum() <= LEAST * (~cut).sum():
        return torch.zeros_like(everything)
    return everything
