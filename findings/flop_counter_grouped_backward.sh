#!/usr/bin/env bash
# torch 2.13.0: FlopCounterMode counts the gradient of a grouped convolution's weight as if it had no groups. A
# depthwise layer of n channels appears to cost n + 1 times its forward pass to go back through, where it is 2 times,
# so the FLOPs of training a MobileNet are far too high. Take twice the forward count for such layers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

print("torch", torch.__version__)
seen = {}
for groups in (1, 4, 64):
    layer = nn.Conv2d(64, 64, 3, padding=1, groups=groups)
    image = torch.randn(1, 64, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        output = layer(image)
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    seen[groups] = backward.get_total_flops() / forward.get_total_flops()
    print(f"{groups} groups: {forward.get_total_flops():,} forward, {seen[groups]:g} times as many backward")
# Backward are two convolutions of the forward one's size: the gradients of the input and of the weight.
assert seen == {1: 2, 4: 5, 64: 65}, "this has changed"
PYTHON
