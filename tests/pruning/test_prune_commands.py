"""What the prune commands promise: losslessness stated, constants folded, targets reached."""

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
from utils.files import checkpoint
from utils.files.init_from import InitFrom
from utils.files.legacy_formats import to_released
from utils.flags.config import Config
from utils.flags.parser import parser
from utils.network import Network
from utils.paper.accounting import cost
from utils.training import build

NETWORKS = [("vgg", 11), ("resnet", 11), ("densenet", 7)]
x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def save(
    path: Path, model: nn.Module, arch: str, depth: int, xi: torch.Tensor | None = None
) -> None:
    state = to_released(Network(model, arch, depth, 32))
    content = {"epoch": 1, "state_dict": state, "best_prec1": torch.tensor(0.5)}
    content["method"] = {} if xi is None else {"xi": xi}
    torch.save(content, path)


def random_network(arch: str, depth: int, dead: float, positive: float = 0.0) -> nn.Module:
    """A share ``dead`` of the channels has γ = 0, and of these ``positive`` a positive bias."""
    torch.manual_seed(0)
    model = build_model(arch, depth, 2).eval()
    with torch.no_grad():
        for bn in batch_norms(model):
            bn.weight.uniform_(0.2, 1)
            bn.bias.uniform_(-0.2, 0.2)
            bn.running_mean.normal_(0, 0.1)
            chosen = torch.rand(bn.num_features) < dead
            emits = torch.rand(bn.num_features) < positive
            bn.weight[chosen] = 0
            bn.bias[chosen] = torch.where(emits, 0.1, -0.1)[chosen]
    return model


def prune(arch: str, path: Path, pictures: Path, *flags: object) -> int:
    argv = ["--model", path, "--dataset", "folder", "--data", pictures, "--no-cuda", *flags]
    return console.run(importlib.import_module(f"{arch}_prune").main, list(map(str, argv)))


def record(folder: Path) -> dict[str, str]:
    with (folder / "pruned_record.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


def slim_network(folder: Path) -> nn.Module:
    (path,) = folder.glob("*pruned.pth.tar")
    return checkpoint.load(path).network.model.eval()


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_silent_channels_are_pruned_without_loss_and_the_report_says_so(
    arch, depth, tmp_path, pictures, capsys
):
    model = random_network(arch, depth, dead=0.5)
    save(tmp_path / "net.pth.tar", model, arch, depth)
    assert prune(arch, tmp_path / "net.pth.tar", pictures) == 0
    printed = capsys.readouterr().out
    row = record(tmp_path)
    dead = sum(int((bn.weight == 0).sum()) for bn in batch_norms(model))
    assert (row["silent"], row["constant"], row["alive"]) == (str(dead), "0", "0")
    assert f"{dead} silent" in printed
    assert "lossless" in printed
    assert row["difference_masked"] == "0"  # bitwise
    assert float(row["difference_slim"]) < 1e-4 * float(row["largest_logit"])
    assert (row["changed_masked"], row["changed_slim"]) == ("0", "0")
    with torch.no_grad():
        torch.testing.assert_close(slim_network(tmp_path)(x), model(x), rtol=1e-4, atol=1e-5)


def carriers(folder) -> int:
    """Channels that stay with γ = 0, to carry the constants of others to the border."""
    return sum(int((bn.weight == 0).sum()) for bn in batch_norms(slim_network(folder)))


def zeroed(folder) -> int:
    """Channels that were removed, and :func:`carriers`."""
    row = record(folder)
    return int(row["channels"]) - int(row["channels_kept"]) + carriers(folder)


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_constants_are_counted_and_folded(arch, depth, tmp_path, pictures, capsys):
    model = random_network(arch, depth, dead=0.5, positive=0.5)
    with torch.no_grad():
        for module in model.modules():  # no border: folding is then exact
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.weight[:, :, [0, 2]] = 0
                module.weight[:, :, 1, [0, 2]] = 0
    save(tmp_path / "net.pth.tar", model, arch, depth)
    assert prune(arch, tmp_path / "net.pth.tar", pictures) == 0
    row = record(tmp_path)
    zero = [(bn.weight == 0, bn.bias > 0) for bn in batch_norms(model)]
    constant = sum(int((z & positive).sum()) for z, positive in zero)
    assert int(row["constant"]) == constant - carriers(tmp_path) > 0
    assert row["difference_masked"] == "0"
    assert "lossless" not in capsys.readouterr().out
    with torch.no_grad():
        torch.testing.assert_close(slim_network(tmp_path)(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_mask_xi_prunes_more_and_compares_itself_with_gamma(
    arch, depth, tmp_path, pictures, capsys
):
    model = random_network(arch, depth, dead=0.3)
    xi = torch.cat([bn.weight.detach() for bn in batch_norms(model)])
    jittering = (torch.rand(len(xi)) < 0.2) & (xi != 0)
    with torch.no_grad():  # ξ = 0, and γ near it
        for bn, part in zip(batch_norms(model), jittering.split(
                [bn.num_features for bn in batch_norms(model)]), strict=True):  # fmt: skip
            bn.weight[part] = 1e-7
    save(tmp_path / "net.pth.tar", model, arch, depth, xi.masked_fill(jittering, 0))
    assert prune(arch, tmp_path / "net.pth.tar", pictures, "--mask", "xi") == 0
    row = record(tmp_path)
    assert zeroed(tmp_path) == int(((xi == 0) | jittering).sum())
    assert 0 < int(row["alive"]) <= int(jittering.sum())
    printed = capsys.readouterr().out
    gamma, xi_line = (
        re.search(rf"^{mask} +([\d.]+) %", printed, re.M)[1] for mask in ("gamma", "xi")
    )
    assert float(gamma) < float(xi_line) == float(row["channels_pruned_percent"])
    # γ was within 1e-7 of 0, so that replacing those channels by their constants costs nothing.
    masked = [float(row["difference_masked"]), float(row["largest_logit"])]
    assert masked[0] < 1e-3 * masked[1]


def test_mask_xi_needs_xi(tmp_path, pictures, capsys):
    save(tmp_path / "net.pth.tar", random_network("vgg", 11, 0.5), "vgg", 11)
    assert prune("vgg", tmp_path / "net.pth.tar", pictures, "--mask", "xi") == 2
    assert "has no xi: --mask takes what it has, gamma" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth.tar"]


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
@pytest.mark.parametrize("kind", ["flops", "params"])
def test_a_target_is_reached_by_the_smallest_threshold(arch, depth, kind, tmp_path, pictures):
    model = random_network(arch, depth, dead=0.1)
    save(tmp_path / "net.pth.tar", model, arch, depth)
    assert prune(arch, tmp_path / "net.pth.tar", pictures, f"--target-{kind}", "0.6") == 0
    what = {"params": "parameters"}.get(kind, kind)
    removed = 1 - getattr(cost(slim_network(tmp_path)), what) / getattr(cost(model), what)
    assert removed >= 0.6
    # One channel less would have been too few.
    kept = int(record(tmp_path)["channels_kept"])
    total = int(record(tmp_path)["channels"])
    fewer = (total - kept - 1 + carriers(tmp_path)) / total
    next(tmp_path.glob("*pruned.pth.tar")).unlink()
    assert prune(arch, tmp_path / "net.pth.tar", pictures, "--percent", fewer) == 0
    removed = 1 - getattr(cost(slim_network(tmp_path)), what) / getattr(cost(model), what)
    assert removed < 0.6


def test_a_target_out_of_reach_says_how_far_it_gets(tmp_path, pictures, capsys):
    save(tmp_path / "net.pth.tar", random_network("resnet", 11, 0.1), "resnet", 11)
    assert prune("resnet", tmp_path / "net.pth.tar", pictures, "--target-flops", "0.99") == 2
    assert re.search(r"out of reach: .* 0\.\d+ of the flops", capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth.tar"]


@pytest.mark.parametrize(("arch", "depth"), NETWORKS)
def test_the_released_layout_is_written_for_the_earlier_programs(arch, depth, tmp_path, pictures):
    model = random_network(arch, depth, dead=0.5)
    save(tmp_path / "net.pth.tar", model, arch, depth)
    assert prune(arch, tmp_path / "net.pth.tar", pictures, "--layout", "released") == 0
    (path,) = tmp_path.glob("*pruned.pth.tar")
    content = torch.load(path, weights_only=True)
    assert content["layout"] == "released"
    state = content["state_dict"]
    for key in [key for key in state if key.endswith("select.indexes")]:
        bn = key.removesuffix("select.indexes")
        bn += "bn1" if f"{bn}bn1.weight" in state else "bn"
        assert state[key].dtype == torch.float32
        assert len(state[f"{bn}.weight"]) == len(state[key])
        gone = state[key] == 0
        assert (state[f"{bn}.weight"][gone] == 0).all()
        assert (state[f"{bn}.running_var"][gone] == 1).all()
    with torch.no_grad():
        answers = getattr(released, arch)(state, x)
        torch.testing.assert_close(answers, model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(slim_network(tmp_path)(x), answers, rtol=1e-4, atol=1e-5)


def test_ratio_is_percent_and_adjust_and_criterion_are_recorded(tmp_path, pictures):
    model = random_network("vgg", 11, dead=0)
    with torch.no_grad():
        batch_norms(model)[0].weight.mul_(1e-3)
    path = tmp_path / "net.pth.tar"
    save(path, model, "vgg", 11)
    flags = ("--ratio", "0.5", "--adjust", "0.25")
    assert prune("vgg", path, pictures, *flags) == 0
    row = record(tmp_path)
    told = row["percent"], row["adjust"], row["criterion"]
    assert told == ("0.5", "0.25", "gamma")
    assert batch_norms(slim_network(tmp_path))[0].num_features == 16  # else one
    next(tmp_path.glob("*pruned.pth.tar")).unlink()
    assert prune("vgg", path, pictures, "--ratio", "0.5", "--criterion", "filters") == 0
    assert record(tmp_path)["criterion"] == "filters"
    assert batch_norms(slim_network(tmp_path))[0].num_features > 16


def test_a_densenet_has_no_filters_to_go_by(tmp_path, pictures, capsys):
    save(tmp_path / "net.pth.tar", random_network("densenet", 7, 0), "densenet", 7)
    assert prune("densenet", tmp_path / "net.pth.tar", pictures, "--criterion", "filters") == 2
    assert "no channel of a densenet has its own filter" in capsys.readouterr().err


def test_of_lp_admm_the_zeros_of_z_go_and_their_constants_are_folded(tmp_path, pictures, capsys):
    import vgg_prune

    flags = ["-sr", "--method", "lp-admm", "--s", "0.1", "--rho", "0.5", "--arch", "vgg", "--depth"]
    assert train(tmp_path, pictures, *flags, 11, "--epochs", 1) == 0
    said = capsys.readouterr()
    assert "all channels train to the end" in said.err and "z = 0: 0 of 2752" in said.out
    assert "vgg_prune.py" in said.out and "--target-flops 0.5" in said.out
    path = tmp_path / "lp-admm_seed1_vgg_11_foldercheckpoint.pth.tar"
    content = torch.load(path, weights_only=True)
    assert content["method"].keys() == {"z", "u", "count"}
    torch.manual_seed(0)
    content["method"]["z"][torch.rand(2752) < 0.4] = 0
    content["state_dict"]["feature.1.bias"].fill_(0.05)
    torch.save(content, path)
    model = checkpoint.load(path).network.model.eval()
    zero = (content["method"]["z"] == 0).split([bn.num_features for bn in batch_norms(model)])
    argv = ["--model", str(path), "--no-cuda"]
    assert console.run(vgg_prune.main, argv) == 0
    row = record(tmp_path)
    assert (row["mask"], zeroed(tmp_path)) == ("z", sum(map(int, map(torch.sum, zero))))
    assert int(row["channels_kept"]) == 2752 - int(row["alive"])
    assert float(row["difference_slim"]) < 1e-3 * float(row["largest_logit"])
    kept = [int(bn.weight.count_nonzero()) for bn in batch_norms(slim_network(tmp_path))]
    assert kept == [int((~gone).sum()) for gone in zero]
    # Beyond the zeros, the smallest |γ| go.
    next(tmp_path.glob("*pruned.pth.tar")).unlink()
    assert console.run(vgg_prune.main, [*argv, "--ratio", "0.6"]) == 0
    assert zeroed(tmp_path) == int(0.6 * 2752)
    capsys.readouterr()
    assert console.run(vgg_prune.main, [*argv, "--mask", "u"]) == 2
    assert "--mask takes what it has, gamma, z" in capsys.readouterr().err


def told_to_tune(said: str) -> tuple[Config, list[str]]:
    """What main.py makes of the command that is told last, and the command."""
    words = shlex.split(re.fullmatch("to fine-tune it: (.*)", said.splitlines()[-1])[1])
    given = vars(parser().parse_args(words[2:]))
    return InitFrom.from_flags(given).config(given), words


def test_the_fine_tuning_that_is_told_goes_as_the_training_did(
    tmp_path, pictures, monkeypatch, capsys
):
    monkeypatch.setattr(build, "fastest_precision", lambda *network: "bf16")
    flags = "-sr --arch vgg --depth 11 --epochs 2 --batch-size 16 --lr 0.05 --warmup 1 --seed 3"
    flags += " --precision auto --no-nesterov --label-smoothing 0.1 --wd 0.01 --subset 30"
    assert train(tmp_path, pictures, *flags.split()) == 0
    path = next(tmp_path.glob("*checkpoint.pth.tar"))
    assert prune("vgg", path, pictures, "--percent", 0.1) == 0
    told, words = told_to_tune(capsys.readouterr().out)
    trained = replace(checkpoint.load(path).config, precision="bf16")
    slim = next(tmp_path.glob("*pruned.pth.tar"))
    assert told == trained.for_finetuning(slim)
    assert (told.method, told.epochs, told.warmup) == ("baseline", 2, 1)
    assert "--no-cuda" in words and "--workers" not in words


def test_where_the_pictures_are_is_told_again(tmp_path, pictures, capsys):
    """A file of an earlier program does not know, nor how it was trained."""
    path = tmp_path / "vgg.pth.tar"
    save(path, random_network("vgg", 11, 0.5), "vgg", 11)
    assert prune("vgg", path, pictures, "--test-batch-size", 8) == 0
    told, words = told_to_tune(capsys.readouterr().out)
    assert (told.dataset, told.data, told.epochs) == ("folder", str(pictures), 160)
    assert words[words.index("--test-batch-size") + 1] == "8"  # as much as there is memory for


def test_gammas_mask_is_compared_at_the_same_target(tmp_path, pictures, capsys):
    """Although ξ's zeros alone reach it."""
    model = random_network("resnet", 11, dead=0.0)
    channels = sum(bn.num_features for bn in batch_norms(model))
    xi = torch.ones(channels)
    xi[::2] = 0
    save(tmp_path / "net.pth.tar", model, "resnet", 11, xi)
    path, target = tmp_path / "net.pth.tar", ["--target-flops", 0.2]
    assert prune("resnet", path, pictures, "--mask", "xi", *target) == 0
    (line,) = re.findall(r"^gamma .*", capsys.readouterr().out, re.M)
    assert prune("resnet", path, pictures, *target, "--name", "other_") == 0
    row = record(tmp_path)
    assert float(row["channels_pruned_percent"]) > 0
    shares = [f"{row[f'{what}_pruned_percent']} %" for what in ("channels", "parameters", "flops")]
    assert re.split(r" {2,}", line)[1:4] == shares


def test_no_more_go_of_equal_factors_than_were_asked_for_and_how_is_said(
    tmp_path, pictures, capsys
):
    model = random_network("resnet", 11, dead=0.0)
    with torch.no_grad():
        for bn in batch_norms(model):
            bn.weight.fill_(1)
    save(tmp_path / "net.pth.tar", model, "resnet", 11)
    assert prune("resnet", tmp_path / "net.pth.tar", pictures, "--percent", 0.1) == 0
    channels, row = sum(bn.num_features for bn in batch_norms(model)), record(tmp_path)
    assert int(row["channels"]) - int(row["channels_kept"]) == channels // 10
    said = f"note: of {channels} channels that are equally large, 1, {row['channels_kept']} stay"
    assert f"{said}: those of the larger bias" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["flops", "params"])
def test_a_target_is_reached_by_the_fewest_of_equal_factors(kind, tmp_path, pictures):
    model = random_network("densenet", 7, dead=0.0)
    with torch.no_grad():
        for bn in batch_norms(model):
            bn.weight.fill_(1)
            bn.bias.zero_()
    path, whole = tmp_path / "net.pth.tar", cost(model)
    save(path, model, "densenet", 7)
    assert prune("densenet", path, pictures, f"--target-{kind}", 0.5) == 0
    what = {"params": "parameters"}.get(kind, kind)
    row = record(tmp_path)
    fewer = (int(row["channels"]) - int(row["channels_kept"]) - 1) / int(row["channels"])
    assert getattr(cost(slim_network(tmp_path)), what) <= 0.5 * getattr(whole, what)
    next(tmp_path.glob("*pruned.pth.tar")).unlink()
    assert prune("densenet", path, pictures, "--percent", fewer) == 0
    assert getattr(cost(slim_network(tmp_path)), what) > 0.5 * getattr(whole, what)


def test_the_share_that_was_asked_for_is_printed_and_what_the_other_one_is(
    tmp_path, pictures, capsys
):
    """A target counts what is written; other figures have streams whole, as the paper's have."""
    model = random_network("densenet", 10, dead=0.1)
    path = tmp_path / "net.pth.tar"
    save(path, model, "densenet", 10)
    assert prune("densenet", path, pictures, "--target-flops", 0.6) == 0
    said, row, left = capsys.readouterr().out, record(tmp_path), cost(slim_network(tmp_path))
    assert int(row["unread_flops"]) > 0
    share = f"{100 * (1 - left.flops / cost(model).flops):.2f}"
    assert float(share) >= 60 > float(row["flops_pruned_percent"])
    assert f"--target-flops 0.6: {share} % of the flops are pruned\n" in said
    assert f"{row['flops_pruned_percent']} % pruned\nand {row['unread_channels']} channels" in said
    of_both = f"so the slim network has {left.parameters:,} parameters, "
    assert of_both in said and f"{left.flops:,} flops, {share} % pruned\n" in said


@pytest.mark.parametrize(("arch", "depth"), [*NETWORKS, ("resnet-basic", 8)])
@pytest.mark.parametrize("layout", ["compact", "released"])
def test_what_is_gone_of_the_first_network_is_said_alike_by_each_pruning(
    arch, depth, layout, tmp_path, pictures, capsys
):
    if (arch, layout) == ("resnet-basic", "released"):
        return  # the earlier programs know none
    save(tmp_path / "net.pth.tar", random_network(arch, depth, 0.8), arch, depth)
    program = arch.partition("-")[0]
    shares = [f"original_{what}_pruned_percent" for what in ("channels", "parameters", "flops")]
    flags = ["--layout", layout, "--name"]
    assert prune(program, tmp_path / "net.pth.tar", pictures, *flags, "a_") == 0
    first = record(tmp_path)
    assert [first[share] for share in shares] == [first[share[9:]] for share in shares]
    capsys.readouterr()
    assert prune(program, tmp_path / "a_pruned.pth.tar", pictures, "--name", "b_") == 0
    again, printed = record(tmp_path), capsys.readouterr().out
    assert again["channels"] == again["channels_kept"] == first["channels_kept"]
    assert [again[share] for share in shares] == [first[share] for share in shares]
    whole = ", its streams whole" * (arch in ("resnet", "densenet"))
    assert f"of the network that was trained first{whole}, gone are {again[shares[0]]} %" in printed
    # It is slim, though nothing went this time: what comes next is fine-tuning.
    assert "to fine-tune it: " in printed.splitlines()[-1]


def nexts(said: str) -> list[list[str]]:
    """The commands that are printed as what comes next."""
    return [shlex.split(words)[1:] for words in re.findall(r"^next, .*?: (.*)$", said, re.M)]


@pytest.mark.parametrize("kind", ["vgg", None])
def test_where_nothing_is_zero_each_command_that_is_told_runs(kind, tmp_path, pictures, capsys):
    """The network is written as it was, for scripts, but nobody is told to fine-tune it."""
    from utils import prune as any_prune

    model = random_network("vgg", 11, dead=0.0)
    xi = torch.ones(sum(bn.num_features for bn in batch_norms(model)))
    xi[::3] = 0
    path, out = tmp_path / "net.pth.tar", tmp_path / "net_pruned.pth.tar"
    save(path, model, "vgg", 11, xi)
    program = importlib.import_module("vgg_prune") if kind else any_prune
    argv = ["--model", path, "--dataset", "folder", "--data", pictures, "--no-cuda"]
    assert console.run(program.main, list(map(str, argv))) == 0
    said, err = capsys.readouterr()
    assert "fine-tune" not in said and "slim network" not in said
    assert f"{out} is the network as it was" in said
    zeros = int((xi == 0).sum())
    assert "no scaling factor is zero, so nothing was pruned: train for more epochs, or" in err
    assert f"or prune the {zeros} channels whose xi is zero, or choose a share" in err
    row = record(tmp_path)
    assert row["channels"] == row["channels_kept"]
    for words, mask, gone in zip(nexts(said), ("xi", "gamma"), (zeros, len(xi) // 2), strict=True):
        assert words[0].endswith("vgg_prune.py" if kind else "-m")
        told = words[words.index("--model") :]
        assert console.run(program.main, told) == 0
        row = record(tmp_path)
        assert (row["mask"], zeroed(out.parent)) == (mask, gone)
        capsys.readouterr()
        # What is slim has something to lose.
        assert console.run(program.main, [*told[: len(argv)], "--percent", "0.1"]) == 2
        assert f"{out} is there already" in capsys.readouterr().err
        out.unlink()


def test_where_every_channel_stays_by_a_floor_it_is_said(tmp_path, pictures, capsys):
    save(tmp_path / "net.pth.tar", random_network("vgg", 11, dead=0.3), "vgg", 11)
    assert prune("vgg", tmp_path / "net.pth.tar", pictures, "--adjust", 1) == 0
    said, err = capsys.readouterr()
    assert "fine-tune" not in said and "nothing was pruned: --adjust 1 keeps all" in err


def test_the_released_layout_is_for_networks_that_the_earlier_programs_know(
    tmp_path, pictures, capsys
):
    save(tmp_path / "net.pth.tar", random_network("resnet-basic", 8, 0.5), "resnet-basic", 8)
    assert prune("resnet", tmp_path / "net.pth.tar", pictures, "--layout", "released") == 2
    assert "the earlier programs know no resnet-basic" in capsys.readouterr().err
