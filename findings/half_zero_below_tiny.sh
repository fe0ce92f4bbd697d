#!/usr/bin/env bash
# torch 2.13.0: comparing float16 zeros with a small Python number says that they are not below it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch

print("torch", torch.__version__)
seen = {}
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    below = torch.zeros((), dtype=dtype) < 1e-8
    seen[dtype] = bool(below)
    print(dtype, "0 < 1e-8:", seen[dtype])
# 1e-8 is less than half of float16's smallest number, 6e-8, so as a float16 it is 0.
assert seen == {torch.float16: False, torch.bfloat16: True, torch.float32: True}, "this has changed"
PYTHON
