"""Channels of streams that nobody reads go, and nothing else changes."""

import copy
import csv
import importlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import released
from models import build_model, full_cfg, restore
from models.cost import cost
from models.surgery import norms, slim, still_read, streams, whereabouts, widened
from runs import train
from utils import console, export
from utils.files import checkpoint
from utils.files.layouts import to_compact, to_released

DEPTHS = {"resnet": (11, 20, 29), "densenet": (7, 10, 13)}
Case = tuple[str, int, nn.Module, list[Tensor]]


def network(arch: str, depth: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(arch, depth, 3).double().eval()
    for bn in norms(model).values():
        nn.init.uniform_(bn.weight, -1, 1)
        nn.init.normal_(bn.bias)
        nn.init.normal_(bn.running_mean)
        nn.init.uniform_(bn.running_var, 0.5, 2)
    return model


def masks_of(model: nn.Module, wanted: float, kept: float) -> list[Tensor]:
    """Random ones that read a share ``wanted`` of the streams' channels at most."""
    sought = {name: torch.rand(s.width) < wanted for name, s in streams(model).items()}
    masks = []
    for name, bn in norms(model).items():
        mask, source = torch.rand(bn.num_features) < kept, None
        for layer, (norm, stream) in model.wiring().items():
            if norm == name and stream in sought:
                source = sought[stream][model.get_submodule(layer).positions()]
        if source is not None:
            mask &= source
        if not mask.any():
            mask[torch.randint(len(mask), ())] = True
        masks.append(mask)
    return masks


def masked(model: nn.Module, masks: list[Tensor]) -> nn.Module:
    """``model`` with γ = bias = 0 where channels go."""
    model = copy.deepcopy(model)
    for bn, mask in zip(norms(model).values(), masks, strict=True):
        bn.weight.data *= mask
        bn.bias.data *= mask
    return model


@st.composite
def cases(draw: st.DrawFn) -> Case:
    arch = draw(st.sampled_from(sorted(DEPTHS)))
    depth = draw(st.sampled_from(DEPTHS[arch]))
    model = network(arch, depth, draw(st.integers(0, 2**31)))
    shares = st.sampled_from((0.02, 0.3, 0.7, 1.0))
    masks = masks_of(model, draw(shares), draw(shares))
    return arch, depth, masked(model, masks), masks


def small(model: nn.Module, masks: list[Tensor]) -> nn.Module:
    return slim(model, masks, still_read(model, masks))


def answers(model: nn.Module) -> Tensor:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(x.to(next(model.parameters())))


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


@settings(max_examples=25, deadline=None)
@given(cases())
def test_a_network_without_unread_channels_is_the_same_network(case: Case) -> None:
    arch, depth, model, masks = case
    kept = still_read(model, masks)
    cut = slim(model, masks, kept)
    expected = answers(model)
    torch.testing.assert_close(answers(cut), expected, rtol=1e-9, atol=1e-9)
    cfg = [int(mask.sum()) for mask in masks]
    assert cut.cfg == cfg  # no cascade
    left = {name: read.nonzero().flatten().tolist() for name, read in kept.items()}
    found = cost(cut)
    assert (found.parameters, found.flops) == counted(arch, depth, cfg, left)

    # Both layouts, and back.
    again = restore(cut.state_dict())
    assert (again.arch, again.depth, again.model.cfg) == (arch, depth, cfg)
    state = cut.state_dict()
    assert all(torch.equal(state[k].to(v), v) for k, v in again.model.state_dict().items())
    wide = widened(cut)
    assert wide.state_dict().keys() == slim(model, masks).state_dict().keys()
    torch.testing.assert_close(answers(wide), expected, rtol=1e-9, atol=1e-9)
    old = to_released(wide.state_dict(), wide)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        theirs = getattr(released, arch)(old, x)
    torch.testing.assert_close(theirs, expected, rtol=1e-9, atol=1e-9)
    back = restore(to_compact(old)).model.eval().double()
    torch.testing.assert_close(answers(back), expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=8, deadline=None)
@given(cases(), st.sampled_from((0.2, 0.6)))
def test_pruning_twice_is_pruning_once(case: Case, share: float) -> None:
    _, _, model, masks = case
    once = small(model, masks)
    seconds = masks_of(once, share, share)
    both = [mask.clone() for mask in masks]
    for mask, second in zip(both, seconds, strict=True):
        mask[mask.clone()] = second
    twice, at_once = (small(masked(m, s), s) for m, s in ((once, seconds), (model, both)))
    # A layer that nobody reads keeps the first of its channels, whichever that is.
    torch.testing.assert_close(answers(twice), answers(at_once), rtol=1e-9, atol=1e-9)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (twice, at_once)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 20), ("densenet", 10)])
def test_gradients_of_what_is_read_agree_and_of_what_is_not_are_zero(arch: str, depth: int) -> None:
    model = network(arch, depth, 1)
    masks = masks_of(model, 0.5, 0.5)
    whole, read = slim(model, masks), still_read(model, masks)
    cut = slim(model, masks, read)
    x, labels = torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 1, 2, 0])
    for trained in (whole, cut):
        F.cross_entropy(trained.train()(x), labels).backward()
    everything = [torch.ones(bn.num_features).bool() for bn in norms(whole).values()]
    index = whereabouts(whole, everything, read)
    own = dict(cut.named_parameters())
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad[index[name]], msg=name)
        rest = parameter.grad.clone()
        rest[index[name]] = 0
        assert not rest.any()
    assert sum(p.numel() for p in cut.parameters()) < 0.9 * sum(
        p.numel() for p in whole.parameters()
    )


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 20), ("densenet", 10)])
def test_a_channel_that_is_read_by_one_layer_only_stays_and_is_missed(
    arch: str, depth: int
) -> None:
    model = network(arch, depth, 2)
    masks = masks_of(model, 0.5, 0.5)
    model = masked(model, masks)
    read = still_read(model, masks)
    last = masks[-1].nonzero().flatten()
    others = still_read(model, [*masks[:-1], torch.zeros_like(masks[-1])])["stream3"]
    channel = next(int(i) for i in last if not others[i])
    assert read["stream3"][channel]
    with torch.no_grad():
        model.bn.bias[channel] = 1
    expected = answers(model)
    assert (answers(small(model, masks)) - expected).abs().max() < 1e-9
    masks[-1][channel] = False
    with torch.no_grad():
        model.bn.bias[channel] = 0  # dropped, not folded
    assert not still_read(model, masks)["stream3"][channel]
    assert (answers(small(model, masks)) - expected).abs().max() > 1e-3


def test_a_layer_that_writes_unread_channels_only_keeps_one() -> None:
    model = network("densenet", 7, 3)
    masks = [torch.ones(bn.num_features).bool() for bn in norms(model).values()]
    for mask in masks:  # of every stream only the first channel is read
        mask[1:] = False
    cut = small(masked(model, masks), masks)
    assert [list(stream.parts.values()) for stream in streams(cut).values()] == [[1, 1]] * 3
    assert cut.dense1[0].conv1.weight.shape == (1, 1, 3, 3)
    torch.testing.assert_close(answers(cut), answers(masked(model, masks)))


def test_a_stage_as_wide_as_the_one_before_still_begins_with_a_downsampling() -> None:
    model = network("resnet", 20, 4)
    masks = [torch.ones(bn.num_features).bool() for bn in norms(model).values()]
    for mask in masks[-4], masks[-1]:  # all that read the last stage's stream
        mask[128:] = False
    cut = small(masked(model, masks), masks)
    assert streams(cut)["stream3"].width == 128
    assert restore(cut.state_dict()).model.layer3[0].downsample is not None
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
    "all of them": lambda x: torch.arange(48),
    "none of a layer's": lambda x: torch.cat((x[x < 24], 36 + torch.arange(int((x >= 24).sum())))),
    "far apart": lambda x: torch.cat((x[:-2], torch.tensor([2**62, -(2**62) - 1]))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_positions_are_refused_in_one_line(
    damage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import main

    model = network("densenet", 10, 5).float()
    masks = masks_of(model, 0.5, 0.5)
    state = small(model, masks).state_dict()
    path = tmp_path / "x.pth.tar"
    torch.save({"state_dict": {**state, "stream1.index": damage(state["stream1.index"])}}, path)
    assert console.run(main.main, ["--evaluate", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not fit a network of this program" in line
    torch.save({"state_dict": state}, path)
    assert checkpoint.load(path).network.model.cfg == [int(mask.sum()) for mask in masks]


def prune(arch: str, path: Path, pictures: Path, *flags: object) -> dict[str, str]:
    command = importlib.import_module(f"{arch}_prune").main
    argv = ["--model", path, "--dataset", "folder", "--data", pictures, "--no-cuda", *flags]
    assert console.run(command, list(map(str, argv))) == 0
    with (path.parent / "pruned_record.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 20), ("densenet", 10)])
def test_the_commands_cut_them_count_them_and_train_on(
    arch: str, depth: int, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = build_model(arch, depth, 2)
    for bn in norms(model).values():
        nn.init.uniform_(bn.weight)
    path = tmp_path / "net.pth.tar"
    content = {"epoch": 1, "best_prec1": torch.tensor(0.5)}
    torch.save({**content, "state_dict": to_released(model.state_dict(), model)}, path)
    row = prune(arch, path, pictures, "--percent", "0.8", "--name", "a")
    first = checkpoint.load(tmp_path / "apruned.pth.tar").network.model.eval()
    old = prune(arch, path, pictures, "--percent", "0.8", "--name", "b", "--layout", "released")
    second = checkpoint.load(tmp_path / "bpruned.pth.tar").network.model.eval()
    new = ("unread_channels", "unread_parameters", "unread_flops")
    same = row.keys() - {*new, "model", "slim_checksum", "difference_slim"}
    assert {k: row[k] for k in same} == {k: old[k] for k in same}
    assert [int(old[k]) for k in new] == [0, 0, 0]
    assert int(row["unread_channels"]) == sum(s.channels - s.width for s in streams(first).values())
    assert min(int(row[k]) for k in new) > 0
    assert f"and {row['unread_channels']} channels of streams that nothing reads" in (
        capsys.readouterr().out
    )
    for what in ("parameters", "flops"):
        without = int(row[f"{what}_kept"]) - int(row[f"unread_{what}"])
        assert getattr(cost(first), what) == without
        assert getattr(cost(second), what) == int(row[f"{what}_kept"])
    torch.testing.assert_close(answers(first), answers(second), rtol=1e-4, atol=1e-5)

    # Pruned again, in the other layout: zeros are put back.
    prune(arch, tmp_path / "apruned.pth.tar", pictures, "--name", "c", "--layout", "released")
    third = checkpoint.load(tmp_path / "cpruned.pth.tar").network.model.eval()
    assert {k: v.shape for k, v in third.state_dict().items()} == {
        k: v.shape for k, v in second.state_dict().items()
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
    assert {n: s.parts for n, s in streams(tuned).items()} == {
        n: s.parts for n, s in streams(first).items()
    }


@torch.no_grad()
def test_exported_without_them(tmp_path: Path) -> None:
    model = network("densenet", 7, 6).float()
    masks = masks_of(model, 0.5, 0.5)
    cut = small(masked(model, masks), masks)
    path = tmp_path / "net.pth.tar"
    torch.save({"cfg": cut.cfg, "state_dict": cut.state_dict()}, path)
    assert console.run(export.main, ["--model", str(path), "--normalised"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    x = torch.randn(3, 3, 32, 32)
    (logits,) = session.run(None, {"pictures": x.numpy()})
    expected = masked(model, masks)(x).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_full_networks_have_no_positions() -> None:
    for arch, depth in (("vgg", 11), ("resnet", 11), ("densenet", 7)):
        keys = build_model(arch, depth, 2).state_dict().keys()
        assert not [key for key in keys if key.endswith(".index")]
        assert full_cfg(arch, depth)
