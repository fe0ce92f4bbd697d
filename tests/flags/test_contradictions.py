"""Flags and programs that contradict a checkpoint are refused."""

import pytest
import torch

import densenet_prune
import main
from runs import command
from workshop import READERS, read_with


def test_another_architecture_is_refused(shop, refused):
    path = shop.trained
    modes = ("--resume", "--refine", "--evaluate")
    commands = [(main, mode, path, "--arch", "densenet") for mode in modes]
    for words in [*commands, (densenet_prune, "--model", path)]:
        assert f"{path} has arch resnet, not densenet" in refused(*words)


CONTRADICTIONS = {
    "--depth 20": "depth 11, not 20",
    "--dataset cifar10": "dataset folder, not cifar10",
    "--data {others}": "2 classes",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("flags", CONTRADICTIONS)
def test_another_model_or_data_set_is_refused(shop, refused, reader, flags):
    path = shop.slim if reader == "refine" else shop.trained
    line = refused(*read_with(reader, path), *flags.format(others=shop.others).split())
    assert str(path) in line and CONTRADICTIONS[flags] in line


@pytest.mark.parametrize("named", [True, False])
def test_a_files_own_class_names_are_named_if_it_has_any(shop, refused, tmp_path, named):
    content = torch.load(shop.trained, weights_only=True)
    if not named:
        content = {"state_dict": content["state_dict"]}
    torch.save(content, path := tmp_path / "given.pth.tar")
    line = refused(main, "--evaluate", path, "--dataset", "folder", "--data", shop.others)
    own = "2 classes (blue, red)" if named else "2 classes"
    assert line == f"{path} has {own}, but folder has 3 classes (blue, green, red)"


RESUMED = {
    "--lr 0.2": "--lr 0.1",
    "--wd 0.1": "--weight-decay 0.0001",
    "--no-nesterov": "nesterov True",
    "--lambda 0.5": "--lambda 0.002",
    "--xi-init 0.1 0.2": "--xi-init (0.47, 0.5)",
    "--method subgradient": "--method proximal",
    "--precision bf16": "--precision fp32",
    "--subset 8": "--subset None",
    "--name other": "--name proximal",
}


@pytest.mark.parametrize("flags", RESUMED)
def test_other_settings_are_refused_on_resuming(shop, refused, flags):
    line = refused(main, "--resume", shop.trained, "--no-cuda", *flags.split())
    assert f"this run was started with {RESUMED[flags]}" in line


def test_baselines_are_not_resumed_with_a_penalty_and_pruned_models_never(shop, refused, tmp_path):
    assert command(main, *shop.train(), "--save", tmp_path) == 0
    (path,) = tmp_path.glob("baseline*/checkpoint.pth.tar")
    line = refused(main, "--resume", path, "-sr", "--no-cuda")
    assert "method baseline, not proximal" in line
    line = refused(main, "--resume", shop.slim, "--no-cuda")
    assert f"{shop.slim} cannot be resumed" in line and "--refine" in line


@pytest.mark.parametrize("modes", [("--resume", "--refine"), ("--refine", "--evaluate")])
def test_modes_exclude_each_other(shop, refused, modes):
    path = shop.trained
    line = refused(main, modes[0], path, modes[1], path)
    assert all(mode in line for mode in modes)


@pytest.mark.parametrize("reader", ["evaluate", "prune"])
def test_a_missing_data_folder_of_the_checkpoint_is_named(shop, refused, tmp_path, reader):
    content = torch.load(shop.trained, weights_only=True)
    content["settings"]["data"] = "/gone/with/the/disk"
    torch.save(content, path := tmp_path / "given.pth.tar")
    line = refused(*read_with(reader, path))
    assert all(part in line for part in (str(path), "/gone/with/the/disk", "--data"))
