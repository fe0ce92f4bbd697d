"""What the dependency graph finds out about small networks, and why channels stay."""

import pytest
import torch
import torch.nn.functional as F
from checks import Own, assert_close, example, plain_net, pruned_and_masked
from torch import Tensor, nn

import netslim


def removable(model: nn.Module, x=None) -> dict[str, int]:
    graph = netslim.analyze(model.eval(), example() if x is None else x)
    return {name: int(channels.sum()) for name, channels in graph.removable.items()}


class Function(nn.Module):
    """A module of a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def between(function, last: nn.Module | None = None) -> nn.Sequential:
    """A batch norm of 8 channels, ``function``, and a reader."""
    reader = nn.Conv2d(8, 2, 1) if last is None else last
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Function(function), reader
    )


class _Conv(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)


class _Norm(nn.BatchNorm2d):
    pass


def test_layers_are_known_by_what_they_do() -> None:
    layers = nn.Identity(), _Conv(3, 8), nn.Identity(), _Norm(8), nn.SiLU(), nn.Identity()
    assert removable(nn.Sequential(*layers, nn.Conv2d(8, 2, 1))) == {"3": 8}


@pytest.mark.parametrize(
    "make",
    [plain_net, lambda: plain_net().to("meta"), lambda: torch.fx.symbolic_trace(plain_net())],
    ids=["plain", "on the meta device", "graph module"],
)
def test_forms_of_a_model(make) -> None:
    assert removable(make().train(), example()[:1]) == {"1": 8, "4": 6}


def test_a_model_without_values_is_not_pruned() -> None:
    with pytest.raises(ValueError, match="meta device"):
        netslim.prune(plain_net().to("meta"), {}, example())


def two_inputs() -> Own:
    def forward(net: Own, image: Tensor, other: Tensor) -> dict[str, Tensor]:
        return {"sum": net.body(image) + other, "image": image}

    return Own(forward, body=plain_net()).eval()


@pytest.mark.parametrize("form", [tuple, dict])
def test_several_inputs_and_a_dict_of_outputs(form) -> None:
    inputs = {"image": example(), "other": torch.zeros(1)}
    given = inputs if form is dict else tuple(inputs.values())
    assert removable(two_inputs(), given) == {"body.1": 8, "body.4": 6}
    small, report = netslim.prune(two_inputs(), {"body.1": torch.arange(8) < 5}, given)
    assert report.removed == 3 and small(**inputs)["sum"].shape == (2, 2)
    with pytest.raises(ValueError, match=r"the model cannot take \(2, 3, 8, 8\)"):
        netslim.analyze(two_inputs(), example())


def test_the_training_branch_does_not_decide() -> None:
    def forward(net: Own, x: Tensor):
        x = net.body(x)
        return (x, net.aux(x)) if net.training else x

    net = Own(forward, body=between(lambda x: x), aux=nn.Conv2d(2, 2, 9))
    graph = netslim.analyze(net.eval(), example())
    assert not graph.training and list(graph.norms) == ["body.1"]


class _Gate(nn.Module):
    """Efficient channel attention: each gate is computed from neighbouring channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)[..., None, None]


class _Functional(nn.BatchNorm2d):
    """Calls torch.batch_norm, whose arguments are in another order."""

    def forward(self, x: Tensor) -> Tensor:
        own = self.weight, self.bias, self.running_mean, self.running_var
        return torch.batch_norm(x, *own, self.training, 0.1, self.eps, False)


def _grouped() -> Own:
    net = Own(lambda net, x: F.conv2d(x, net.weight, groups=8))
    net.weight = nn.Parameter(torch.ones(8, 1, 1, 1))
    return net


def _changing() -> Own:
    def forward(net: Own, x: Tensor) -> Tensor:
        net.scale = net.scale * 0.9
        return x * net.scale

    net = Own(forward)
    net.register_buffer("scale", torch.ones(8, 1, 1))
    return net


KEEPING = {  # operations behind which every channel stays, and what the reason names
    "picks": (lambda x: x[:, [7, 6, 5, 4, 3, 2, 1, 0]], "picks channels"),
    "half": (lambda x: F.pad(x[:, :4], (0, 0, 0, 0, 0, 4)), "picks channels by number"),
    "literal view": (lambda x: x.view(2, 8, -1).view(2, 8, 6, 6), "written in the code"),
    "literal split": (lambda x: torch.cat(x.split(4, 1), 1), "written in the code"),
    "chunks of 3, 3 and 2": (lambda x: torch.cat(x.chunk(3, 1), 1), "unequal parts"),
    "flip": (lambda x: x.flip(1), "rearranges its channels"),
    "softmax": (lambda x: x.softmax(1), "works over all channels"),
    "mean of channels": (lambda x: x - x.mean(1, keepdim=True), "over all channels"),
    "norm of channels": (lambda x: x / torch.norm(x, 2, 1, keepdim=True), "'norm'"),
    "compared": (lambda x: x if x.shape[1] == 8 else -x, "computes with its width"),
    "scaled by the width": (lambda x: x * x.shape[1] ** -0.5, "computes with its width"),
    "divided by the width": (lambda x: x / x.shape[1], "computes with its width"),
    "width minus a number": (lambda x: x.view(2, x.shape[1] - 4, 2, 6, 6).flatten(1, 2), "width"),
    "a constant of that width": (lambda x: x + torch.ones(1, 8, 1, 1), "of fixed width"),
    "matrix product": (lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(8)), "reads it"),
    "group norm": (lambda x: F.group_norm(x, 2), "reads it"),
    "literal expand": (lambda x: x.mean((2, 3), True).expand(2, 8, 6, 6), "written in the code"),
    "changed buffer": (_changing(), "code changes 3.function.scale"),
    "literal groups": (_grouped(), "has a number of groups that is written in the code"),
    "gates of neighbours": (_Gate(), "'conv1d' in 3.function.conv mixes neighbouring channels"),
    "another's shape": (
        Own(
            lambda net, x: (net.conv(x).flatten(2) @ torch.eye(36)).view(x.shape), conv=_Conv(8, 8)
        ),
        "code of 3.function computes with its width",
    ),
    "torch.batch_norm": (_Functional(8), "'batch_norm' in 3.function is not torch.nn.functional's"),
    "channels last": (nn.Linear(6, 2), "'linear' in 3.function works along another axis"),
}


@pytest.mark.parametrize("name", KEEPING)
def test_channels_stay_where_code_needs_their_number(name: str) -> None:
    function, reason = KEEPING[name]
    graph = netslim.analyze(between(function).eval(), example())
    assert not graph.norms and reason in graph.reasons["1"]


def chosen(x: Tensor) -> Tensor:
    return (x * x.mean((3, 4), True).softmax(1)).sum(1)


FOLLOWING = {  # and those behind which they can go
    "flatten": (lambda x: x.flatten(1), nn.Linear(8 * 36, 2)),
    "view": (lambda x: x.view(x.size(0), -1), nn.Linear(8 * 36, 2)),
    "shuffle": (
        lambda x: x.view(x.size(0), 2, x.size(1) // 2, 6, 6).transpose(1, 2).reshape(x.shape),
        None,
    ),
    "chunk": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), None),
    "split": (lambda x: torch.cat(x.split(x.shape[1] // 2, 1), 1), None),
    "channels last and back": (lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2), None),
    "sizes that agree": (lambda x: x + F.relu(x) if x.shape == F.relu(x).shape else x, None),
    "a multiple": (lambda x: x if x.shape[1] % 2 == 0 else -x, None),
    "picked pixels": (lambda x: x[:, :, ::2, 1:], None),
    "flipped pixels": (lambda x: x.flip(-1), None),
    "expand": (lambda x: x.mean((2, 3), True).expand(-1, -1, 6, 6), None),
    "expand as": (lambda x: x.mean((2, 3), True).expand_as(x), None),
    "squeeze": (lambda x: x.mean((2, 3), True).squeeze(-1).squeeze(-1), nn.Linear(8, 2)),
    "where": (lambda x: torch.where(x > 0.5, x, torch.zeros_like(x)), None),
    "masked": (lambda x: x.masked_fill(x > 0.5, 2.0), None),
    "channel padding": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), nn.Conv2d(12, 2, 1)),
    "pool with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], None),
    "dropped paths": (lambda x: x * x.new_empty((2, 1, 1, 1)).fill_(0.5), None),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), None),
    "sum of parts": (lambda x: x.unflatten(1, (2, -1)).sum(1), nn.Conv2d(4, 2, 1)),
    "softmax of parts": (lambda x: chosen(x.unflatten(1, (2, -1))), nn.Conv2d(4, 2, 1)),
    "mean of parts": (lambda x: x.unflatten(1, (2, -1)).mean((1, 4)), nn.Conv1d(4, 2, 1)),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_channels_go_where_code_follows(name: str) -> None:
    function, last = FOLLOWING[name]
    net = between(function, last).eval()
    assert removable(net) == {"1": 8}
    with torch.no_grad():
        net[1].weight[::2] = net[1].bias[::2] = 0
        net[1].weight[1] = net[1].bias[1] = 0
    small, report = netslim.prune(net, {"1": net[1].weight.detach() != 0}, example())
    assert report.difference < 1e-6
    assert report.removed > 0 and small[1].num_features == 8 - report.removed


def test_axes_that_code_adds_in_place_are_followed_on_the_meta_device() -> None:
    def pooled(x: Tensor) -> Tensor:
        return x.mean((2, 3)).unsqueeze_(1).squeeze_(1)

    net = between(lambda x: pooled(x) + pooled(x), nn.Linear(8, 2))
    assert list(netslim.analyze(net, torch.zeros(1, 3, 96, 96)).norms) == ["1"]


def test_training_repeats_what_evaluation_did_whatever_its_arguments_are() -> None:
    def steps(function) -> int:
        return len(netslim.analyze(between(lambda x: function(x).sigmoid()), example()).steps)

    plain = steps(lambda x: x[:, :, :, :].contiguous())
    assert steps(lambda x: x[..., :].contiguous(memory_format=torch.contiguous_format)) == plain


def test_parameters_that_are_one_number_keep_constants() -> None:
    affine = Own(lambda net, x: net.weight * x + net.bias)
    affine.weight, affine.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(1))
    net, keep = between(affine).eval(), {"1": torch.arange(8) < 5}
    small, full, report = pruned_and_masked(net, example(), keep)
    assert report.removed == 3 and report.staying == {}
    assert_close(small(example()), full(example()), 1e-6)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(nn.ReLU(), True), (nn.ReLU6(True), True), (F.relu6, True), (nn.Hardtanh(), False)],
)
def test_what_comes_first_behind_a_batch_norm_says_whether_its_channels_can_die(
    activation, expected: bool
) -> None:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Function(activation), nn.Conv2d(8, 2, 1)
    graph = netslim.analyze(nn.Sequential(*layers), example())
    assert graph.rectified == ({"1"} if expected else set()) and list(graph.norms) == ["1"]


def own(forward, **options) -> Own:
    layers = {"conv": nn.Conv2d(3, 8, 3), "norm": nn.BatchNorm2d(8, **options)}
    return Own(forward, **layers, last=nn.Conv2d(8, 2, 1), unused=nn.BatchNorm2d(8)).eval()


def test_batch_norms_that_nothing_calls_or_that_have_no_statistics_stay() -> None:
    def forward(net: Own, x: Tensor) -> Tensor:
        return net.last(net.norm(net.conv(x)).relu())

    graph = netslim.analyze(own(forward), example())
    assert list(graph.norms) == ["norm"] and "it is not called" in graph.reasons["unused"]
    graph = netslim.analyze(own(forward, track_running_stats=False), example())
    assert not graph.norms and graph.reasons["norm"] == "it keeps no running statistics"


def test_what_the_code_keeps_of_a_forward_pass_is_no_hindrance() -> None:
    """A tensor that has a history cannot be copied."""

    def keeps(net: Own, x: Tensor) -> Tensor:
        net.maps = net.norm(net.conv(x))
        net.seen = {"all": [net.maps, net.maps.relu()]}
        return net.last(net.seen["all"][1])

    model = own(keeps)
    model(example())
    assert not model.maps.is_leaf
    small, report = netslim.prune(model, {"norm": torch.arange(8) < 3}, example())
    assert report.removed == 5 and small(example()).shape == (2, 2, 6, 6)


def test_an_example_may_be_of_numbers() -> None:
    def forward(net: Own, x: Tensor) -> Tensor:
        x = net.norm(net.conv(net.words(x).transpose(1, 2))).relu()
        count, _, length = x.shape
        return net.last(x.reshape(count, -1)) / length

    layers = {"words": nn.Embedding(9, 3), "conv": nn.Conv1d(3, 4, 3), "norm": nn.BatchNorm1d(4)}
    net = Own(forward, **layers, last=nn.Linear(20, 2))
    assert removable(net, torch.arange(7)[None]) == {"norm": 4}


def test_a_squeeze_without_an_axis_keeps_two_channels() -> None:
    net = between(lambda x: x.mean((2, 3), True).squeeze(), nn.Linear(8, 2))
    graph = netslim.analyze(net.eval(), example())
    assert graph.removable["1"].tolist() == [False, False] + [True] * 6


def test_constants_that_blur_or_truncate_stay() -> None:
    """Their padding is no constant any more, or the constant is another one."""
    ways = {
        "average with padding": lambda x: F.avg_pool2d(x, 3, 1, 1),
        "power": lambda x: F.lp_pool2d(x, 2, 2),
        "logsumexp": lambda x: torch.logsumexp(x, (2, 3), keepdim=True),
        "sum": lambda x: x.sum((2, 3), keepdim=True),
        "to int": lambda x: x.to(torch.int32).to(x.dtype),
        "padding": lambda x: F.pad(x, (1, 1, 1, 1)),
    }
    for name, function in ways.items():
        net = between(function).double().eval()
        with torch.no_grad():
            net[1].bias.fill_(0.75)
        keep = {"1": torch.arange(8) < 4}
        try:
            _, report = netslim.prune(net, keep, example())
        except ValueError as error:
            assert "reads it" in str(error), name
            continue
        assert report.removed == 0 and report.staying == {"1": 4}, name


def test_code_that_is_compiled_away_keeps_everything() -> None:
    with pytest.warns(FutureWarning):
        net = between(torch.jit.script(nn.Softmax(1)))
    assert not netslim.analyze(net.eval(), example()).norms


def test_analysis_leaves_the_model_as_it_was() -> None:
    net = plain_net().train()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    random = torch.get_rng_state()
    seen = []
    handle = net[1].register_forward_hook(lambda *_: seen.append(1))
    netslim.analyze(net, example())
    handle.remove()
    assert net.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


METHODS = {
    "proximal": lambda graph: netslim.ProximalSlimming(graph, lambda_=1, beta=1),
    "subgradient": lambda graph: netslim.Subgradient(graph, lambda_=1),
    "lp": lambda graph: netslim.LpADMM(graph, lambda_=1),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_network_without_removable_channels_is_refused_by_every_method(method: str) -> None:
    layer_norms = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"no channel .* can be removed \(it has no batch norm\)"):
        METHODS[method](netslim.analyze(layer_norms, example()))
    outputs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    outputs[0].parts = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
    why = (
        "0.parts.0, 0.parts.1, 0.parts.2: it is not called, or does not use torch's batch_norm;"
        " 1, 3: it is an output of the model"
    )
    with pytest.raises(ValueError) as error:
        METHODS[method](netslim.analyze(outputs, example()))
    assert str(error.value) == f"no channel of the model can be removed ({why})"
    _, report = netslim.prune(outputs, {}, example())
    assert [f"not prunable: {text}" for text in why.split("; ")] == str(report).splitlines()[-2:]


def test_channels_in_front_of_a_dropout_are_told() -> None:
    for layer, drawn in ((nn.Dropout(), {"1"}), (nn.Identity(), set())):
        assert netslim.analyze(between(layer), example()).drawn_for == drawn
