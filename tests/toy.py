"""A method of one's own: this class, and its line in the registry.

``python tests/toy.py main ...`` is ``main.py`` with it, ``... tables ...`` the tables.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from netslim.graph import Graph
from utils import arguments, console
from utils.methods import METHODS
from utils.methods.base import Method


class Toy(Method):
    name, title, help = "toy", "Toy NS", "γ decays, and what is large is counted"
    flags = (arguments.Flag("decay", "of γ in a step", arguments.fraction, 0.01),)
    columns = ("above",)
    prune_flags = ("--percent", "0.1")

    def __init__(self, graph: Graph, decay: float, model: torch.nn.Module | None = None) -> None:
        super().__init__(graph, model)
        self.decay, self.count = decay, torch.zeros_like(self.gamma)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"count": self.count}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.write(self.read() * (1 - self.decay))
        self.update(self.count, self.count + (self.gamma > self.gamma.mean()))

    def log_metrics(self, loss: float) -> dict[str, float]:
        return {"above": self.count.mean().item()}


METHODS[Toy.name] = Toy

if __name__ == "__main__":
    module = {"main": "main", "tables": "utils.reports.tables"}[sys.argv[1]]
    sys.exit(console.run(importlib.import_module(module).main, sys.argv[2:]))
