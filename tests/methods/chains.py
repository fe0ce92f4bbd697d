"""A small model for the methods' tests."""

import torch
from torch import nn

import netslim


def chain(*widths: int, dtype: torch.dtype = torch.float32) -> netslim.Graph:
    """Convolutions of these widths with batch norm (γ = 1) and ReLU, and one more convolution."""
    layers, before = list[nn.Module](), 3
    for width in widths:
        layers += [nn.Conv2d(before, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    model = nn.Sequential(*layers, nn.Conv2d(before, 2, 1)).to(dtype)
    return netslim.analyze(model, torch.zeros(1, 3, 4, 4, dtype=dtype))
