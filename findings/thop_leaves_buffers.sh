#!/usr/bin/env bash
# thop 0.1.1: profile() counts in buffers total_ops and total_params, and afterwards removes those of the layers, but not
# those of residual blocks and of the model itself. They are in every state dict saved from then on, which a new model of
# the same class refuses. Profile a deep copy, or drop these entries.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 thop==0.1.1.post2209072238 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from thop import profile
from torchvision.models import resnet18

print("torch", torch.__version__, "thop", version("thop"))
model = resnet18()
before = set(model.state_dict())
profile(model, (torch.randn(1, 3, 64, 64),), verbose=False)
left = sorted(set(model.state_dict()) - before)
print(f"{len(left)} more entries in the state dict: {', '.join(left[:3])}, ...")
refused = ""
try:
    resnet18().load_state_dict(model.state_dict())
except RuntimeError as error:
    refused = str(error).splitlines()[1].strip()[:90]
print("a new resnet18:", refused)
assert len(left) == 18 and {name.rpartition(".")[2] for name in left} == {"total_ops", "total_params"}
assert "Unexpected key" in refused, "this has changed"
PYTHON
