"""Flags that make no sense are refused: one line that says why, exit status 2, nothing on disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
import resnet_prune
from utils import console
from workshop import PRUNE, QUICK, ROOT, Refused, Workshop, dump, error_line, snapshot

DEPTH = {
    ("vgg", 12): "choose 11, 13, 16 or 19",
    ("vgg", 110): "choose 11, 13, 16 or 19",
    ("resnet", 12): "choose 9n + 2 (11, 20",
    ("resnet", 2): "choose 9n + 2 (11, 20",
    ("densenet", 20): "choose 3n + 4 (7, 10, 22, 40",
    ("densenet", 4): "choose 3n + 4 (7, 10, 22, 40",
}


@pytest.mark.parametrize(("arch", "depth"), DEPTH)
def test_a_depth_that_is_not_there_is_told_those_that_are(
    shop: Workshop, refused: Refused, arch: str, depth: int
) -> None:
    line = refused(main, *shop.train(arch), "--depth", depth)
    assert f"{arch} has no depth {depth}: {DEPTH[arch, depth]}" in line


# What is appended to a good command, and what the error line has to name.
FLAGS = {
    "--arch alexnet": "alexnet",
    "--arch": "--arch",
    "--dataset imagenet": "val is missing",
    "--dataset imagenet --data nowhere": "nowhere has neither",
    "--size 64": "resnet takes pictures of 32×32 pixels, not of 64×64",
    "--size 7": "--size",
    "--size 224.5": "--size",
    "--normalise mine": "--normalise",
    "--stream yes": "yes",
    "--workers=-1": "--workers",
    "--workers 1000": "--workers",
    "--depth 0": "--depth",
    "--depth eleven": "eleven",
    "-sr --s=-0.001": "--s",
    "-sr --s nan": "--s",
    "-sr --s inf": "--s",
    "-sr --s=-inf": "--s",
    "-sr --s much": "much",
    "--s=-1": "--s",  # not used without -sr, and wrong all the same
    "-sr --beta 0": "--beta",
    "-sr --beta=-1": "--beta",
    "-sr --beta nan": "--beta",
    "-sr --beta inf": "--beta",
    "--lr 0": "--lr",
    "--lr=-0.1": "--lr",
    "--lr nan": "--lr",
    "--lr inf": "--lr",
    "--batch-size 0": "--batch-size",
    "--batch-size=-64": "--batch-size",
    "--batch-size 2.5": "--batch-size",
    "--test-batch-size 0": "--test-batch-size",
    "--epochs 0": "--epochs",
    "--epochs=-1": "--epochs",
    "--epochs 1e3": "--epochs",
    "--epochs 1000001": "--epochs",
    "--start-epoch=-1": "--start-epoch",
    "--momentum 1": "--momentum",
    "--momentum=-0.1": "--momentum",
    "--momentum nan": "--momentum",
    "--weight-decay=-1": "--weight-decay",
    "--wd nan": "--wd",
    "--seed=-1": "--seed",
    "--seed 9223372036854775808": "--seed",
    "--seed 1.5": "--seed",
    "--log-interval 0": "--log-interval",
    "-sr --xi-init 0.5 0.47": "--xi-init",
    "-sr --xi-init 0.5": "--xi-init",
    "-sr --xi-init nan 0.5": "--xi-init",
    "-sr --xi-init 0.4 inf": "--xi-init",
    "-sr --method ista": "ista",
    "--method proximal": "-sr",
    "--method subgradient": "-sr",
    "-sr --prox-every never": "never",
    "-sr --penalty l0": "l0",
    "-sr --shape 0": "--shape",
    "-sr --shape 2": "--shape 2",  # ℓ1 has none
    "-sr --penalty lp --shape 1.5": "up to 1",
    "--penalty l1-l2 --shape 2": "up to 1",
    "-sr --penalty tl1 --shape 1e7": "up to 1e+06",
    "-sr --method lp-admm --p 0": "--p",
    "--schedule linear": "linear",
    "--warmup 1": "--warmup must be below the 1 epochs",
    "--warmup=-1": "--warmup",
    "--label-smoothing 1.5": "--label-smoothing",
    "-sr --method lp-admm --p 1.5": "neither in (0, 1] nor a whole number",
    "-sr --method lp-admm --rho 0": "--rho",
    "-sr --method lp-admm --bound=-1": "--bound",
    "-sr --method lp-admm --z-every 0": "--z-every",
    "-sr --method lp-admm --z-every never": "--z-every",
    "-sr --method subgradient --penalty lp": (
        "takes --penalty l1, group, l1-l2, tl1, mcp, scad, not lp"
    ),
    "--precision fp64": "fp64",
    "--precision tf32": "only a GPU computes in tf32",
    "--name a/b": "--name",
    "--name ../up": "--name",
    "--name .hidden": "--name",
    "--name=": "--name",
    "--subset 0": "--subset",
    "--subset 33": "--subset 33",
    "--test-subset 17": "--test-subset 17",
    "--data nowhere": "nowhere",
    "--data=": "has neither",
    "--dataset shapes": "--data",
    "--dataset cifar10": "2 classes",
    "--dataset cifar100": "2 classes",
    "--dataset cifar10 --data nowhere": "nowhere",
    "--fast": "--fast",
    "vgg": "vgg",
    "--xi-init 0.5 0.47": "--xi-init",
    "--start-epoch 1": "--start-epoch",
    f"--name {'x' * 300}": "name",
    f"--batch-size {10**30}": "--batch-size",
    f"--test-batch-size {10**30}": "--test-batch-size",
    "--lr 1e-323": "--lr",
    "-sr --beta 1e39": "--beta",
    "-sr --xi-init 0 1e39": "--xi-init",
}


@pytest.mark.parametrize(("flags", "named"), FLAGS.items(), ids=lambda text: text[:40])
def test_flags_that_make_no_sense(shop: Workshop, refused: Refused, flags: str, named: str) -> None:
    assert named in refused(main, *shop.train(), *flags.split())


def test_whatever_was_typed_is_quoted_in_one_line(shop: Workshop, refused: Refused) -> None:
    assert r"a\x0ab" in refused(main, *shop.train(), "a\nb")


def test_folder_without_data_is_told_what_it_needs(shop: Workshop, refused: Refused) -> None:
    assert "--data DIR" in refused(main, "--dataset", "folder", "--arch", "vgg", *QUICK)


PRUNE_FLAGS = {
    "--percent 1.01": "--percent",
    "--percent=-0.01": "--percent",
    "--percent nan": "--percent",
    "--percent inf": "--percent",
    "--percent half": "half",
    "--ratio 2": "--ratio",
    "--percent 0.5 --ratio 0.5 --target-flops 0.5": "not allowed with",
    "--adjust 1.1": "--adjust",
    "--adjust=-0.1": "--adjust",
    "--criterion norms": "norms",
    "--dataset imagenet": "imagenet",
    "--dataset cifar10": "cifar10",
    "--dataset shapes": "shapes",
    "--data nowhere": "nowhere",
    "--test-subset 0": "--test-subset",
    "--test-subset 17": "--test-subset 17",
    "--test-batch-size 0": "--test-batch-size",
    "--depth 0": "--depth",
    "--depth 20": "depth 11, not 20",
    "--name a/b": "--name",
    "--epochs 3": "--epochs",
    "--model": "--model",
}


@pytest.mark.parametrize("flags", PRUNE_FLAGS)
def test_prune_flags_that_make_no_sense(
    shop: Workshop, refused: Refused, tmp_path: Path, flags: str
) -> None:
    save = ("--save", tmp_path / "new")  # must not be made either
    args = ("--model", shop.trained["resnet"], "--no-cuda", *save, *flags.split())
    assert PRUNE_FLAGS[flags] in refused(resnet_prune, *args)


@pytest.mark.parametrize("arch", PRUNE)
@pytest.mark.parametrize("percent", ["1.5", "nan"])
def test_every_prune_command_wants_a_fraction_and_a_model(
    shop: Workshop, refused: Refused, arch: str, percent: str
) -> None:
    model = ("--model", shop.trained[arch])
    assert percent in refused(PRUNE[arch], *model, "--percent", percent)
    assert "--model" in refused(PRUNE[arch])


def test_more_than_there_is_memory_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.run(lambda argv: torch.empty(2**50)) == 2
    assert "--batch-size" in error_line(capsys.readouterr().err)


# The programs themselves

SCRIPTS = {
    "main.py --arch resnet --depth 12": "choose 9n + 2 (11, 20",
    "main.py --resume {pickle} --no-cuda": "{pickle}",
    "vgg_prune.py --model {resnet}": "has arch resnet, not vgg",
    "densenet_prune.py --model {resnet} --percent 2": "argument --percent",
}


@pytest.mark.parametrize("line", SCRIPTS)
def test_the_programs_end_with_status_2_and_one_line(
    shop: Workshop, tmp_path: Path, line: str
) -> None:
    places = {"resnet": shop.trained["resnet"], "pickle": tmp_path / "pickle"}
    dump(places["pickle"], {"state_dict": {}})
    before = snapshot(tmp_path), snapshot(shop.folder)
    script, *args = line.format(**places).split()
    done = subprocess.run(
        [sys.executable, ROOT / script, *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    assert SCRIPTS[line].format(**places) in error_line(done.stderr)
    assert (snapshot(tmp_path), snapshot(shop.folder)) == before
