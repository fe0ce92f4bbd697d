"""Which dead channels to remove during training."""

import torch
from torch import Tensor

from utils.network import Network

# Measured on a CPU: rebuilding the step for fewer channels than this share does not pay;
LEAST = 0.01
# a new ChannelSelection costs about what removing half of the layer saves.
LEAST_SELECTED = 0.5


def select_removable(network: Network, removed: Tensor, dead: Tensor) -> Tensor:
    """Returns the channels to remove now, a pure function of the arguments and the biases.

    Coupled channels are removed once all of them are dead. An all-dead layer keeps the channel of
    the largest bias. A layer that would need a new ChannelSelection is pruned once half of it is
    dead, except for stream channels that no layer reads any more.

    Args:
        network: of full width.
        removed, dead: bool [channels] on the CPU: already removed, and dead of the others.
    """
    graph, widths = network.graph, network.widths
    before = dict(zip(network.norms, removed.split(widths), strict=True))
    masks = {name: part.clone() for name, part in zip(before, dead.split(widths), strict=True)}
    for names in graph.ties:
        masks |= dict.fromkeys(names, torch.stack([masks[name] for name in names]).all(0))
    # γ = 0 and bias ≤ 0 do not silence these, or dropout behind them draws by width.
    fixed = masks.keys() - graph.rectified | graph.drawn_for
    if network.coupled:  # the group penalty needs all factors of a group
        fixed |= {n for n, m in masks.items() if len(graph.norm_classes(n).unique()) < len(m)}
    for name, norm in network.norms.items():
        if name in fixed:
            masks[name].zero_()
        if (masks[name] | before[name]).all():
            bias = norm.bias.detach().cpu().masked_fill(before[name], -torch.inf)
            masks[name][int(bias.argmax())] = False
    plan = network.plan([~(masks[name] | before[name]) for name in masks])
    selects = network.plan([~part for part in before.values()]).selects if removed.any() else {}
    for name in masks.keys() & (plan.selects.keys() - selects.keys()):
        if masks[name].sum() < LEAST_SELECTED * (~before[name]).sum():
            masks[name] &= plan.removed_classes[graph.read_by(name)]
    selected = torch.cat(list(masks.values()))
    return selected if selected.sum() > LEAST * (~removed).sum() else torch.zeros_like(selected)
