"""The recipes: the paper's settings as commands, and what is left to do."""

import re
import shlex
import subprocess
from functools import partial

import pytest

import recorded
import runs
from utils import launch
from utils.experiments import recipes
from utils.files.paths import TRAINED, RunPaths
from utils.flags.config import Config
from utils.flags.parser import parser, resolve
from utils.methods.slimming import shrinkage
from utils.paper import lp
from utils.paper.settings import recipe, schedule

command = partial(runs.command, recipes)


def left(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[list[str]]:
    """The commands that --dry-run shows."""
    capsys.readouterr()
    assert command(*arguments, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [
        line.removeprefix("# ") for line in lines if " --model " in line or " main.py " in line
    ]
    return [shlex.split(line)[1:] for line in commands]


def told(flags: list[str]) -> Config:
    """What main.py makes of its command line."""
    return resolve(vars(parser().parse_args(flags)), None, {})


@pytest.mark.parametrize("table", ["table2a", "table2b"])
def test_the_papers_settings(table, tmp_path, capsys):
    """What main.py makes of the commands: section 5.1's settings, and Table 2's shares."""
    commands = left(capsys, table, "--save", tmp_path)
    found = {}
    for script, *flags in commands:
        if script == "main.py" and "--refine" not in flags:
            s = told(flags)
            assert (s.epochs, s.batch_size, s.lr, s.momentum) == (160, 64, 0.1, 0.9)
            assert (s.weight_decay, s.nesterov, s.subset) == (1e-4, True, None)
            assert s.dataset == {"table2a": "cifar10", "table2b": "cifar100"}[table]
            found[s.arch, s.depth, s.method] = s.options.get("s"), s.options.get("beta")
    assert found == {
        ("vgg", 19, "baseline"): (None, None),
        ("vgg", 19, "subgradient"): (1e-4, None),
        ("vgg", 19, "proximal"): (0.0045, 100),
        ("densenet", 40, "baseline"): (None, None),
        ("densenet", 40, "subgradient"): (1e-5, None),
        ("densenet", 40, "proximal"): (0.004, 100),
        ("resnet", 164, "baseline"): (None, None),
        ("resnet", 164, "subgradient"): (1e-5, None),
        ("resnet", 164, "proximal"): (0.002, 0.25),
    }
    shares = {
        (flags[flags.index("--model") + 1].split("_seed")[0].split("/")[-1], script):
            float(flags[flags.index("--percent") + 1])
        for script, *flags in commands if script != "main.py"
    }  # fmt: skip
    published = {"table2a": (0.74, 0.7401, 0.7198), "table2b": (0.55, 0.6501, 0.59)}[table]
    for arch, share in zip(("vgg", "densenet", "resnet"), published, strict=True):
        assert shares["subgradient", f"{arch}_prune.py"] == pytest.approx(share)
        assert shares["proximal", f"{arch}_prune.py"] == 0
    refined = [flags for _, *flags in commands if "--refine" in flags]
    assert len(refined) == 6  # not the baselines
    assert all((told(f).method, told(f).epochs) == ("baseline", 160) for f in refined)


def test_tables_1_and_3(tmp_path, capsys):
    names = [told(c[1:]).arch for c in left(capsys, "table1", "--save", tmp_path)]
    assert sorted(names) == sorted(["vgg", "densenet", "resnet"] * 2)  # trainings, no pruning
    commands = left(capsys, "table3", "--save", tmp_path, "--seeds", 4, 5)
    assert len(commands) == 2 * 2 * 3
    betas = [told(c[1:]).options["beta"] for c in commands if "-sr" in c]
    assert betas == [100, 1] * 2


@pytest.mark.parametrize("part", ["vgg-cifar10", "densenet-cifar10", "resnet164-cifar10"])
def test_a_scaled_recipe_shrinks_as_much_in_total(part, tmp_path, capsys):
    (train, *_) = left(capsys, part, "--save", tmp_path, "--scale", 20)
    s = told(train[1:])
    full = recipe(s.arch, s.depth)
    assert s.epochs == 20
    assert s.options["s"] > full.lambda_
    total = shrinkage(s.options["s"], s.options["beta"], schedule(20))
    assert total == pytest.approx(shrinkage(full.lambda_, full.beta, schedule()), rel=0.01)


def test_scaled_and_full_runs_have_different_names(tmp_path, capsys):
    names = [left(capsys, "vgg-cifar10", *scale)[0] for scale in ([], ["--scale", 20])]
    assert names[0][names[0].index("--name") + 1] == "proximal_seed1"
    assert names[1][names[1].index("--name") + 1] != "proximal_seed1"


def test_only_what_is_missing_is_left_and_its_cost_is_measured(tmp_path, capsys):
    paper = {"s": 0.0045, "beta": 100.0}
    done = recorded.run(tmp_path, "vgg", 19, "proximal", 1, **paper, percent=0.0, tuned=93)
    recorded.run(tmp_path, "vgg", 19, "proximal", 2, **paper)
    third = "proximal_seed3_vgg_19_cifar10"
    RunPaths(tmp_path, third).checkpoint.touch()
    RunPaths(tmp_path, third).log.write_text(
        "epoch,train_seconds,test_seconds,other\n" + "1,60,1,x\n" * 100
    )
    flags = ["vgg-cifar10", "--save", tmp_path, "--seeds", 1, 2, 3, "--dry-run"]
    assert command(*flags) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if "_seed" in line.split()[0]}
    assert lines[done].split()[1:] == ["done", "done", "done", "-"]
    assert "60 of 160 epochs" in lines[third]
    commands = left(capsys, *flags[:-1])
    assert not [c for c in commands if done in " ".join(c)]
    trainings = [c for c in commands if c[0] == "main.py"]
    assert all(c[c.index("--resume") + 1] == "auto" for c in trainings)
    # Seed 2: 160 epochs of fine-tuning at 20 s, as seed 1 took; seed 3: 60 epochs at 61 s before.
    assert lines["proximal_seed2_vgg_19_cifar10"].endswith("53:20")
    assert lines[third].endswith("1:54:20")
    assert re.search(r"left: 1 trainings, 2 prunings, 2 fine-tunings, .* 2:47:40", out)


def test_what_was_never_measured_is_unknown(tmp_path, capsys):
    assert command("small", "--save", tmp_path / "logs", "--dry-run") == 0
    assert capsys.readouterr().out.count("unknown") == 7  # six runs, and the sum
    assert list(tmp_path.iterdir()) == []


def test_original_slimming_is_pruned_as_far_as_proximal_was(tmp_path, capsys):
    commands = left(capsys, "small", "--save", tmp_path)
    assert [c[c.index("--percent") + 1] for c in commands if "--percent" in c] == ["0", "SHARE"] * 2
    told = {**recipes.SMALL_DATA, **recipes.SMALL["vgg", 11]}
    recorded.run(tmp_path, "vgg", 11, "proximal", 1, **told, percent=0.0, pruned=(39.3, 1, 1))
    commands = left(capsys, "small", "--save", tmp_path)
    assert [c for c in commands if "subgradient" in " ".join(c) and "0.393" in c]


def test_what_is_not_known_yet_is_no_command_to_paste(tmp_path, capsys):
    assert command("small", "--save", tmp_path, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    unknown = [line for line in lines if "SHARE" in line]
    assert len(unknown) == 2 and all(line.startswith("# ") for line in unknown)


def test_a_pruning_at_another_share_and_its_fine_tuning_are_not_the_recipes(tmp_path, capsys):
    def row() -> list[str]:
        assert command("table2a", "--save", tmp_path, "--dry-run") == 0
        lines = capsys.readouterr().out.splitlines()
        return next(line for line in lines if line.startswith(run)).split()[1:]

    run = recorded.run(tmp_path, "vgg", 19, "subgradient", 1, s=1e-4, percent=0.3, tuned=92)
    files = RunPaths(tmp_path, run)
    for there in (files.pruned(), files.refined.checkpoint):
        there.touch()
    files.refined.log.write_text("epoch,train_seconds,test_seconds\n" + "1,60,1\n" * 160)
    assert row()[:5] == ["done", "to", "do", "160", "epochs"]
    recorded.run(tmp_path, "vgg", 19, "subgradient", 1, s=1e-4, percent=0.74, pruned=(74, 1, 1))
    assert row()[:2] == ["done", "done"]
    assert "done" not in row()[2:]
    recorded.run(tmp_path, "vgg", 19, "subgradient", 1, s=1e-4, percent=0.74, pruned=(74, 1, 1),
                 tuned=93)  # fmt: skip
    assert row() == ["done", "done", "done", "-"]


def test_a_pruning_at_another_share_than_its_like_lost_is_not_the_recipes(tmp_path, capsys):
    told = {**recipes.SMALL_DATA, **recipes.SMALL["vgg", 11]}
    recorded.run(tmp_path, "vgg", 11, "proximal", 1, **told, percent=0.0, pruned=(39.3, 1, 1))
    for percent, done in ((0.5, False), (0.393, True)):
        run = recorded.run(tmp_path, "vgg", 11, "subgradient", 1, **recipes.SMALL_DATA,
                           percent=percent)  # fmt: skip
        RunPaths(tmp_path, run).pruned().touch()
        prunings = [c for c in left(capsys, "small", "--save", tmp_path) if c[0] == "vgg_prune.py"]
        assert any(run in " ".join(c) for c in prunings) != done


def test_bad_input_ends_in_one_line(tmp_path, pictures, capsys):
    recorded.run(tmp_path / "a", "vgg", 19, "proximal", 1, s=0.009, beta=100)
    vgg = {"s": 0.0045, "beta": 100, "percent": 0.0, "tuned": 93}
    recorded.run(tmp_path / "f", "vgg", 19, "proximal", 1, **vgg, tuned_more={"epochs": 40})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / TRAINED).write_text("a,b\n1,2\n")
    (tmp_path / "c").touch()
    for arguments, said in (
        (["vgg-cifar10", "--save", tmp_path / "a"], "--s 0.009, not 0.0045"),
        (["vgg-cifar10", "--save", tmp_path / "f"], "--epochs 40, not 160"),
        (["vgg-cifar10", "--save", tmp_path / "b"], "no column run"),
        (["vgg-cifar10", "--save", tmp_path / "c"], "is not a folder"),
        (["small", "--scale", 5], "leave out --scale"),
        (["vgg-cifar10", "--save", tmp_path / "d", "--data", pictures], "2 classes"),
        (["vgg-cifar10", "--save", tmp_path / "d", "--data", tmp_path / "e"], "is not a folder"),
        (["table9"], "table9"),
        (["small", "--seeds", "-1"], "--seeds"),
    ):
        capsys.readouterr()
        assert command(*arguments) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "d").exists()


def test_a_resnet50_is_slimmed_to_what_its_row_says(tmp_path, capsys, monkeypatch):
    """How it trains and is fine-tuned is our choice: no text tells it."""
    argv = ["lp50", "--save", tmp_path, "--data", "pictures"]
    train, prune, refine = left(capsys, *argv)
    s, t = told(train[1:]), told(refine[1:])
    assert (s.arch, s.dataset, s.size, s.method) == ("resnet50", "imagenet", 224, "lp-admm")
    assert (s.epochs, s.batch_size, t.epochs, t.schedule) == (90, 256, 100, "cosine")
    assert told(left(capsys, *argv, "--scale", 2)[2][1:]).epochs == 2
    assert prune[:2] == ["-m", "utils.prune"]
    assert prune[prune.index("--target-flops") + 1] == "0.624"
    monkeypatch.chdir(tmp_path)
    asked = launch.start_process(["-m", "utils.prune", "-h"], subprocess.PIPE)
    assert "utils.prune" in asked.communicate()[0] and asked.returncode == 0


def test_precision_is_measured_at_the_size_that_is_trained(monkeypatch):
    """An AlexNet cannot take 32×32 pixels."""
    monkeypatch.setattr(
        recipes, "fastest_precision", lambda network, images, *_: network.model(images).shape
    )
    known = {"arch": "alexnet", "method": "sas-admm", "size": 64, "batch_size": 2}
    assert recipes.measured(Config.from_dict(known), True) == (2, 10)


@pytest.mark.parametrize("part", ["lp16", "lp56", "lp110"])
def test_lp_slimmings_recipes_are_pruned_and_tuned_as_their_row_was(part, tmp_path, capsys):
    train, prune, refine = left(capsys, part, "--save", tmp_path, "--seeds", 3)
    claim = lp.RECIPES[part][1]
    s = told(train[1:])
    assert (s.arch, s.depth, s.dataset) == lp.NETWORKS[lp.RECIPES[part][0]]
    assert (s.method, s.epochs, s.seed, s.schedule) == ("lp-admm", 160, 3, "step")
    assert dict(s.options) == {"s": 1e-4, "p": 0.2, "rho": 1.5e-3, "bound": 1.0, "z_every": "epoch"}
    assert prune[0] == ("vgg_prune.py" if s.arch == "vgg" else "resnet_prune.py")
    assert float(prune[prune.index("--target-flops") + 1]) == pytest.approx(claim.flops / 100)
    t = told(refine[1:])
    assert (t.schedule, t.epochs, t.warmup, t.label_smoothing) == ("cosine", 350, 5, 0.1)
    assert (t.lr, t.batch_size, t.weight_decay, t.method) == (0.01, 256, 5e-4, "baseline")
    # What is on record is not left to do.
    run = recorded.run(tmp_path, s.arch, s.depth, "lp-admm", 3, percent=0.0, mask="z")
    (tmp_path / f"{run}_pruned.pth.tar").touch()
    assert len(left(capsys, part, "--save", tmp_path, "--seeds", 3)) == 2  # to another size
    short = left(capsys, part, "--save", tmp_path, "--scale", 20)
    assert told(short[0][1:]).epochs == told(short[2][1:]).epochs == 20
    assert told(short[2][1:]).warmup == 0


def test_a_later_fine_tuning_of_the_name_takes_nothing_from_what_is_done(tmp_path, capsys):
    """As one by hand on fewer pictures, under the name that it has by itself."""
    known = {"arch": "vgg", "depth": 11, "dataset": "shapes", "epochs": 5, "batch_size": 32}
    known |= {"s": 0.085, "beta": 80.0, "percent": 0.0, "source": ""}
    argv = "quickstart", "--save", tmp_path, "--precision", "bf16"
    for more in ({}, {"subset": 100}):
        more |= {"epochs": 1, "lr": 0.001}
        recorded.run(tmp_path, method="proximal", seed=1, **known, tuned=80, tuned_more=more)
    assert left(capsys, *argv) == []
