"""Pruned models on disk, and in the hands of torch's own tools."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import Own, disturb, example, plain_net
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
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
    for device in ("cpu", "meta"):
        loaded = netslim.load(build(kind).to(device), tmp_path / "small.pt")
        assert str(loaded) == str(small)
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
    units = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
    model = nn.Sequential(*units, nn.Conv2d(8, 4, 3, bias=False)).eval()
    constant = copy.deepcopy(model)
    nn.init.zeros_(constant[1].weight[:1])
    nn.init.ones_(constant[1].bias[:1])
    keep = {"1": torch.arange(8) > 0}
    small, other = (netslim.prune(m, keep, example())[0] for m in (constant, model))
    assert small.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(small.state_dict(), assign=True)
    assert torch.equal(other(example()), small(example()))


def through_file(save, load, what) -> Any:
    file = io.BytesIO()
    save(what, file)
    file.seek(0)
    return load(file)


def exported(small: nn.Module, path: Path) -> Callable[[Tensor], Tensor]:
    program = torch.export.export(small, (example(),))
    return through_file(torch.export.save, torch.export.load, program).module()


def in_onnxruntime(small: nn.Module, path: Path) -> Callable[[Tensor], Tensor]:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.onnx.export(small, (example(),), path / "small.onnx", dynamo=False)
    session = onnxruntime.InferenceSession(str(path / "small.onnx"))
    (image,) = session.get_inputs()
    return lambda x: torch.from_numpy(session.run(None, {image.name: x.numpy()})[0])


TOOLS: dict[str, Callable[[nn.Module, Path], Callable[[Tensor], Tensor]]] = {
    "copied": lambda small, _: copy.deepcopy(small),
    "pickled": lambda small, _: through_file(pickle.dump, pickle.load, small),
    "exported": exported,
    "scripted": lambda small, _: torch.jit.script(small),
    "traced": lambda small, _: torch.jit.trace(small, example()),
    "compiled": lambda small, _: torch.compile(small, backend="eager", fullgraph=True),
    "onnx": in_onnxruntime,
}


@pytest.mark.filterwarnings("ignore")  # torch's, about TorchScript and ONNX
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("kind", ["selecting"], indirect=True)
def test_torchs_tools_take_pruned_models(tool: str, small: nn.Module, tmp_path: Path) -> None:
    model = TOOLS[tool](small, tmp_path)
    assert torch.allclose(model(example()), small(example()), atol=1e-5)


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


def tied() -> nn.Sequential:
    torch.manual_seed(0)
    units = [(nn.Conv2d(i, 8, 3), nn.BatchNorm2d(8), nn.ReLU()) for i in (3, 8, 8)]
    model = nn.Sequential(*(layer for unit in units for layer in unit), nn.Conv2d(8, 2, 1))
    model[6].weight = model[3].weight
    return model.eval()


def test_tied_parameters_stay_tied(tmp_path: Path) -> None:
    model = tied()
    small, _ = netslim.prune(model, {"7": torch.arange(8) < 8}, example())
    netslim.save(small, tmp_path / "small.pt")
    loaded = netslim.load(tied(), tmp_path / "small.pt")
    assert loaded[6].weight is loaded[3].weight
    assert torch.equal(loaded(example()), small(example()))
    state = torch.load(tmp_path / "small.pt")
    torch.save({k: x for k, x in state.items() if k != "3.weight"}, tmp_path / "one.pt")
    assert torch.equal(netslim.load(tied(), tmp_path / "one.pt")[3].weight, model[3].weight)
    torch.save(state | {"6.weight": state["6.weight"] + 1}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"3\.weight and 6\.weight are one tensor"):
        netslim.load(tied(), tmp_path / "two.pt")


class Wrapper(Own):
    """Its state dict is the one of the model in it."""

    def __init__(self) -> None:
        super().__init__(lambda net, x: net.module(x), module=plain_net())

    def state_dict(self, *args, **options) -> dict:
        return self.module.state_dict(*args, **options)


def checkpointed() -> nn.Module:
    layers = plain_net()
    return nn.Sequential(checkpoint_wrapper(layers[:3]), layers[3:])


@pytest.mark.parametrize("make", [Wrapper, checkpointed])
def test_a_state_dict_with_other_names(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make().eval()
    graph = netslim.analyze(model, example())
    keep = {name: torch.arange(len(mask)) > 2 for name, mask in graph.removable.items()}
    small, report = netslim.prune(model, keep, example())
    assert report.removed
    netslim.save(small, tmp_path / "small.pt")
    loaded = netslim.load(make(), tmp_path / "small.pt").eval()
    assert torch.equal(loaded(example()), small(example()))
    disturb(model)
    torch.save(model.state_dict(), tmp_path / "full.pt")
    loaded = netslim.load(make(), tmp_path / "full.pt").eval()
    assert torch.equal(loaded(example()), model(example()))


def test_a_state_dict_of_other_tensors(tmp_path: Path) -> None:
    model = plain_net()
    model.register_state_dict_post_hook(lambda m, s, prefix, _: s.update(more=torch.ones(1)))
    with pytest.raises(ValueError, match="more in the state dict is no parameter or buffer"):
        netslim.save(model, tmp_path / "model.pt")
    assert not any(tmp_path.iterdir())


def scaled() -> Own:
    net = Own(
        lambda net, x: net.last(net.net(x) * net.scale * net.factor),
        net=nn.Sequential(*plain_net()[:3]),
        last=nn.Conv2d(8, 2, 1),
    )
    net.register_buffer("scale", torch.linspace(0.5, 1, 8).view(8, 1, 1), persistent=False)
    net.register_buffer("factor", torch.ones(1), persistent=False)
    return net.eval()


def test_a_buffer_that_is_not_persistent(tmp_path: Path) -> None:
    small, _ = netslim.prune(scaled(), {"net.1": torch.arange(8) > 3}, example())
    assert "scale" in small.state_dict() and "scale" not in scaled().state_dict()
    assert "factor" not in small.state_dict()
    loaded = small
    for _ in range(2):
        netslim.save(loaded, tmp_path / "small.pt")
        loaded = netslim.load(scaled(), tmp_path / "small.pt")
        assert torch.equal(loaded(example()), small(example()))


class Labelled(nn.Sequential):
    state: object = None

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def test_extra_state(tmp_path: Path) -> None:
    model = Labelled(*plain_net()).eval()
    model.state = {"classes": ["a", "b"], "mean": torch.ones(3)}
    small, _ = netslim.prune(model, {"1": torch.arange(8) > 3}, example())
    netslim.save(small, tmp_path / "small.pt")
    loaded = netslim.load(Labelled(*plain_net()), tmp_path / "small.pt").eval()
    assert torch.equal(loaded(example()), small(example()))
    assert loaded.state["classes"] == ["a", "b"] and torch.equal(
        loaded.state["mean"], torch.ones(3)
    )
    for wrong in ([nn.Identity()], lambda: None):
        small.state = wrong
        with pytest.raises(ValueError, match="cannot save _extra_state, which may have tensors"):
            netslim.save(small, tmp_path / "small.pt")
    with pytest.raises(ValueError, match="_extra_state is not expected"):
        netslim.load(plain_net(), tmp_path / "small.pt")


def test_scripted_parts_are_loaded(tmp_path: Path) -> None:
    def fresh() -> nn.Sequential:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nn.Sequential(*plain_net()[:6], torch.jit.script(nn.Conv2d(6, 2, 1))).eval()

    model = fresh()
    nn.init.ones_(model[6].weight)
    netslim.save(model, tmp_path / "model.pt")
    loaded = netslim.load(fresh(), tmp_path / "model.pt")
    assert torch.equal(loaded(example()), model(example()))


def test_a_file_keeps_the_fresh_models_memory_format(tmp_path: Path) -> None:
    netslim.save(plain_net(), tmp_path / "full.pt")
    fresh = plain_net().to(memory_format=torch.channels_last)
    loaded = netslim.load(fresh, tmp_path / "full.pt")
    assert loaded[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(loaded[3].weight, plain_net()[3].weight)


def test_a_smaller_kernel_is_not_taken_for_a_pruned_one(tmp_path: Path) -> None:
    netslim.save(nn.Sequential(nn.Conv2d(3, 8, 3)), tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"0.weight is \(8, 3, 3, 3\) .* \(8, 3, 7, 7\)"):
        netslim.load(nn.Sequential(nn.Conv2d(3, 8, 7)), tmp_path / "small.pt")
