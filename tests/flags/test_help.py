"""The output of --help and --version."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

import main
import netslim
from utils import console
from utils.flags.config import Config
from utils.flags.parser import parser, resolve

S = """(default of proximal: VGG-19 0.0045, DenseNet-40 0.004, ResNet-110 0.002, ResNet-164 0.002;
    subgradient: VGG-19 0.0001, DenseNet-40 1e-05, ResNet-110 1e-05, ResNet-164 1e-05;
    lp-admm: 0.0001; sas-admm: 0.0001)"""
BETA = "(default of proximal: VGG-19 100, DenseNet-40 100, ResNet-110 1, ResNet-164 0.25)"


def test_every_flag_has_help_and_its_defaults():
    for action in parser()._actions:
        assert action.help, action.option_strings
    text = parser().format_help()
    for method in ("proximal", "lp-admm", "sas-admm"):
        assert f"\npruning with --method {method}:\n" in text
    words = " ".join(text.split())
    for help_text in (S, BETA, "number of epochs, up to 10**6 (default 160)"):
        assert " ".join(help_text.split()) in words
    for option in ("--lambda", "--s"):
        assert vars(parser().parse_args([option, "0.5"])) == {"s": 0.5}


@pytest.mark.parametrize(
    "settings",
    [
        {"arch": "vgg", "method": "proximal", "xi_init": (0.1, 0.2), "seed": 3, "no_flip": True},
        {"arch": "resnet50", "data": "my images", "nesterov": False, "subset": 8},
        {"refine": "pruned.pth.tar", "prune_ratio": 0.5, "lr": 1e-05, "name": "-x"},
    ],
)
def test_a_config_is_read_again_from_its_flags_and_its_record(settings):
    config = Config.from_dict(settings)
    argv = config.argv()
    assert ("--no-flip" in argv) == config.no_flip
    assert resolve(vars(parser().parse_args(argv)), None, {}) == config
    row = {key: "" if cell is None else cell for key, cell in config.to_row().items()}
    assert Config.from_row(row) == config
    with pytest.raises(ValueError, match="seed is 'x'"):
        Config.from_row({**row, "seed": "x"})
    with pytest.raises(ValueError, match="dataset is 'mine'"):
        Config.from_dict({**settings, "dataset": "mine"})


def test_version_names_the_commit(capsys):
    assert console.run(main.main, ["--version"]) == 0
    out = capsys.readouterr().out
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(main.__file__).parent, capture_output=True, text=True
    )
    commit = re.match(rf"version {netslim.__version__}, commit (\w+)\+?, ", out)[1]
    assert head.stdout.startswith(commit) if head.returncode == 0 else commit == "unknown"
    assert torch.__version__ in out
