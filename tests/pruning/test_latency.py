"""prune --for: all forms answer as the masked network does, and the fastest is written."""

import io
import re

import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_prune_commands import DEPTHS, prune, pruned_model, random_model, record, save  # noqa: F401

from netslim.selection import selections
from utils import console, engines
from utils.methods.base import is_zero
from utils.network import Network, restore
from utils.pruning import latency
from utils.pruning.plan import plan

images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OPTIONS = [latency.AS_MASKED, (8, False), (16, False), latency.ALL, (8, True), (16, True)]


def search(arch: str) -> tuple[latency.Search, latency.Masks]:
    """A search on a model with dead channels, silent and constant ones, and their masks."""
    network = Network(random_model(arch, dead=0.6, positive=0.5), arch, DEPTHS[arch], 32)
    gamma = network.gamma
    masks = plan(list(network.norms.values()), is_zero(gamma), 0, gamma.abs(), 0.0, [])
    return latency.Search(network, "torch", 1, torch.device("cpu")), masks


def build(network: Network, masks: latency.Masks) -> Network:
    return network.remove(network.plan(masks))


@pytest.mark.parametrize("arch", ["resnet", "densenet", "resnet-basic"])
def test_every_form_answers_as_the_masked_network(arch, clock):
    clock(parameters)
    found, chosen = search(arch)
    network = found.network
    expected = network.model(images).detach()

    @settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.tuples(*[st.sampled_from(OPTIONS)] * len(found.groups)))
    def check(form):
        form = tuple(
            (n, whole and reads) for (n, whole), (*_, reads) in zip(form, found.groups, strict=True)
        )
        masks = found.masks(chosen, network.model, form)
        assert all(bool((new | ~old).all()) for new, old in zip(masks, chosen, strict=True))
        small = build(network, masks)
        selecting = {name for name, _ in selections(small.model)}
        for name, mask in zip(network.norms, masks, strict=True):
            multiple, whole = form[found.group_of[name]]
            assert multiple or mask.all()
            assert not (whole and name in selecting)
            if multiple and not whole and len(mask) % 16 == 0:
                width = len(small.model.get_submodule(name + ".norm" * (name in selecting)).bias)
                assert width % multiple == 0
        file = io.BytesIO()
        torch.save(small.model.state_dict(), file)
        file.seek(0)
        loaded = restore(torch.load(file), arch, 32, DEPTHS[arch]).model.eval()
        session = onnxruntime.InferenceSession(engines.to_onnx(small.model, images))
        (logits,) = session.run(None, {"images": images.numpy()})
        for answers in (small.model(images), loaded(images), torch.from_numpy(logits)):
            torch.testing.assert_close(answers, expected, rtol=1e-3, atol=1e-4)

    with torch.no_grad():
        check()


@pytest.fixture
def clock(monkeypatch):
    """Has models take the milliseconds that a function says."""

    def use(milliseconds) -> None:
        monkeypatch.setattr(latency, "prepare", lambda engine, model, images: model)
        monkeypatch.setattr(latency, "milliseconds", lambda calls, *_: [*map(milliseconds, calls)])

    return use


def parameters(model: torch.nn.Module) -> float:
    """Thousands of parameters."""
    return sum(p.numel() for p in model.parameters()) / 1000


def test_the_fastest_form_mixes_options_by_group(clock, capsys):
    """An engine that is slow in odd widths at 32×32, and otherwise the faster the smaller."""

    def milliseconds(model):
        widths = [m.num_features for n, m in model.named_modules() if n.endswith("bn2")]
        return parameters(model) ** 3 + 1e9 * (widths[0] % 8 > 0)

    clock(milliseconds)
    found, chosen = search("resnet")
    masks, (full, pruned) = found.fastest(
        chosen, found.network.model, lambda masks: build(found.network, masks)
    )
    kept = {n: int(x.sum()) for n, x in zip(found.network.norms, masks, strict=True)}
    cut = {n: int(x.sum()) for n, x in zip(found.network.norms, chosen, strict=True)}
    assert kept["layer1.0.bn2"] == 7 > cut["layer1.0.bn2"]  # and a carrier
    assert kept["layer2.0.bn2"] == cut["layer2.0.bn2"]
    assert pruned == milliseconds(build(found.network, masks).model) < full
    assert "layer2 at 32×32, inner: as masked *" in capsys.readouterr().out


def test_all_channels_are_kept_where_no_form_is_faster(clock, capsys):
    clock(lambda model: -parameters(model))
    found, chosen = search("resnet-basic")
    masks, (full, pruned) = found.fastest(
        chosen, found.network.model, lambda masks: build(found.network, masks)
    )
    assert full == pruned and all(mask.all() for mask in masks)
    assert "no form is faster in torch than full width" in capsys.readouterr().err


def test_the_command_writes_the_form_without_loss(prune, save, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The engine is real; of its times, only that of the full model is made the longest."""
    prepared = []

    def prepare(*args):
        prepared.append(engines.prepare(*args))
        return prepared[-1]

    def milliseconds(calls, device, *_):
        assert min(engines.milliseconds(calls, device, 1)) > 0
        return [1.0 + (call is prepared[0]) for call in calls]

    monkeypatch.setattr(latency, "prepare", prepare)
    monkeypatch.setattr(latency, "milliseconds", milliseconds)
    model = random_model("resnet-basic", dead=0.6)
    path = save("resnet-basic", model)
    assert prune("resnet", path, "--for", "onnxruntime", "--batch-size", 2) == 0
    printed, row = capsys.readouterr().out, record(tmp_path)
    assert re.search(r"^full width +100\.0 % +2\.00 +1\.00$", printed, re.M)
    assert "kept for --for onnxruntime: 0 channels" in printed and "lossless" in printed
    assert (row["engine"], row["engine_batch_size"]) == ("onnxruntime", "2")
    assert (row["milliseconds"], row["milliseconds_slim"]) == ("2", "1")
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(pruned_model(tmp_path)(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["40%", "20"])
def test_a_latency_target_is_met_with_few_channels(target, prune, save, clock, tmp_path):  # noqa: F811
    clock(parameters)
    model = random_model("resnet-basic", dead=0)
    flags = ("--for", "torch", "--target-latency", target)
    assert prune("resnet", save("resnet-basic", model), *flags) == 0
    row, full = record(tmp_path), parameters(model)
    wanted = 0.6 * full if target == "40%" else 20
    assert 0.95 * wanted < float(row["milliseconds_slim"]) <= wanted
    assert row["target_latency"] == target and row["percent"] == ""


def test_a_target_out_of_reach_and_a_missing_engine(prune, save, clock, monkeypatch, capsys):  # noqa: F811
    find = console.find_spec
    monkeypatch.setattr(console, "find_spec", lambda n: None if n == "openvino" else find(n))
    clock(parameters)
    path = save("resnet-basic", random_model("resnet-basic", 0.5))
    assert prune("resnet", path, "--for", "openvino") == 2
    needs = r"--for openvino needs .*openvino: .* -m pip install .*openvino"
    assert re.search(needs, capsys.readouterr().err)
    assert prune("resnet", path, "--for", "torch", "--target-latency", "1e-9") == 2
    assert "--target-latency 1e-09 is out of reach" in capsys.readouterr().err
