#!/usr/bin/env bash
# torch 2.13.0: update_bn weighs every batch alike, however few samples the last one has.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

print("torch", torch.__version__)
samples = torch.cat((torch.zeros(100, 1), torch.ones(10, 1)))
model = nn.BatchNorm1d(1)
update_bn(samples.split(100), model)  # a batch of 100, and one of 10
taken, right = model.running_mean.item(), samples.mean().item()
print(f"mean of the samples {right:.4f}, running mean {taken:.4f}")
assert abs(taken - 0.5) < 1e-6 and abs(right - 1 / 11) < 1e-6, "this has changed"
PYTHON
