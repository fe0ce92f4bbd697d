"""A new architecture is one file in ``models``, without code for pruning."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import warm

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
        shutil.copytree(ROOT / name, folder / name)
    for name in ("main.py", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "models" / "toy.py").write_text(TOY)
    return folder


def run(program: Path, *words: object) -> str:
    line = [warm.PYTHON, *map(str, words)]
    done = subprocess.run(line, cwd=program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_it_is_trained_resumed_pruned_fine_tuned_and_exported(program, pictures):
    flags = "main.py -sr --arch toy --dataset folder --no-cuda --batch-size 8 --name toy --s 3"
    flags += " --beta 400 --lr 0.05 --momentum 0 --epochs 40 --data"
    train = [*flags.split(), pictures]
    run(program, *train)
    saved = program / "logs" / "toy_toy_7_folder/checkpoint.pth.tar"
    before = torch.load(saved, weights_only=True)
    assert before["cut"].any()  # channels were removed while it trained
    assert "toy_7" in run(program, *train, "--resume", "auto")
    after = torch.load(saved, weights_only=True)["state_dict"]
    assert before["state_dict"].keys() == after.keys()
    assert all(torch.equal(x, after[key]) for key, x in before["state_dict"].items())
    printed = run(program, "-m", "utils.prune", "--model", saved, "--no-cuda")
    assert "lossless: every removed channel gave 0 for all inputs" in printed
    pruned = saved.with_name("pruned.pth.tar")
    small = torch.load(pruned, weights_only=True)["state_dict"]
    counts = [sum(x.numel() for x in state.values()) for state in (small, after)]
    assert counts[0] < counts[1]
    finetune = "main.py --epochs 1 --batch-size 8 --no-cuda --refine"
    run(program, *finetune.split(), pruned, "--data", pictures)
    printed = run(program, "-m", "utils.export", "--model", pruned, "--format", "pt2")
    assert "by 0 at most" in printed
