"""The prune command on checkpoints: nothing is lost, targets are reached, figures are right."""

import csv
import importlib
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import released
from models import build_model
from released import batch_norms
from runs import train
from utils import console
from utils.cost import cost
from utils.files import checkpoint
from utils.files.init_from import InitFrom
from utils.files.legacy_formats import to_released
from utils.flags.config import Config
from utils.flags.parser import parser
from utils.network import Network
from utils.pruning import command
from utils.pruning.selector import Selector
from utils.training import build

MODELS = [("vgg", 11), ("resnet", 11), ("densenet", 7)]
UNITS = {"flops": "flops", "params": "parameters"}
COUNTED = ("channels", "parameters", "flops")
x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
each_model = pytest.mark.parametrize(("arch", "depth"), MODELS)


def save(path: Path, model: nn.Module, arch: str, depth: int, xi=None) -> Path:
    state = to_released(Network(model, arch, depth, 32))
    content = {"epoch": 1, "state_dict": state, "best_prec1": torch.tensor(0.5)}
    torch.save({**content, "method": {} if xi is None else {"xi": xi}}, path)
    return path


def random_model(arch: str, depth: int, dead: float, positive: float = 0.0) -> nn.Module:
    """A share ``dead`` of the channels has γ = 0, and of these ``positive`` a positive bias."""
    torch.manual_seed(0)
    model = build_model(arch, depth, 2).eval()
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


def equal_model(arch: str, depth: int) -> nn.Module:
    model = random_model(arch, depth, 0)
    for bn in batch_norms(model):
        nn.init.ones_(bn.weight)
        nn.init.zeros_(bn.bias)
    return model


@pytest.fixture
def prune(pictures):
    """Runs a prune command and returns the exit status."""

    def run(arch: str, path: Path, *flags: object) -> int:
        program = importlib.import_module(f"{arch}_prune" if arch else "utils.prune")
        argv = ["--model", path, "--dataset", "folder", "--data", pictures, "--no-cuda", *flags]
        return console.run(program.main, list(map(str, argv)))

    return run


def record(folder: Path) -> dict[str, str]:
    with (folder / "pruned_record.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


def pruned_model(folder: Path) -> nn.Module:
    (path,) = folder.rglob("*pruned.pth.tar")
    return checkpoint.load(path).network.model.eval()


def carriers(folder: Path) -> int:
    """Kept channels with γ = 0, which carry the constants of others to the border."""
    return sum(int((bn.weight == 0).sum()) for bn in batch_norms(pruned_model(folder)))


def removed_or_carrying(folder: Path) -> int:
    row = record(folder)
    return int(row["channels"]) - int(row["channels_kept"]) + carriers(folder)


@each_model
def test_silent_channels_are_pruned_without_loss(arch, depth, prune, tmp_path, capsys):
    model = random_model(arch, depth, dead=0.5)
    assert prune(arch, save(tmp_path / "net.pth.tar", model, arch, depth)) == 0
    printed, row = capsys.readouterr().out, record(tmp_path)
    dead = sum(int((bn.weight == 0).sum()) for bn in batch_norms(model))
    assert (row["silent"], row["constant"], row["alive"]) == (str(dead), "0", "0")
    assert f"{dead} with γ = 0 and output 0" in printed and "lossless" in printed
    assert row["difference_masked"] == "0"  # bitwise
    assert float(row["difference_slim"]) < 1e-4 * float(row["largest_logit"])
    assert (row["changed_masked"], row["changed_slim"]) == ("0", "0")
    with torch.no_grad():
        torch.testing.assert_close(pruned_model(tmp_path)(x), model(x), rtol=1e-4, atol=1e-5)


@each_model
def test_constants_are_counted_and_folded(arch, depth, prune, tmp_path, capsys):
    model = random_model(arch, depth, dead=0.5, positive=0.5)
    assert prune(arch, save(tmp_path / "net.pth.tar", model, arch, depth)) == 0
    constant = sum(int(((b.weight == 0) & (b.bias > 0)).sum()) for b in batch_norms(model))
    row = record(tmp_path)
    assert int(row["constant"]) == constant - carriers(tmp_path) > 0
    assert row["difference_masked"] == "0"
    assert "lossless" not in capsys.readouterr().out
    with torch.no_grad():
        torch.testing.assert_close(pruned_model(tmp_path)(x), model(x), rtol=1e-3, atol=1e-4)


@each_model
def test_mask_xi_prunes_more_and_compares_itself_with_gamma(arch, depth, prune, tmp_path, capsys):
    model = random_model(arch, depth, dead=0.3)
    norms = batch_norms(model)
    xi = torch.cat([bn.weight.detach() for bn in norms])
    near_zero = (torch.rand(len(xi)) < 0.2) & (xi != 0)
    for bn, chosen in zip(norms, near_zero.split([len(b.weight) for b in norms]), strict=True):
        bn.weight.data[chosen] = 1e-7
    save(tmp_path / "net.pth.tar", model, arch, depth, xi.masked_fill(near_zero, 0))
    assert prune(arch, tmp_path / "net.pth.tar", "--mask", "xi") == 0
    row, printed = record(tmp_path), capsys.readouterr().out
    assert removed_or_carrying(tmp_path) == int(((xi == 0) | near_zero).sum())
    assert 0 < int(row["alive"]) <= int(near_zero.sum())
    shares = [re.search(rf"^{m} +([\d.]+) %", printed, re.M)[1] for m in ("gamma", "xi")]
    assert float(shares[0]) < float(shares[1]) == float(row["channels_pruned_percent"])
    assert float(row["difference_masked"]) < 1e-3 * float(row["largest_logit"])


def test_gammas_mask_is_compared_at_the_same_target(prune, tmp_path, capsys):
    model = random_model("resnet", 11, dead=0)
    xi = torch.ones(sum(bn.num_features for bn in batch_norms(model)))
    xi[::2] = 0  # reaches the target alone
    path, target = save(tmp_path / "net.pth.tar", model, "resnet", 11, xi), ("--target-flops", 0.2)
    assert prune("resnet", path, "--mask", "xi", *target) == 0
    (line,) = re.findall(r"^gamma .*", capsys.readouterr().out, re.M)
    assert prune("resnet", path, *target, "--name", "other") == 0
    row = record(tmp_path)
    assert float(row["channels_pruned_percent"]) > 0
    assert re.split(r" {2,}", line)[1:4] == [f"{row[f'{c}_pruned_percent']} %" for c in COUNTED]


@pytest.mark.parametrize(
    ("arch", "depth", "equal", "flag"),
    [
        ("vgg", 11, False, "flops"),
        ("resnet", 11, False, "params"),
        ("densenet", 7, False, "flops"),
        ("densenet", 7, True, "params"),
    ],
)
def test_a_target_is_reached_by_the_fewest_channels(arch, depth, equal, flag, prune, tmp_path):
    model = equal_model(arch, depth) if equal else random_model(arch, depth, 0.1)
    path = save(tmp_path / "net.pth.tar", model, arch, depth)

    def saved() -> float:
        pair = (getattr(cost(m), UNITS[flag]) for m in (pruned_model(tmp_path), model))
        return 1 - next(pair) / next(pair)

    assert prune(arch, path, f"--target-{flag}", "0.6") == 0
    assert saved() >= 0.6
    fewer = (removed_or_carrying(tmp_path) - 1) / int(record(tmp_path)["channels"])
    next(tmp_path.rglob("*pruned.pth.tar")).unlink()
    assert prune(arch, path, "--percent", fewer) == 0
    assert saved() < 0.6


@each_model
def test_the_released_layout_is_read_by_the_earlier_programs(arch, depth, prune, tmp_path):
    model = random_model(arch, depth, dead=0.5)
    path = save(tmp_path / "net.pth.tar", model, arch, depth)
    assert prune(arch, path, "--layout", "released") == 0
    (path,) = tmp_path.rglob("*pruned.pth.tar")
    content = torch.load(path, weights_only=True)
    assert content["layout"] == "released"
    state = content["state_dict"]
    for key in [key for key in state if key.endswith("select.indexes")]:
        bn = key.removesuffix("select.indexes")
        bn += "bn1" if f"{bn}bn1.weight" in state else "bn"
        removed = state[key] == 0
        assert state[key].dtype == torch.float32
        assert (state[f"{bn}.weight"][removed] == 0).all()
        assert (state[f"{bn}.running_var"][removed] == 1).all()
    with torch.no_grad():
        logits = getattr(released, arch)(state, x)
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pruned_model(tmp_path)(x), logits, rtol=1e-4, atol=1e-5)


def test_ratio_adjust_and_criterion(prune, tmp_path):
    model = random_model("vgg", 11, dead=0)
    batch_norms(model)[0].weight.data.mul_(1e-3)
    path = save(tmp_path / "net.pth.tar", model, "vgg", 11)
    assert prune("vgg", path, "--ratio", 0.5, "--adjust", 0.25) == 0
    row = record(tmp_path)
    assert (row["percent"], row["adjust"], row["criterion"]) == ("0.5", "0.25", "gamma")
    assert batch_norms(pruned_model(tmp_path))[0].num_features == 16  # else one
    next(tmp_path.rglob("*pruned.pth.tar")).unlink()
    assert prune("vgg", path, "--ratio", 0.5, "--criterion", "filters") == 0
    assert record(tmp_path)["criterion"] == "filters"
    assert batch_norms(pruned_model(tmp_path))[0].num_features > 16
    next(tmp_path.rglob("*pruned.pth.tar")).unlink()
    assert prune("vgg", path, "--ratio", 0.5, "--criterion", "random") == 0
    assert record(tmp_path)["criterion"] == "random"
    assert 20 < batch_norms(pruned_model(tmp_path))[0].num_features < 44  # of 64
    args = command.parser(None).parse_args(["--model", "x", "--criterion", "random"])
    net = Network(model, "vgg", 11, 32)
    scores = [Selector(net, args, seed=seed).scores for seed in (1, 1, 2)]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


def test_limits_by_layer_and_on_widths(prune, tmp_path, capsys):
    model = random_model("resnet", 11, dead=0.6, positive=0.5)
    path = save(tmp_path / "net.pth.tar", model, "resnet", 11)
    limits = ("--skip", "layer1.*", "--keep", "layer3.0.bn[23]=0.7", "--round-to", 4)
    assert prune("resnet", path, "--percent", 0.7, *limits) == 0
    full = dict(model.named_modules())
    norms = dict(pruned_model(tmp_path).named_modules())
    widths = {name: len(norms.get(f"{name}.norm", norms[name]).weight) for name in full
              if isinstance(full[name], nn.BatchNorm2d)}  # fmt: skip
    assert all(w == len(full[n].weight) for n, w in widths.items() if n.startswith("layer1"))
    assert min(widths["layer3.0.bn2"], widths["layer3.0.bn3"]) >= 0.7 * 64
    assert all(width % 4 == 0 for width in widths.values()) and widths["layer2.0.bn2"] < 32
    assert re.search(r"^kept for --round-to: \d+ channels$", capsys.readouterr().out, re.M)
    row = record(tmp_path)
    assert (row["keep"], row["skip"], row["round_to"]) == ("layer3.0.bn[23]=0.7", "layer1.*", "4")


BAD = {
    "--mask xi": ("vgg", 11, "has no xi: --mask takes gamma"),
    "--target-flops 0.99": ("resnet", 11, r"out of reach: .* 0\.\d+ of the flops"),
    "--criterion filters": ("densenet", 7, "no channel of a densenet has a filter of its own"),
    "--layout released": ("resnet-basic", 8, "the earlier programs know no resnet-basic"),
    "--skip conv*": ("vgg", 11, r"--skip conv\*: no layer .* there are feature.1, feature.5"),
    "--keep bn=0.5": ("vgg", 11, r"--keep bn: no layer .* there are feature.1, feature.5"),
    "--size 64": ("vgg", 11, "--size is for --arch"),
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags_are_refused_in_one_line(flags, prune, tmp_path, capsys):
    arch, depth, message = BAD[flags]
    path = save(tmp_path / "net.pth.tar", random_model(arch, depth, 0.1), arch, depth)
    assert prune(arch.partition("-")[0], path, *flags.split()) == 2
    assert re.fullmatch(f"error: .*{message}.*\n", capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth.tar"]


def test_lp_admm_prunes_the_zeros_of_z_and_folds_their_constants(tmp_path, pictures, capsys):
    import vgg_prune

    flags = ["-sr", "--method", "lp-admm", "--s", "0.1", "--rho", "0.5", "--arch", "vgg", "--depth"]
    assert train(tmp_path, pictures, *flags, 11, "--epochs", 1) == 0
    path = tmp_path / "lp-admm_seed1_vgg_11_folder/checkpoint.pth.tar"
    content = torch.load(path, weights_only=True)
    torch.manual_seed(0)
    content["method"]["z"][torch.rand(2752) < 0.4] = 0
    content["state_dict"]["feature.1.bias"].fill_(0.05)
    torch.save(content, path)
    widths = [bn.num_features for bn in batch_norms(checkpoint.load(path).network.model)]
    zeros = content["method"]["z"] == 0
    argv = ["--model", str(path), "--no-cuda"]
    assert console.run(vgg_prune.main, argv) == 0
    row = record(tmp_path)
    assert (row["mask"], removed_or_carrying(tmp_path)) == ("z", int(zeros.sum()))
    assert float(row["difference_slim"]) < 1e-3 * float(row["largest_logit"])
    kept = [int(bn.weight.count_nonzero()) for bn in batch_norms(pruned_model(tmp_path))]
    assert kept == [int((~zero).sum()) for zero in zeros.split(widths)]
    next(tmp_path.rglob("*pruned.pth.tar")).unlink()
    assert console.run(vgg_prune.main, [*argv, "--ratio", "0.6"]) == 0
    assert removed_or_carrying(tmp_path) == int(0.6 * 2752)  # the smallest |γ| beyond the zeros
    assert console.run(vgg_prune.main, [*argv, "--mask", "u"]) == 2
    assert "--mask takes gamma, z" in capsys.readouterr().err


def finetuning(printed: str) -> tuple[Config, list[str]]:
    """Main.py's settings by the last printed command, and the command's words."""
    words = shlex.split(re.fullmatch("to fine-tune it: (.*)", printed.splitlines()[-1])[1])
    flags = vars(parser().parse_args(words[2:]))
    return InitFrom.from_flags(flags).config(flags), words


def test_the_fine_tuning_command_has_the_settings_of_the_training(
    prune, tmp_path, pictures, monkeypatch, capsys
):
    monkeypatch.setattr(build, "fastest_precision", lambda *network: "bf16")
    flags = "-sr --arch vgg --depth 11 --epochs 2 --batch-size 16 --lr 0.05 --warmup 1 --seed 3"
    flags += " --precision auto --no-nesterov --label-smoothing 0.1 --wd 0.01 --subset 30"
    assert train(tmp_path, pictures, *flags.split()) == 0
    path = next(tmp_path.glob("*/checkpoint.pth.tar"))
    assert prune("vgg", path, "--percent", 0.1) == 0
    config, words = finetuning(capsys.readouterr().out)
    trained = replace(checkpoint.load(path).config, precision="bf16")
    assert config == trained.for_finetuning(next(tmp_path.rglob("*pruned.pth.tar")))
    assert (config.method, config.epochs, config.warmup) == ("baseline", 2, 1)
    assert "--no-cuda" in words and "--workers" not in words


def test_the_fine_tuning_command_has_the_data_of_the_pruning(prune, tmp_path, pictures, capsys):
    """A file of an earlier program has none."""
    path = save(tmp_path / "vgg.pth.tar", random_model("vgg", 11, 0.5), "vgg", 11)
    assert prune("vgg", path, "--test-batch-size", 8) == 0
    config, words = finetuning(capsys.readouterr().out)
    assert (config.dataset, config.data, config.epochs) == ("folder", str(pictures), 160)
    assert words[words.index("--test-batch-size") + 1] == "8"


def test_of_equal_factors_the_share_is_pruned_and_a_note_says_how_many_stay(
    prune, tmp_path, capsys
):
    path = save(tmp_path / "net.pth.tar", equal_model("resnet", 11), "resnet", 11)
    assert prune("resnet", path, "--percent", 0.1) == 0
    row = record(tmp_path)
    channels, kept = int(row["channels"]), int(row["channels_kept"])
    assert channels - kept == channels // 10
    note = f"note: of {channels} channels of equal size 1, {kept} are kept: those of larger bias"
    assert note in capsys.readouterr().err


def test_a_target_counts_unused_stream_channels_and_other_figures_do_not(prune, tmp_path, capsys):
    model = random_model("densenet", 10, dead=0.1)
    path = save(tmp_path / "net.pth.tar", model, "densenet", 10)
    assert prune("densenet", path, "--target-flops", 0.6) == 0
    printed, row, left = capsys.readouterr().out, record(tmp_path), cost(pruned_model(tmp_path))
    assert int(row["unread_flops"]) > 0
    share = f"{100 * (1 - left.flops / cost(model).flops):.2f}"
    assert float(share) >= 60 > float(row["flops_pruned_percent"])
    assert f"--target-flops 60 %: {share} % of the flops are pruned\n" in printed
    assert f"so the pruned model has {left.parameters:,} parameters, " in printed
    assert f"{left.flops:,} flops, {share} % pruned\n" in printed


@pytest.mark.parametrize(
    ("arch", "depth", "layout"),  # only a resnet and a densenet have two
    [
        *((*m, "compact") for m in (*MODELS, ("resnet-basic", 8))),
        *((*m, "released") for m in MODELS[1:]),
    ],
)
def test_shares_of_the_full_model_are_the_same_after_a_second_pruning(
    arch, depth, layout, prune, tmp_path, capsys
):
    path, program = tmp_path / "net.pth.tar", arch.partition("-")[0]
    save(path, random_model(arch, depth, 0.8), arch, depth)
    shares = [f"original_{c}_pruned_percent" for c in COUNTED]
    assert prune(program, path, "--layout", layout, "--name", "a") == 0
    first = record(tmp_path)
    assert [first[share] for share in shares] == [first[share[9:]] for share in shares]
    capsys.readouterr()
    assert prune(program, tmp_path / "a.pth.tar", "--name", "b") == 0
    again, printed = record(tmp_path), capsys.readouterr().out
    assert again["channels"] == again["channels_kept"] == first["channels_kept"]
    assert [again[share] for share in shares] == [first[share] for share in shares]
    streams = ", streams at full width" * (arch in ("resnet", "densenet"))
    assert f"pruned of the full model{streams}: {again[shares[0]]} %" in printed
    assert "to fine-tune it: " in printed.splitlines()[-1]


@pytest.mark.parametrize("kind", ["vgg", ""])
def test_where_nothing_is_zero_the_printed_commands_prune(kind, prune, tmp_path, capsys):
    """The unpruned model is written for scripts, and may be overwritten."""
    model = random_model("vgg", 11, dead=0)
    xi = torch.ones(sum(bn.num_features for bn in batch_norms(model)))
    xi[::3] = 0
    path, output = tmp_path / "net.pth.tar", tmp_path / "net_pruned.pth.tar"
    save(path, model, "vgg", 11, xi)
    assert prune(kind, path) == 0
    printed, err = capsys.readouterr()
    assert "fine-tune" not in printed and f"{output} is the unpruned model" in printed
    zeros = int((xi == 0).sum())
    assert "no scaling factor is zero, so nothing was pruned: train for more epochs, or" in err
    assert f"or prune the {zeros} channels whose xi is zero, or choose a share" in err
    commands = re.findall(r"^next, .*?: (.*)$", printed, re.M)
    for line, mask, count in zip(commands, ("xi", "gamma"), (zeros, len(xi) // 2), strict=True):
        words = shlex.split(line)[1:]
        assert words[0].endswith("vgg_prune.py" if kind else "-m")
        flags = words[words.index("--no-cuda") + 1 :]
        assert prune(kind, path, *flags) == 0
        assert (record(tmp_path)["mask"], removed_or_carrying(tmp_path)) == (mask, count)
        capsys.readouterr()
        assert prune(kind, path, "--percent", "0.1") == 2  # a pruned model is not overwritten
        assert f"{output} exists already" in capsys.readouterr().err
        assert prune(kind, path, "--data", tmp_path) == 2  # the wrong data are named first
        assert "has neither train nor test" in capsys.readouterr().err
        output.unlink()


@pytest.mark.parametrize("limit", ["--adjust 1 keeps", "--skip *"])
def test_where_limits_keep_every_channel_a_note_says_so(limit, prune, tmp_path, capsys):
    path = save(tmp_path / "net.pth.tar", random_model("vgg", 11, dead=0.3), "vgg", 11)
    assert prune("vgg", path, *limit.split()[:2]) == 0
    printed, err = capsys.readouterr()
    note = limit if limit.startswith("--adjust") else "the limits keep"
    assert "fine-tune" not in printed and f"nothing was pruned: {note} all" in err
