"""A pruned model is equal to the masked one, whatever it is made of."""

import copy
import io

import checks
import networks
import pytest
import torch
from checks import assert_close, disturb, example, plain_net, random_keep
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import netslim
import netslim.rules

SETTINGS = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
SEEDS = st.integers(0, 10**6)


@pytest.fixture(autouse=True)
def rules_may_not_fail(monkeypatch) -> None:
    monkeypatch.setattr(netslim.rules, "STRICT", True)


def train(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients after one training pass, and the statistics that it leaves."""
    model.train().zero_grad()
    model(x).square().sum().backward()
    found = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {n: b for n, b in model.named_buffers() if "running" in n}


def kept_of(removal, name: str, tensor: Tensor) -> Tensor:
    entry = name.removesuffix(".grad")
    for axis, kept in enumerate(removal.index.get(entry, ())):
        tensor = tensor.index_select(axis, kept)
    return tensor


@SETTINGS
@given(SEEDS)
def test_silent_channels_leave_outputs_gradients_and_statistics(seed: int) -> None:
    model, x = networks.build(seed, silent=True, padded=True), example().double()
    for _ in range(2):  # what was pruned can be pruned again
        graph = netslim.analyze(model, x)
        keep = random_keep(graph)
        checks.silence(graph, keep)
        small, report = netslim.prune(model, keep, x)
        full = checks.masked(model, x, keep)
        removal = netslim.surgery.plan_removal(graph, keep)
        if report.folded or any(x.any() for x in removal.added.values()):
            return  # constants of a bias in front, of one behind, or of a gate
        assert_close(small(x), full(x))
        mine, theirs = train(copy.deepcopy(small), x), train(full, x)
        scale = max(float(g.abs().max()) for g in theirs.values())
        for name, found in theirs.items():
            entry, _, _ = name.removesuffix(".grad").rpartition(".")
            inside = name if name in mine else name.replace(entry, f"{entry}.norm", 1)
            expected = kept_of(removal, name, found)
            assert float((mine[inside] - expected).abs().max()) <= 1e-8 * scale, name
        model = small


@SETTINGS
@given(SEEDS, st.booleans())
def test_constants_are_folded_exactly(seed: int, padded: bool) -> None:
    model, x = networks.build(seed, silent=False, padded=padded), example().double()
    for _ in range(2):
        graph = netslim.analyze(model, x)
        keep = random_keep(graph)
        small, full, _ = checks.pruned_and_masked(model, x, keep)
        assert_close(small(x), full(x))
        stays = netslim.surgery.plan_removal(graph, keep).keep
        # A batch norm of γ ≠ 0 that reads a constant gives another one in training mode.
        if all((stays[name] | ~mask).all() for name, mask in keep.items()):
            assert_close(copy.deepcopy(small).train()(x), copy.deepcopy(full).train()(x))
        file = io.BytesIO()
        netslim.save(small, file)
        file.seek(0)
        fresh = networks.build(seed, silent=False, padded=padded)
        assert torch.equal(netslim.load(fresh, file)(x), small(x))
        model = small


@pytest.mark.parametrize("transposed", [False, True])
def test_a_carrier_takes_constants_to_the_border(transposed: bool) -> None:
    torch.manual_seed(0)
    reader = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU()),
        *(reader(8, 6, 3, 2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Conv2d(6, 2, 1),
    ).double()
    disturb(model)
    x = example().double()
    small, full, report = checks.pruned_and_masked(model.eval(), x, {"1": torch.arange(8) < 4})
    assert (report.folded, report.carriers, report.staying) == (3, 1, {})
    assert small[1].num_features == 5 and int((small[1].weight == 0).sum()) == 1
    assert_close(small(x), full(x))
    assert_close(small.train()(x), full.train()(x))


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int) -> None:
    conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    up = getattr(nn, f"ConvTranspose{dims}d")
    torch.manual_seed(0)
    model = nn.Sequential(
        *(conv(2, 8, 2), norm(8), nn.ReLU(), conv(8, 8, 2, groups=8), norm(8), nn.ReLU()),
        *(up(8, 4, 2), norm(4), nn.ReLU(), conv(4, 2, 1)),
    ).double()
    disturb(model)
    x = torch.randn(2, 2, *[5] * dims).double()
    graph = netslim.analyze(model.eval(), x)
    keep = {name: torch.arange(norm.num_features) % 2 == 0 for name, norm in graph.norms.items()}
    checks.silence(graph, keep)
    small, full, report = checks.pruned_and_masked(model, x, keep)
    assert report.removed == 4 + 4 + 2
    assert_close(small(x), full(x))


def test_linear_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 9, bias=False), nn.BatchNorm1d(9), nn.GELU(), nn.Linear(9, 2)
    )
    disturb(model.double().eval())
    x = torch.randn(3, 4).double()
    small, full, report = checks.pruned_and_masked(model, x, {"1": torch.arange(9) < 5})
    assert report.removed == 4 and small[0].out_features == 5
    assert_close(small(x), full(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types_of_numbers(dtype: torch.dtype) -> None:
    model = plain_net()
    disturb(model)
    model = model.to(dtype).eval()
    small, report = netslim.prune(model, {"1": torch.arange(8) < 5}, example())
    assert report.removed == 3
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_channels_last_stays() -> None:
    model = plain_net().to(memory_format=torch.channels_last).eval()
    small, _ = netslim.prune(model, {"1": torch.arange(8) < 5}, example())
    assert small[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_layer_that_is_called_twice_has_one_bias() -> None:
    """Two calls see two constants: one bias cannot be for both."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.na, self.nb, self.shared = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.na(self.a(x)), self.nb(self.b(x))
            return self.shared(a.relu()) * self.shared(b.relu())

    torch.manual_seed(0)
    model = Net().double().eval()
    disturb(model)
    x = example().double()
    with torch.no_grad():
        for norm in (model.na, model.nb):
            norm.bias[:] = torch.tensor([-1.0] * 4 + [1.0] * 4)
    keep = {"na": torch.arange(8) % 2 > 0, "nb": torch.arange(8) % 2 > 0}
    graph = netslim.analyze(model, x)
    assert not graph.norms or all(name in graph.norms for name in keep)
    small, full, _ = checks.pruned_and_masked(
        model, x, {name: mask for name, mask in keep.items() if name in graph.norms}
    )
    assert_close(small(x), full(x))


class _OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, None)  # whatever its bias is


def test_a_layer_of_its_own_code_is_given_no_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(_OwnForward(8, 2, 1, bias=False), nn.Sigmoid()),
    ).double()
    disturb(model.eval())
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([1.0, -1.0] * 4))
    x = example().double()
    small, full, report = checks.pruned_and_masked(model, x, {"1": torch.arange(8) > 3})
    assert (report.removed, report.carriers) == (3, 1)
    assert_close(small(x), full(x))


def test_the_code_of_a_subclass_decides_about_padding() -> None:
    class Same(nn.Conv2d):  # the padding is in the code, not in the attribute
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
            return nn.functional.conv2d(x, self.weight, self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), Same(8, 4, 3, padding=7)),
        *(nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 1)),
    ).double()
    disturb(model.eval())
    x = example().double()
    small, full, report = checks.pruned_and_masked(model, x, {"1": torch.arange(8) < 4})
    assert report.folded == 4
    assert_close(small(x), full(x))


def test_a_dtype_that_is_taken_from_channels_keeps_none() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x)).relu()
            return self.head((torch.arange(8).type_as(x) * x).mean((2, 3)))

    torch.manual_seed(0)
    model = Net().double().eval()
    disturb(model)
    nn.init.constant_(model.norm.bias, -0.1)
    small, full, report = checks.pruned_and_masked(
        model, example().double(), {"norm": torch.arange(8) < 3}
    )
    assert report.removed == 5
    assert_close(small(example().double()), full(example().double()))


def test_a_batch_norm_of_two_names_selects_under_both() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.block = nn.Sequential(self.norm, nn.ReLU(), nn.Conv2d(8, 8, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.block(x)

    model = Net().double().eval()
    disturb(model)
    keep = {name: torch.arange(8) < 3 for name in netslim.analyze(model, example().double()).norms}
    small, full, report = checks.pruned_and_masked(model, example().double(), keep)
    assert report.removed == 5 and len(report.selections) == 1
    assert small.norm is small.block[0]
    assert_close(small(example().double()), full(example().double()))


class Borrowing(nn.Module):
    """Takes the width of what its batch norm gives from the stream that this reads."""

    def __init__(self, parts: bool) -> None:
        super().__init__()
        self.stem, self.norm, self.other = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.last, self.parts = nn.Linear(4 if parts else 8, 2), parts

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x).relu()
        if self.parts:
            left, right = y.split(x.shape[1] // 2, 1)
            y = left + right
        else:
            y = y.reshape(x.shape[0], x.shape[1], -1, 1)
        return self.last(y.mean((2, 3))) + self.other(x).mean((2, 3))


@pytest.mark.parametrize("parts", [False, True])
def test_a_width_that_is_taken_from_others_keeps_them_together(parts: bool) -> None:
    graph = netslim.analyze(Borrowing(parts).eval(), example())
    varying = "its channels are read before a batch norm, or with γ = 0 they still vary"
    assert graph.reasons == {"norm": varying}


def test_a_channel_that_is_needed_would_be_missed() -> None:
    """The control of the tests above."""
    model, keep = plain_net().eval(), {"1": torch.arange(8) > 0}
    with torch.no_grad():
        model[1].bias.fill_(1)
    assert netslim.prune(model, keep, example())[1].difference > 1e-3


def test_a_layer_that_nobody_reads_is_given_no_bias() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.conv, self.last = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(12)
            self.head = nn.Conv2d(12, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.last(torch.cat([x, self.conv(self.norm(x).relu())], 1)).relu())

    model = Net().double().eval()
    disturb(model)
    x, some = example().double(), torch.arange(12) < 8
    once, _ = netslim.prune(model, {"last": some}, x)
    assert once.conv.out_channels == 1  # which it keeps, as every layer keeps one
    twice, full, report = checks.pruned_and_masked(once, x, {"norm": torch.arange(8) < 4})
    assert report.folded and twice.conv.bias is None
    assert_close(twice(x), full(x))


@pytest.mark.parametrize("constant", [False, True])
def test_what_has_two_names_has_two_in_the_pruned_model(constant: bool) -> None:
    """Layers, and a weight; a bias, too, that a constant becomes."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.conv2 = nn.Conv2d(8, 2, 1, bias=False)
            self.layers = nn.ModuleList([self.conv2, self.norm, self.conv1])
            self.one, self.other = (nn.Linear(128, 5, bias=False) for _ in range(2))
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv2(self.norm(self.conv1(x)).relu()).flatten(1)
            return self.one(x) + 2 * self.other(x)

    model, x = Net().double().eval(), example().double()
    disturb(model)
    with torch.no_grad():
        model.norm.bias.fill_(1.0 if constant else -1.0)
    (name,) = netslim.analyze(model, x).norms
    small, full, report = checks.pruned_and_masked(model, x, {name: torch.arange(8) < 3})
    assert list(small.layers) == [small.conv2, small.norm, small.conv1]
    assert small.other.weight is small.one.weight and report.removed == 5
    assert all(p.requires_grad for p in small.parameters())
    assert_close(small(x), full(x))


def test_numbers_of_keep_are_checked() -> None:
    model = plain_net().eval()
    for keep, message in (
        ({"9": torch.ones(8).bool()}, "there is no such batch norm"),
        ({"1": torch.ones(8)}, r"torch.float32 \(8,\), not torch.bool"),
        ({"1": torch.ones(7).bool()}, r"\(7,\), not torch.bool \(8,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            netslim.prune(model, keep, example())


def test_a_layer_without_a_channel_left_keeps_one() -> None:
    model = plain_net().eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.fill_(-1)
    small, report = netslim.prune(model, {"1": model[1].weight != 0}, example())
    assert small[1].num_features == 1
    assert report.channels["1"] == (8, 1) and report.staying == {"1": 1}
    assert_close(small(example()), model(example()))


def test_the_model_stays_as_it_was_and_the_class_is_the_users() -> None:
    model = plain_net().train()
    model[4].eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model[0].weight.requires_grad_(False)
    small, report = netslim.prune(model, {"1": torch.arange(8) < 5}, example())
    assert type(small) is type(model)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert not small[0].weight.requires_grad and small[1].weight.requires_grad
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert "channels: 14 -> 11" in str(report) and report.parameters[1] < report.parameters[0]


def test_a_selection_of_everything_is_none() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), networks.Around(block, networks.identity_path), nn.BatchNorm2d(8)
    )
    net = nn.Sequential(net, nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    first, second = torch.arange(8) < 5, torch.arange(8) < 4
    small, report = netslim.prune(net, {"0.1.inner.0": first}, example())
    assert report.selections == ["0.1.inner.0"]
    again, report = netslim.prune(small, {"0.2": second, "0.1.inner.0.norm": second[:5]}, example())
    assert not report.selections and isinstance(again[0][1].inner[0], nn.BatchNorm2d)
    assert again[0][0].out_channels == 4 and report.difference < 1
