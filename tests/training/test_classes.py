"""A collapsed model is recognised by its predictions per class."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import main
import vgg_prune
from runs import command, train
from utils.data.classes import PerClass, class_counts

NAMES = ("cat", "dog", "eel")
DIGITS = tuple("0123456789")


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
        (
            [[77, 0, 0], [30, 0, 0], [15, 0, 0]],
            "63.11 %: all 122 test images are classified as cat",
        ),
        ([[70, 7, 0], [25, 5, 0], [13, 1, 1]], "62.30 %, no better than always predicting cat (63"),
        ([[0, 50], [0, 50]], "all 100 test images are classified as dog"),
        ([[25, 25], [26, 24]], "no better than always predicting cat (50.00 %)"),
        ([[70, 7, 0], [10, 20, 0], [5, 3, 7]], ""),
        ([[30, 20], [15, 35]], ""),  # 65 %
        ([[800, 100], [0, 100]], ""),  # 90 %, and 94.4 % in the mean over classes
        ([[5, 0], [0, 0]], ""),  # one class only
    ],
)
def test_collapse_of_few_classes(confusion, message):
    collapse = per_class(*confusion).collapse(NAMES[: len(confusion)])
    assert message in collapse and bool(message) == bool(collapse)


@pytest.mark.parametrize(("correct", "collapsed"), [(2, True), (5, True), (6, False), (10, False)])
def test_two_of_ten_classes_predicted_is_a_collapse_up_to_one_and_a_half_times_chance(
    correct, collapsed
):
    """Chance is 10 of 100 images, and 10 + ``correct`` are classified correctly."""
    table = [[10] + [0] * 9 for _ in DIGITS]
    table[1] = [10 - correct, correct] + [0] * 8
    collapse = per_class(*table).collapse(DIGITS)
    assert ("only 2 of 10 classes are ever predicted" in collapse) == collapsed


@pytest.mark.parametrize(("rare", "collapsed"), [(6, True), (7, False)])
def test_recognising_rare_classes_excuses_an_accuracy_below_the_most_frequent_class(
    rare, collapsed
):
    """800 of 900 and ``rare`` of 10 are correct: 74.4 and 79.4 % in the mean over classes, where
    1.5 times chance is 75 %."""
    counts = PerClass([900, 10], [800 + 10 - rare, 100 + rare], [800, rare])
    assert bool(counts.collapse(NAMES[:2])) == collapsed


def test_the_accuracy_of_each_class_is_shown():
    assert per_class([77, 0, 0], [30, 0, 0], [15, 0, 0]).accuracies(NAMES) == (
        "accuracy by class: cat 100.0 % of 77, dog 0.0 % of 30, eel 0.0 % of 15"
    )


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbalanced")
    for part in ("train", "test"):
        for name, count in zip(NAMES, (20, 8, 4), strict=True):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                colour = (10 * i, 60 * NAMES.index(name), 99)
                Image.new("RGB", (32, 32), colour).save(folder / part / name / f"{i}.png")
    return folder


def always_cat(path: Path) -> None:
    """Changes the last layer of a checkpoint's model such that it always predicts cat."""
    content = torch.load(path, weights_only=True)
    weight, bias = list(content["state_dict"].values())[-2:]
    weight.zero_()
    bias.copy_(torch.eye(3)[0])
    torch.save(content, path)


def test_a_collapse_is_reported_after_training_pruning_and_fine_tuning(
    tmp_path, unbalanced, capsys
):
    model = ["--arch", "vgg", "--depth", 11, "--name", "net", "--epochs", 1]
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
    finished = tmp_path / "b_vgg_11_folder/checkpoint.pth.tar"
    assert train(tmp_path, unbalanced, "--resume", finished, *frozen) == 0
    assert verdict in capsys.readouterr().out
    assert command(vgg_prune, "--model", path, "--percent", 0.3, "--no-cuda") == 0
    assert f"before pruning: test accuracy 62.50 %: {collapse}" in capsys.readouterr().err
    (pruned,) = tmp_path.glob("*/pruned.pth.tar")
    assert command(main, "--refine", pruned, *frozen, "--no-cuda") == 0
    assert verdict in capsys.readouterr().out
