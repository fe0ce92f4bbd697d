"""Flags of SAS-ADMM and of cutting weights that make no sense."""

import pytest

import main
from runs import command
from utils import export
from workshop import Refused, Workshop

FLAGS = {
    "--prune-ratio 0.85": "--prune-ratio needs --refine",
    "--refine {slim} --prune-ratio 1.5": "--prune-ratio",
    "--refine {slim} --prune-ratio nan": "--prune-ratio",
    "-sr --method sas-admm --inner 0": "--inner",
    "-sr --method sas-admm --outer 0": "--outer",
    "-sr --method sas-admm --k0 0": "--k0",
    "-sr --method sas-admm --q=-1": "--q",
    "-sr --method sas-admm --q 1e30": "grows beyond 1,000,000 mini-batches",
    "-sr --method sas-admm --q 9": "--inner 50 grows beyond 1,000,000 mini-batches in 190 outer",
    "-sr --method sas-admm --outer 1 --inner 1000001": "grows beyond",
    "-sr --method sas-admm --v 0": "--v",
    "-sr --method sas-admm --sas-beta 0": "--sas-beta",
    "-sr --method sas-admm --average-from 0": "--average-from",
    "--method sas-admm": "needs -sr",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_that_make_no_sense(shop: Workshop, refused: Refused, flags: str) -> None:
    assert FLAGS[flags] in refused(main, *shop.train(), *flags.format(slim=shop.slim).split())


def test_another_share_on_resuming(shop: Workshop, refused: Refused, tmp_path) -> None:
    refine = ["--refine", shop.slim, "--prune-ratio", 0.5, "--epochs", 1, "--no-cuda"]
    assert command(main, *refine, "--save", tmp_path / "run") == 0
    (path,) = (tmp_path / "run").glob("*checkpoint.pth.tar")
    line = refused(main, "--resume", path, "--prune-ratio", 0.6)
    assert "started with prune_ratio 0.5, not 0.6" in line


def test_what_is_no_checkpoint_is_not_made_sparse(refused: Refused) -> None:
    assert "nowhere" in refused(export, "--format", "sparse", "--model", "nowhere")
