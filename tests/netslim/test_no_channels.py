"""A network without channels to remove is refused at once, with the commonest reasons."""

import pytest
from checks import example
from torch import nn

import netslim

METHODS = {
    "proximal": lambda graph: netslim.ProximalSlimming(graph, lambda_=1, beta=1),
    "subgradient": lambda graph: netslim.Subgradient(graph, lambda_=1),
    "lp": lambda graph: netslim.LpADMM(graph, lambda_=1),
}


def outputs() -> nn.Sequential:
    """Two batch norms that only the outputs read, one that code picks from, three not called."""
    parts = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    model[0].parts = parts
    return model


@pytest.mark.parametrize("method", METHODS)
def test_it_is_refused_by_every_method(method: str) -> None:
    layer_norms = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"no channel .* can be removed \(it has no batch norm\)"):
        METHODS[method](netslim.analyze(layer_norms, example()))
    why = (
        "0.parts.0, 0.parts.1, 0.parts.2: it is not called, or does not use torch's batch_norm;"
        " 1, 3: it is an output of the model"
    )
    graph = netslim.analyze(outputs(), example())
    with pytest.raises(ValueError) as error:
        METHODS[method](graph)
    assert str(error.value) == f"no channel of the model can be removed ({why})"
    _, report = netslim.prune(outputs(), {}, example())
    assert [f"not prunable: {text}" for text in why.split("; ")] == str(report).splitlines()[-2:]
