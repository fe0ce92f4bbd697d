#!/usr/bin/env bash
# thop 0.1.1, ptflops 0.7.5, Torch-Pruning 1.6.1, fvcore 0.1.5: the first three look a module's exact class up, so a
# subclass of Conv2d costs nothing and "FLOPs removed" is of the other layers only: thop sees 2 of the 336 million
# multiply-adds of timm's resnetv2_50x1_bit at 64 x 64 (StdConv2d). fvcore counts every class, but no convolution with
# padding="same". torch's FlopCounterMode sees all of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 thop==0.1.1.post2209072238 ptflops==0.7.5 torch-pruning==1.6.1 \
    fvcore==0.1.5.post20221221 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import logging

logging.disable()  # fvcore logs operations that it does not know

import fvcore.nn
import ptflops
import thop
import torch
import torch_pruning
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def by_torch(model, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2  # multiply-adds, as the others count


counters = {
    "torch": by_torch,
    "thop": lambda model, x: thop.profile(model, (x,), verbose=False)[0],
    "ptflops": lambda model, x: ptflops.get_model_complexity_info(
        model, tuple(x.shape[1:]), as_strings=False, print_per_layer_stat=False
    )[0],
    "Torch-Pruning": lambda model, x: torch_pruning.utils.count_ops_and_params(model, x)[0],
    "fvcore": lambda model, x: fvcore.nn.FlopCountAnalysis(model, x).total(),
}
models = {
    "Conv2d": nn.Conv2d(8, 8, 3, padding=1, bias=False),
    "a subclass": Standardized(8, 8, 3, padding=1, bias=False),
    'padding="same"': nn.Conv2d(8, 8, 3, padding="same", bias=False),
}
print("torch", torch.__version__)
right, image = 8 * 8 * 9 * 100, torch.randn(1, 8, 10, 10)
seen = {
    name: {counter: int(count(model.eval(), image)) for counter, count in counters.items()}
    for name, model in models.items()
}
for name, counts in seen.items():
    print(f"{name:14}", counts)
nothing = {(name, counter) for name, counts in seen.items() for counter, n in counts.items() if n == 0}
assert all(n in (0, right) for counts in seen.values() for n in counts.values()), "this has changed"
assert nothing == {
    ("a subclass", "thop"),
    ("a subclass", "ptflops"),
    ("a subclass", "Torch-Pruning"),
    ('padding="same"', "fvcore"),
}, "this has changed"
PYTHON
