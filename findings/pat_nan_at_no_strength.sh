#!/usr/bin/env bash
# torchao 0.18.0: the proximal steps of torchao.prototype.pat divide by the norm of a group. Where that is 0 and the
# step's strength is 0, too, they compute 0 / 0, and the weights become NaN: batch norms that begin with γ = 0 in a
# run whose learning rate warms up from 0, or in the λ = 0 run of a sweep. Begin above 0, or leave λ = 0 unwrapped.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 torchao==0.18.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import logging

logging.disable()  # torchao says which of its GPU kernels it cannot load

import torch
import torchao
from torch import nn
from torchao.prototype.pat.optim import PruneOptimizer
from torchao.prototype.pat.utils import get_param_groups

print("torch", torch.__version__, "torchao", torchao.__version__)
seen = {}
for lr, strength in ((0.1, 1e-4), (0.0, 1e-4), (0.1, 0.0)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    conv, norm = model[0].weight, model[1].weight
    nn.init.zeros_(conv[:1])
    nn.init.zeros_(norm[:2])
    config = {
        "0.weight": {"group_type": "Dim0Grouper", "prox_type": "ProxGroupLasso"},
        "1.weight": {"group_type": "ElemGrouper", "prox_type": "ProxLasso"},
    }
    optimizer = torch.optim.SGD(get_param_groups(model, config, verbose=False), lr)
    optimizer = PruneOptimizer(optimizer, reg_lambda=strength)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    conv.grad[:1] = 0  # 0 / 0 needs a group that is 0 after the step, too; at lr = 0 every one stays
    norm.grad[:2] = 0
    optimizer.step()
    broken = [int(p.flatten(1).isnan().any(1).sum()) for p in (conv, norm[:, None])]
    print(f"lr {lr}, strength {strength}: NaN in {broken[0]} of 4 filters, {broken[1]} of 4 factors")
    seen[lr, strength] = broken
assert seen == {(0.1, 1e-4): [0, 0], (0.0, 1e-4): [1, 2], (0.1, 0.0): [1, 2]}, "this has changed"
PYTHON
