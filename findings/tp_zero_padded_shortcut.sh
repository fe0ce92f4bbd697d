#!/usr/bin/env bash
# Torch-Pruning 1.6.1, torch 2.14.1: a shortcut that pads channels with zeros (option A of the CIFAR ResNets) is taken
# for an elementwise operation. Channel i in front of it is coupled to channel i behind it, and not to i + padding: so
# other channels are removed than those that the shortcut joins, and the rest of the stream is added shifted.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 numpy==2.4.6 torch-pruning==1.6.1
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.pad(x, (0, 0, 0, 0, 2, 2)) + self.branch(x))  # 2 channels on each side


print("torch", torch.__version__, "torch-pruning", version("torch-pruning"))
torch.manual_seed(0)
block, images = Block().eval(), torch.randn(1, 3, 8, 8)
with torch.no_grad():
    # Stem channel 1 is 0, and so is channel 3 behind the padding: removing both changes nothing.
    for tensor in (block.stem.weight[1], block.stem.bias[1], block.branch.weight[3]):
        tensor.zero_()
    block.branch.bias[3] = 0
before = block(images)
graph = tp.DependencyGraph().build_dependency(block, images)
group = graph.get_pruning_group(block.stem, tp.prune_conv_out_channels, [1])
removed = {
    name: sorted(indices)
    for dependency, indices in group
    for name, module in block.named_children()
    if module is dependency.target.module and dependency.handler == tp.prune_conv_out_channels
}
group.prune()
difference = (block(images) - before).abs().max().item()
print("output channels removed:", removed)
print("the removed stem channel was 0, and outputs differ:", difference > 0.1)
assert removed == {"stem": [1], "branch": [1]} and difference > 0.1, "this has changed"
PYTHON
