"""Accuracy per class, and whether a model has collapsed."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOST_SHOWN = 10  # with more classes, only the 10 of lowest accuracy are listed
CHANCE = 1.5  # times chance: accuracy up to this counts as collapsed


def class_counts(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Returns the rows of :class:`PerClass`, int64 [3, ``classes``], from int64 [n] each."""
    each = torch.arange(classes, device=labels.device)  # bincount would wait for a GPU
    is_label, is_prediction = labels[:, None] == each, predictions[:, None] == each
    return torch.stack([x.sum(0) for x in (is_label, is_prediction, is_label & is_prediction)])


class PerClass(NamedTuple):
    """Counts per class: test images of it, predictions of it, and correct ones."""

    images: list[int]
    predictions: list[int]
    correct: list[int]

    def collapse(self, names: Sequence[str]) -> str:
        """Returns how the model has collapsed, as text; "" if it has not.

        It has if all predictions are one class; if its accuracy is no better than that of always
        predicting the most frequent class and its mean over classes is at most 1.5 times chance;
        or if its accuracy is at most 1.5 times the former and at most a fifth of the classes are
        ever predicted.
        """
        total, present = sum(self.images), sum(map(bool, self.images))
        if present < 2:
            return ""
        most_frequent, accuracy = max(self.images) / total, sum(self.correct) / total
        predicted = [n for n, count in zip(names, self.predictions, strict=True) if count]
        text = f"test accuracy {100 * accuracy:.2f} %"
        if len(predicted) == 1:
            return f"{text}: all {total:,} test images are classified as {predicted[0]}"
        recalls = [r / n for r, n in zip(self.correct, self.images, strict=True) if n]
        if accuracy <= most_frequent and sum(recalls) / present <= CHANCE / present:
            largest = names[self.images.index(max(self.images))]
            return (
                f"{text}, no better than always predicting {largest} ({100 * most_frequent:.2f} %)"
            )
        if accuracy <= CHANCE * most_frequent and 5 * len(predicted) <= present:
            return f"{text}: only {len(predicted)} of {present} classes are ever predicted"
        return ""

    def accuracies(self, names: Sequence[str]) -> str:
        """Returns the accuracy per class as text."""
        counts = zip(names, self.images, self.correct, strict=True)
        lines = [(r / n, f"{name} {100 * r / n:.1f} % of {n:,}") for name, n, r in counts if n]
        label = "accuracy by class"
        if len(lines) > MOST_SHOWN:
            label, lines = f"{label}, the lowest of {len(lines)}", sorted(lines)[:MOST_SHOWN]
        return f"{label}: {', '.join(text for _, text in lines)}"

    def remarks(self, names: Sequence[str], prefix: str = "") -> Iterator[str]:
        """Yields the lines to print beside the accuracy."""
        if collapse := self.collapse(names):
            yield f"warning: {prefix}{collapse}"
        yield prefix + self.accuracies(names)
