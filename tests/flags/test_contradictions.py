"""Good checkpoints with flags, or for programs, that contradict them are refused."""

import itertools
from pathlib import Path

import pytest
import torch

import main
from workshop import PRUNE, READERS, Refused, Workshop, read_with


@pytest.mark.parametrize(("arch", "other"), [*itertools.permutations(PRUNE, 2)])
def test_a_checkpoint_of_another_architecture(
    shop: Workshop, refused: Refused, arch: str, other: str
) -> None:
    path = shop.trained[arch]
    assert f"{path} has arch {arch}, not {other}" in refused(PRUNE[other], "--model", path)
    for mode in ("--resume", "--refine", "--evaluate"):
        line = refused(main, mode, path, "--arch", other)
        assert f"{path} has arch {arch}, not {other}" in line


CONTRADICTIONS = {
    "--depth 20": "depth 11, not 20",
    "--dataset shapes": "dataset folder, not shapes",
    "--dataset cifar10": "dataset folder, not cifar10",
    "--data {others}": "2 classes",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("flags", CONTRADICTIONS)
@pytest.mark.parametrize("slim", [False, True])
def test_flags_that_contradict_the_network(
    shop: Workshop, refused: Refused, reader: str, flags: str, slim: bool
) -> None:
    path = shop.slim if slim and reader != "resume" else shop.trained["resnet"]
    line = refused(*read_with(reader, path), *flags.format(others=shop.others).split())
    assert str(path) in line and CONTRADICTIONS[flags] in line


RESUMED = {
    "--lr 0.2": "lr 0.1",
    "--epochs 2": "epochs 1",
    "--batch-size 8": "batch_size 64",
    "--seed 2": "seed 1",
    "--momentum 0.8": "momentum 0.9",
    "--wd 0.1": "weight_decay 0.0001",
    "--no-nesterov": "nesterov True",
    "--s 0.5": "s 0.002",
    "--beta 2": "beta 1.0",
    "--xi-init 0.1 0.2": "xi_init (0.47, 0.5)",
    "--prox-every epoch": "prox_every step",
    "-sr --method subgradient": "method proximal",
    "--method subgradient": "method proximal",
    "--precision bf16": "fp32",
    "--subset 8": "subset None",
    "--name other": "name proximal",
}


@pytest.mark.parametrize("flags", RESUMED)
def test_flags_that_contradict_the_run(shop: Workshop, refused: Refused, flags: str) -> None:
    line = refused(main, "--resume", shop.trained["resnet"], "--no-cuda", *flags.split())
    assert f"this run was started with {'--precision ' * ('bf16' in flags)}{RESUMED[flags]}" in line


def test_a_baseline_cannot_go_on_with_a_penalty(shop: Workshop, refused: Refused) -> None:
    line = refused(main, "--resume", shop.baseline, "-sr", "--no-cuda")
    assert "method baseline, not proximal" in line


def test_a_slim_network_has_no_run_to_go_on_with(shop: Workshop, refused: Refused) -> None:
    line = refused(main, "--resume", shop.slim, "--no-cuda")
    assert f"{shop.slim} cannot be resumed" in line


@pytest.mark.parametrize(
    "modes", [("--resume", "--refine"), ("--refine", "--evaluate"), ("--resume", "--evaluate")]
)
def test_modes_exclude_one_another(
    shop: Workshop, refused: Refused, modes: tuple[str, str]
) -> None:
    path = shop.trained["resnet"]
    line = refused(main, modes[0], path, modes[1], path)
    assert all(mode in line for mode in modes)


def test_pictures_that_were_moved_are_said_to_be_the_checkpoints(
    shop: Workshop, refused: Refused, tmp_path: Path
) -> None:
    """The user never typed that folder's name."""
    content = torch.load(shop.trained["resnet"], weights_only=True)
    content["settings"]["data"] = "/gone/with/the/disk"
    path = tmp_path / "given.pth.tar"
    torch.save(content, path)
    for reader in READERS:
        line = refused(*read_with(reader, path))
        assert str(path) in line and "/gone/with/the/disk" in line and "--data" in line
