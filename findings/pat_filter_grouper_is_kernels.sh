#!/usr/bin/env bash
# torchao 0.18.0: ConvFilterGrouper of torchao.prototype.pat groups by (output, input) pair: one k x k kernel, and a
# single weight where k = 1. Half of the groups become zero without one output channel that could be cut out, and the
# reported sparsity is the same. Dim0Grouper groups by output channel.
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
for group in ("ConvFilterGrouper", "Dim0Grouper"):
    for k in (3, 1):
        torch.manual_seed(0)
        conv = nn.Conv2d(16, 32, k, bias=False)
        config = {"weight": {"group_type": group, "prox_type": "MinSparsityConstraint", "min_sparsity": 0.5}}
        optimizer = PruneOptimizer(torch.optim.SGD(get_param_groups(conv, config, verbose=False), lr=0.1))
        conv(torch.randn(2, 16, 8, 8)).square().mean().backward()
        optimizer.step()
        zero = conv.weight.detach() == 0
        seen[group, k] = int(zero.flatten(1).all(1).sum())
        print(
            f"{group}, {k} x {k}: {optimizer.relative_sparsity:.0%} zero as reported, {zero.float().mean():.0%} of the"
            f" weights, {seen[group, k]} of 32 output channels"
        )
        assert optimizer.relative_sparsity == zero.float().mean() == 0.5, "this has changed"
expected = {"ConvFilterGrouper": 0, "Dim0Grouper": 16}
assert all(n == expected[group] for (group, _), n in seen.items()), "this has changed"
PYTHON
