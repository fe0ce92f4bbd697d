"""What a test says of each class, and whether a network is ruined by it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SHOWN = 10  # of more classes than these, the worst are told


def class_counts(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The rows of :class:`ByClass`, int64 [3, ``classes``], from int64 [n] each."""
    each = torch.arange(classes, device=labels.device)  # compared, not counted: a GPU need not wait
    is_label, is_answer = labels[:, None] == each, answers[:, None] == each
    return torch.stack([x.sum(0) for x in (is_label, is_answer, is_label & is_answer)])


class PerClass(NamedTuple):
    """Numbers by class: its test images, the answers that name it, the right ones of these."""

    images: list[int]
    answers: list[int]
    right: list[int]

    def collapse(self, names: Sequence[str]) -> str:
        """How the network is ruined, '' if it is not; ``names`` are the classes'.

        It is ruined if its answer is always the same; if it is right no more often than the most
        frequent class is there, unless it is right in the mean over the classes, as one that knows
        the rare ones is; or if it is hardly right more often, and a fifth of the classes at most
        are ever its answer.
        """
        total, most, there = sum(self.images), max(self.images), sum(map(bool, self.images))
        if there < 2:  # nothing is told apart
            return ""
        share, accuracy = most / total, sum(self.right) / total
        given = [name for name, count in zip(names, self.answers, strict=True) if count]
        found = f"test accuracy {100 * accuracy:.2f} %"
        if len(given) == 1:
            return f"{found}: all {total:,} test images are called {given[0]}"
        mean = sum(r / n for r, n in zip(self.right, self.images, strict=True) if n) / there
        if accuracy <= share and mean <= 1.5 / there:
            largest = names[self.images.index(most)]
            return f"{found}: to call all test images {largest} gives {100 * share:.2f} %"
        if accuracy <= 1.5 * share and 5 * len(given) <= there:
            return f"{found}: only {len(given)} of {there} classes are ever the answer"
        return ""

    def accuracies(self, names: Sequence[str]) -> str:
        """Of each class, or of the worst of many, where one has more than twice another's images
        or the network is ruined; '' else: the accuracy of all says enough."""
        if max(self.images) <= 2 * min(self.images) and not self.collapse(names):
            return ""
        each = zip(names, self.images, self.right, strict=True)
        found = [
            (right / n, f"{name} {100 * right / n:.1f} % of {n:,}") for name, n, right in each if n
        ]
        many = f", the lowest of {len(found)}" if len(found) > SHOWN else ""
        shown = sorted(found)[:SHOWN] if many else found
        return f"accuracy by class{many}: {', '.join(text for _, text in shown)}"

    def remarks(self, names: Sequence[str], when: str = "") -> Iterator[str]:
        """Lines to print beside the accuracy, where there is something to say."""
        if collapse := self.collapse(names):
            yield f"warning: {when}{collapse}"
        if accuracies := self.accuracies(names):
            yield f"{when}{accuracies}"
