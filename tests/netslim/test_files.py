"""Pruned models on disk, and in the hands of torch's own tools."""

import copy
import io
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from checks import disturb, example, plain_net
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.parametrizations import spectral_norm

import netslim


class Dense(nn.Module):
    """A dense block: its second batch norm reads a stream that others read, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.last = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(12)
        self.classifier = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv(self.norm(x).relu())], 1)
        return self.classifier(self.last(x).relu().mean((2, 3)))


def build(kind: str) -> nn.Module:
    torch.manual_seed(1)
    model = Dense() if kind == "selecting" else plain_net()
    disturb(model)
    return model.eval()


@pytest.fixture(params=["plain", "selecting"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def small(kind: str) -> nn.Module:
    model = build(kind)
    graph = netslim.analyze(model, example())
    keep = {
        name: (torch.arange(norm.num_features) + i) % 3 > 0
        for i, (name, norm) in enumerate(graph.norms.items())
    }
    small, report = netslim.prune(model, keep, example())
    assert report.removed and bool(report.selections) == (kind == "selecting")
    return small


def test_a_file_needs_only_the_full_model(kind: str, small: nn.Module, tmp_path: Path) -> None:
    netslim.save(small, tmp_path / "small.pt")
    loaded = netslim.load(build(kind), tmp_path / "small.pt")
    assert str(loaded) == str(small)
    assert torch.equal(loaded(example()), small(example()))


def test_a_file_into_a_model_on_the_meta_device(kind, small, tmp_path: Path) -> None:
    netslim.save(small, tmp_path / "small.pt")
    loaded = netslim.load(build(kind).to("meta"), tmp_path / "small.pt")
    assert torch.equal(loaded(example()), small(example()))


def test_a_file_that_does_not_fit(small: nn.Module, kind: str, tmp_path: Path) -> None:
    netslim.save(small, tmp_path / "small.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "code.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    (tmp_path / "text.pt").write_text("no file of torch")
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    before = copy.deepcopy(other.state_dict())
    for name in ("small", "code", "numbers", "text"):
        with pytest.raises(ValueError, match=f"{name}.pt"):
            netslim.load(other, tmp_path / f"{name}.pt")
    with pytest.raises(FileNotFoundError):
        netslim.load(other, tmp_path / "none.pt")
    assert all(torch.equal(x, before[name]) for name, x in other.state_dict().items())


def test_keys_do_not_depend_on_values() -> None:
    """Two models of one code and one mask take each other's file, whatever constants were
    folded."""
    models = [
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3, bias=False),
        )
        for _ in range(2)
    ]
    with torch.no_grad():
        models[0][1].weight[0], models[0][1].bias[0] = 0, 1
    keep = {"1": torch.arange(8) > 0}
    small, other = (netslim.prune(m.eval(), keep, example())[0] for m in models)
    assert small.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(example()), small(example()))


def test_copies(small: nn.Module) -> None:
    for copied in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(copied(example()), small(example()))
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    small.load_state_dict(torch.load(file, weights_only=True), assign=True)


def test_exported_programs(small: nn.Module) -> None:
    exported = torch.export.export(small, (example(),))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.allclose(loaded(example()), small(example()), atol=1e-6)


def test_scripts(small: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted, traced = torch.jit.script(small), torch.jit.trace(small, example())
    for model in (scripted, traced):
        assert torch.allclose(model(example()), small(example()), atol=1e-6)


def test_compiled(small: nn.Module) -> None:
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(example()), small(example()), atol=1e-6)


def test_onnx(small: nn.Module, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(small, (example(),), tmp_path / "small.onnx", dynamo=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"))
    (out,) = session.run(None, {session.get_inputs()[0].name: example().numpy()})
    assert torch.allclose(torch.from_numpy(out), small(example()), atol=1e-5)


def test_fusing(small: nn.Module, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = [fuse(small)]
        if kind == "plain":
            fused.append(fuse_modules(small, [["0", "1", "2"], ["3", "4", "5"]]))
    for model in fused:
        left = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(left) == (0 if kind == "plain" else 2)  # behind a selection there is no layer
        assert torch.allclose(model(example()), small(example()), atol=1e-5)
    assert not [n for n in fused[0].graph.nodes if n.target is nn.functional.batch_norm]


def test_only_torchs_layers(small: nn.Module) -> None:
    own = {type(m) for m in small.modules() if not type(m).__module__.startswith("torch.")}
    assert own <= {Dense, netslim.ChannelSelection}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())


def test_a_state_dict_with_versions() -> None:
    """Some layers read the version of their state dict when they are loaded."""

    class Versioned(nn.Sequential):
        _version = 2

        def _load_from_state_dict(self, state, prefix, metadata, *rest) -> None:
            assert metadata.get("version") == 2
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    model = Versioned(*plain_net()).eval()
    small, _ = netslim.prune(model, {"1": torch.arange(8) < 5}, example())
    assert small[1].num_features == 5


def test_safetensors_in_slimming(tmp_path: Path) -> None:
    save_model = pytest.importorskip("safetensors.torch").save_model
    model = plain_net()
    method = netslim.ProximalSlimming(netslim.analyze(model, example()), lambda_=0.01, beta=100)
    method.step(0.1)
    save_model(model, str(tmp_path / "model.safetensors"))
    torch.save(model[1].weight, tmp_path / "layer.pt")
    assert (tmp_path / "layer.pt").stat().st_size < 2500


def test_vectors_of_spectral_norm_are_not_updated(tmp_path: Path) -> None:
    def fresh() -> nn.Sequential:
        model = plain_net()
        model[8] = spectral_norm(model[8])
        return model.train()

    model = fresh()
    with torch.no_grad():
        model[8].parametrizations.weight.original += torch.randn(2, 6)  # as an optimizer's step
    small, _ = netslim.prune(model, {"1": torch.arange(8) > 2}, example())
    netslim.save(small, tmp_path / "small.pt")
    loaded = netslim.load(fresh(), tmp_path / "small.pt")
    for name, x in model[8].state_dict().items():
        assert torch.equal(small.state_dict()[f"8.{name}"], x)
        assert torch.equal(loaded.state_dict()[f"8.{name}"], x)
