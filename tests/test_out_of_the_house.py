"""Slim networks leave: exported, compiled, compared; and the README's library examples run."""

import copy
import json
import pickle
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.ao.quantization import fuse_modules
from torch.fx.experimental.optimization import fuse
from torchvision.models import resnet18, vgg11_bn

import netslim
from utils import console, export
from utils.bench import __main__ as bench
from utils.network import fresh

NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 7), ("resnet-basic", 8)]
ROOT = Path(__file__).parents[1]


@pytest.fixture(params=NETWORKS, ids=lambda network: network[0])
def checkpoint(request, tmp_path):
    """A slim network's checkpoint, with the network itself."""
    torch.manual_seed(0)
    arch, depth = request.param
    full = fresh(arch, depth, 3, 32)
    small = full.remove(full.plan([torch.arange(w) < max(1, w // 3) for w in full.widths]))
    model = small.model.eval()
    content = {"cfg": small.cfg, "state_dict": model.state_dict(), "classes": ["ä", "b", "c"],
               "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}  # fmt: skip
    path = tmp_path / "net_pruned.pth.tar"
    torch.save(content, path)
    return path, model, content


@torch.no_grad()
def test_exported_onnx_gives_the_checkpoints_answers(checkpoint):
    path, model, content = checkpoint
    assert console.run(export.main, ["--model", str(path)]) == 0
    written = path.with_name("net_pruned.onnx")
    metadata = {p.key: json.loads(p.value) for p in onnx.load(written).metadata_props}
    assert metadata["classes"] == content["classes"]
    assert metadata["mean"] == content["mean"]
    session = onnxruntime.InferenceSession(written)
    for n in (1, 5):
        pictures = torch.rand(n, 3, 32, 32)
        mean, std = (torch.tensor(content[key])[:, None, None] for key in ("mean", "std"))
        x = (pictures - mean) / std
        (logits,) = session.run(None, {"pictures": pictures.numpy()})
        np.testing.assert_allclose(logits, model(x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch's, of its own tools
@torch.no_grad()
def test_torchs_own_tools_take_slim_networks(checkpoint):
    _, model, _ = checkpoint
    own = {type(m) for m in model.modules() if type(m).__module__.startswith("netslim")}
    assert own <= {netslim.ChannelSelection}
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    fused = fuse(model)  # each batch norm but those of a stream, which follow no layer
    left = {"VGG": 0, "ResNet": 4, "DenseNet": 6, "ResNetBasic": 0}[type(model).__name__]
    assert len(batch_norms(fused)) == left
    assert not [n for n in fused.graph.nodes if n.target is torch.nn.functional.batch_norm]
    for tool in (torch.jit.script(model), torch.jit.trace(model, x), compiled, fused):
        torch.testing.assert_close(tool(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_slim_vgg_is_fused_by_name():
    full = fresh("vgg", 11, 3, 32)
    small = full.remove(full.plan([torch.arange(w) < w // 3 for w in full.widths])).model.eval()
    triples = [[f"feature.{int(n.split('.')[1]) + i}" for i in (-1, 0, 1)] for n in full.norms]
    fused, x = fuse_modules(small, triples), torch.randn(2, 3, 32, 32)
    assert not batch_norms(fused)
    torch.testing.assert_close(fused(x), small(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_slim_resnet50_leaves_as_onnx(tmp_path):
    torch.manual_seed(0)
    full = fresh("resnet50", 50, 3, 40)
    for bn in full.norms.values():
        bn.bias.normal_()  # some that go emit a constant
    small = full.remove(full.plan([torch.rand(width) < 0.3 for width in full.widths])).model.eval()
    settings = {"arch": "resnet50", "depth": 50, "dataset": "folder", "size": 40}
    torch.save({"state_dict": small.state_dict(), "settings": settings}, tmp_path / "net.pth.tar")
    assert console.run(export.main, ["--model", str(tmp_path / "net.pth.tar"), "--normalised"]) == 0
    pictures = torch.randn(5, 3, 40, 40)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (logits,) = session.run(None, {"pictures": pictures.numpy()})
    np.testing.assert_allclose(logits, small(pictures).numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3  # it sees the pictures


@torch.no_grad()
def test_exported_programs_give_the_checkpoints_answers(checkpoint):
    path, model, content = checkpoint
    assert console.run(export.main, ["--model", str(path), "--format", "pt2", "--normalised"]) == 0
    extra = {"classes": ""}
    program = torch.export.load(path.with_name("net_pruned.pt2"), extra_files=extra).module()
    assert json.loads(extra["classes"]) == content["classes"]
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(program(x), model(x))


def test_a_checkpoint_without_normalisation_says_so(checkpoint, tmp_path, capsys):
    path, _, content = checkpoint
    torch.save({key: content[key] for key in ("cfg", "state_dict")}, path)
    assert console.run(export.main, ["--model", str(path)]) == 2
    assert "--normalised" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert (
        console.run(export.main, ["--model", str(path), "--format", "sparse", "--normalised"]) == 2
    )
    assert "--normalised is for programs" in capsys.readouterr().err


def test_bench_prints_speed_beside_flops(checkpoint, tmp_path, capsys):
    path, *_ = checkpoint
    argv = ["--compare", str(path), str(path), "--batch-size", "2", "--repeats", "2", "--no-cuda"]
    assert console.run(bench.main, argv) == 0
    assert re.search(r"ratio 1\.00\nbatch 2: .* speed-up [\d.]+", capsys.readouterr().out)


def example(readme: Path) -> str:
    """The first Python example in it."""
    return re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)[0]


def batch_norms(model: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_torch_pruning_cuts_what_is_zero():
    cut = example(ROOT / "models/README.md")
    torch.manual_seed(0)
    model, pictures = vgg11_bn(), torch.randn(4, 3, 32, 32)
    model.avgpool, model.classifier = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(512, 10)
    with torch.no_grad():  # as after a long training: half of every layer is dead
        for bn in batch_norms(model):
            bn.weight[::2] = 0
            bn.bias[::2] = -0.1
        expected = model.eval()(pictures)
    exec(cut, {"model": model, "torch": torch})
    assert model.features[0].out_channels == 32
    torch.testing.assert_close(model(pictures), expected, rtol=1e-4, atol=1e-5)


def test_the_readmes_cut_spares_what_a_shared_stream_needs():
    """In a residual network a channel of the stream belongs to several batch norms."""
    cut = example(ROOT / "models/README.md")
    torch.manual_seed(0)
    model, pictures = resnet18(num_classes=10), torch.randn(4, 3, 32, 32)
    layers = batch_norms(model)
    with torch.no_grad():
        for bn in layers:
            dead = torch.rand(bn.num_features) < 0.6
            dead[:4], dead[4:6], dead[6:8] = True, False, True  # some of the stream die everywhere
            bn.weight[dead] = 0
            bn.bias.uniform_(-0.2, 0.2)
            bn.bias[dead] = -0.1
            bn.bias[6:8] = 0.1  # zero, but it emits a constant
            bn.running_mean.normal_(0, 0.1)
        living = sum(int((bn.weight != 0).sum()) for bn in layers)
        expected = model.eval()(pictures)
    exec(cut, {"model": model, "torch": torch})
    assert sum(int((bn.weight != 0).sum()) for bn in batch_norms(model)) == living
    assert model.conv1.out_channels < 64
    torch.testing.assert_close(model(pictures), expected, rtol=1e-4, atol=1e-6)
