"""Pruned models in other engines: export, torch's own tools, the bench, Torch-Pruning."""

import copy
import json
import pickle
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.ao.quantization import fuse_modules
from torch.fx.experimental.optimization import fuse
from torchvision.models import resnet18

import netslim
from own_pictures import noise, save
from utils import console, export
from utils.bench import __main__ as bench
from utils.data.datasets import load_dataset
from utils.network import Network, fresh

CLASSES, MEAN, STD = ["b", "c", "ä"], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
ROOT = Path(__file__).parents[1]


def prune(arch: str, depth: int, size: int = 32) -> Network:
    """Returns a network with a third of the channels; the others emitted constants."""
    torch.manual_seed(0)
    network = fresh(arch, depth, 3, size)
    with torch.no_grad():
        for bn in network.norms.values():
            bn.bias.normal_(0, 0.1)
    masks = [torch.arange(width) < max(1, width / 3) for width in network.widths]
    small = network.remove(network.plan(masks))
    small.model.eval()
    return small


def saved(folder: Path, small: Network, **more: object) -> Path:
    """Returns the path of a checkpoint of ``small``."""
    content = {"cfg": small.cfg, "state_dict": small.model.state_dict(), "classes": CLASSES}
    torch.save(content | more, folder / "net_pruned.pth.tar")
    return folder / "net_pruned.pth.tar"


def run(*argv: object) -> int:
    return console.run(export.main, list(map(str, argv)))


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    return (images - mean) / std


def onnx_logits(path: Path, images: torch.Tensor) -> np.ndarray:
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
    return logits


def metadata_of(program: onnx.ModelProto) -> dict[str, object]:
    return {p.key: json.loads(p.value) for p in program.metadata_props}


@torch.no_grad()
def test_onnx_has_the_checkpoints_logits_and_metadata(tmp_path):
    small = prune("densenet", 7)
    assert run("--model", saved(tmp_path, small, mean=MEAN, std=STD)) == 0
    written = tmp_path / "net_pruned.onnx"
    program = onnx.load(written)
    operators = [node.op_type for node in program.graph.node]
    assert operators.count("BatchNormalization") == 6  # those that follow no convolution
    assert metadata_of(program) == {
        "classes": CLASSES, "mean": MEAN, "std": STD, "input": "RGB from 0 to 1", "resize": 32,
        "center_crop": 32}  # fmt: skip
    for n in (1, 5):
        images = torch.rand(n, 3, 32, 32)
        expected = small.model(normalised(images)).numpy()
        np.testing.assert_allclose(onnx_logits(written, images), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pt2_has_the_logits_and_metadata_of_a_torchvision_model(tmp_path):
    small = prune("resnet18", 18, 40)
    settings = {"arch": "resnet18", "depth": 18, "dataset": "imagenet", "size": 40}
    path = saved(tmp_path, small, settings=settings)
    assert run("--model", path, "--format", "pt2", "--normalised") == 0
    extra = dict.fromkeys(["classes", "input", "resize", "center_crop"], "")
    program = torch.export.load(tmp_path / "net_pruned.pt2", extra_files=extra).module()
    assert [json.loads(x) for x in extra.values()] == [CLASSES, "normalised", 46, 40]
    x = torch.rand(3, 3, 40, 40)
    torch.testing.assert_close(program(x), small.model(x), rtol=1e-4, atol=1e-5)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images of the classes."""
    for i, name in enumerate(CLASSES):
        for part, count in (("train", 4), ("test", 2)):
            for j in range(count):
                colours = noise(8, 8, 3).repeat(4, 0).repeat(4, 1) // 2 + 40 * i
                save(tmp_path / f"data/{part}/{name}/{j}.png", colours.astype(np.uint8))
    return tmp_path / "data"


@torch.no_grad()
@pytest.mark.parametrize(("arch", "depth"), [("resnet-basic", 8), ("densenet", 7)])
def test_int8_answers_nearly_as_float32(arch, depth, images, tmp_path, monkeypatch, capfd):
    """The ResNet has channels of tiny or no factor, whose bias is kept."""
    calibration: list[torch.Tensor] = []
    quantize = export.quantize

    def watched(program: Path, output: Path, batches: Iterable[torch.Tensor]) -> None:
        calibration.extend(batches)
        quantize(program, output, calibration)

    monkeypatch.setattr(export, "quantize", watched)
    small, flags = prune(arch, depth), ["--int8", "--dataset", "folder", "--data", images]
    if arch == "resnet-basic":
        flags.append("--normalised")
        for bn in small.norms.values():
            bn.weight[:5] = torch.tensor([1e-3, 1e-9, 1e-20, 1e-36, 0])
            bn.bias[:5] = 0.5
    assert run("--model", saved(tmp_path, small, mean=MEAN, std=STD), *flags) == 0
    out, err = capfd.readouterr()
    rows = r"accuracy, % +[\d.]+ +[\d.]+\nms at batch 1 +[\d.]+ +[\d.]+\nms at batch 64 +\d.*\n"
    assert re.search(rf" float32 +int8\n{rows}predictions changed: \d of 6\n$", out)
    assert "WARNING" not in err  # of onnxruntime
    assert bool((torch.cat(calibration) < 0).any()) == ("--normalised" in flags)
    written = tmp_path / "net_pruned_int8.onnx"
    program = onnx.load(written)
    assert metadata_of(program)["classes"] == CLASSES
    weights = [x for x in program.graph.initializer if len(x.dims) == 4]
    assert {x.data_type for x in weights} == {onnx.TensorProto.INT8}
    quantised = {x.input[0] for x in program.graph.node if x.op_type == "QuantizeLinear"}
    concatenated = {x.output[0] for x in program.graph.node if x.op_type == "Concat"}
    assert quantised and not quantised & concatenated  # one scale is not enough for a stream
    x = load_dataset("folder", images).train.images.permute(0, 3, 1, 2) / 255
    expected = small.model(normalised(x)).numpy()
    x = normalised(x) if arch == "resnet-basic" else x
    for n in (1, 5):
        error = onnx_logits(written, x[:n]) - expected[:n]
        assert 0 < np.abs(error).max() < 0.1 * expected.std(0).max() + 0.02


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--int8"], r"--int8 needs onnxruntime: .* -m pip install onnxruntime\n"),
        (["--int8", "--format", "pt2"], "--int8 is for ONNX: --format pt2 has no int8 form"),
        (["--data", "images"], "--data is for --int8: add --int8, or leave it out"),
        ([], "has no normalisation: export it with --normalised"),
        (["--format", "sparse", "--normalised"], "--normalised is for programs"),
        (["--output", "net_pruned.pth.tar"], "is the checkpoint itself"),
    ],
)
def test_bad_flags_are_refused(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    find, path = console.find_spec, saved(tmp_path, prune("resnet-basic", 8))
    monkeypatch.setattr(console, "find_spec", lambda n: None if n == "onnxruntime" else find(n))
    before = path.read_bytes()
    assert run("--model", path.name, *flags) == 2
    assert re.match(rf"error: .*{message}", capsys.readouterr().err)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


@pytest.mark.filterwarnings("ignore")  # torch's, about its own tools
@torch.no_grad()
@pytest.mark.parametrize(("arch", "depth", "left"), [("resnet", 11, 4), ("densenet", 7, 6)])
def test_torchs_own_tools_take_pruned_models(arch, depth, left):
    """``left`` batch norms follow no convolution, but read a stream."""
    model, x = prune(arch, depth).model, torch.randn(2, 3, 32, 32)
    types = {type(m) for m in model.modules() if type(m).__module__.startswith("netslim")}
    assert types <= {netslim.ChannelSelection}
    expected, fused = model(x), fuse(model)
    assert len(batch_norms(fused)) == left
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for tool in (torch.jit.script(model), torch.jit.trace(model, x), compiled, fused):
        torch.testing.assert_close(tool(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_pruned_vgg_is_fused_by_name():
    small, x = prune("vgg", 11), torch.randn(2, 3, 32, 32)
    triples = [[f"feature.{int(n.split('.')[1]) + i}" for i in (-1, 0, 1)] for n in small.norms]
    fused = fuse_modules(small.model, triples)
    assert not batch_norms(fused)
    torch.testing.assert_close(fused(x), small.model(x), rtol=1e-4, atol=1e-5)


def test_bench_compares_in_every_engine_that_is_installed(tmp_path, capsys):
    small = prune("resnet-basic", 8)
    path, other = saved(tmp_path, small), tmp_path / "other.pth.tar"
    argv = ["--batch-size", "2", "--repeats", "1", "--no-cuda", "--compare", str(path)]
    assert console.run(bench.main, [*argv, str(path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"ratio 1\.00\nengine .* full, ms  pruned, ms  ratio", printed)
    rows = re.findall(r"^([a-z][\w-]+) +2 +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", printed, re.M)
    engines = [row[0] for row in rows if row[0] != "openvino"]
    assert engines == ["onnxruntime", "torch", "torch-bf16"]
    assert all(float(number) > 0 for _, *row in rows for number in row)
    torch.save({"state_dict": small.with_classes(5).model.state_dict()}, other)
    assert console.run(bench.main, [*argv, str(other)]) == 2
    error = r"error: .* of 3 classes, .*other\S+ a .* of 5 classes\n"
    assert re.fullmatch(error, capsys.readouterr().err)


def batch_norms(model: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_torch_pruning_removes_zeros_but_no_stream_channel_that_one_layer_needs():
    """By the example of the README."""
    text = (ROOT / "models/README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (example,) = (block for block in blocks if "torch_pruning" in block)
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
    exec(example, {"model": model, "torch": torch})
    assert sum(int((bn.weight != 0).sum()) for bn in batch_norms(model)) == alive
    assert model.conv1.out_channels < 64
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-6)
