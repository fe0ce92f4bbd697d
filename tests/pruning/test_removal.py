"""A pruned model computes what the masked one does, with and without unused stream channels."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import densenet_prune
import released
from models import build_model
from runs import command, rows, train
from utils.console import InputError
from utils.cost import cost
from utils.files import checkpoint
from utils.files.legacy_formats import expanded, to_compact, to_released
from utils.network import Network, fresh, restore, with_weights
from utils.pruning.plan import apply_plan

DEPTHS = {"vgg": (11,), "resnet": (11, 20), "densenet": (7, 10), "resnet-basic": (8,)}
analyzed = cache(lambda arch, depth: fresh(arch, depth, 3, 32))


def randomise(network: Network) -> Network:
    for module in network.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def random_network(arch: str, depth: int, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    model = build_model(arch, depth, 3).double().eval()
    return randomise(with_weights(analyzed(arch, depth), model))


def random_masks(network: Network, share: float, of_streams: float = 1.0) -> list[Tensor]:
    """Keeps a ``share`` of the channels, and reads a share ``of_streams`` of a stream's at most."""
    graph = network.graph
    in_use = torch.rand(len(graph.classes)) < of_streams
    masks = []
    for name, width in zip(network.norms, network.widths, strict=True):
        mask, read = torch.rand(width) < share, graph.read_by(name)
        if not torch.equal(read, graph.norm_classes(name)):  # it reads a stream
            mask &= in_use[read]
        mask[torch.randint(width, ())] |= not mask.any()
        masks.append(mask)
    return masks


def masked(network: Network, masks: list[Tensor], constant: bool = False) -> Network:
    """γ = 0 in the removed channels, and bias 0 if they are not ``constant``."""
    other = with_weights(network, copy.deepcopy(network.model))
    folded = torch.full_like(torch.cat(masks), constant)
    apply_plan(list(other.norms.values()), masks, folded)
    return other


def pruned(network: Network, masks: list[Tensor], streams: bool = True) -> Network:
    return network.remove(network.plan(masks, streams))


def logits(network: Network) -> Tensor:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network.model(x.to(next(network.model.parameters())))


def shapes(network: Network) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in network.model.state_dict().items()}


@st.composite
def cases(draw, archs: tuple[str, ...] = tuple(DEPTHS)) -> tuple[Network, list[Tensor]]:
    """A random network, maybe pruned before, and masks."""
    arch = draw(st.sampled_from(archs))
    network = random_network(arch, draw(st.sampled_from(DEPTHS[arch])), draw(st.integers(0, 2**31)))
    shares = st.sampled_from((0.02, 0.3, 0.7, 1.0))
    if draw(st.booleans()):
        masks = random_masks(network, draw(shares))
        network = randomise(pruned(network, masks, draw(st.booleans())))
    return network, random_masks(network, draw(shares), draw(shares))


@settings(max_examples=16, deadline=None)
@given(cases(), st.booleans(), st.booleans())
def test_a_pruned_model_computes_what_the_masked_one_does(case, constant, streams):
    network, masks = case
    before = copy.deepcopy(network.model.state_dict())
    full = masked(network, masks, constant)
    small = pruned(full, masks, streams)
    torch.testing.assert_close(logits(small), logits(full), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[k], v) for k, v in network.model.state_dict().items())
    if not constant:  # no carriers
        kept = iter(int(mask.sum()) for mask in masks)
        assert small.cfg == [w if w == "M" else next(kept) for w in network.cfg]
    state, again = small.model.state_dict(), restore(small.model.state_dict())
    assert str(again.model) == str(small.model)
    assert (again.arch, again.depth, again.num_classes) == (network.arch, network.depth, 3)
    assert all(torch.equal(x, state[key].to(x)) for key, x in again.model.state_dict().items())


@settings(max_examples=5, deadline=None)
@given(cases(("resnet", "densenet")))
def test_narrow_streams_are_converted_to_the_released_layout_and_back(case):
    network, masks = case
    full = masked(network, masks)
    expected, wide = logits(full), expanded(pruned(full, masks))
    torch.testing.assert_close(logits(wide), expected, rtol=1e-9, atol=1e-9)
    state = to_released(wide)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        torch.testing.assert_close(getattr(released, network.arch)(state, x), expected)
    for key in [key for key in state if key.endswith("select.indexes")]:
        bn = key.removesuffix("select.indexes")
        bn += "bn1" if f"{bn}bn1.weight" in state else "bn"
        assert state[key].dtype == torch.float32
        for entry, value in (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            assert (state[f"{bn}.{entry}"][state[key] == 0] == value).all()
    back = restore(to_compact(state))
    back.model.double().eval()
    torch.testing.assert_close(logits(back), expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=6, deadline=None)
@given(cases(), st.sampled_from((0.2, 0.6)), st.booleans())
def test_pruning_twice_is_pruning_once(case, share, streams):
    network, masks = case
    once = pruned(masked(network, masks), masks, streams)
    second = random_masks(once, share, share)
    both = [mask.clone() for mask in masks]
    for mask, chosen in zip(both, second, strict=True):
        mask[mask.clone()] = chosen
    twice = pruned(masked(once, second), second, streams)
    at_once = pruned(masked(network, both), both, streams)
    torch.testing.assert_close(logits(twice), logits(at_once), rtol=1e-9, atol=1e-9)
    assert shapes(twice) == shapes(at_once)


@pytest.mark.parametrize("arch", DEPTHS)
def test_gradients_of_kept_weights_agree_and_their_values_can_be_put_back(arch):
    network = random_network(arch, DEPTHS[arch][-1])
    full = masked(network, masks := random_masks(network, 0.6, 0.5))
    removal = full.plan(masks)
    small = full.remove(removal)
    x, labels = torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 1, 2, 0])
    for each in (full, small):
        F.cross_entropy(each.model(x), labels).backward()
    parameters = dict(full.model.named_parameters())
    for name, parameter in small.model.named_parameters():
        gradient = parameters[removal.full_name(name)].grad
        kept = removal.part(removal.full_name(name), gradient)
        torch.testing.assert_close(parameter.grad, kept, msg=name)
    assert small.cost.parameters < 0.9 * full.cost.parameters

    state, after = small.model.state_dict(), full.model.state_dict()
    before = copy.deepcopy(after)
    names = {key: removal.full_name(key) for key in state if not key.endswith("select.index")}
    assert set(names.values()) == before.keys()
    part = {key: removal.part(name, before[name]) + 1 for key, name in names.items()}
    assert all(part[key].shape == state[key].shape for key in part)
    removal.scatter_into(part, after)
    for key, value in after.items():
        kept = torch.ones_like(value, dtype=torch.bool)
        for axis, index in enumerate(removal.index.get(key, ())):
            stays = torch.zeros(value.shape[axis], dtype=torch.bool).index_fill(0, index, True)
            kept &= stays.view(-1, *[1] * (value.dim() - 1 - axis))
        assert torch.equal(value, torch.where(kept, before[key] + 1, before[key]))


def test_a_stage_as_narrow_as_the_one_before_keeps_its_downsampling():
    network = random_network("resnet", 20, 4)
    masks = [torch.ones(width).bool() for width in network.widths]
    for mask in masks[-4], masks[-1]:  # all that read the last stage's stream
        mask[128:] = False
    full = masked(network, masks)
    small = pruned(full, masks)
    assert small.model.layer3[0].conv3.out_channels == 128
    assert restore(small.model.state_dict()).model.layer3[0].downsample is not None
    torch.testing.assert_close(logits(small), logits(full))


DAMAGE = {
    "beyond the stream": lambda x: x + 1000,
    "out of order": lambda x: x.flip(0),
    "twice": lambda x: x.sort().values[[0, *range(len(x) - 1)]],
    "fractions": lambda x: x.double(),
    "2-d": lambda x: x[None],
    "0-d": lambda x: x[0],
    "too few": lambda x: x[:-1],
    "too many": lambda x: torch.arange(10_000),
    "overflowing": lambda x: torch.cat((x[:-2], torch.tensor([2**62, -(2**62) - 1]))),
}


@pytest.fixture(scope="module")
def narrow() -> dict[str, Tensor]:
    network = random_network("densenet", 7, 5)
    masks = random_masks(network, 0.5, 0.5)
    return pruned(masked(network, masks), masks).model.float().state_dict()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_selections_are_refused_in_one_line(damage, narrow, tmp_path):
    key, path = "trans1.bn1.select.index", tmp_path / "x.pth.tar"
    torch.save({"state_dict": {**narrow, key: damage(narrow[key])}}, path)
    with pytest.raises(InputError, match=r"\A.*does not fit a network of this program.*\Z"):
        checkpoint.load(path)


def test_unused_stream_channels_are_counted_and_the_pruned_model_trains(tmp_path, pictures, capsys):
    def prune(path: Path, *flags: str) -> dict[str, str]:
        argv = ["--model", path, "--dataset", "folder", "--data", pictures, "--no-cuda", *flags]
        assert command(densenet_prune, *argv) == 0
        return rows(path.parent / "pruned_record.csv")[-1]

    def read(name: str) -> Network:
        network = checkpoint.load(tmp_path / f"{name}.pth.tar").network
        network.model.eval()
        return network

    torch.manual_seed(0)
    network = fresh("densenet", 7, 2, 32)
    for bn in network.norms.values():
        nn.init.uniform_(bn.weight)
    content = {"epoch": 1, "best_prec1": torch.tensor(0.5), "state_dict": to_released(network)}
    torch.save(content, path := tmp_path / "net.pth.tar")
    row = prune(path, "--percent", "0.8", "--name", "a")
    assert f"and {row['unread_channels']} unused stream channels" in capsys.readouterr().out
    old = prune(path, "--percent", "0.8", "--name", "b", "--layout", "released")
    assert torch.load(tmp_path / "b.pth.tar", weights_only=True)["layout"] == "released"
    narrow, wide = read("a"), read("b")
    new = {"unread_channels", "unread_parameters", "unread_flops"}
    same = row.keys() - new - {"model", "slim_checksum", "difference_slim"}
    assert {k: row[k] for k in same} == {k: old[k] for k in same}
    assert {old[k] for k in new} == {"0"} and min(int(row[k]) for k in new) > 0
    for unit in ("parameters", "flops"):
        kept = int(row[f"{unit}_kept"])
        assert getattr(cost(narrow.model), unit) == kept - int(row[f"unread_{unit}"])
        assert getattr(cost(wide.model), unit) == kept
    torch.testing.assert_close(logits(narrow), logits(wide), rtol=1e-4, atol=1e-5)

    prune(tmp_path / "a.pth.tar", "--name", "c", "--layout", "released")
    assert shapes(read("c")) == shapes(wide)
    torch.testing.assert_close(logits(read("c")), logits(narrow), rtol=1e-4, atol=1e-5)

    run = tmp_path / "a_densenet_7_folder_refine/checkpoint.pth.tar"
    data = ["--dataset", "folder", "--data", pictures]
    for flags in (["--refine", tmp_path / "a.pth.tar", *data], ["--resume", run]):
        assert train(tmp_path, pictures, *flags, "--epochs", 1) == 0
    assert shapes(checkpoint.load(run).network) == shapes(narrow)
