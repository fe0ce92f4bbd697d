#!/usr/bin/env bash
# NNCF 3.4.0: PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL divides each layer's weights by the 2-norm of the layer before it
# compares them, which grows with the number of weights: of layers with weights of the same size the largest one is
# emptied and small ones stay whole, and a layer of tiny weights is as safe as any. torch's global_unstructured
# compares the weights themselves. Look at the shares per layer, or leave layers out with ignored_scope.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q nncf==3.4.0 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import nncf
import torch
from torch import nn
from torch.nn.utils import prune


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.small = nn.Conv2d(3, 8, 3, bias=False)  # 216 weights
        self.large = nn.Linear(8 * 36, 512, bias=False)  # 147,456 weights

    def forward(self, x):
        return self.large(self.small(x).flatten(1))


print("nncf", nncf.__version__, "torch", torch.__version__)
image = torch.randn(1, 3, 8, 8)
mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
seen = {}
for size in (1, 0.001):
    torch.manual_seed(0)
    network = Network()
    nn.init.normal_(network.small.weight, std=size)
    nn.init.normal_(network.large.weight)

    other = copy.deepcopy(network)
    prune.global_unstructured([(other.small, "weight"), (other.large, "weight")], prune.L1Unstructured, amount=0.9)
    by_torch = [(layer.weight == 0).float().mean().item() for layer in (other.small, other.large)]

    pruned = nncf.prune(network, mode, ratio=0.9, examples_inputs=image)
    found = {t.tensor_name: t.pruned_ratio for t in nncf.pruning_statistic(pruned).pruned_tensors}
    by_nncf = [found["small.weight"], found["large.weight"]]
    seen[size] = by_torch, by_nncf
    for name, shares in (("torch", by_torch), ("nncf", by_nncf)):
        print(f"sizes {size} and 1, {name} zeroes {shares[0]:.1%} of the small layer, {shares[1]:.1%} of the large")
for size, (by_torch, by_nncf) in seen.items():
    assert by_nncf[0] < 0.1 and abs(by_nncf[1] - 0.9) < 0.01, "this has changed"
    assert by_torch[0] > 0.8 and abs(by_torch[1] - 0.9) < 0.01, "this has changed"
assert seen[0.001][0][0] == 1, "this has changed"
PYTHON
