"""Pruned models in other engines: export, torch's own tools, the bench, Torch-Pruning."""

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
from own_pictures import noise, save
from utils import console, export
from utils.bench import __main__ as bench
from utils.data.batches import Batches
from utils.data.datasets import load_dataset
from utils.network import Network, fresh

MODELS = [("vgg", 11), ("resnet", 11), ("densenet", 7), ("resnet-basic", 8)]
ADDS_AND_CONCATENATES = pytest.mark.parametrize(
    "checkpoint", [MODELS[1], MODELS[2]], indirect=True, ids=lambda model: model[0]
)
ONE = pytest.mark.parametrize("checkpoint", MODELS[:1], indirect=True, ids=lambda model: model[0])
# Batch norms that follow no convolution, but read a stream.
LEFT = {"VGG": 0, "ResNet": 4, "DenseNet": 6, "ResNetBasic": 0}
ROOT = Path(__file__).parents[1]


def prune(network: Network, share: float = 1 / 3) -> Network:
    masks = [torch.arange(width) < max(1, share * width) for width in network.widths]
    small = network.remove(network.plan(masks))
    small.model.eval()
    return small


@pytest.fixture(params=MODELS, ids=lambda model: model[0])
def checkpoint(request, tmp_path):
    """A pruned checkpoint: path, model, content."""
    torch.manual_seed(0)
    arch, depth = request.param
    small = prune(fresh(arch, depth, 3, 32))
    content = {"cfg": small.cfg, "state_dict": small.model.state_dict(), "classes": ["b", "c", "ä"],
               "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}  # fmt: skip
    path = tmp_path / "net_pruned.pth.tar"
    torch.save(content, path)
    return path, small.model, content


def run(*argv: object) -> int:
    return console.run(export.main, list(map(str, argv)))


def onnx_logits(path: Path, images: torch.Tensor) -> np.ndarray:
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
    return logits


@torch.no_grad()
def test_onnx_has_the_checkpoints_logits_and_metadata(checkpoint):
    path, model, content = checkpoint
    assert run("--model", path) == 0
    written = path.with_name("net_pruned.onnx")
    program = onnx.load(written)
    operators = [node.op_type for node in program.graph.node]  # batch norms are folded
    assert operators.count("BatchNormalization") == LEFT[type(model).__name__]
    metadata = {p.key: json.loads(p.value) for p in program.metadata_props}
    assert all(metadata[key] == content[key] for key in ("classes", "mean", "std"))
    assert metadata["resize"] == metadata["center_crop"] == 32
    mean, std = (torch.tensor(content[key])[:, None, None] for key in ("mean", "std"))
    for n in (1, 5):
        images = torch.rand(n, 3, 32, 32)
        expected = model((images - mean) / std).numpy()
        np.testing.assert_allclose(onnx_logits(written, images), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pt2_has_the_checkpoints_logits_and_metadata(checkpoint):
    path, model, content = checkpoint
    assert run("--model", path, "--format", "pt2", "--normalised") == 0
    extra = {"classes": "", "resize": ""}
    program = torch.export.load(path.with_name("net_pruned.pt2"), extra_files=extra).module()
    assert json.loads(extra["classes"]) == content["classes"] and extra["resize"] == "32"
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(program(x), model(x))


@torch.no_grad()
def test_a_pruned_resnet18_is_exported_with_its_constants(tmp_path):
    torch.manual_seed(0)
    full = fresh("resnet18", 18, 3, 40)
    for bn in full.norms.values():
        bn.bias.normal_()
    small = prune(full).model
    settings = {"arch": "resnet18", "depth": 18, "dataset": "folder", "size": 40}
    torch.save({"state_dict": small.state_dict(), "settings": settings}, tmp_path / "net.pth.tar")
    assert run("--model", tmp_path / "net.pth.tar", "--normalised") == 0
    images = torch.randn(5, 3, 40, 40)
    logits = onnx_logits(tmp_path / "net.onnx", images)
    np.testing.assert_allclose(logits, small(images).numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


@ADDS_AND_CONCATENATES
@torch.no_grad()
def test_int8_takes_any_number_of_images_and_answers_nearly_as_float32(checkpoint, tmp_path, capfd):
    path, model, content = checkpoint
    data = draw_classes(tmp_path / "data", content["classes"])
    argv = ["--model", path, "--int8", "--dataset", "folder", "--data", data]
    assert run(*argv) == 0
    out, err = capfd.readouterr()
    rows = r"accuracy, % +[\d.]+ +[\d.]+\nms at batch 1 +[\d.]+ +[\d.]+\nms at batch 64 +\d.*\n"
    assert re.search(rf" float32 +int8\n{rows}predictions changed: \d of 6\n$", out)
    assert "WARNING" not in err  # of onnxruntime
    written = path.with_name("net_pruned_int8.onnx")
    program = onnx.load(written)
    metadata = {p.key: json.loads(p.value) for p in program.metadata_props}
    assert metadata["classes"] == content["classes"] and metadata["input"] == "RGB from 0 to 1"
    weights = [x for x in program.graph.initializer if len(x.dims) == 4]
    assert {x.data_type for x in weights} == {onnx.TensorProto.INT8}
    mean, std = (torch.tensor(content[key])[:, None, None] for key in ("mean", "std"))
    images = load_dataset("folder", data).train.images.permute(0, 3, 1, 2) / 255
    expected = model((images - mean) / std).numpy()
    for n in (1, 5):
        error = onnx_logits(written, images[:n]) - expected[:n]
        assert 0 < np.abs(error).max() < 0.1 * expected.std(0).max() + 0.02


@torch.no_grad()
def test_int8_keeps_the_bias_of_channels_with_tiny_or_no_factor(tmp_path):
    torch.manual_seed(0)
    small = prune(fresh("vgg", 11, 3, 32), 1 / 2)
    model = small.model
    for bn in batch_norms(model):
        bn.weight[:30] = torch.tensor([1e-3, 1e-6, 1e-9, 1e-20, 1e-36, 0]).repeat(5)
        bn.bias[:30] = 2
    path = tmp_path / "net.pth.tar"
    content = {"state_dict": model.state_dict(), "cfg": small.cfg, "classes": ["a", "b", "c"]}
    torch.save(content, path)
    data = draw_classes(tmp_path / "data", content["classes"])
    argv = ["--model", path, "--int8", "--normalised", "--dataset", "folder", "--data", data]
    assert run(*argv) == 0
    images = Batches(load_dataset("folder", data), "train", None, torch.device("cpu"))
    images = next(images.iter_eval())[0]
    expected = model(images).numpy()
    error = np.abs(onnx_logits(tmp_path / "net_int8.onnx", images) - expected)
    assert error.max() < 0.02 * np.abs(expected).max()


@ONE
def test_int8_needs_onnxruntime_and_images(checkpoint, tmp_path, monkeypatch, capsys):
    path, *_ = checkpoint
    before = sorted(tmp_path.iterdir())
    assert run("--model", path, "--int8", "--data", tmp_path / "none") == 2
    assert re.fullmatch(r"error: --data \S+none is not a directory\n", capsys.readouterr().err)
    find = console.find_spec
    monkeypatch.setattr(console, "find_spec", lambda n: None if n == "onnxruntime" else find(n))
    assert run("--model", path, "--int8") == 2
    line = r"error: --int8 needs onnxruntime: .* -m pip install onnxruntime\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    assert sorted(tmp_path.iterdir()) == before


def draw_classes(folder: Path, classes: list[str]) -> Path:
    for i, name in enumerate(classes):
        for part, count in (("train", 4), ("test", 2)):
            for j in range(count):
                colours = noise(8, 8, 3).repeat(4, 0).repeat(4, 1) // 2 + 40 * i
                save(folder / part / name / f"{j}.png", colours.astype(np.uint8))
    return folder


@ONE
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--int8", "--format", "pt2"], "--int8 is for ONNX: --format pt2 has no int8 form"),
        (["--data", "images"], "--data is for --int8: add --int8, or leave it out"),
        ([], "has no normalisation: export it with --normalised"),
        (["--format", "sparse", "--normalised"], "--normalised is for programs"),
        (["--output", "net_pruned.pth.tar"], "is the checkpoint itself"),
    ],
)
def test_bad_flags_are_refused(flags, message, checkpoint, tmp_path, monkeypatch, capsys):
    path, _, content = checkpoint
    torch.save({key: content[key] for key in ("cfg", "state_dict")}, path)
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert run("--model", path.name, *flags) == 2
    assert message in capsys.readouterr().err
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_another_models_state_dict_is_refused_with_the_command_that_takes_it(tmp_path, capsys):
    torch.save(resnet18().state_dict(), tmp_path / "net.pth")
    assert run("--model", tmp_path / "net.pth") == 2
    command = f"-m utils.prune --model {tmp_path / 'net.pth'} --arch NAME"
    assert command in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # torch's, about its own tools
@torch.no_grad()
def test_torchs_own_tools_take_pruned_models(checkpoint):
    _, model, _ = checkpoint
    types = {type(m) for m in model.modules() if type(m).__module__.startswith("netslim")}
    assert types <= {netslim.ChannelSelection}
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    fused = fuse(model)
    assert len(batch_norms(fused)) == LEFT[type(model).__name__]
    for tool in (torch.jit.script(model), torch.jit.trace(model, x), compiled, fused):
        torch.testing.assert_close(tool(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_pruned_vgg_is_fused_by_name():
    full = fresh("vgg", 11, 3, 32)
    small = prune(full).model
    triples = [[f"feature.{int(n.split('.')[1]) + i}" for i in (-1, 0, 1)] for n in full.norms]
    fused, x = fuse_modules(small, triples), torch.randn(2, 3, 32, 32)
    assert not batch_norms(fused)
    torch.testing.assert_close(fused(x), small(x), rtol=1e-4, atol=1e-5)


@ONE
def test_bench_compares_in_every_engine_that_is_installed(checkpoint, tmp_path, capsys):
    path, model, _ = checkpoint
    argv = ["--batch-size", "2", "--repeats", "1", "--no-cuda", "--compare", str(path)]
    assert console.run(bench.main, [*argv, str(path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"ratio 1\.00\nengine .* full, ms  pruned, ms  ratio", printed)
    rows = re.findall(r"^([a-z][\w-]+) +2 +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", printed, re.M)
    assert [row[0] for row in rows if row[0] != "openvino"] == [
        "onnxruntime",
        "torch",
        "torch-bf16",
    ]
    assert all(float(number) > 0 for _, *row in rows for number in row)
    other = tmp_path / "other.pth.tar"
    network = Network(model, "", 0, 32).with_classes(5)
    torch.save({"state_dict": network.model.state_dict()}, other)
    assert console.run(bench.main, [*argv, str(other)]) == 2
    assert re.fullmatch(
        r"error: .* of 3 classes, .*other\S+ a .* of 5 classes\n", capsys.readouterr().err
    )


def batch_norms(model: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def run_readme_example(model: torch.nn.Module) -> None:
    """Prunes in place with Torch-Pruning."""
    text = (ROOT / "models/README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (example,) = (block for block in blocks if "torch_pruning" in block)
    exec(example, {"model": model, "torch": torch})


def test_torch_pruning_removes_zeros():
    torch.manual_seed(0)
    model, images = vgg11_bn(), torch.randn(4, 3, 32, 32)
    model.avgpool, model.classifier = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(512, 10)
    with torch.no_grad():
        for bn in batch_norms(model):
            bn.weight[::2] = 0
            bn.bias[::2] = -0.1
        expected = model.eval()(images)
    run_readme_example(model)
    assert model.features[0].out_channels == 32
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_torch_pruning_keeps_stream_channels_that_one_layer_needs():
    torch.manual_seed(0)
    model, images = resnet18(num_classes=10), torch.randn(4, 3, 32, 32)
    norms = batch_norms(model)
    with torch.no_grad():
        for bn in norms:
            dead = torch.rand(bn.num_features) < 0.6
            dead[:4], dead[4:6], dead[6:8] = True, False, True  # 0 to 3 are dead in all layers
            bn.weight[dead] = 0
            bn.bias.uniform_(-0.2, 0.2)
            bn.bias[dead] = -0.1
            bn.bias[6:8] = 0.1  # zero, but constant
            bn.running_mean.normal_(0, 0.1)
        alive = sum(int((bn.weight != 0).sum()) for bn in norms)
        expected = model.eval()(images)
    run_readme_example(model)
    assert sum(int((bn.weight != 0).sum()) for bn in batch_norms(model)) == alive
    assert model.conv1.out_channels < 64
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-6)
