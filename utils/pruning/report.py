"""Figures of a pruning: removed channels, costs, differences of outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from utils.console import note
from utils.files.legacy_formats import EARLIER, expanded
from utils.methods.base import is_zero
from utils.network import Network
from utils.pruning.selector import Pruning

ROUNDING = 1e-4  # differences below this share of the largest logit are rounding
COUNTED = ("channels", "parameters", "flops")
Row = Mapping[str, Any]


def accuracy(logits: Tensor, labels: Tensor) -> str:
    """Returns the top-1 accuracy of ``logits`` [n, classes] in percent."""
    return f"{100 * (logits.argmax(1) == labels).double().mean().item():.4f}"


def _percent_less(before: int, after: int) -> str:
    return f"{100 * (1 - after / before):.2f}"


def sizes(network: Network, masks: Sequence[Tensor], pruned: Network) -> dict[str, Any]:
    """Returns channels, parameters and FLOPs before and after, and the pruned shares in percent.

    The ``batch_norm_channels`` are those of all batch norms, prunable or not.

    Args:
        masks: bool [channels] for each of ``network.norms``, True where ``pruned`` has the channel.
    """
    full = {"channels": sum(map(len, masks)), **asdict(network.cost)}
    kept = {"channels": int(torch.cat([*masks]).sum()), **asdict(pruned.cost)}
    row: dict[str, Any] = {}
    for key in full:
        if not key.startswith("paper_"):
            row |= {key: full[key], f"{key}_kept": kept[key]}
        row[f"{key}_pruned_percent"] = _percent_less(full[key], kept[key])
    row["batch_norm_channels"] = total = network.all_channels
    left = total - full["channels"] + kept["channels"]
    return row | {"batch_norm_channels_pruned_percent": _percent_less(total, left)}


def record_columns(
    pruning: Pruning, predictions: Sequence[Tensor], labels: Tensor
) -> dict[str, Any]:
    """Returns the columns of the record on removed channels, costs and changed outputs.

    A changed prediction between two logits that were equal to rounding counts as a near-tie.

    Args:
        predictions: logits [n, classes] of the model, masked and pruned.
        labels: int64 [n].
    """
    graph, removal, whole = pruning.network.graph, pruning.removal, pruning.with_whole_streams
    row = sizes(pruning.network, pruning.masks, whole)
    row["unread_channels"] = graph.stream_channels(removal.removed_classes, removal.keep)
    for key in COUNTED[1:]:
        row[f"unread_{key}"] = getattr(whole.cost, key) - getattr(pruning.pruned.cost, key)
    steps = ("before", "masked", "slim")
    row |= {f"accuracy_{x}": accuracy(y, labels) for x, y in zip(steps, predictions, strict=True)}
    row |= count_kinds(pruning)
    for step, old, new in zip(steps[1:], predictions, predictions[1:], strict=False):
        changed = old.argmax(1) != new.argmax(1)
        best = old.topk(2).values if old.shape[1] > 1 else old.expand(-1, 2)
        near_tie = best[:, 0] - best[:, 1] <= ROUNDING * old.abs().max()
        row[f"difference_{step}"] = f"{(old - new).abs().max().item():.3g}"
        row[f"changed_{step}"] = int((changed & ~near_tie).sum())
        row[f"near_ties_{step}"] = int((changed & near_tie).sum())
    return row | {"largest_logit": f"{predictions[0].abs().max().item():.4g}"}


def shares_of_full(network: Network, small: Network) -> dict[str, str]:
    """Returns the shares pruned of the full network, which may have been pruned before.

    Streams count at full width, even if an earlier pruning made them narrower, as in all figures
    but the ``unread_`` ones.
    """
    small = expanded(small) if small.arch in EARLIER else small
    pair = network.full(), small
    before, after = ({"channels": sum(n.widths), **asdict(n.cost)} for n in pair)
    return {f"original_{x}_pruned_percent": _percent_less(before[x], after[x]) for x in COUNTED}


def note_equal_scores(scores: Tensor, zeros: Tensor, chosen: Sequence[Tensor]) -> None:
    """Notes how many channels of the largest removed score are kept, if any.

    Args:
        scores: [channels].
        zeros: bool [channels], removed in any case.
        chosen: bool [channels] for each batch norm, True where a channel was chosen to be kept.
    """
    kept = torch.cat([*chosen])
    if not (small := ~(kept | zeros)).any():
        return
    threshold = scores[small].max()
    equal = (scores == threshold) & ~zeros
    if stay := int((equal & kept).sum()):
        note(
            f"note: of {int(equal.sum())} channels of equal size {threshold:g}, {stay} are kept:"
            " those of larger bias or, where that is equal too, of lower position in their layer"
        )


@torch.no_grad()
def count_kinds(pruning: Pruning) -> dict[str, int]:
    """Counts the removed channels by kind.

    ``silent`` ones have γ = 0 and give 0, ``constant`` ones have γ = 0 and give another constant,
    ``alive`` ones have γ ≠ 0. Of batch norms that lose the same channels, a channel is dead if γ is
    0 in one of them, and the last one's output counts.
    """
    graph, norms = pruning.network.graph, pruning.network.norms
    zeros = {name: is_zero(bn.weight.cpu()) for name, bn in norms.items()}
    outputs = {name: graph.behind(name, pruning.removal.constants) for name in norms}
    for tie in graph.ties:
        zeros |= dict.fromkeys(tie, torch.stack([zeros[name] for name in tie]).any(0))
        outputs |= dict.fromkeys(tie, outputs[tie[-1]])
    removed, dead = ~torch.cat(pruning.masks), torch.cat(list(zeros.values()))
    silent = dead & (torch.cat(list(outputs.values())) == 0)
    split = {"silent": silent, "constant": dead & ~silent, "alive": ~dead}
    return {kind: int((removed & channels).sum()) for kind, channels in split.items()}


def print_sizes(row: Row, pruning: Pruning) -> None:
    """Prints the kept channels of every layer, the layers that cannot be pruned, and the sizes."""
    network, graph = pruning.network, pruning.network.graph
    width = max(24, 2 + max(map(len, network.layers)))
    print(f"{'layer':<{width}}channels  kept")
    for name, mask in zip(network.layers, pruning.masks, strict=True):
        print(f"{name:<{width}}{len(mask):8}{int(mask.sum()):6}")
    for name, reason in graph.reasons.items():
        if name not in graph.coupled:
            print(f"{name:<{width}}not prunable: {reason}")
    if graph.coupled and not network.coupled:
        channels = sum(int(mask.sum()) for mask in graph.coupled.values())
        print(
            f"{channels:,} channels of {len(graph.coupled)} batch norms feed residual connections"
            " and are kept: training with --penalty group can remove them"
        )
    for key in COUNTED:
        kept, share = row[f"{key}_kept"], row[f"{key}_pruned_percent"]
        print(f"{key}: {row[key]:,} -> {kept:,}, {share} % pruned")
    if row["batch_norm_channels"] != row["channels"]:
        share = row["batch_norm_channels_pruned_percent"]
        print(f"of all {row['batch_norm_channels']:,} channels of batch norms: {share} % pruned")
    other = torch.cat(pruning.masks)
    for flag, rounded in pruning.rounded.items():
        print(f"kept for {flag}: {int(rounded.sum())} channels")
        other &= ~rounded
    if count := int((is_zero(network.gamma) & other).sum()):
        besides = " besides" * bool(pruning.rounded)
        print(f"kept{besides} with γ = 0: {count} channels, as carriers of constants or by a limit")


def print_report(row: Row, network: Network) -> None:
    """Prints the rest of a record's ``row``: stream channels, targets, accuracy, differences."""
    kept = {key: row[f"{key}_kept"] - row[f"unread_{key}"] for key in COUNTED[1:]}
    pruned = {key: _percent_less(row[key], number) for key, number in kept.items()}
    if row["unread_channels"]:
        unused = (
            f"{row[f'unread_{key}']:,} {key} ({100 * row[f'unread_{key}'] / row[key]:.2f} %)"
            for key in kept
        )
        both = (f"{kept[key]:,} {key}, {share} % pruned" for key, share in pruned.items())
        print(f"and {row['unread_channels']} unused stream channels: {', '.join(unused)}")
        print(f"so the pruned model has {' and '.join(both)}")
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
        lossless = "lossless: every removed channel gave 0 for all inputs"
        print(lossless if same else "NOT LOSSLESS: report this")


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
