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
from utils.flags.parser import parser
from utils.methods import METHODS
from utils.paper.published import NETWORKS


@pytest.mark.parametrize("flag", ["s", "beta"])
def test_help_has_the_default_lambda_and_beta_of_each_model(flag):
    text = " ".join(parser().format_help().split())
    shown = re.search(rf" --{flag} \S+ [^(]*\(default of ([^)]*)\)", text)[1]
    defaults = dict(part.split(": ") for part in shown.split("; "))
    with_flag = [m for m in METHODS.values() if any(f.name == flag for f in m.flags)]
    assert defaults.keys() == {m.name for m in with_flag}
    for method, values in defaults.items():
        default = {
            f"{name} {Config.from_dict(settings).options[flag]:g}"
            for name, (arch, depth) in NETWORKS.items()
            if (settings := {"arch": arch, "depth": depth, "method": method})
        }
        alone = {text.rpartition(" ")[2] for text in default}
        assert {*values.split(", ")} == (default if len(alone) > 1 else alone)
    assert "VGG-19" in defaults["proximal"]


def test_version_names_the_commit(capsys):
    assert console.run(main.main, ["--version"]) == 0
    out = capsys.readouterr().out
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(main.__file__).parent, capture_output=True, text=True
    )
    commit = re.match(rf"version {netslim.__version__}, commit (\w+)\+?, ", out)[1]
    assert head.stdout.startswith(commit) if head.returncode == 0 else commit == "unknown"
    assert torch.__version__ in out


def test_every_flag_has_help_and_methods_have_groups_of_their_own():
    text = parser().format_help()
    for action in parser()._actions:
        assert action.help, action.option_strings
    for method in ("proximal", "lp-admm", "sas-admm"):
        assert f"\npruning with --method {method}:\n" in text
    assert vars(parser().parse_args(["--lambda", "0.5"])) == {"s": 0.5}
    assert vars(parser().parse_args(["--s", "0.5"])) == {"s": 0.5}
