"""What -h and --version say."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

import main
from utils import console
from utils.flags.config import Config
from utils.flags.parser import parser
from utils.methods import METHODS
from utils.paper.published import NETWORKS
from utils.training import logs


@pytest.mark.parametrize("flag", ["s", "beta"])
def test_help_says_which_lambda_and_beta_a_network_has_by_default(flag):
    text = " ".join(parser().format_help().split())
    shown = re.search(rf" --{flag} \S+ [^(]*\(default of ([^)]*)\)", text)[1]
    told = dict(part.split(": ") for part in shown.split("; "))
    with_flag = [m for m in METHODS.values() if any(f.name == flag for f in m.flags)]
    assert told.keys() == {m.name for m in with_flag}
    for method, values in told.items():
        default = {
            f"{name} {Config.from_dict(known).options[flag]:g}"
            for name, (arch, depth) in NETWORKS.items()
            if (known := {"arch": arch, "depth": depth, "method": method})
        }
        alone = {text.rpartition(" ")[2] for text in default}
        assert {*values.split(", ")} == (default if len(alone) > 1 else alone)
    assert "VGG-19" in told["proximal"]


def test_version_names_the_commit(capsys):
    assert console.run(main.main, ["--version"]) == 0
    said = capsys.readouterr().out
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(main.__file__).parent, capture_output=True, text=True
    )
    commit = re.match(r"commit (\w+)\+?, ", said)[1]
    assert head.stdout.startswith(commit) if head.returncode == 0 else commit == "unknown"
    assert torch.__version__ in said


@pytest.mark.parametrize("folder", [".", "program"], ids=["its root", "a folder of it"])
def test_another_repositorys_commit_is_not_reported(folder, tmp_path, monkeypatch):
    """As where the program was copied into a repository of the user's."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", tmp_path]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    own = tmp_path / folder / "utils" / "training" / "logs.py"
    own.parent.mkdir(parents=True)
    own.touch()
    monkeypatch.setattr(logs, "ROOT", (tmp_path / folder).resolve())
    monkeypatch.setattr(logs, "__file__", str(own))
    assert logs.commit() is None
    if folder == ".":
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
        assert re.fullmatch(r"[0-9a-f]{12}", logs.commit())
        own.write_text("changed")
        assert logs.commit().endswith("+")
