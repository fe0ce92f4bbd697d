"""Pruning the state dict of a torchvision model, or of one that a function returns."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import netslim
from runs import assert_same, command
from utils import prune

run = partial(command, prune)
GAMMAS = ("1.weight", "4.weight")
WIDGET = ("--model", "widget.pth", "--arch", "widget:build", "--size", 16)
README = Path(prune.__file__).parent / "pruning" / "README.md"
MODULE = '''
from torch import nn


class Net(nn.Sequential):
    def __init__(self, first=3, bias=True):
        super().__init__(
            nn.Conv2d(first, 20, 3, padding=1), nn.BatchNorm2d(20, bias=bias), nn.ReLU(),
            nn.Conv2d(20, 24, 3, padding=1), nn.BatchNorm2d(24, bias=bias), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
        )


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Net()

    def forward(self, x):
        return self.module(x)


class Number(Net):
    def forward(self, x):
        return super().forward(x).argmax(1)


class Scaled(Net):
    def forward(self, x):
        return super().forward(x / x.abs().max().item())


build, grey, unbiased = Net, lambda: Net(first=1), lambda: Net(bias=False)
parallel = lambda: nn.DataParallel(Net())
normed = lambda: nn.Sequential(nn.Conv2d(3, 20, 3), nn.GroupNorm(1, 20))
reading = lambda: nn.Sequential(nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20))
broken = lambda: nn.Conv2d(3, 20, 3, groups=2)
number = int
'''  # fmt: skip


@torch.no_grad()
def trained(model: nn.Module) -> nn.Module:
    """Random factors, biases and statistics."""
    for bn in model.modules():
        if isinstance(bn, nn.BatchNorm2d):
            bn.weight.uniform_(0.1, 1)
            bn.bias.normal_(0, 0.3)
            bn.running_mean.normal_(0, 0.1)
    return model.eval()


def namespace_of() -> dict:
    exec(MODULE, namespace := {})
    return namespace


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "widget.py").write_text(MODULE)
    torch.manual_seed(0)
    torch.save(trained(namespace_of()["build"]()).state_dict(), "widget.pth")
    return tmp_path


def masked(full: nn.Module, small: nn.Module) -> nn.Module:
    """``full`` with γ = 0 where ``small`` has lost a channel, by the values that are left."""
    for name, bn in full.named_modules():
        if isinstance(bn, nn.BatchNorm2d):
            left = small.get_submodule(name).weight
            bn.weight.data[~torch.isin(bn.weight, left)] = 0
    return full


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_torchvision_model_is_pruned_verified_and_loaded(name, tmp_path, capsys):
    torch.manual_seed(0)
    full = trained(torchvision.models.get_model(name, num_classes=7))
    path = tmp_path / "theirs.pth"
    state = {f"module.{key}": value for key, value in full.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, path)
    assert run("--model", path, "--arch", name, "--ratio", 0.5, "--size", 64) == 0
    printed = capsys.readouterr().out
    assert float(re.search(r"-> pruned: .* differ by (\S+) at most", printed)[1]) < 1e-3
    load = re.search(r"^to load it: (netslim.load.*)$", printed, re.M)[1]
    assert "num_classes=7" in load
    small = eval(load, {"netslim": netslim, "torchvision": torchvision}).eval()
    counts = [sum(p.numel() for p in m.parameters()) for m in (full, small)]
    assert f"parameters: {counts[0]:,} -> {counts[1]:,}, " in printed and counts[1] < counts[0]
    if name == "resnet18":  # without depthwise pairs, of which one γ may stay
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            expected = masked(full, small)(x)
            torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
            assert expected.abs().max() > 1e-2


def example_lines() -> list[list[str]]:
    """The README's commands that prune the model of a function."""
    lines = re.findall(
        r"^python -m utils.prune (.*widget.*?)(?:  +#.*)?$", README.read_text(), re.M
    )
    assert all(flag in str(lines) for flag in ("--ratio", "--round-to", "--keep", "--skip"))
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("words", example_lines(), ids=" ".join)
def test_the_readmes_examples_keep_their_promises(words, folder, capsys):
    full = torch.load("widget.pth", weights_only=True)
    assert run(*words) == 0
    printed = capsys.readouterr().out
    small = torch.load("widget_pruned.pth.tar", weights_only=True)
    widths = [len(small[key]) for key in ("1.weight", "4.weight")]
    assert widths != [20, 24]
    if "--round-to" in words:
        rounded = int(re.search(r"kept for --round-to: (\d+) ch", printed)[1])
        assert [width % 8 for width in widths] == [0, 0] and rounded > 0
    if "--skip" in words:
        assert widths[0] == 20
    if "--keep" in words:
        kept = full["4.weight"].abs().sort(descending=True).values[: widths[1]]
        assert widths[1] >= 0.9 * 24
        assert torch.equal(small["4.weight"].abs().sort(descending=True).values, kept)


def test_what_pruning_changes_is_printed(folder, capsys):
    assert run(*WIDGET, "--ratio", 0.5) == 0
    out, err = capsys.readouterr()
    change = re.search(
        r"before -> masked: outputs on random images differ by (\S+) at most"
        r" \(largest output \S+\); accuracy was not measured: fine-tune the model\n",
        out,
    )[1]
    full, small, fresh = (namespace_of()["build"]() for _ in range(3))
    for model in (full, small):
        model.load_state_dict(torch.load("widget.pth", weights_only=True))
    small = masked(small, netslim.load(fresh, "widget_pruned.pth.tar"))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = float((full.eval()(x) - small.eval()(x)).abs().max())
    assert float(change) == pytest.approx(expected, rel=0.01) and expected > 1e-3
    assert "warning" not in err and "of equal size" not in err


def test_equal_factors_and_layers_of_one_channel_are_counted(folder, capsys):
    state = torch.load("widget.pth", weights_only=True)
    torch.save(state | {name: torch.full_like(state[name], 0.5) for name in GAMMAS}, "equal.pth")
    assert run(*WIDGET, "--model", "equal.pth", "--ratio", 0.25) == 0
    assert "of 44 channels of equal size 0.5, 33 are kept" in capsys.readouterr().err
    assert run(*WIDGET, "--ratio", 1) == 0
    assert "a single channel is left, as each has to keep one: 2; choose" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["build", "Wrapper", "parallel"])
def test_a_pruned_file_is_pruned_again(arch, folder, capsys):
    """Names of the model itself may look like a wrapper's."""
    build = namespace_of()[arch]
    torch.save(state := trained(build()).state_dict(), "widget.pth")
    flags = ("--arch", f"widget:{arch}", "--size", 16, "--ratio")
    assert run("--model", "widget.pth", *flags, 0.5) == 0
    small = netslim.load(build(), "widget_pruned.pth.tar")
    widths = [m.num_features for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(widths) < 30
    assert run("--model", "widget_pruned.pth.tar", *flags, 0.3, "--name", "again") == 0
    assert Path("again.pth.tar").stat().st_size < Path("widget_pruned.pth.tar").stat().st_size
    first = next(iter(state))
    torch.save({name: x for name, x in state.items() if name != first}, "less.pth")
    assert run("--model", "less.pth", *flags, 0.5) == 2
    assert f"{first} is missing" in capsys.readouterr().err


def test_weights_among_those_of_lightning_and_thop_are_found(folder, capsys):
    state = torch.load("widget.pth", weights_only=True)
    inner = {f"model.{name}": x for name, x in state.items()} | {"loss.weight": torch.ones(5)}
    torch.save({"state_dict": inner, "epoch": 3}, "lightning.ckpt")
    torch.save(state | {"total_ops": torch.zeros(1)}, "thop.pth")
    for name in ("widget.pth", "lightning.ckpt", "thop.pth"):
        assert run(*WIDGET, "--ratio", 0.5, "--model", name, "--name", f"from_{name[0]}") == 0
    plain, *others = (torch.load(f"from_{x}.pth.tar", weights_only=True) for x in "wlt")
    for other in others:
        assert_same(plain, other)


@pytest.mark.parametrize("arch", ["Scaled", "grey"])
def test_models_that_need_values_or_grey_images_are_pruned(arch, folder):
    """The first one fails on the meta device, where nothing is computed."""
    torch.save(namespace_of()[arch]().state_dict(), "widget.pth")
    assert run(*WIDGET, "--arch", f"widget:{arch}", "--ratio", 0.5) == 0


def test_batch_norms_without_bias(folder, capsys):
    torch.save(namespace_of()["unbiased"]().state_dict(), "widget.pth")
    limits = ("--round-to", 8, "--keep", "1=50%")
    assert run(*WIDGET, "--arch", "widget:unbiased", "--ratio", 0.5, *limits) == 0
    small = netslim.load(namespace_of()["unbiased"](), "widget_pruned.pth.tar")
    assert small[1].num_features == 16 and small[1].bias is None


BAD = {
    "--arch resnet19": "nor package:function: did you mean resnet1",
    "--arch squeezenet1_0": "has no batch norm",
    "--arch widget:normed": "has no batch norm",
    "--arch widget:reading": "can be removed (1: it is an output of the model)",
    "--arch widget:Number": "differ: not written",
    "--arch resnet18": "widget.pth does not fit --arch resnet18: ",
    "--arch nowhere:build": "cannot be built: ModuleNotFoundError",
    "--arch widget:absent": "cannot be built: AttributeError",
    "--arch widget:broken": "cannot be built: ValueError: in_channels must be",
    "--arch widget:number": "returns int, not a torch.nn.Module",
    "--arch widget:build --ratio 0": "nothing of widget.pth is to be pruned",
    "--arch widget:build --skip conv*": "no layer that can be pruned is called conv*: there are",
    "--arch widget:build --keep 9=0.5": "no layer that can be pruned is called 9: there are 1, 4",
    "--arch widget:build --keep 1": "'1' is not LAYER=SHARE",
    "--arch widget:build --keep 1=2": "--keep: '2' is not a fraction",
    "--arch widget:build --round-to 0": "--round-to: '0' is not",
    "--arch widget:build --mask xi": "--mask is for checkpoints of this program",
    "--arch widget:build --data .": "--data is for checkpoints of this program",
    "--arch widget:build --model .": "there is no checkpoint .: it is a folder",
    "--arch widget:build --model absent.pth": "there is no checkpoint absent.pth: it does not",
    "--arch widget:build --model nan.pth": "nan.pth has values that are not finite in 1.weight",
    "--arch widget:build --model list.pth": "list.pth holds no state dict",
    "--arch widget:build --save widget.py": "widget.py is not a folder",
    "--arch widget:build --name taken": "taken.pth.tar exists already",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_ends_with_status_2_and_one_line(flags, folder, capsys):
    state = torch.load("widget.pth", weights_only=True)
    torch.save(state | {"1.weight": torch.tensor([torch.nan])}, "nan.pth")
    torch.save([1, 2], "list.pth")
    Path("taken.pth.tar").write_text("mine")
    for other in ("normed", "reading"):
        if f"widget:{other}" in flags:
            torch.save(namespace_of()[other]().state_dict(), "widget.pth")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status = run("--model", "widget.pth", "--ratio", 0.5, *flags.split())
    last = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and "error: " in last and BAD[flags] in last
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
