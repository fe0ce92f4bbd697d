"""A collapsed model is recognised by its predictions per class."""

from pathlib import Path

import pytest
import torch

import main
import resnet_prune
from own_pictures import save
from runs import command, train
from utils.data.classes import PerClass, class_counts

NAMES = ("cat", "dog", "eel")
DIGITS = tuple("0123456789")
# Confusion matrices, whose rows are classes and columns predictions.
ONLY_CAT = [[77, 0, 0], [30, 0, 0], [15, 0, 0]]


def two_of_ten(correct: int) -> list[list[int]]:
    """Ten images of each of 10 classes, of which 10 + ``correct`` are classified correctly."""
    return [[10] + [0] * 9, [10 - correct, correct] + [0] * 8, *[[10] + [0] * 9] * 8]


def per_class(*confusion: list[int]) -> PerClass:
    """From a confusion matrix: rows are classes, columns predictions."""
    table = torch.tensor(confusion)
    labels, predictions = table.nonzero().T
    times = table[labels, predictions]
    samples = (x.repeat_interleave(times) for x in (predictions, labels))
    return PerClass(*class_counts(*samples, len(confusion)).tolist())


def test_counts_belong_to_their_classes():
    counts = per_class([70, 7, 0], [20, 5, 5], [0, 15, 0])
    assert counts == ([77, 30, 15], [90, 27, 5], [70, 5, 0])


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (ONLY_CAT, "63.11 %: all 122 test images are classified as cat"),
        ([[70, 7, 0], [25, 5, 0], [13, 1, 1]], "62.30 %, no better than always predicting cat (63"),
        ([[0, 50], [0, 50]], "all 100 test images are classified as dog"),
        ([[25, 25], [26, 24]], "no better than always predicting cat (50.00 %)"),
        ([[49, 1], [49, 1]], "no better than always predicting cat (50.00 %)"),  # as good
        ([[70, 7, 0], [10, 20, 0], [5, 3, 7]], ""),
        ([[30, 20], [15, 35]], ""),  # 65 %
        ([[800, 100], [0, 100]], ""),  # 90 %, and 94.4 % in the mean over classes
        ([[5, 0], [0, 0]], ""),  # one class only
        # 800 of 900 and 6 or 7 of 10: 74.4 and 79.4 % in the mean, where 1.5 times chance is 75 %
        ([[800, 100], [4, 6]], "no better than always predicting cat (98.90 %)"),
        ([[800, 100], [3, 7]], ""),
        # two of ten classes predicted, up to 1.5 times chance
        (two_of_ten(2), "only 2 of 10 classes are ever predicted"),
        (two_of_ten(5), "only 2 of 10 classes are ever predicted"),
        (two_of_ten(6), ""),
    ],
)
def test_a_collapse_is_described(confusion, message):
    classes = len(confusion)
    collapse = per_class(*confusion).collapse((NAMES if classes < 4 else DIGITS)[:classes])
    assert message in collapse and bool(message) == bool(collapse)


def test_the_accuracy_of_each_class_is_shown():
    assert per_class(*ONLY_CAT).accuracies(NAMES) == (
        "accuracy by class: cat 100.0 % of 77, dog 0.0 % of 30, eel 0.0 % of 15"
    )
    lowest = "accuracy by class, the lowest of 12: 0 0.0 % of 1, 10 0.0 % of 1, 2 0.0 % of 1,"
    counts = PerClass([1] * 12, [0] * 12, [0, 1] * 6)
    assert counts.accuracies([*DIGITS, "10", "11"]).startswith(lowest)


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbalanced")
    for part in ("train", "test"):
        for name, count in zip(NAMES, (20, 8, 4), strict=True):
            for i in range(count):
                colour = (10 * i, 60 * NAMES.index(name), 99)
                save(folder / part / name / f"{i}.png", colour)
    return folder


def always_cat(path: Path) -> None:
    """Changes the last layer of a checkpoint's model such that it always predicts cat."""
    content = torch.load(path, weights_only=True)
    content["state_dict"]["fc.weight"].zero_()
    content["state_dict"]["fc.bias"].copy_(torch.eye(3)[0])
    torch.save(content, path)


def test_a_collapse_is_reported_after_training_pruning_and_fine_tuning(
    tmp_path, unbalanced, capsys
):
    model = ["--arch", "resnet", "--depth", 11, "--name", "net", "--epochs", 1]
    frozen = ["--lr", 1e-30, "--epochs", 1]
    assert train(tmp_path, unbalanced, *model) == 0
    (path,) = tmp_path.glob("*/checkpoint.pth.tar")
    always_cat(path)
    collapse = "all 32 test images are classified as cat"
    by_class = "accuracy by class: cat 100.0 % of 20, dog 0.0 % of 8, eel 0.0 % of 4"
    verdict = f"verdict: test accuracy 62.50 %: {collapse}"
    for flags in (["--evaluate", path], ["--init", path, "--name", "b", *frozen]):
        capsys.readouterr()
        assert train(tmp_path, unbalanced, *flags) == 0
        out, err = capsys.readouterr()
        assert collapse in out + err and by_class in out + err
    assert verdict in out
    finished = tmp_path / "b_resnet_11_folder/checkpoint.pth.tar"
    assert train(tmp_path, unbalanced, "--resume", finished, *frozen) == 0
    assert verdict in capsys.readouterr().out
    assert command(resnet_prune, "--model", path, "--percent", 0.3, "--no-cuda") == 0
    assert f"before pruning: test accuracy 62.50 %: {collapse}" in capsys.readouterr().err
    (pruned,) = tmp_path.glob("*/pruned.pth.tar")
    assert command(main, "--refine", pruned, *frozen, "--no-cuda") == 0
    assert verdict in capsys.readouterr().out
