"""Parameters and FLOPs of a model, and of what pruning would leave of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from netslim.graph import Graph
from netslim.surgery import plan_removal
from netslim.trace import call, copied

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True)
class Cost:
    """Number of parameters, and FLOPs for the example: 2 × multiply-adds of convolutions and
    linear layers. ``channels`` are told where they were counted."""

    parameters: int
    flops: int
    channels: int = 0


@torch.no_grad()  # FlopCounterMode sees nothing under inference_mode
def cost(model: nn.Module, example: Any, hook: Hook | None = None) -> Cost:
    """Cost of ``model`` for ``example``, as its forward pass takes it. Nothing is computed.

    ``hook`` is called after each module as a forward hook is, on the meta device.
    """
    model, example = _on_meta(model, example)
    if hook is not None:
        for module in model.modules():
            module.register_forward_hook(hook)
    with FlopCounterMode(display=False) as counter:
        call(model, example)
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops())


def _on_meta(model: nn.Module, example: Any) -> tuple[nn.Module, Any]:
    """Copies of both without values, in float32 and evaluation mode."""

    def move(x: Any) -> Any:
        x = x.to("meta") if isinstance(x, Tensor) else x
        return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x

    return copied(model).to("meta").float().eval(), tree_map(move, example)


class PrunedCost:
    """What would be left of a graph's model, counted without making the smaller model.

    A convolution and a linear layer take as many FLOPs as positions times elements of their
    weight, so the model runs only once, at full width. Channels that go are taken as silent: γ and
    bias 0.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.silent = graph, copied(graph.model)
        for name in graph.norms:
            bias = self.silent.get_submodule(name).bias
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)
        model, example = _on_meta(graph.model, graph.example)
        self.flops = dict.fromkeys((n for n, _ in model.named_parameters()), 0)
        self.other_flops = 0  # of products without a weight
        with torch.no_grad(), _FlopsByWeight(self, model):
            call(model, example)
        self.full = self({})

    def __call__(self, keep: Mapping[str, Tensor]) -> Cost:
        """Cost of what ``prune`` leaves with ``keep``; its ``channels`` are those of
        ``graph.norms``."""
        removal = plan_removal(self.graph, keep, self.silent)
        parameters, flops = 0, self.other_flops
        shapes = {n: p.shape for n, p in self.graph.model.named_parameters()}
        for name, shape in shapes.items():
            kept = [len(index) for index in removal.index.get(name, ())]
            left = prod((*kept, *shape[len(kept) :]))
            parameters += left
            flops += self.flops[name] // max(shape.numel(), 1) * left
        for name in removal.added.keys() - shapes.keys():  # a bias that is made
            if name.endswith("bias"):
                index = removal.index.get(f"{name.removesuffix('bias')}weight", ())
                parameters += len(index[0]) if index else len(removal.added[name])
        return Cost(parameters, flops, sum(int(x.sum()) for x in removal.keep.values()))


class _FlopsByWeight(TorchFunctionMode):
    """Within, FLOPs are added to ``costs`` by the parameter that they are made with."""

    def __init__(self, costs: PrunedCost, model: nn.Module) -> None:
        super().__init__()
        self.costs = costs
        self.names = {id(p): n for n, p in model.named_parameters() if p.dim() > 1}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with FlopCounterMode(display=False) as counter:
            out = func(*args, **(kwargs or {}))
        if flops := counter.get_total_flops():
            given = map(id, (*args, *(kwargs or {}).values()))
            name = next((self.names[i] for i in given if i in self.names), None)
            if name is None:
                self.costs.other_flops += flops
            else:
                self.costs.flops[name] += flops
        return out
