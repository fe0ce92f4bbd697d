#!/usr/bin/env bash
# Pillow 12.3.0: a 16-bit grey image converted to RGB is clipped at 255, not scaled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==12.3.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import PIL
from PIL import Image

print("Pillow", PIL.__version__)
ramp = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
file = io.BytesIO()
Image.fromarray(ramp).save(file, "PNG")
image = Image.open(file)
white = float((np.asarray(image.convert("RGB")) == 255).mean())
print(f"mode {image.mode}, from 0 to 65535; {white:.1%} of the pixels are white as RGB")
assert white > 0.99, "this has changed"
PYTHON
