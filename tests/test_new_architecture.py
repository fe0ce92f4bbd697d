"""A new architecture is one file in ``models``, without code for pruning."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import torch

import warm

ROOT = Path(__file__).parents[1]
REMOVED = r"removed channels: (\d+) with γ = 0 and output 0, (\d+) .* \(folded\), (\d+) with γ ≠ 0"
COMMANDS = """
import json, sys
from importlib import import_module
from utils import console
for module, *argv in json.loads(sys.argv[1]):
    assert console.run(import_module(module).main, argv) == 0, argv
"""
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


def test_it_is_trained_resumed_pruned_fine_tuned_and_exported(tmp_path, pictures):
    for name in ("models", "utils", "netslim"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "main.py", tmp_path)
    (tmp_path / "models" / "toy.py").write_text(TOY)
    saved = tmp_path / "logs" / "toy_toy_7_folder/checkpoint.pth.tar"
    pruned = saved.with_name("pruned.pth.tar")

    def run(*commands: str) -> str:
        argv = json.dumps([command.split() for command in commands])
        line = [warm.PYTHON, "-c", COMMANDS, argv]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    flags = "--no-cuda --batch-size 8 --lr 0.1 --momentum 0 --epochs 8 --s 3000 --beta 10000"
    train = f"main -sr --arch toy --name toy {flags} --dataset folder --data {pictures}"
    run(train)
    before = torch.load(saved, weights_only=True)
    assert before["cut"].any()  # channels were removed while it trained
    printed = run(
        f"{train} --resume auto",
        f"utils.prune --model {saved} --no-cuda",
        f"main --refine {pruned} --epochs 1 --batch-size 8 --no-cuda --data {pictures}",
        f"utils.export --model {pruned} --format pt2",
    )
    silent, folded, others = map(int, re.search(REMOVED, printed).groups())
    assert silent > 40 and folded < 40 and others == 0
    assert "toy_7" in printed and "by 0 at most" in printed
    after = torch.load(saved, weights_only=True)["state_dict"]
    assert before["state_dict"].keys() == after.keys()
    assert all(torch.equal(x, after[key]) for key, x in before["state_dict"].items())
    small = torch.load(pruned, weights_only=True)["state_dict"]
    counts = [sum(x.numel() for x in state.values()) for state in (small, after)]
    assert counts[0] < counts[1]
