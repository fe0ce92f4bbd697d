"""Code that splits channels at an int of its module: the int follows, or the channels stay."""

from collections.abc import Callable
from pathlib import Path

import checks
import pytest
import torch
from checks import disturb, example
from torch import Tensor, nn

import netslim
import netslim.rules

pytestmark = pytest.mark.usefixtures("rules_may_not_fail")


class Splitting(nn.Module):
    """Runs ``how`` on 12 channels, whose ints are its own attributes."""

    def __init__(self, how: "How") -> None:
        super().__init__()
        self.how, self.width, self.parts, self.pair, self.least = how, 12, [3, 4, 5], (5, 7), 8
        self.first, self.second = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def cat(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def quarters(m: Splitting, x: Tensor) -> Tensor:
    return cat(*x.split(m.width // 4, 1))


def partly(m: Splitting, x: Tensor) -> Tensor:
    a, b = x.split(m.pair, dim=1)
    return cat(m.first(a), b)


def halves(m: Splitting, x: Tensor) -> Tensor:
    a, b = x.split(m.width // 2, dim=1)
    return cat(a * b, a)


def thirds(m: Splitting, x: Tensor) -> Tensor:
    return cat(*x.split(m.width // 3, 1), x[:, : m.width // 3])[:, m.width // 3 :]


def behind(m: Splitting, x: Tensor) -> Tensor:
    return cat(x[:, : m.pair[0]], m.second(x[:, m.pair[0] :]))


def turned(m: Splitting, x: Tensor) -> Tensor:
    for _ in range(2):  # the second time, it counts other channels
        x = cat(x[:, m.pair[0] :], x[:, : m.pair[0]])
    return x


def untrainable(m: Splitting, x: Tensor) -> Tensor:
    if m.training:
        raise NotImplementedError
    return quarters(m, x)


How = Callable[[Splitting, Tensor], Tensor]
FOLLOWING: dict[str, How] = {
    "listed": lambda m, x: cat(*torch.split(x, m.parts, 1)[::-1]),
    "sliced": lambda m, x: cat(x[:, m.pair[0] :], m.first(x[:, 0 : m.pair[0]])),
    **{"partly": partly, "halves": halves, "thirds": thirds},
}
STAYING: dict[str, How] = {
    "measured": lambda m, x: quarters(m, x) * float(m.width),
    "compared": lambda m, x: quarters(m, x) if m.width > 11 else x,
    "counted": lambda m, x: sum(i * quarters(m, x) for i in range(m.width)),
    "rolled": lambda m, x: quarters(m, x).roll(m.width, 3),
    "formatted": lambda m, x: quarters(m, x) * len(f"{m.width}"),
    "of pixels": lambda m, x: quarters(m, x)[:, :, : m.width],
    "trained": lambda m, x: quarters(m, x) * (m.width if m.training else 12),
    "untrainable": untrainable,
    "indexed": lambda m, x: cat(*x[:, : m.least].split(m.least // 2, 1)) * [*range(9)][m.least],
    "remainder": lambda m, x: cat(*x.split(m.least // 3, 1)),
}


def network(how: How) -> nn.Sequential:
    torch.manual_seed(0)
    front = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.SiLU(), Splitting(how)
    model = nn.Sequential(*front, nn.LazyConv2d(6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1))
    model.eval()(example())
    disturb(model)
    return model.double().eval()


def pruned(model: nn.Module, keep: Tensor) -> nn.Module:
    small, report = checks.pruned(model, {"1": keep}, training=True)
    assert report.removed
    return small


@pytest.mark.parametrize("name", FOLLOWING)
def test_an_int_that_splits_follows(name: str, tmp_path: Path) -> None:
    model = network(FOLLOWING[name])
    keep = torch.ones(12, dtype=torch.bool)
    keep[[1, 3, 7, 9]] = False
    groups = {"thirds": 3, "halves": 2}.get(name, 1)
    keep = keep.view(groups, -1).all(0).repeat(groups)
    graph = netslim.analyze(model, example())
    left = netslim.surgery.plan_removal(graph, {"1": keep}).keep["1"]  # a carrier may stay
    first, second = (int(x.sum()) for x in left.split((5, 7)))
    widths = {
        "listed": [int(x.sum()) for x in left.split([3, 4, 5])],
        "partly": (first, second),
        "sliced": (first, 7),
    }
    used = {"listed": "parts", "partly": "pair", "sliced": "pair"}.get(name, "width")
    small = pruned(model, keep)
    assert getattr(small[3], used) == widths.get(name, first + second) < getattr(model[3], used)
    netslim.save(small, tmp_path / "small.pt")
    loaded = netslim.load(network(FOLLOWING[name]), tmp_path / "small.pt")
    assert torch.equal(loaded(example().double()), small(example().double()))
    again = small[1].num_features
    keep = torch.arange(again) % (again // groups) > 1
    assert pruned(small, keep)[1].num_features < again  # what was pruned can be pruned again


@pytest.mark.parametrize("name", STAYING)
def test_an_int_of_which_code_makes_more_stays(name: str) -> None:
    graph = netslim.analyze(network(STAYING[name]), example())
    assert "1" not in graph.norms
    if name not in ("remainder", "indexed"):
        assert graph.reasons["1"] == "code uses 3.width for more than splitting"


@pytest.mark.parametrize("how", [partly, behind])
def test_a_part_keeps_a_channel(how: How) -> None:
    model, first = network(how), torch.arange(12) < 5
    nn.init.zeros_(model[1].bias)  # no constant needs a carrier
    assert pruned(model, ~first if how is partly else first)[3].pair[0] == (
        1 if how is partly else 5
    )


def test_one_int_for_two_tensors_counts_the_same_in_both() -> None:
    keep = torch.ones(12, dtype=torch.bool)
    keep[[2, 3, 4, 7]] = False
    assert pruned(network(turned), keep)[3].pair == (4, 7)  # of the pairs, 2 and 7 only


def test_a_width_of_a_file_is_checked(tmp_path: Path) -> None:
    small = pruned(network(partly), torch.arange(12) % 2 > 0)
    for key, wrong in {"pair": torch.tensor([9, 9]), "width": torch.tensor([1, 2])}.items():
        torch.save(small.state_dict() | {f"3.{key}_as_pruned": wrong}, tmp_path / "small.pt")
        with pytest.raises(ValueError, match=f"3.{key}_as_pruned is"):
            netslim.load(network(partly), tmp_path / "small.pt")
    torch.save(small.state_dict() | {"3.how_as_pruned": wrong}, tmp_path / "small.pt")
    with pytest.raises(ValueError, match="not expected"):
        netslim.load(network(partly), tmp_path / "small.pt")
