"""Channels of streams that nobody reads go, and nothing else changes."""

import copy
import csv
import importlib
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import released
from models import build_model
from runs import train
from utils import console
from utils.files import checkpoint
from utils.files.legacy_formats import to_compact, to_released, widened
from utils.network import Network, fresh, restore, with_weights
from utils.paper.accounting import cost

DEPTHS = {"resnet": (11, 20), "densenet": (7, 10)}
Case = tuple[Network, list[Tensor]]


@cache
def analyzed(arch: str, depth: int) -> Network:
    return fresh(arch, depth, 3, 32)


def network(arch: str, depth: int, seed: int) -> Network:
    torch.manual_seed(seed)
    found = with_weights(analyzed(arch, depth), build_model(arch, depth, 3).double().eval())
    for bn in map(found.model.get_submodule, found.norms):
        nn.init.uniform_(bn.weight, -1, 1)
        nn.init.normal_(bn.bias)
        nn.init.normal_(bn.running_mean)
        nn.init.uniform_(bn.running_var, 0.5, 2)
    return found


def masks_of(found: Network, wanted: float, kept: float) -> list[Tensor]:
    """Random ones that read a share ``wanted`` of the streams' channels at most."""
    graph = found.graph
    sought = torch.rand(len(graph.classes)) < wanted
    masks = []
    for name, bn in found.norms.items():
        mask, read = torch.rand(bn.num_features) < kept, graph.read_by(name)
        if not torch.equal(read, graph.norm_classes(name)):  # it reads a stream
            mask &= sought[read]
        if not mask.any():
            mask[torch.randint(len(mask), ())] = True
        masks.append(mask)
    return masks


def masked(found: Network, masks: list[Tensor]) -> Network:
    """``found`` with γ = bias = 0 where channels go."""
    other = with_weights(found, copy.deepcopy(found.model))
    for name, mask in zip(other.norms, masks, strict=True):
        bn = other.model.get_submodule(name)
        bn.weight.data *= mask
        bn.bias.data *= mask
    return other


@st.composite
def cases(draw: st.DrawFn) -> Case:
    arch = draw(st.sampled_from(sorted(DEPTHS)))
    depth = draw(st.sampled_from(DEPTHS[arch]))
    found = network(arch, depth, draw(st.integers(0, 2**31)))
    shares = st.sampled_from((0.02, 0.3, 0.7, 1.0))
    masks = masks_of(found, draw(shares), draw(shares))
    return masked(found, masks), masks


def small(found: Network, masks: list[Tensor]) -> Network:
    return found.remove(found.plan(masks))


def slim(found: Network, masks: list[Tensor]) -> Network:
    """Streams stay whole."""
    return found.remove(found.plan(masks, streams=False))


def answers(found: Network) -> Tensor:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return found.model(x.to(next(found.model.parameters())))


def left_of_streams(found: Network, masks: list[Tensor]) -> dict[str, list[int]]:
    """Which channels of each stream are read, by the masks alone, and one at least of a layer's."""
    arch, depth, streams = found.arch, found.depth, {}
    for name, mask in zip(found.norms, masks, strict=True):
        stage = name.split(".")[0]
        if arch == "resnet" and name.startswith(("layer3.", "bn")):
            if name == "bn" or (name.endswith("bn1") and not name.startswith("layer3.0.")):
                streams.setdefault("stream3", []).append(mask)
        elif arch == "densenet":
            block = {"trans1": 1, "trans2": 2, "bn": 3}.get(stage) or int(stage[-1])
            streams.setdefault(f"stream{block}", []).append(mask)
    left = {}
    for name, readers in streams.items():
        width = max(map(len, readers))
        read = torch.stack([F.pad(m, (0, width - len(m))) for m in readers]).any(0)
        growth = (depth - 4) // 3 * 12 if arch == "densenet" else 0
        sizes = [width - growth, *[12] * (growth // 12)]
        for part in read.split(sizes):
            part[0] |= ~part.any()
        left[name] = read.nonzero().flatten().tolist()
    return left


def counted(arch: str, depth: int, cfg: list[int], left: dict[str, list[int]]) -> tuple[int, int]:
    """Parameters and FLOPs of a network, from its cfg and positions alone."""
    parameters, flops, size, rest = 0, 0, 32, iter(cfg)

    def conv(inputs: int, outputs: int, kernel: int = 1) -> None:
        nonlocal parameters, flops
        parameters += inputs * outputs * kernel**2
        flops += 2 * inputs * outputs * kernel**2 * size**2

    if arch == "densenet":
        layers, begin = (depth - 4) // 3, 24
        for block in (1, 2, 3):
            positions = left[f"stream{block}"]
            first = sum(i < begin for i in positions)
            conv(*((3, first, 3) if block == 1 else (before, first, 1)))  # noqa: F821
            size //= 1 if block == 1 else 2
            for i in range(layers):
                low, kept = begin + 12 * i, next(rest)
                conv(kept, sum(low <= p < low + 12 for p in positions), 3)
            begin += 12 * layers
            before = next(rest)
    else:
        blocks, width = (depth - 2) // 9, 16
        conv(3, width, 3)
        for stage, planes in enumerate((16, 32, 64)):
            out = len(left["stream3"]) if stage == 2 else 4 * planes
            for i in range(blocks):
                bn1, bn2, bn3 = next(rest), next(rest), next(rest)
                conv(bn1, bn2)
                size //= 2 if stage and not i else 1
                conv(bn2, bn3, 3)
                conv(bn3, out)
                if not i:
                    conv(width, out)
            width = out
        before = next(rest)
    head = before * 3
    return parameters + head + 3 + 2 * sum(cfg), flops + 2 * head


@settings(max_examples=20, deadline=None)
@given(cases())
def test_a_network_without_unread_channels_is_the_same_network(case: Case) -> None:
    whole, masks = case
    arch, depth = whole.arch, whole.depth
    cut, expected = small(whole, masks), answers(whole)
    torch.testing.assert_close(answers(cut), expected, rtol=1e-9, atol=1e-9)
    cfg = [int(mask.sum()) for mask in masks]
    assert cut.cfg == cfg  # no cascade
    left = left_of_streams(whole, masks)
    found = cost(cut.model, arch=arch)
    assert (found.parameters, found.flops) == counted(arch, depth, cfg, left)

    # Both layouts, and back.
    state = cut.model.state_dict()
    again = restore(state)
    assert (again.arch, again.depth) == (arch, depth) and str(again.model) == str(cut.model)
    assert all(torch.equal(state[k].to(v), v) for k, v in again.model.state_dict().items())
    wide = widened(cut)
    shapes = (
        {k: v.shape for k, v in n.model.state_dict().items()} for n in (wide, slim(whole, masks))
    )
    assert next(shapes) == next(shapes)
    torch.testing.assert_close(answers(wide), expected, rtol=1e-9, atol=1e-9)
    old = to_released(wide)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        theirs = getattr(released, arch)(old, x)
    torch.testing.assert_close(theirs, expected, rtol=1e-9, atol=1e-9)
    back = restore(to_compact(old))
    back.model.eval().double()
    torch.testing.assert_close(answers(back), expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=8, deadline=None)
@given(cases(), st.sampled_from((0.2, 0.6)))
def test_pruning_twice_is_pruning_once(case: Case, share: float) -> None:
    model, masks = case
    once = small(model, masks)
    seconds = masks_of(once, share, share)
    both = [mask.clone() for mask in masks]
    for mask, second in zip(both, seconds, strict=True):
        mask[mask.clone()] = second
    twice, at_once = (small(masked(m, s), s) for m, s in ((once, seconds), (model, both)))
    # A layer that nobody reads keeps the first of its channels, whichever that is.
    torch.testing.assert_close(answers(twice), answers(at_once), rtol=1e-9, atol=1e-9)
    shapes = [{k: v.shape for k, v in m.model.state_dict().items()} for m in (twice, at_once)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 20), ("densenet", 10)])
def test_gradients_of_what_is_read_agree_and_of_what_is_not_are_zero(arch: str, depth: int) -> None:
    model = network(arch, depth, 1)
    masks = masks_of(model, 0.5, 0.5)
    whole = slim(model, masks)
    removal = whole.plan([torch.ones(width).bool() for width in whole.widths])
    cut = whole.remove(removal)
    x, labels = torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 1, 2, 0])
    for trained in (whole, cut):
        F.cross_entropy(trained.model.train()(x), labels).backward()
    own = dict(cut.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        gradient = removal.part(name, parameter.grad)
        torch.testing.assert_close(own[name].grad, gradient, msg=name)
        assert parameter.grad.count_nonzero() == gradient.count_nonzero()
    parameters = [sum(p.numel() for p in n.model.parameters()) for n in (cut, whole)]
    assert parameters[0] < 0.9 * parameters[1]


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 20), ("densenet", 10)])
def test_a_channel_that_is_read_by_one_layer_only_stays_and_is_missed(
    arch: str, depth: int
) -> None:
    model = network(arch, depth, 2)
    masks = masks_of(model, 0.5, 0.5)
    model = masked(model, masks)
    stream = model.graph.read_by("bn")
    without = [*masks[:-1], torch.arange(len(masks[-1])) == int(masks[-1].nonzero()[0])]
    last = masks[-1].nonzero().flatten()[1:]
    channel = next(int(i) for i in last if model.plan(without).gone[stream[i]])
    assert not model.plan(masks).gone[stream[channel]]
    with torch.no_grad():
        model.model.bn.bias[channel] = 1
    expected = answers(model)
    assert (answers(small(model, masks)) - expected).abs().max() < 1e-9
    masks[-1][channel] = False
    with torch.no_grad():
        model.model.bn.bias[channel] = 0  # dropped, not folded
    assert model.plan(masks).gone[stream[channel]]
    assert (answers(small(model, masks)) - expected).abs().max() > 1e-3


def test_a_layer_that_writes_unread_channels_only_keeps_one() -> None:
    model = network("densenet", 7, 3)
    masks = [torch.arange(width) < 1 for width in model.widths]  # of every stream the first one
    cut = small(masked(model, masks), masks)
    layers = dict(cut.model.named_modules())
    assert [len(m.weight) for m in layers.values() if isinstance(m, nn.Conv2d)] == [1] * 6
    assert cut.model.dense1[0].conv1.weight.shape == (1, 1, 3, 3)
    torch.testing.assert_close(answers(cut), answers(masked(model, masks)))


def test_a_stage_as_wide_as_the_one_before_still_begins_with_a_downsampling() -> None:
    model = network("resnet", 20, 4)
    masks = [torch.ones(width).bool() for width in model.widths]
    for mask in masks[-4], masks[-1]:  # all that read the last stage's stream
        mask[128:] = False
    cut = small(masked(model, masks), masks)
    assert cut.model.layer3[0].conv3.out_channels == 128
    assert restore(cut.model.state_dict()).model.layer3[0].downsample is not None
    torch.testing.assert_close(answers(cut), answers(masked(model, masks)))


DAMAGE = {
    "beyond the stream": lambda x: x + 1000,
    "below it": lambda x: x - 1000,
    "out of order": lambda x: x.flip(0),
    "twice": lambda x: x.sort().values[[0, *range(len(x) - 1)]],
    "fractions": lambda x: x.double(),
    "flags": lambda x: x.bool(),
    "a table": lambda x: x[None],
    "one number": lambda x: x[0],
    "none": lambda x: x[:0],
    "too few": lambda x: x[:-1],
    "more than there are": lambda x: torch.arange(10_000),
    "far apart": lambda x: torch.cat((x[:-2], torch.tensor([2**62, -(2**62) - 1]))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_positions_are_refused_in_one_line(
    damage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import main

    model = network("densenet", 10, 5)
    model.model.float()
    masks = masks_of(model, 0.5, 0.5)
    state, key = small(masked(model, masks), masks).model.state_dict(), "trans1.bn1.select.index"
    path = tmp_path / "x.pth.tar"
    torch.save({"state_dict": {**state, key: damage(state[key])}}, path)
    assert console.run(main.main, ["--evaluate", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not fit a network of this program" in line
    torch.save({"state_dict": state}, path)
    assert checkpoint.load(path).network.cfg == [int(mask.sum()) for mask in masks]


def prune(arch: str, path: Path, pictures: Path, *flags: object) -> dict[str, str]:
    command = importlib.import_module(f"{arch}_prune").main
    argv = ["--model", path, "--dataset", "folder", "--data", pictures, "--no-cuda", *flags]
    assert console.run(command, list(map(str, argv))) == 0
    with (path.parent / "pruned_record.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 11), ("densenet", 7)])
def test_the_commands_cut_them_count_them_and_train_on(
    arch: str, depth: int, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    net = fresh(arch, depth, 2, 32)
    for bn in net.norms.values():
        nn.init.uniform_(bn.weight)
    path = tmp_path / "net.pth.tar"
    content = {"epoch": 1, "best_prec1": torch.tensor(0.5)}
    torch.save({**content, "state_dict": to_released(net)}, path)
    row = prune(arch, path, pictures, "--percent", "0.8", "--name", "a")
    first = checkpoint.load(tmp_path / "apruned.pth.tar").network
    first.model.eval()
    old = prune(arch, path, pictures, "--percent", "0.8", "--name", "b", "--layout", "released")
    second = checkpoint.load(tmp_path / "bpruned.pth.tar").network
    second.model.eval()
    new = ("unread_channels", "unread_parameters", "unread_flops")
    same = row.keys() - {*new, "model", "slim_checksum", "difference_slim"}
    assert {k: row[k] for k in same} == {k: old[k] for k in same}
    assert [int(old[k]) for k in new] == [0, 0, 0]
    writes = ["layer3.0.conv3"] if arch == "resnet" else None
    pairs = (
        (len(second.model.state_dict()[key]), len(x))
        for key, x in first.model.state_dict().items()
        if x.dim() == 4 and (writes is None or key.removesuffix(".weight") in writes)
    )
    assert int(row["unread_channels"]) == sum(whole - kept for whole, kept in pairs)
    assert min(int(row[k]) for k in new) > 0
    assert f"and {row['unread_channels']} channels of streams that nothing reads" in (
        capsys.readouterr().out
    )
    for what in ("parameters", "flops"):
        without = int(row[f"{what}_kept"]) - int(row[f"unread_{what}"])
        assert getattr(cost(first.model), what) == without
        assert getattr(cost(second.model), what) == int(row[f"{what}_kept"])
    torch.testing.assert_close(answers(first), answers(second), rtol=1e-4, atol=1e-5)

    # Pruned again, in the other layout: zeros are put back.
    prune(arch, tmp_path / "apruned.pth.tar", pictures, "--name", "c", "--layout", "released")
    third = checkpoint.load(tmp_path / "cpruned.pth.tar").network
    third.model.eval()
    assert {k: v.shape for k, v in third.model.state_dict().items()} == {
        k: v.shape for k, v in second.model.state_dict().items()
    }
    torch.testing.assert_close(answers(third), answers(first), rtol=1e-4, atol=1e-5)

    # Fine-tuned, and taken up again.
    slim_one = tmp_path / "apruned.pth.tar"
    data = ["--dataset", "folder", "--data", pictures]
    for epochs, more in ((1, ["--refine", slim_one, *data]), (1, ["--resume"])):
        run = tmp_path / f"a_{arch}_{depth}_folder_refinecheckpoint.pth.tar"
        more = [*more, run] if more == ["--resume"] else more
        assert train(tmp_path, pictures, *more, "--epochs", epochs) == 0
    tuned = checkpoint.load(run).network.model
    assert {k: v.shape for k, v in tuned.state_dict().items()} == {
        k: v.shape for k, v in first.model.state_dict().items()
    }


def test_full_networks_have_no_positions() -> None:
    for arch, depth in (("vgg", 11), ("resnet", 11), ("densenet", 7)):
        keys = build_model(arch, depth, 2).state_dict().keys()
        assert not [key for key in keys if key.endswith(".index")]
