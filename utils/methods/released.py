"""The released program's proximal steps, for the benchmark."""

from collections.abc import Sequence

import torch

from netslim.graph import AnyBatchNorm
from utils.paper.settings import Recipe


class LayerByLayer:
    """Steps (8b) and (9), one batch norm at a time, with a round trip through the host."""

    def __init__(self, norms: Sequence[AnyBatchNorm], paper: Recipe) -> None:
        self.norms, self.paper = norms, paper
        self.xi = [torch.empty(len(bn.weight)).uniform_(0.47, 0.53) for bn in norms]

    def __call__(self, alpha: float) -> None:
        beta = self.paper.beta
        for i, bn in enumerate(self.norms):
            gamma, xi = bn.weight.data.cpu(), self.xi[i]
            gamma = (alpha * gamma + beta * xi) / (alpha + beta)  # (8b)
            mean = (alpha * xi + beta * gamma) / (alpha + beta)
            size = (mean.abs() - self.paper.lambda_ / (alpha + beta)).clamp(min=0)
            self.xi[i] = mean.sign() * size  # (9)
            bn.weight.data = gamma.to(bn.weight.device)
