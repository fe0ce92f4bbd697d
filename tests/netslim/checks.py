"""Small networks, and what a pruned model has to be equal to."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import netslim
from netslim.graph import AnyBatchNorm
from netslim.surgery import Report, plan_removal


def example() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
    )


class Own(nn.Module):
    """Layers by name, and a forward pass of them."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.how = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.how(self, *inputs, **named)


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """Give batch norms factors and statistics as after some training."""
    for norm in model.modules():
        if isinstance(norm, AnyBatchNorm) and norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
            if norm.running_mean is not None:
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 1.5)


def random_keep(graph: netslim.Graph, share: float = 0.6) -> dict[str, Tensor]:
    """Of the channels of a stream, the same in all batch norms that write it, or not."""
    stays = torch.rand(len(graph.classes)) < share
    together = bool(torch.rand(()) < 0.5)
    keep = {
        name: stays[graph.norm_classes(name)] if together else torch.rand(len(channels)) < share
        for name, channels in graph.prunable(together).items()
    }
    for mask in keep.values():
        mask[0] = True
    return keep


@torch.no_grad()
def silence(graph: netslim.Graph, keep: Mapping[str, Tensor]) -> None:
    """γ = 0 and bias 0 in the channels that are to go."""
    for name, mask in keep.items():
        norm, gone = graph.all_norms[name], ~mask & graph.prunable()[name]
        norm.weight[gone] = norm.bias[gone] = 0


@torch.no_grad()
def masked(model: nn.Module, example: Tensor, keep: Mapping[str, Tensor]) -> nn.Module:
    """The full model with γ = 0 in the channels that pruning removes."""
    graph = netslim.analyze(model, example)
    full = copy.deepcopy(model)
    removal = plan_removal(graph, keep)
    for name, mask in keep.items():
        zero = ~removal.keep[name] | removal.carriers[graph.norm_classes(name)]
        full.get_submodule(name).weight[zero & ~mask] = 0
    return full


def pruned(
    model: nn.Module, keep: Mapping[str, Tensor], training: bool = False
) -> tuple[nn.Module, Report]:
    """Prunes ``model`` in float64, and compares the result with the masked model."""
    x = example().double()
    small, report = netslim.prune(model.double().eval(), keep, x)
    full = masked(model, x, keep)
    assert_close(small(x), full(x))
    if training:
        assert_close(copy.deepcopy(small).train()(x), full.train()(x))
    return small, report


def pruned_and_masked(
    model: nn.Module, example: Tensor, keep: Mapping[str, Tensor]
) -> tuple[nn.Module, nn.Module, Report]:
    small, report = netslim.prune(model, keep, example)
    return small, masked(model, example, keep), report


def assert_close(a: Tensor, b: Tensor, relative: float = 1e-9) -> None:
    assert a.shape == b.shape
    scale = max(float(b.detach().abs().max()), 1e-6)
    assert float((a - b).detach().abs().max()) <= relative * scale
