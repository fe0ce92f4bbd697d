#!/usr/bin/env bash
# torch 2.13.0: torch.fx's fuse() folds every batch norm behind a shared convolution into the one module, so that
# each of its calls computes with all of the norms. Heads that share convolutions between levels, where each level
# has its own norm (EfficientDet), come out wrong without a word. Copy the convolution for each call before fusing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse


class Head(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.coarse = nn.Conv2d(4, 4, 3, padding=1)
        self.fine = self.coarse if shared else copy.deepcopy(self.coarse)
        self.twice, self.thrice = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        nn.init.constant_(self.twice.weight, 2)
        nn.init.constant_(self.thrice.weight, 3)

    def forward(self, x, y):
        return self.twice(self.coarse(x)), self.thrice(self.fine(y))


print("torch", torch.__version__)
torch.manual_seed(0)
example = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 16, 16)
ratios = {}
for shared in (False, True):
    head = Head(shared).eval()
    with torch.no_grad():
        pairs = zip(fuse(head)(*example), head(*example))
        ratios[shared] = [round((a / b).median().item(), 2) for a, b in pairs]
    print(f"shared: {shared}, fused outputs / outputs: {ratios[shared]}")
# The one convolution now gives 2 * 3 times its output in both places.
assert ratios == {False: [1.0, 1.0], True: [3.0, 2.0]}, "this has changed"
PYTHON
