"""What a pruning won and what it cost: the record's figures, and their printing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from netslim.surgery import Removal
from utils.files.legacy_formats import EARLIER, widened
from utils.methods.base import is_zero
from utils.network import Network
from utils.paper.accounting import Cost, cost

# Below this share of the largest logit, a difference is rounding.
ROUNDING = 1e-4
COUNTED = ("channels", "parameters", "flops")


def accuracy(logits: Tensor, labels: Tensor) -> str:
    """In percent, as it stands in the record."""
    return f"{100 * (logits.argmax(1) == labels).double().mean().item():.4f}"


def _percent_less(before: int, after: int) -> str:
    return f"{100 * (1 - after / before):.2f}"


def sizes(masks: list[Tensor], before: Cost, after: Cost) -> dict[str, int | str]:
    """Channels, parameters and FLOPs, and what share of them is pruned."""
    full = {"channels": sum(map(len, masks)), **asdict(before)}
    kept = {"channels": int(torch.cat(masks).sum()), **asdict(after)}
    row: dict[str, int | str] = {}
    for what in full:
        if not what.startswith("paper_"):
            row |= {what: full[what], f"{what}_kept": kept[what]}
        row[f"{what}_pruned_percent"] = _percent_less(full[what], kept[what])
    return row


def of_all(network: Network, row: Mapping[str, Any]) -> dict[str, int | str]:
    """Channels of all batch norms of ``network``, and what share is gone by the ``row``."""
    gone, every = row["channels"] - row["channels_kept"], network.all_channels
    share = _percent_less(every, every - gone)
    return {"batch_norm_channels": every, "batch_norm_channels_pruned_percent": share}


def unread(network: Network, small: Network, written: Network, removal: Removal) -> dict[str, int]:
    """What goes with stream channels that nobody reads, from ``small`` to ``written``."""
    before, after = cost_of(small), cost_of(written)
    return {
        "unread_channels": int(network.graph.stream_channels(removal.gone, removal.keep)),
        "unread_parameters": before.parameters - after.parameters,
        "unread_flops": before.flops - after.flops,
    }


def cost_of(network: Network) -> Cost:
    return cost(network.model, network.size, network.arch)


def of_original(network: Network, small: Network) -> dict[str, str]:
    """What share is gone of the network that all began with, where ``small`` is left.

    The same as of ``network``, which was pruned, unless that one was slim already. Its streams
    count whole, as in all figures but :func:`unread`'s: an earlier pruning may have narrowed them.
    """
    whole = widened(small) if small.arch in EARLIER else small
    full = network.full()
    before, after = (
        {"channels": channels, **asdict(cost_of(each))}
        for each, channels in ((full, sum(full.widths)), (whole, sum(small.widths)))
    )
    return {
        f"original_{what}_pruned_percent": _percent_less(before[what], after[what])
        for what in COUNTED
    }


def told_apart(sizes: Tensor, zeros: Tensor, kept: Tensor) -> str:
    """How the smallest channels were chosen among equally large ones, "" where none had to be.

    All are over the channels: what was pruned by, which of them go in any case, and which stay.
    """
    small = ~(kept | zeros)
    if not small.any():
        return ""
    last = sizes[small].max()
    same = (sizes == last) & ~zeros
    if not (stay := int((same & kept).sum())):
        return ""
    return (
        f"of {int(same.sum())} channels that are equally large, {last:g}, {stay} stay: those of the"
        " larger bias and, where that is equal too, further in front in their layer"
    )


@torch.no_grad()
def kinds(network: Network, removal: Removal, masks: Sequence[Tensor]) -> dict[str, int]:
    """How many of the removed channels were silent, gave a constant, or were alive.

    ``masks`` are what stays. Channels that go together are dead if one of them is, and it counts
    what the last one gives.
    """
    graph = network.graph
    zeros = {name: is_zero(bn.weight.detach().cpu()) for name, bn in network.norms.items()}
    gives = {name: graph.behind(name, removal.constants) for name in network.norms}
    for tie in graph.ties:
        zeros |= dict.fromkeys(tie, torch.stack([zeros[name] for name in tie]).any(0))
        gives |= dict.fromkeys(tie, gives[tie[-1]])
    removed, dead = ~torch.cat(list(masks)), torch.cat(list(zeros.values()))
    silent = dead & (torch.cat(list(gives.values())) == 0)
    found = {"silent": silent, "constant": dead & ~silent, "alive": ~dead}
    return {kind: int((removed & which).sum()) for kind, which in found.items()}


def differences(before: Tensor, masked: Tensor, slim: Tensor) -> dict[str, int | str]:
    """Largest difference of an output, and predictions changed, from logits to logits.

    A prediction between two logits that are equal to rounding counts as a near-tie, not as changed.
    """
    values: dict[str, int | str] = {}
    for step, old, new in (("masked", before, masked), ("slim", masked, slim)):
        changed = old.argmax(1) != new.argmax(1)
        best = old.topk(2).values if old.shape[1] > 1 else old.expand(-1, 2)
        near_tie = best[:, 0] - best[:, 1] <= ROUNDING * old.abs().max()
        values[f"difference_{step}"] = f"{(old - new).abs().max().item():.3g}"
        values[f"changed_{step}"] = int((changed & ~near_tie).sum())
        values[f"near_ties_{step}"] = int((changed & near_tie).sum())
    return values | {"largest_logit": f"{before.abs().max().item():.4g}"}


def print_report(row: Mapping[str, Any], network: Network, masks: Sequence[Tensor]) -> None:
    """Print the record's ``row`` for a person, after the channels of every layer."""
    print(f"{'layer':<24}channels  kept")
    for name, mask in zip(network.layers, masks, strict=True):
        print(f"{name:<24}{len(mask):8}{int(mask.sum()):6}")
    graph = network.graph
    for name, why in graph.reasons.items():
        if name not in graph.coupled:
            print(f"{name:<24}stays: {why}")
    if graph.coupled and not network.coupled:
        channels = sum(int(mask.sum()) for mask in graph.coupled.values())
        print(
            f"{channels:,} channels of {len(graph.coupled)} batch norms are those of streams, which"
            " several layers write: --penalty group makes them 0 together"
        )
    for what in COUNTED:
        kept, share = row[f"{what}_kept"], row[f"{what}_pruned_percent"]
        print(f"{what}: {row[what]:,} -> {kept:,}, {share} % pruned")
    if row["batch_norm_channels"] != row["channels"]:
        share = row["batch_norm_channels_pruned_percent"]
        print(f"of all {row['batch_norm_channels']:,} channels of batch norms {share} % are gone")
    zeros = [is_zero(bn.weight.detach().cpu()) for bn in network.norms.values()]
    if kept := sum(int((zero & mask).sum()) for zero, mask in zip(zeros, masks, strict=True)):
        print(f"of those kept {kept} have γ = 0: they carry constants to borders, or are the last")
    if row["unread_channels"]:
        parameters, flops = row["unread_parameters"], row["unread_flops"]
        print(
            f"and {row['unread_channels']} channels of streams that nothing reads any more: "
            f"{parameters:,} parameters ({100 * parameters / row['parameters']:.2f} %),"
            f" {flops:,} flops ({100 * flops / row['flops']:.2f} %)"
        )
    written = {what: row[f"{what}_kept"] - row[f"unread_{what}"] for what in COUNTED[1:]}
    pruned = {what: _percent_less(row[what], left) for what, left in written.items()}
    if row["unread_channels"]:
        said = (f"{written[what]:,} {what}, {share} % pruned" for what, share in pruned.items())
        print(f"so the slim network has {' and '.join(said)}")
    for what in COUNTED[1:]:
        flag = "flops" if what == "flops" else "params"
        if (target := row[f"target_{flag}"]) is not None:
            print(f"--target-{flag} {target:g}: {pruned[what]} % of the {what} are pruned")
    original = [row[f"original_{what}_pruned_percent"] for what in COUNTED]
    if original != [row[f"{what}_pruned_percent"] for what in COUNTED]:
        shares = (f"{share} % of the {what}" for what, share in zip(COUNTED, original, strict=True))
        whole = ", its streams whole" * (network.arch in EARLIER[1:])
        print(f"of the network that was trained first{whole}, gone are {', '.join(shares)}")
    print(
        f"removed channels: {row['silent']} silent, {row['constant']} emitting a constant (folded),"
        f" {row['alive']} alive\n"
        f"test accuracy: {row['accuracy_before']} % before, {row['accuracy_masked']} % masked,"
        f" {row['accuracy_slim']} % slim"
    )
    for step, title in (("masked", "before -> masked"), ("slim", "masked -> slim")):
        ties = row[f"near_ties_{step}"]
        print(
            f"{title}: outputs differ by {row[f'difference_{step}']} at most"
            f" (largest logit {row['largest_logit']}), {row[f'changed_{step}']} predictions changed"
            + (f", and {ties} near-ties" if ties else "")
        )
    if row["silent"] and row["constant"] == row["alive"] == 0:
        same = row["difference_masked"] == "0" and row["changed_slim"] == 0
        same &= float(row["difference_slim"]) <= ROUNDING * float(row["largest_logit"])
        print("lossless: every removed channel was silent" if same else "NOT LOSSLESS: report this")


def print_comparison(chosen: Mapping[str, Any], gamma: Mapping[str, Any]) -> None:
    """What another --mask wins over --mask gamma, and what it costs."""
    print("mask    channels  parameters  flops    accuracy")
    for label, row in (("gamma", gamma), (chosen["mask"], chosen)):
        shares = [row[f"{what}_pruned_percent"] for what in COUNTED]
        channels, parameters, flops = (f"{share} %" for share in shares)
        print(f"{label:<8}{channels:<10}{parameters:<12}{flops:<9}{row['accuracy_slim']} %")
