"""Invalid flags are refused: one line with the reason, exit status 2, no file changed."""

import os
import subprocess

import pytest
import torch

import main
import resnet_prune
import warm
from runs import command
from utils import console, export
from utils.arguments import share
from workshop import PRUNE, QUICK, ROOT, dump, error_line, snapshot

# Flags that are added to a valid command, and a part of the message.
FLAGS = {
    "--arch alexnet9": "alexnet9",
    "--depth 12": "resnet has no depth 12: choose 9n + 2 (11, 20",
    "--arch densenet --depth 20": "densenet has no depth 20: choose 3n + 4 (7, 10, 22, 40",
    "--dataset imagenet --data nowhere": "nowhere has neither",
    "--size 64": "32×32",
    "--normalise mine": "--normalise",
    "-sr --s=-0.001": "--lambda",
    "-sr --lambda nan": "--lambda",
    "--s=-1": "--lambda",  # invalid, although it is not used without -sr
    "-sr --beta 0": "--beta",
    "--lr 0": "--lr",
    "--batch-size 0": "--batch-size",
    f"--batch-size {10**30}": "--batch-size",
    "--test-batch-size 0": "--test-batch-size",
    "--epochs 0": "--epochs",
    "--start-epoch 1": "--start-epoch 1 must be below the 1 epochs",
    "--warmup 1": "--warmup 1 must be below the 1 epochs",
    "--momentum 1": "--momentum",
    "--wd nan": "--wd",
    "--seed 9223372036854775808": "--seed",
    "--label-smoothing 1.5": "--label-smoothing",
    "--log-interval 0": "--log-interval",
    "-sr --xi-init 0.5 0.47": "--xi-init",
    "-sr --method ista": "ista",
    "--method proximal": "needs -sr",
    "-sr --shape 2": "--shape 2",  # l1 has no shape
    "-sr --penalty lp --shape 1.5": "up to 1",
    "-sr --method lp-admm --p 1.5": "1.5",
    "-sr --method lp-admm --z-every never": "--z-every",
    "-sr --method subgradient --penalty lp": "tl1, mcp, scad, not lp",
    "-sr --method sas-admm --inner 0": "--inner",
    "-sr --method sas-admm --q 9": "beyond 1,000,000 mini-batches",
    "--prune-ratio 0.85": "--prune-ratio needs --refine",
    "--refine {slim} --prune-ratio 1.5": "--prune-ratio",
    "--precision tf32": "tf32",
    "--name a/b": "--name",
    f"--name {'x' * 300}": "--name",
    "--subset 33": "--subset 33",
    "--test-subset 17": "--test-subset 17",
    "--data nowhere": "nowhere",
    "--dataset shapes": "--data",
    "--dataset cifar10": "2 classes",
    "--fast": "--fast",
}


@pytest.mark.parametrize(("flags", "reason"), FLAGS.items(), ids=lambda text: text[:40])
def test_invalid_flags_of_main_are_refused(shop, refused, flags, reason):
    assert reason in refused(main, *shop.train(), *flags.format(slim=shop.slim).split())


def test_control_characters_are_escaped(shop, refused):
    assert r"a\x0ab" in refused(main, *shop.train(), "a\nb")


def test_the_folder_data_set_needs_a_path(refused):
    assert "--data DIR" in refused(main, "--dataset", "folder", "--arch", "vgg", *QUICK)


PRUNE_FLAGS = {
    "--percent 1.01": "--percent",
    "--percent 0.5 --ratio 0.5 --target-flops 0.5": "not allowed with",
    "--criterion norms": "norms",
    "--test-subset 17": "--test-subset 17",
    "--depth 20": "depth 11, not 20",
    "--epochs 3": "--epochs",
    "--model": "--model",
}


@pytest.mark.parametrize("flags", PRUNE_FLAGS)
def test_invalid_flags_of_the_prune_command_are_refused(shop, refused, tmp_path, flags):
    save = ("--save", tmp_path / "new")  # must not be created
    args = ("--model", shop.trained["resnet"], "--no-cuda", *save, *flags.split())
    assert PRUNE_FLAGS[flags] in refused(resnet_prune, *args)


@pytest.mark.parametrize("arch", PRUNE)
def test_every_prune_command_needs_a_model(refused, arch):
    assert "--model" in refused(PRUNE[arch])


def test_the_prune_ratio_must_match_on_resuming(shop, refused, tmp_path):
    refine = ["--refine", shop.slim, "--prune-ratio", 0.5, "--epochs", 1, "--no-cuda"]
    assert command(main, *refine, "--save", tmp_path / "run") == 0
    (path,) = (tmp_path / "run").glob("*/checkpoint.pth.tar")
    line = refused(main, "--resume", path, "--prune-ratio", 0.6)
    assert "started with --prune-ratio 0.5, not 0.6" in line


def test_a_missing_file_is_not_exported(refused):
    assert "nowhere" in refused(export, "--format", "sparse", "--model", "nowhere")


def test_too_little_memory_is_an_error_with_a_hint(capsys):
    assert console.run(lambda argv: torch.empty(2**50)) == 2
    assert "--batch-size" in error_line(capsys.readouterr().err)


SCRIPTS = {  # an InputError, and an error of the parser
    "main.py --resume {pickle} --no-cuda": "{pickle}",
    "densenet_prune.py --model {resnet} --percent 2": "argument --percent",
}


@pytest.mark.parametrize("line", SCRIPTS)
def test_scripts_exit_with_status_2_and_one_line(shop, tmp_path, line):
    paths = {"resnet": shop.trained["resnet"], "pickle": tmp_path / "pickle"}
    dump(paths["pickle"], {"state_dict": {}})
    before = snapshot(tmp_path), snapshot(shop.folder)
    script, *args = line.format(**paths).split()
    done = subprocess.run(
        [warm.PYTHON, ROOT / script, *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    assert SCRIPTS[line].format(**paths) in error_line(done.stderr)
    assert (snapshot(tmp_path), snapshot(shop.folder)) == before


def test_a_half_is_written_in_three_ways():
    assert share("0.5") == share("50") == share("50%") == 0.5
