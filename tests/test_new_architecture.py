"""A new architecture is one file in ``models`` without pruning code, and does what others do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TOY = '''
"""A residual, a concatenation and a depthwise block."""

import torch
from torch import Tensor, nn

from models.registry import register


def layer(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


@register("toy", depth=7, depths="7", any_size=True)
class Toy(nn.Module):
    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__()
        self.stem = layer(3, 16, 3)
        self.block = nn.Sequential(layer(16, 24, 3), layer(24, 16, 3))
        self.branch = layer(16, 16, 1)
        self.depthwise = nn.Sequential(layer(32, 32, 1), layer(32, 32, 3, 32), layer(32, 24, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        x = self.depthwise(torch.cat((x, self.branch(x)), 1))
        return self.head(self.pool(x).flatten(1))
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """A copy of the program, with one more file."""
    folder = tmp_path_factory.mktemp("program")
    for name in ("models", "utils", "netslim"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "models" / "toy.py").write_text(TOY)
    return folder


def run(program: Path, *words: object) -> str:
    line = [sys.executable, *map(str, words)]
    done = subprocess.run(line, cwd=program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_it_trains_removes_resumes_prunes_and_is_exported(program, pictures):
    flags = ["main.py", "-sr", "--arch", "toy", "--dataset", "folder", "--data", pictures]
    flags += [
        "--no-cuda",
        "--batch-size",
        8,
        "--name",
        "toy",
        "--s",
        3,
        "--beta",
        400,
        "--lr",
        0.05,
    ]
    flags += ["--momentum", 0, "--epochs", 40]
    said = run(program, *flags)
    assert "are cut" in said or "are removed" in said  # while it trained
    saved = program / "logs" / "toy_toy_7_foldercheckpoint.pth.tar"
    before = torch.load(saved, weights_only=True)
    assert before["cut"].any()
    assert "toy_7" in run(program, *flags, "--resume", "auto")
    after = torch.load(saved, weights_only=True)
    assert before["state_dict"].keys() == after["state_dict"].keys()
    assert all(torch.equal(x, after["state_dict"][k]) for k, x in before["state_dict"].items())
    said = run(program, "-m", "utils.prune", "--model", saved, "--no-cuda")
    assert "lossless: every removed channel was silent" in said
    pruned = saved.with_name("toy_toy_7_folder_pruned.pth.tar")
    small = torch.load(pruned, weights_only=True)["state_dict"]
    assert sum(x.numel() for x in small.values()) < sum(
        x.numel() for x in after["state_dict"].values()
    )
    run(
        program,
        "main.py",
        "--refine",
        pruned,
        "--epochs",
        1,
        "--batch-size",
        8,
        "--no-cuda",
        "--data",
        pictures,
    )
    assert "by 0 at most" in run(
        program, "-m", "utils.export", "--model", pruned, "--format", "pt2"
    )
