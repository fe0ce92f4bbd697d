"""Figures of a pruning: removed channels, costs, differences of outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from netslim.surgery import Removal
from utils.cost import Cost, cost
from utils.files.legacy_formats import EARLIER, expanded
from utils.methods.base import is_zero
from utils.network import Network

ROUNDING = 1e-4  # differences below this share of the largest logit are rounding
COUNTED = ("channels", "parameters", "flops")
Row = Mapping[str, Any]


def accuracy(logits: Tensor, labels: Tensor) -> str:
    """Returns the top-1 accuracy of ``logits`` [n, classes] in percent."""
    return f"{100 * (logits.argmax(1) == labels).double().mean().item():.4f}"


def _percent_less(before: int, after: int) -> str:
    return f"{100 * (1 - after / before):.2f}"


def cost_of(network: Network) -> Cost:
    return cost(network.model, network.size, network.arch)


def sizes(network: Network, masks: Sequence[Tensor], pruned: Network) -> dict[str, int | str]:
    """Returns channels, parameters and FLOPs before and after, and the pruned shares in percent.

    The ``batch_norm_channels`` are those of all batch norms, prunable or not.

    Args:
        masks: bool [channels] for each of ``network.norms``, True where ``pruned`` has the channel.
    """
    full = {"channels": sum(map(len, masks)), **asdict(cost_of(network))}
    kept = {"channels": int(torch.cat([*masks]).sum()), **asdict(cost_of(pruned))}
    row: dict[str, int | str] = {}
    for key in full:
        if not key.startswith("paper_"):
            row |= {key: full[key], f"{key}_kept": kept[key]}
        row[f"{key}_pruned_percent"] = _percent_less(full[key], kept[key])
    row["batch_norm_channels"] = total = network.all_channels
    left = total - full["channels"] + kept["channels"]
    return row | {"batch_norm_channels_pruned_percent": _percent_less(total, left)}


def unused_streams(
    network: Network, small: Network, pruned: Network, removal: Removal
) -> dict[str, int]:
    """Returns the cost of the unused stream channels, which ``small`` has and ``pruned`` lacks."""
    before, after = cost_of(small), cost_of(pruned)
    return {
        "unread_channels": int(
            network.graph.stream_channels(removal.removed_classes, removal.keep)
        ),
        "unread_parameters": before.parameters - after.parameters,
        "unread_flops": before.flops - after.flops,
    }


def shares_of_full(network: Network, small: Network) -> dict[str, str]:
    """Returns the shares pruned of the full network, which may have been pruned before.

    Streams count at full width, even if an earlier pruning made them narrower, as in all figures
    but those of :func:`unused_streams`.
    """
    small = expanded(small) if small.arch in EARLIER else small
    full = network.full()
    before, after = ({"channels": sum(n.widths), **asdict(cost_of(n))} for n in (full, small))
    return {f"original_{x}_pruned_percent": _percent_less(before[x], after[x]) for x in COUNTED}


def equal_scores(scores: Tensor, zeros: Tensor, kept: Tensor) -> str:
    """Returns how many channels of the largest removed score are kept, as text; "" for none.

    Args:
        scores: [channels].
        zeros: bool [channels], removed in any case.
        kept: bool [channels].
    """
    small = ~(kept | zeros)
    if not small.any():
        return ""
    threshold = scores[small].max()
    equal = (scores == threshold) & ~zeros
    if not (stay := int((equal & kept).sum())):
        return ""
    return (
        f"of {int(equal.sum())} channels of equal size {threshold:g}, {stay} are kept: those of"
        " larger bias or, where that is equal too, of lower position in their layer"
    )


@torch.no_grad()
def count_kinds(network: Network, removal: Removal, masks: Sequence[Tensor]) -> dict[str, int]:
    """Counts the removed channels by kind.

    ``silent`` ones have γ = 0 and give 0, ``constant`` ones have γ = 0 and give another constant,
    ``alive`` ones have γ ≠ 0.

    Of batch norms that lose the same channels, a channel is dead if γ is 0 in one of them, and the
    last one's output counts.

    Args:
        masks: bool [channels] for each batch norm, True where a channel is kept.
    """
    graph = network.graph
    zeros = {name: is_zero(bn.weight.detach().cpu()) for name, bn in network.norms.items()}
    outputs = {name: graph.behind(name, removal.constants) for name in network.norms}
    for tie in graph.ties:
        zeros |= dict.fromkeys(tie, torch.stack([zeros[name] for name in tie]).any(0))
        outputs |= dict.fromkeys(tie, outputs[tie[-1]])
    removed, dead = ~torch.cat(list(masks)), torch.cat(list(zeros.values()))
    silent = dead & (torch.cat(list(outputs.values())) == 0)
    split = {"silent": silent, "constant": dead & ~silent, "alive": ~dead}
    return {kind: int((removed & channels).sum()) for kind, channels in split.items()}


def differences(before: Tensor, masked: Tensor, pruned: Tensor) -> dict[str, int | str]:
    """Returns the differences of logits [n, classes]: the largest, and changed predictions.

    A changed prediction between two logits that were equal to rounding counts as a near-tie.
    """
    row: dict[str, int | str] = {}
    for step, old, new in (("masked", before, masked), ("slim", masked, pruned)):
        changed = old.argmax(1) != new.argmax(1)
        best = old.topk(2).values if old.shape[1] > 1 else old.expand(-1, 2)
        near_tie = best[:, 0] - best[:, 1] <= ROUNDING * old.abs().max()
        row[f"difference_{step}"] = f"{(old - new).abs().max().item():.3g}"
        row[f"changed_{step}"] = int((changed & ~near_tie).sum())
        row[f"near_ties_{step}"] = int((changed & near_tie).sum())
    return row | {"largest_logit": f"{before.abs().max().item():.4g}"}


def print_layers(network: Network, masks: Sequence[Tensor]) -> None:
    """Prints the kept channels of every layer, and why the other layers cannot be pruned."""
    width = max(24, 2 + max(map(len, network.layers)))
    print(f"{'layer':<{width}}channels  kept")
    for name, mask in zip(network.layers, masks, strict=True):
        print(f"{name:<{width}}{len(mask):8}{int(mask.sum()):6}")
    graph = network.graph
    for name, reason in graph.reasons.items():
        if name not in graph.coupled:
            print(f"{name:<{width}}not prunable: {reason}")
    if graph.coupled and not network.coupled:
        channels = sum(int(mask.sum()) for mask in graph.coupled.values())
        print(
            f"{channels:,} channels of {len(graph.coupled)} batch norms feed residual connections"
            " and are kept: training with --penalty group can remove them"
        )


def print_sizes(
    row: Row, network: Network, masks: Sequence[Tensor], rounded: Mapping[str, Tensor]
) -> None:
    """Prints the figures of :func:`sizes`, and the numbers of channels that are kept with γ = 0.

    Args:
        rounded: {flag: bool [channels]}: channels that are kept for speed only.
    """
    for key in COUNTED:
        kept, share = row[f"{key}_kept"], row[f"{key}_pruned_percent"]
        print(f"{key}: {row[key]:,} -> {kept:,}, {share} % pruned")
    if row["batch_norm_channels"] != row["channels"]:
        share = row["batch_norm_channels_pruned_percent"]
        print(f"of all {row['batch_norm_channels']:,} channels of batch norms: {share} % pruned")
    other = torch.cat([*masks])
    for flag, kept in rounded.items():
        print(f"kept for {flag}: {int(kept.sum())} channels")
        other &= ~kept
    if count := int((is_zero(network.gamma) & other).sum()):
        besides = " besides" * bool(rounded)
        print(f"kept{besides} with γ = 0: {count} channels, as carriers of constants or by a limit")


def print_report(row: Row, network: Network) -> None:
    """Prints the rest of a record's ``row``: stream channels, targets, accuracy, differences."""
    kept = {key: row[f"{key}_kept"] - row[f"unread_{key}"] for key in COUNTED[1:]}
    pruned = {key: _percent_less(row[key], number) for key, number in kept.items()}
    if row["unread_channels"]:
        parameters, flops = row["unread_parameters"], row["unread_flops"]
        both = (f"{kept[key]:,} {key}, {share} % pruned" for key, share in pruned.items())
        print(
            f"and {row['unread_channels']} unused stream channels: "
            f"{parameters:,} parameters ({100 * parameters / row['parameters']:.2f} %),"
            f" {flops:,} flops ({100 * flops / row['flops']:.2f} %)\n"
            f"so the pruned model has {' and '.join(both)}"
        )
    for key, flag in (("parameters", "params"), ("flops", "flops")):
        if (target := row[f"target_{flag}"]) is not None:
            print(f"--target-{flag} {100 * target:g} %: {pruned[key]} % of the {key} are pruned")
    original = [row[f"original_{key}_pruned_percent"] for key in COUNTED]
    if original != [row[f"{key}_pruned_percent"] for key in COUNTED]:
        shares = (f"{share} % of the {key}" for key, share in zip(COUNTED, original, strict=True))
        streams = ", streams at full width" * (network.arch in EARLIER[1:])
        print(f"pruned of the full model{streams}: {', '.join(shares)}")
    print_kinds(row)
    print(
        f"test accuracy: {row['accuracy_before']} % before, {row['accuracy_masked']} % masked,"
        f" {row['accuracy_slim']} % pruned"
    )
    for step, title in (("masked", "before -> masked"), ("slim", "masked -> pruned")):
        ties = row[f"near_ties_{step}"]
        print(
            f"{title}: outputs differ by {row[f'difference_{step}']} at most"
            f" (largest logit {row['largest_logit']}), {row[f'changed_{step}']} predictions changed"
            + (f", and {ties} near-ties" if ties else "")
        )
    if row["silent"] and row["constant"] == row["alive"] == 0:
        same = row["difference_masked"] == "0" and row["changed_slim"] == 0
        same &= float(row["difference_slim"]) <= ROUNDING * float(row["largest_logit"])
        print(
            "lossless: every removed channel gave 0 for all inputs"
            if same
            else "NOT LOSSLESS: report this"
        )


def print_kinds(row: Row) -> None:
    changed = " (outputs may change)" if row["alive"] else ""
    print(
        f"removed channels: {row['silent']} with γ = 0 and output 0, {row['constant']} with γ = 0"
        f" and another constant output (folded), {row['alive']} with γ ≠ 0{changed}"
    )


def print_comparison(chosen: Row, gamma: Row) -> None:
    """Prints the shares that the chosen --mask and --mask gamma prune, and the accuracies."""
    print("mask    channels  parameters  flops    accuracy")
    for label, row in (("gamma", gamma), (chosen["mask"], chosen)):
        channels, parameters, flops = (f"{row[f'{key}_pruned_percent']} %" for key in COUNTED)
        print(f"{label:<8}{channels:<10}{parameters:<12}{flops:<9}{row['accuracy_slim']} %")
