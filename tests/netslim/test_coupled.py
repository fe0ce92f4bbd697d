"""Streams: channels that several layers write, and that the group penalty makes zero in all."""

import checks
import pytest
import torch
from checks import Own, assert_close, example
from torch import Tensor, nn

import netslim
from netslim.methods.penalties import PENALTIES, soft_threshold


def residual() -> Own:
    """A stream of 8 channels that three batch norms write."""

    def forward(net: Own, x: Tensor) -> Tensor:
        x = net.stem(x).relu()
        for block in net.blocks:
            x = nn.functional.silu(x + block(x))
        return net.head(x.mean((2, 3)))

    blocks = (
        nn.Sequential(
            *(nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.SiLU()),
            *(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
        )
        for _ in range(2)
    )
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    return Own(forward, stem=stem, blocks=nn.ModuleList(blocks), head=nn.Linear(8, 3))


WRITERS = ["stem.1", "blocks.0.4", "blocks.1.4"]


@pytest.fixture
def model() -> Own:
    torch.manual_seed(0)
    model = residual().double()
    checks.disturb(model)
    return model.eval()


def test_a_stream_goes_where_all_its_writers_are_zero(model: Own) -> None:
    x, keep = example().double(), torch.arange(8) < 5
    graph = netslim.analyze(model, x)
    assert [*graph.coupled] == WRITERS and [*graph.norms] == ["blocks.0.1", "blocks.1.1"]
    assert f"shared by {', '.join(WRITERS)}: with the group penalty" in graph.why_none()
    _, some = netslim.prune(model, dict.fromkeys(WRITERS[:2], keep), x)
    assert some.removed == 0 and some.staying == {"stem.1": 3, "blocks.0.4": 3}
    small, report = checks.pruned(model, dict.fromkeys(WRITERS, keep), training=True)
    assert report.removed == 3 * 2 and report.carriers == 3  # one, with a factor in each writer
    assert small.stem[0].out_channels == small.head.in_features == 6


def test_a_training_makes_the_same_channels_zero_in_all_writers(model: Own) -> None:
    x = example().double()
    model.train()
    graph = netslim.analyze(model, x)
    method = netslim.ProximalSlimming(graph, lambda_=6.0, beta=100.0)  # group by default
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        method.step(0.1)
    keep = {name: ~zeros for name, zeros in method.zeros("xi").items()}
    assert all(torch.equal(keep[name], keep["stem.1"]) for name in WRITERS)
    _, report = checks.pruned(model, keep, training=True)
    assert sum(report.channels[name][0] - report.channels[name][1] for name in WRITERS) > 0


def test_channels_that_a_chunk_joins_become_zero_together() -> None:
    def halves(net: Own, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([left.relu(), right, left * right], 1)

    torch.manual_seed(0)
    grouped = nn.Conv2d(8, 8, 1, groups=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    front = (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        Own(halves),
        nn.Conv2d(12, 8, 1),
        nn.BatchNorm2d(8),
    )
    model = nn.Sequential(*front, nn.ReLU(), *grouped).double()
    checks.disturb(model)
    graph = netslim.analyze(model, example())
    assert "7" in graph.norms and not graph.coupled.keys() & {"1", "7"}
    method = netslim.ProximalSlimming(graph, lambda_=1.0, beta=10.0, penalty="group")
    for _ in range(28):
        method.step(0.1)
    zeros = method.zeros("xi")
    assert 0 < zeros["1"].sum() < 8 and torch.equal(*zeros["1"].chunk(2))
    assert 0 < zeros["7"].sum() < 8 and torch.equal(*zeros["7"].view(4, 2).unbind(1))
    _, report = checks.pruned(model, {name: ~zero for name, zero in zeros.items()})
    assert not report.staying.keys() & {"1", "7"}


def test_group_lasso() -> None:
    torch.manual_seed(0)
    phi, x = PENALTIES["group"](), torch.randn(9, dtype=torch.float64)
    assert torch.equal(phi.prox(x, 0.3), soft_threshold(x, 0.3))
    phi.group(torch.tensor([4, 1, 4, 2, 9, 9, 9, 1, 7]))
    y = phi.prox(x, 0.3)
    assert torch.equal(y[[3, 8]], soft_threshold(x, 0.3)[[3, 8]])  # groups of one: ℓ1
    for members in ([0, 2], [1, 7], [4, 5, 6]):  # max(0, 1 − t√n/‖x‖₂)x
        scale = (1 - 0.3 * len(members) ** 0.5 / x[members].norm()).clamp(min=0)
        assert_close(y[members], scale * x[members], 1e-14)

    def objective(z: Tensor) -> Tensor:
        return (z - x).square().sum() / 2 + 0.3 * phi.value(z.abs())

    nearby = [objective(y + 1e-3 * torch.randn_like(y)) for _ in range(200)]
    assert objective(y) < min(nearby)
