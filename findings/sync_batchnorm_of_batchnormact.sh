#!/usr/bin/env bash
# torch 2.14.1, timm 1.0.31: SyncBatchNorm.convert_sync_batchnorm takes timm's BatchNormAct2d (a batch norm that ends
# with its activation) for a plain batch norm. The activation stays in the printed model, as a child of the new norm,
# but nothing calls it any more; weights load as before. Use timm.layers.convert_sync_batchnorm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import timm
import torch
from torch import nn

print("torch", torch.__version__, "timm", timm.__version__)
torch.manual_seed(0)
image = torch.randn(1, 3, 64, 64)
model = timm.create_model("densenet121").eval()
seen = []
for convert in (timm.layers.convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm):
    converted = convert(copy.deepcopy(model))
    norm = next(m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm))
    acts = sum(isinstance(m, nn.ReLU) for m in converted.modules())
    with torch.no_grad():
        least = norm(torch.randn(1, norm.num_features, 8, 8)).min().item()
        change = ((converted(image) - model(image)).abs().max() / model(image).abs().max()).item()
    seen.append((acts, least, change))
    print(
        f"{convert.__module__}: {acts} ReLUs in the model; the first norm gives {least:.2f} at least;"
        f" outputs change by {change:.2g} times the largest"
    )
(acts, kept, none), (same, lost, much) = seen
assert kept == 0 and none < 1e-4, "this has changed"
assert same == acts > 100 and lost < -1 and much > 1, "this has changed"
PYTHON
