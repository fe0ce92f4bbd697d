"""A pruned model is equal to the masked one, whatever it is made of."""

import copy
import io

import checks
import networks
import pytest
import torch
from checks import Own, assert_close, disturb, example, plain_net, pruned, random_keep
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import netslim
import netslim.rules

SETTINGS = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
FEW = torch.arange(8) < 3
SEEDS = st.integers(0, 10**6)


pytestmark = pytest.mark.usefixtures("rules_may_not_fail")


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


def sequential(*layers: nn.Module) -> nn.Sequential:
    """Layers as after some training."""
    model = nn.Sequential(*layers)
    disturb(model)
    return model


def branch(**more: nn.Module) -> dict[str, nn.Module]:
    """A convolution of 8 channels and its batch norm."""
    return {"conv": nn.Conv2d(3, 8, 1), "norm": nn.BatchNorm2d(8), **more}


@pytest.mark.parametrize("transposed", [False, True])
def test_a_carrier_takes_constants_to_the_border(transposed: bool) -> None:
    torch.manual_seed(0)
    reader = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU()),
        *(reader(8, 6, 3, 2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Conv2d(6, 2, 1),
    )
    small, report = pruned(model, {"1": torch.arange(8) < 4}, training=True)
    assert (report.folded, report.carriers, report.staying) == (3, 1, {})
    assert small[1].num_features == 5 and int((small[1].weight == 0).sum()) == 1


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int) -> None:
    conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    up = getattr(nn, f"ConvTranspose{dims}d")
    torch.manual_seed(0)
    model = sequential(
        *(conv(2, 8, 2), norm(8), nn.ReLU(), conv(8, 8, 2, groups=8), norm(8), nn.ReLU()),
        *(up(8, 4, 2), norm(4), nn.ReLU(), conv(4, 2, 1)),
    ).double()
    x = torch.randn(2, 2, *[5] * dims).double()
    graph = netslim.analyze(model.eval(), x)
    keep = {name: torch.arange(norm.num_features) % 2 == 0 for name, norm in graph.norms.items()}
    checks.silence(graph, keep)
    small, full, report = checks.pruned_and_masked(model, x, keep)
    assert report.removed == 4 + 4 + 2
    assert_close(small(x), full(x))


def test_linear_layers() -> None:
    torch.manual_seed(0)
    model = sequential(nn.Linear(4, 9, bias=False), nn.BatchNorm1d(9), nn.GELU(), nn.Linear(9, 2))
    x = torch.randn(3, 4).double()
    keep = {"1": torch.arange(9) < 5}
    small, full, report = checks.pruned_and_masked(model.double().eval(), x, keep)
    assert report.removed == 4 and small[0].out_features == 5
    assert_close(small(x), full(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_of_numbers_and_memory_formats_stay(dtype: torch.dtype) -> None:
    model = plain_net().to(dtype, memory_format=torch.channels_last).eval()
    small, report = netslim.prune(model, {"1": torch.arange(8) < 5}, example())
    assert report.removed == 3
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_layer_that_is_called_twice_has_one_bias() -> None:
    """Two calls see two constants: one bias cannot be for both."""

    def forward(net: Own, x: Tensor) -> Tensor:
        a, b = net.na(net.a(x)), net.nb(net.b(x))
        return net.shared(a.relu()) * net.shared(b.relu())

    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(3, 8, 1), "shared": nn.Conv2d(8, 2, 1)}
    model = Own(forward, **layers, na=nn.BatchNorm2d(8), nb=nn.BatchNorm2d(8))
    disturb(model)
    with torch.no_grad():
        for norm in (model.na, model.nb):
            norm.bias[:] = torch.tensor([-1.0] * 4 + [1.0] * 4)
    keep = torch.arange(8) % 2 > 0
    _, report = pruned(model, {"na": keep, "nb": keep})
    assert (report.removed, report.staying) == (4, {"na": 2, "nb": 2})


class _OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, None)  # whatever its bias is


def test_a_layer_of_its_own_code_is_given_no_bias() -> None:
    torch.manual_seed(0)
    front = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
    model = sequential(*front, _OwnForward(8, 2, 1, bias=False), nn.Sigmoid())
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([1.0, -1.0] * 4))
    _, report = pruned(model, {"1": torch.arange(8) > 3})
    assert (report.removed, report.carriers) == (3, 1)


class _Same(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return nn.functional.conv2d(x, self.weight, self.bias)


def test_the_code_of_a_subclass_decides_about_padding() -> None:
    """The padding is in the code, not in the attribute."""
    torch.manual_seed(0)
    front = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.SiLU(), _Same(8, 4, 3, padding=7)
    model = sequential(*front, nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 1))
    _, report = pruned(model, {"1": torch.arange(8) < 4})
    assert report.folded == 4


def test_a_dtype_that_is_taken_from_channels_keeps_none() -> None:
    def forward(net: Own, x: Tensor) -> Tensor:
        x = net.norm(net.conv(x)).relu()
        return net.head((torch.arange(8).type_as(x) * x).mean((2, 3)))

    model = Own(forward, **branch(head=nn.Linear(8, 2)))
    disturb(model)
    nn.init.constant_(model.norm.bias, -0.1)
    assert pruned(model, {"norm": FEW})[1].removed == 5


def test_a_batch_norm_of_two_names_selects_under_both() -> None:
    def forward(net: Own, x: Tensor) -> Tensor:
        x = net.conv(x)
        return x + net.block(x)

    model = Own(forward, **branch())
    model.block = nn.Sequential(model.norm, nn.ReLU(), nn.Conv2d(8, 8, 1))
    disturb(model)
    small, report = pruned(model, dict.fromkeys(netslim.analyze(model, example()).norms, FEW))
    assert report.removed == 5 and len(report.selections) == 1
    assert small.norm is small.block[0]


@pytest.mark.parametrize("parts", [False, True])
def test_a_width_that_is_taken_from_others_keeps_them_together(parts: bool) -> None:
    """The width of what a batch norm gives comes from the stream that it reads."""

    def forward(net: Own, x: Tensor) -> Tensor:
        x = net.conv(x)
        y = net.norm(x).relu()
        if parts:
            left, right = y.split(x.shape[1] // 2, 1)
            y = left + right
        else:
            y = y.reshape(x.shape[0], x.shape[1], -1, 1)
        return net.last(y.mean((2, 3))) + net.other(x).mean((2, 3))

    more = {"other": nn.Conv2d(8, 2, 1), "last": nn.Linear(4 if parts else 8, 2)}
    graph = netslim.analyze(Own(forward, **branch(**more)).eval(), example())
    varying = "its channels are read before a batch norm, or with γ = 0 they still vary"
    assert graph.reasons == {"norm": varying}


def test_a_layer_that_nobody_reads_is_given_no_bias() -> None:
    def forward(net: Own, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(net.last(torch.cat([x, net.conv(net.norm(x).relu())], 1)).relu())

    layers = {"stem": nn.Conv2d(3, 8, 1), "conv": nn.Conv2d(8, 4, 1, bias=False)}
    norms = {"norm": nn.BatchNorm2d(8), "last": nn.BatchNorm2d(12)}
    model = Own(forward, **layers, **norms, head=nn.Conv2d(12, 2, 1))
    disturb(model)
    once, _ = pruned(model, {"last": torch.arange(12) < 8})
    assert once.conv.out_channels == 1  # which it keeps, as every layer keeps one
    twice, report = pruned(once, {"norm": torch.arange(8) < 4})
    assert report.folded and twice.conv.bias is None


@pytest.mark.parametrize("constant", [False, True])
def test_what_has_two_names_has_two_in_the_pruned_model(constant: bool) -> None:
    """Layers, and a weight; a bias, too, that a constant becomes."""

    def forward(net: Own, x: Tensor) -> Tensor:
        x = net.conv2(net.norm(net.conv(x)).relu()).flatten(1)
        return net.one(x) + 2 * net.other(x)

    more = {"conv2": nn.Conv2d(8, 2, 1, bias=False)}
    more |= {name: nn.Linear(128, 5, bias=False) for name in ("one", "other")}
    model = Own(forward, **branch(**more))
    model.layers = nn.ModuleList([model.conv2, model.norm, model.conv])
    model.other.weight = model.one.weight
    disturb(model)
    nn.init.constant_(model.norm.bias, 1.0 if constant else -1.0)
    (name,) = netslim.analyze(model, example()).norms
    small, report = pruned(model, {name: FEW})
    assert list(small.layers) == [small.conv2, small.norm, small.conv]
    assert small.other.weight is small.one.weight and report.removed == 5
    assert all(p.requires_grad for p in small.parameters())


def test_numbers_of_keep_are_checked() -> None:
    for keep, message in (
        ({"9": torch.ones(8).bool()}, "there is no such batch norm"),
        ({"1": torch.ones(8)}, r"torch.float32 \(8,\), not torch.bool"),
        ({"1": torch.ones(7).bool()}, r"\(7,\), not torch.bool \(8,\)"),
        ({"1": [True] * 8}, "the mask of 1 is .*'list'>, not"),
    ):
        with pytest.raises(ValueError, match=message):
            netslim.prune(plain_net().eval(), keep, example())


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
    nn.init.ones_(model[1].bias)  # of a channel that is needed
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model[0].weight.requires_grad_(False)
    small, report = netslim.prune(model, {"1": torch.arange(8) < 5}, example())
    assert type(small) is type(model) and report.difference > 1e-3
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert not small[0].weight.requires_grad and small[1].weight.requires_grad
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert "channels: 14 -> 11" in str(report) and report.parameters[1] < report.parameters[0]


def test_a_selection_of_everything_is_none() -> None:
    block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    block = networks.Around(block, networks.identity_path)
    front = nn.Sequential(nn.Conv2d(3, 8, 3), block, nn.BatchNorm2d(8))
    net = nn.Sequential(front, nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    first, second = torch.arange(8) < 5, torch.arange(8) < 4
    small, report = netslim.prune(net, {"0.1.inner.0": first}, example())
    assert report.selections == ["0.1.inner.0"]
    again, report = netslim.prune(small, {"0.2": second, "0.1.inner.0.norm": second[:5]}, example())
    assert not report.selections and isinstance(again[0][1].inner[0], nn.BatchNorm2d)
    assert again[0][0].out_channels == 4 and report.difference < 1
