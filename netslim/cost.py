"""Parameters and FLOPs of a model, and of the model that a pruning would leave."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from netslim.folding import LAYERS
from netslim.graph import Graph
from netslim.surgery import plan_removal
from netslim.trace import call, copied, moved

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True)
class Cost:
    """Number of parameters, and FLOPs for the example: 2 × multiply-adds of convolutions and
    linear layers. ``channels`` is 0 if they were not counted."""

    parameters: int
    flops: int
    channels: int = 0


@torch.no_grad()  # FlopCounterMode sees nothing under inference_mode
def cost(model: nn.Module, example: Any, hook: Callable[[], Hook] | None = None) -> Cost:
    """Returns the cost of ``model`` for ``example``; runs on the meta device if it can.

    ``hook`` returns the forward hook of each module, anew for each run.
    """

    parameters = sum(p.numel() for p in model.parameters())  # a copy on the meta device unties them

    def count(model: nn.Module, example: Any) -> Cost:
        if hook is not None:
            own = hook()
            for module in model.modules():
                module.register_forward_hook(own)
        with FlopCounterMode(display=False) as counter:
            call(model, example)
        return Cost(parameters, counter.get_total_flops())

    def move(x: Any) -> Any:
        x = x.to("meta") if isinstance(x, Tensor) else x
        return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x

    # On the meta device nothing is computed. Code that needs values, or makes tensors on a device,
    # fails there, and is run as it is.
    with suppress(Exception), _WithoutNorms():
        return count(copied(model).to("meta").float().eval(), tree_map(move, example))
    return count(copied(model).eval(), moved(model, example))


class _WithoutNorms(TorchFunctionMode):
    """Passes inputs on instead of calling batch norms and ReLUs, half of the time on the meta
    device: their outputs have the same shape."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func in (F.batch_norm, F.relu) else func(*args, **(kwargs or {}))


class PrunedCost:
    """Costs of pruned models, computed without making them.

    The FLOPs of a convolution or linear layer are proportional to the elements of its weight, for
    as many positions in its output (of a transposed convolution, in its input) as at full width.
    Removed channels count as silent: γ and bias 0.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.silent = graph, copied(graph.model)
        for name in graph.norms:
            bias = self.silent.get_submodule(name).bias
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)
        self.positions: Counter[str] = Counter()  # of each weight, at which it is used
        for step in graph.steps:
            if step.kind in LAYERS and step.call is not None and not step.training:
                value = step.call.argument(0, "input") if step.transposed else step.call.outputs[0]
                shape, channels = value.shape, -1 if step.kind == "linear" else 1
                self.positions[step.weight] += prod(shape) // shape[channels]
        self.other_flops = 0
        layers, total = self({}), cost(graph.model, graph.example).flops
        self.other_flops = total - layers.flops  # of products that are no layer
        self.full = replace(layers, flops=total)

    def __call__(self, keep: Mapping[str, Tensor]) -> Cost:
        """Returns the cost after ``prune`` with ``keep``, with the channels of ``graph.norms``."""
        removal = plan_removal(self.graph, keep, self.silent)
        parameters, flops = 0, self.other_flops
        shapes = {n: p.shape for n, p in self.graph.model.named_parameters()}
        for name, shape in shapes.items():
            kept = [len(index) for index in removal.index.get(name, ())]
            left = prod((*kept, *shape[len(kept) :]))
            parameters += left
            flops += 2 * self.positions[name] * left
        for name in removal.added.keys() - shapes.keys():  # a bias that is created
            if name.endswith("bias"):
                index = removal.index.get(f"{name.removesuffix('bias')}weight", ())
                parameters += len(index[0]) if index else len(removal.added[name])
        return Cost(parameters, flops, sum(int(x.sum()) for x in removal.keep.values()))
