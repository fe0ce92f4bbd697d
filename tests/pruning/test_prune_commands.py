"""The prune command on checkpoints: nothing is lost, targets are reached, figures are right."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

import runs
from models import build_model
from released import batch_norms
from utils.cost import cost
from utils.files import checkpoint
from utils.files.init_from import InitFrom
from utils.files.legacy_formats import to_released
from utils.flags.config import Config
from utils.flags.parser import parser
from utils.network import Network
from utils.pruning import command
from utils.pruning.selector import Selector

DEPTHS = {"vgg": 11, "resnet": 11, "densenet": 7, "resnet-basic": 8}
COUNTED = ("channels", "parameters", "flops")
x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def random_model(arch: str, dead: float, positive: float = 0.0) -> nn.Module:
    """A share ``dead`` of the channels has γ = 0, and of these ``positive`` a positive bias."""
    torch.manual_seed(0)
    model = build_model(arch, DEPTHS[arch], 2).eval()
    with torch.no_grad():
        for bn in batch_norms(model):
            bn.weight.uniform_(0.2, 1)
            bn.bias.uniform_(-0.2, 0.2)
            bn.running_mean.normal_(0, 0.1)
            chosen = torch.rand(bn.num_features) < dead
            positive_bias = torch.rand(bn.num_features) < positive
            bn.weight[chosen] = 0
            bn.bias[chosen] = torch.where(positive_bias, 0.1, -0.1)[chosen]
    return model


def equal_model(arch: str) -> nn.Module:
    model = random_model(arch, 0)
    for bn in batch_norms(model):
        nn.init.ones_(bn.weight)
        nn.init.zeros_(bn.bias)
    return model


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint of an earlier program, with these entries of this one."""

    def write(arch: str, model: nn.Module, **entries: object) -> Path:
        state = to_released(Network(model, arch, DEPTHS[arch], 32))
        content = {"epoch": 1, "state_dict": state, "best_prec1": torch.tensor(0.5)}
        torch.save(content | entries, tmp_path / "net.pth.tar")
        return tmp_path / "net.pth.tar"

    return write


@pytest.fixture
def prune(pictures):
    """Runs a prune command and returns the exit status."""

    def run(family: str, path: Path, *flags: object) -> int:
        program = importlib.import_module(f"{family}_prune" if family else "utils.prune")
        data = "--dataset", "folder", "--data", pictures, "--no-cuda"
        return runs.command(program, "--model", path, *data, *flags)

    return run


def record(folder: Path) -> dict[str, str]:
    return runs.rows(folder / "pruned_record.csv")[-1]


def pruned_model(folder: Path, name: str = "net_pruned") -> nn.Module:
    (path,) = folder.rglob(f"{name}.pth.tar")
    return checkpoint.load(path).network.model.eval()


def removed_or_carrying(folder: Path, name: str = "net_pruned") -> int:
    """Number of channels with γ = 0: removed, or kept to carry the constants of others."""
    row, norms = record(folder), batch_norms(pruned_model(folder, name))
    carriers = sum(int((bn.weight == 0).sum()) for bn in norms)
    return int(row["channels"]) - int(row["channels_kept"]) + carriers


@pytest.mark.parametrize(("arch", "positive"), [("resnet", 0), ("vgg", 0), ("densenet", 0.5)])
def test_zeros_are_pruned_without_loss(arch, positive, prune, save, tmp_path, capsys):
    model = random_model(arch, 0.5, positive)
    assert prune(arch, save(arch, model)) == 0
    printed, row = capsys.readouterr().out, record(tmp_path)
    zeros = sum(int((bn.weight == 0).sum()) for bn in batch_norms(model))
    constant = sum(int(((b.weight == 0) & (b.bias > 0)).sum()) for b in batch_norms(model))
    assert (int(row["silent"]), row["alive"]) == (zeros - constant, "0")
    assert removed_or_carrying(tmp_path) == zeros and (int(row["constant"]) > 0) == (positive > 0)
    assert f"{zeros - constant} with γ = 0 and output 0" in printed
    assert ("lossless" in printed) == (positive == 0)
    assert row["difference_masked"] == "0"  # bitwise
    assert (row["changed_masked"], row["changed_slim"]) == ("0", "0")
    assert float(row["difference_slim"]) < 1e-4 * float(row["largest_logit"])
    with torch.no_grad():
        torch.testing.assert_close(pruned_model(tmp_path)(x), model(x), rtol=1e-3, atol=1e-4)


def test_mask_xi_prunes_more_and_compares_itself_with_gamma(prune, save, tmp_path, capsys):
    """Of γ, so many are pruned that the same target is reached."""
    model, target = random_model("densenet", dead=0.02), ("--target-flops", 0.2)
    norms = batch_norms(model)
    xi = torch.cat([bn.weight.detach() for bn in norms])
    near_zero = (torch.rand(len(xi)) < 0.3) & (xi != 0)
    for bn, chosen in zip(norms, near_zero.split([len(b.weight) for b in norms]), strict=True):
        bn.weight.data[chosen] *= 1e-3
    xi.masked_fill_(near_zero, 0)  # reaches the target alone
    path = save("densenet", model, method={"xi": xi})
    assert prune("densenet", path, "--mask", "xi", *target, "--name", "xi") == 0
    row, printed = record(tmp_path), capsys.readouterr().out
    assert removed_or_carrying(tmp_path, "xi") == int((xi == 0).sum())
    assert 0 < int(row["alive"]) <= int(near_zero.sum())
    assert float(row["difference_masked"]) < 0.1 * float(row["largest_logit"])
    lines = [re.search(rf"^{mask} .*", printed, re.M)[0] for mask in ("gamma", "xi")]
    assert prune("densenet", path, *target, "--name", "gamma") == 0
    for line, one in zip(lines, (record(tmp_path), row), strict=True):
        assert re.split(r" {2,}", line)[1:4] == [f"{one[f'{c}_pruned_percent']} %" for c in COUNTED]


@pytest.mark.parametrize(("flag", "unit"), [("flops", "flops"), ("params", "parameters")])
def test_a_target_is_reached_by_the_fewest_channels(flag, unit, prune, save, tmp_path, capsys):
    """Unused stream channels count for it, but not in the other figures."""
    model = random_model("densenet", 0.1) if flag == "flops" else equal_model("densenet")
    path = save("densenet", model)

    def saved(name: str) -> float:
        return 1 - getattr(cost(pruned_model(tmp_path, name)), unit) / getattr(cost(model), unit)

    assert prune("densenet", path, f"--target-{flag}", "0.6", "--name", "a") == 0
    printed, row, share = capsys.readouterr().out, record(tmp_path), f"{100 * saved('a'):.2f}"
    assert saved("a") >= 0.6 and int(row[f"unread_{unit}"]) > 0
    assert float(row[f"{unit}_pruned_percent"]) < float(share)
    assert f"--target-{flag} 60 %: {share} % of the {unit} are pruned\n" in printed
    assert re.search(rf"so the pruned model has .* {unit}, {share} % pruned", printed)
    fewer = (removed_or_carrying(tmp_path, "a") - 1) / int(row["channels"])
    assert prune("densenet", path, "--percent", fewer, "--name", "b") == 0
    assert saved("b") < 0.6


def test_ratio_adjust_and_criterion(prune, save, tmp_path):
    model = random_model("resnet-basic", dead=0)
    batch_norms(model)[0].weight.data.mul_(1e-3)
    path = save("resnet-basic", model)
    widths = {}
    for name, flags in (
        ("gamma", ("--adjust", 0.25)),
        ("filters", ("--criterion", "filters")),
        ("random", ("--criterion", "random")),
    ):
        assert prune("resnet", path, "--ratio", 0.5, *flags, "--name", name) == 0
        row = record(tmp_path)
        widths[name] = batch_norms(pruned_model(tmp_path, name))[0].num_features  # 16 before
        assert (row["percent"], row["adjust"]) == ("0.5", "0.25" if name == "gamma" else "0.0")
        assert row["criterion"] == name
    assert widths["gamma"] == 4 < min(widths["filters"], widths["random"])
    args = command.parser(None).parse_args(["--model", "x", "--criterion", "random"])
    net = Network(model, "resnet-basic", 8, 32)
    scores = [Selector(net, args, seed=seed).scores for seed in (1, 1, 2)]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


def test_limits_by_layer_and_on_widths(prune, save, tmp_path, capsys):
    model = random_model("resnet", dead=0.6, positive=0.5)
    limits = ("--skip", "layer1.*", "--keep", "layer3.0.bn[23]=0.7", "--round-to", 4)
    assert prune("resnet", save("resnet", model), "--percent", 0.7, *limits) == 0
    assert re.search(r"^kept for --round-to: \d+ channels$", capsys.readouterr().out, re.M)
    row, network = record(tmp_path), checkpoint.load(tmp_path / "net_pruned.pth.tar").network
    assert (row["keep"], row["skip"], row["round_to"]) == ("layer3.0.bn[23]=0.7", "layer1.*", "4")
    widths = dict(zip(network.layers, network.widths, strict=True))
    assert [widths[f"layer1.0.bn{i}"] for i in (1, 2, 3)] == [16, 16, 16]
    assert torch.equal(network.model.layer1[0].bn2.bias, model.layer1[0].bn2.bias)
    assert min(widths["layer3.0.bn2"], widths["layer3.0.bn3"]) >= 0.7 * 64
    assert all(width % 4 == 0 for width in widths.values()) and widths["layer2.0.bn2"] < 32


BAD = {
    "--mask xi": ("resnet", "has no xi: --mask takes gamma"),
    "--target-flops 0.99": ("resnet-basic", r"out of reach: .* 0\.\d+ of the flops"),
    "--criterion filters": ("densenet", "no channel of a densenet has a filter of its own"),
    "--layout released": ("resnet-basic", "the earlier programs know no resnet-basic"),
    "--skip conv*": ("resnet", r"--skip conv\*: no layer .* there are layer1.0.bn1, layer1.0.bn2"),
    "--keep fc=0.5": ("resnet", r"--keep fc: no layer .* there are layer1.0.bn1, layer1.0.bn2"),
    "--size 64": ("resnet", "--size is for --arch"),
    "--for torch --round-to 8": ("resnet", "leave --round-to out"),
    "--batch-size 64": ("resnet", "name the engine, as --for onnxruntime"),
    "--target-latency 50%": ("resnet", "name the engine, as --for onnxruntime"),
    "--for torch --target-latency 100%": ("resnet", "'100%' is not a share below 100%"),
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags_are_refused_in_one_line(flags, prune, save, tmp_path, capsys):
    arch, message = BAD[flags]
    path = save(arch, random_model(arch, 0.1))
    assert prune(arch.partition("-")[0], path, *flags.split()) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth.tar"]


def trained_entries(**settings: object) -> dict[str, object]:
    """Entries of a checkpoint of this program, of a training with these settings."""
    config = Config.from_dict({"arch": "resnet", "depth": 11, "dataset": "folder", **settings})
    return {"run": config.run_name, "settings": config.to_dict()}


def test_lp_admm_prunes_the_zeros_of_z_and_folds_their_constants(prune, save, tmp_path, capsys):
    model = random_model("resnet", 0)
    model.layer1[0].bn2.bias.data.fill_(0.05)
    widths = [bn.num_features for bn in batch_norms(model)]
    z, u = torch.ones(sum(widths)), torch.zeros(sum(widths))
    z[torch.rand(len(z)) < 0.4] = 0
    path = save("resnet", model, method={"z": z, "u": u}, **trained_entries(method="lp-admm"))
    assert prune("resnet", path, "--name", "zeros") == 0
    row = record(tmp_path)
    assert (row["mask"], removed_or_carrying(tmp_path, "zeros")) == ("z", int((z == 0).sum()))
    assert float(row["difference_slim"]) < 1e-3 * float(row["largest_logit"])
    kept = [int(bn.weight.count_nonzero()) for bn in batch_norms(pruned_model(tmp_path, "zeros"))]
    assert kept == [int(part.count_nonzero()) for part in z.split(widths)]
    assert prune("resnet", path, "--ratio", "0.6", "--name", "more") == 0
    assert removed_or_carrying(tmp_path, "more") == int(0.6 * len(z))  # the smallest |γ| beyond
    assert prune("resnet", path, "--mask", "u") == 2
    assert "--mask takes gamma, z" in capsys.readouterr().err


def finetuning(printed: str) -> tuple[Config, list[str]]:
    """Main.py's settings by the last printed command, and the command's words."""
    words = shlex.split(re.fullmatch("to fine-tune it: (.*)", printed.splitlines()[-1])[1])
    flags = vars(parser().parse_args(words[2:]))
    return InitFrom.from_flags(flags).config(flags), words


def test_the_fine_tuning_command_has_the_settings_of_the_training(
    prune, save, tmp_path, pictures, capsys
):
    """The precision is the one that auto chose; of an earlier program's file, all are defaults."""
    other = {"epochs": 2, "batch_size": 16, "lr": 0.05, "warmup": 1, "seed": 3, "nesterov": False,
             "label_smoothing": 0.1, "weight_decay": 0.01, "subset": 30}  # fmt: skip
    entries = trained_entries(method="proximal", data=str(pictures), precision="auto", **other)
    path = save("resnet", random_model("resnet", 0.3), precision="bf16", **entries)
    assert prune("resnet", path, "--name", "small", "--test-batch-size", 8) == 0
    config, words = finetuning(capsys.readouterr().out)
    settings = config.to_dict()
    assert {key: settings[key] for key in other} == other
    assert (config.method, config.precision, config.data) == ("baseline", "bf16", str(pictures))
    assert "--no-cuda" in words and "--workers" not in words
    assert words[words.index("--test-batch-size") + 1] == "8"
    assert prune("resnet", save("resnet", random_model("resnet", 0.3))) == 0
    config, words = finetuning(capsys.readouterr().out)
    assert (config.dataset, config.data, config.epochs) == ("folder", str(pictures), 160)


@pytest.mark.parametrize(
    ("arch", "layout"),
    [("resnet", "compact"), ("resnet-basic", "compact"), ("densenet", "released")],
)
def test_shares_of_the_full_model_are_the_same_after_a_second_pruning(
    arch, layout, prune, save, tmp_path, capsys
):
    path, family = save(arch, random_model(arch, 0.8)), arch.partition("-")[0]
    shares = [f"original_{c}_pruned_percent" for c in COUNTED]
    assert prune(family, path, "--layout", layout, "--name", "a") == 0
    first = record(tmp_path)
    assert [first[share] for share in shares] == [first[share[9:]] for share in shares]
    capsys.readouterr()
    assert prune(family, tmp_path / "a.pth.tar", "--name", "b") == 0
    again, printed = record(tmp_path), capsys.readouterr().out
    assert again["channels"] == again["channels_kept"] == first["channels_kept"]
    assert [again[share] for share in shares] == [first[share] for share in shares]
    streams = ", streams at full width" * (arch != "resnet-basic")
    assert f"pruned of the full model{streams}: {again[shares[0]]} %" in printed
    assert "to fine-tune it: " in printed.splitlines()[-1]


@pytest.mark.parametrize("family", ["densenet", ""])
def test_where_nothing_is_zero_the_printed_commands_prune(family, prune, save, tmp_path, capsys):
    """The unpruned model is written for scripts, and may be overwritten."""
    model = random_model("densenet", dead=0)
    xi = torch.ones(sum(bn.num_features for bn in batch_norms(model)))
    xi[::3] = 0
    path, output = save("densenet", model, method={"xi": xi}), tmp_path / "net_pruned.pth.tar"
    assert prune(family, path) == 0
    printed, err = capsys.readouterr()
    assert "fine-tune" not in printed and f"{output} is the unpruned model" in printed
    zeros = int((xi == 0).sum())
    assert "no scaling factor is zero, so nothing was pruned: train for more epochs, or" in err
    assert f"or prune the {zeros} channels whose xi is zero, or choose a share" in err
    commands = re.findall(r"^next, .*?: (.*)$", printed, re.M)
    for line, mask, count in zip(commands, ("xi", "gamma"), (zeros, len(xi) // 2), strict=True):
        words = shlex.split(line)[1:]
        assert words[0].endswith("densenet_prune.py" if family else "-m")
        if not family:
            continue
        assert prune(family, path, *words[words.index("--no-cuda") + 1 :]) == 0
        assert (record(tmp_path)["mask"], removed_or_carrying(tmp_path)) == (mask, count)
        capsys.readouterr()
        assert prune(family, path, "--percent", "0.1") == 2  # a pruned model is not overwritten
        assert f"{output} exists already" in capsys.readouterr().err
        assert prune(family, path, "--data", tmp_path) == 2  # the wrong data are named first
        assert "has neither train nor test" in capsys.readouterr().err
        output.unlink()


@pytest.mark.parametrize("limit", ["--adjust 1 keeps", "--skip *"])
def test_where_limits_keep_every_channel_a_note_says_so(limit, prune, save, capsys):
    path = save("densenet", random_model("densenet", dead=0.3))
    assert prune("densenet", path, *limit.split()[:2]) == 0
    printed, err = capsys.readouterr()
    note = limit if limit.startswith("--adjust") else "the limits keep"
    assert "fine-tune" not in printed and f"nothing was pruned: {note} all" in err
