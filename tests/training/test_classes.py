"""A ruined network is recognised by the classes that it tells apart, however many there are."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import main
import vgg_prune
from runs import command, train
from utils.training.classes import PerClass, class_counts

NAMES = ("cat", "dog", "eel")


def by_class(*rows: list[int]) -> PerClass:
    """From how often images of each class (a row) were called what (a column)."""
    table = torch.tensor(rows)
    labels, answers = table.nonzero().T
    times = table[labels, answers]
    each = (x.repeat_interleave(times) for x in (answers, labels))
    return PerClass(*class_counts(*each, len(rows)).tolist())


def test_each_number_belongs_to_its_class():
    assert by_class([70, 7, 0], [20, 5, 5], [0, 15, 0]) == ([77, 30, 15], [90, 27, 5], [70, 5, 0])


def test_the_largest_of_three_unbalanced_classes_is_not_enough():
    found = by_class([77, 0, 0], [30, 0, 0], [15, 0, 0])
    said = found.collapse(NAMES)
    assert "63.11 %" in said and "all 122 test images are called cat" in said
    assert found.accuracies(NAMES) == (
        "accuracy by class: cat 100.0 % of 77, dog 0.0 % of 30, eel 0.0 % of 15"
    )
    # Nor is what answers more, and is right less often than that.
    said = by_class([70, 7, 0], [25, 5, 0], [13, 1, 1]).collapse(NAMES)
    assert "62.30 %" in said and "cat gives 63.11 %" in said
    assert by_class([70, 7, 0], [10, 20, 0], [5, 3, 7]).collapse(NAMES) == ""


def test_two_classes_told_apart_in_part_are_no_ruin():
    assert by_class([30, 20], [15, 35]).collapse(NAMES[:2]) == ""  # 65 %
    assert by_class([41, 9], [20, 30]).collapse(NAMES[:2]) == ""  # 71 %
    assert "called dog" in by_class([0, 50], [0, 50]).collapse(NAMES[:2])
    assert "cat gives 50.00 %" in by_class([25, 25], [26, 24]).collapse(NAMES[:2])


def test_rare_classes_may_cost_more_than_they_bring():
    """94.4 % in the mean of two classes, though one answer always would be right more often."""
    found = by_class([800, 100], [0, 100])
    assert found.collapse(NAMES[:2]) == ""
    assert found.accuracies(NAMES[:2]).endswith("cat 88.9 % of 900, dog 100.0 % of 100")


def test_few_answers_of_many_classes():
    names = [str(i) for i in range(10)]
    table = [[10] + [0] * 9 for _ in names]
    table[1] = [7, 3] + [0] * 8
    assert "only 2 of 10 classes" in by_class(*table).collapse(names)  # 13 %
    table[1] = [0, 10] + [0] * 8
    assert by_class(*table).collapse(names) == ""  # 20 %: it has begun to learn
    assert by_class(*[[1] * 10] * 9, [0] * 9 + [10]).collapse(names) == ""


def test_where_there_is_one_class_nothing_is_told_apart():
    assert by_class([5, 0], [0, 0]).collapse(NAMES[:2]) == ""


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


def ruin(path: Path) -> None:
    """Have the network in this checkpoint answer cat, whatever it sees."""
    content = torch.load(path, weights_only=True)
    last: list[Tensor] = list(content["state_dict"].values())[-2:]
    for tensor, value in zip(last, (torch.zeros(3, 1), torch.eye(3)[0]), strict=True):
        tensor.copy_(value.expand_as(tensor))
    torch.save(content, path)


def test_a_ruined_network_is_recognised_after_training_pruning_and_fine_tuning(
    tmp_path, unbalanced, capsys
):
    network = ["--arch", "vgg", "--depth", 11, "--name", "net", "--epochs", 1]
    still = ["--lr", 1e-30, "--epochs", 1]
    assert train(tmp_path, unbalanced, *network) == 0
    (path,) = tmp_path.glob("*checkpoint.pth.tar")
    ruin(path)
    said = "all 32 test images are called cat"
    by = "accuracy by class: cat 100.0 % of 20, dog 0.0 % of 8, eel 0.0 % of 4"
    for more in (["--evaluate", path], ["--init", path, "--name", "b", *still]):
        capsys.readouterr()
        assert train(tmp_path, unbalanced, *more) == 0
        out, err = capsys.readouterr()
        assert said in out + err and by in out + err
    assert f"verdict: test accuracy 62.50 %: {said}" in out
    finished = tmp_path / "b_vgg_11_foldercheckpoint.pth.tar"
    assert train(tmp_path, unbalanced, "--resume", finished, *still) == 0
    assert f"verdict: test accuracy 62.50 %: {said}" in capsys.readouterr().out
    assert command(vgg_prune, "--model", path, "--percent", 0.3, "--no-cuda") == 0
    err = capsys.readouterr().err
    assert f"warning: before pruning: test accuracy 62.50 %: {said}" in err
    assert (
        command(main, "--refine", next(tmp_path.glob("*_pruned.pth.tar")), *still, "--no-cuda") == 0
    )
    assert f"verdict: test accuracy 62.50 %: {said}" in capsys.readouterr().out
