"""The recipes: the published settings as commands, and the missing stages."""

import re
import shlex
from functools import partial

import pytest

import recorded
import runs
from utils.experiments import recipes, scheduler
from utils.experiments.jobs import Experiment, Job
from utils.files.paths import TRAINED, RunPaths
from utils.flags.config import Config
from utils.flags.parser import parser, resolve
from utils.methods.slimming import shrinkage
from utils.paper import admm
from utils.paper.settings import recipe, schedule

command = partial(runs.command, recipes)
VGG11 = {**recipes.SMALL_DATA, **recipes.SMALL["vgg", 11]}


@pytest.fixture
def missing(tmp_path, capsys):
    """A function that returns the commands --dry-run prints for arguments, split into words."""

    def missing(*arguments: object) -> list[list[str]]:
        capsys.readouterr()
        assert command(*arguments, "--save", tmp_path, "--dry-run") == 0
        lines = (line.removeprefix("# ") for line in capsys.readouterr().out.splitlines())
        return [
            shlex.split(line)[1:] for line in lines if " --model " in line or " main.py " in line
        ]

    return missing


def config_of(command: list[str]) -> Config:
    """The settings that main.py derives from its command."""
    return resolve(vars(parser().parse_args(command[1:])), None, {})


def value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


@pytest.mark.parametrize("table", ["table2a", "table2b"])
def test_table_2_has_the_published_settings(table, missing):
    found, shares, tunings = {}, {}, []
    for words in missing(table):
        if "--refine" in words:
            tunings.append(config_of(words))
        elif words[0] == "main.py":
            s = config_of(words)
            assert (s.epochs, s.batch_size, s.lr, s.momentum) == (160, 64, 0.1, 0.9)
            assert (s.weight_decay, s.nesterov, s.subset) == (1e-4, True, None)
            assert s.dataset == {"table2a": "cifar10", "table2b": "cifar100"}[table]
            found[s.arch, s.depth, s.method] = s.options.get("s"), s.options.get("beta")
        else:
            method = value(words, "--model").split("/")[-2].partition("_seed")[0]
            shares[method, words[0].removesuffix("_prune.py")] = float(value(words, "--percent"))
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
    published = {"table2a": (0.74, 0.7401, 0.7198), "table2b": (0.55, 0.6501, 0.59)}[table]
    for arch, share in zip(("vgg", "densenet", "resnet"), published, strict=True):
        assert shares["subgradient", arch] == pytest.approx(share)
        assert shares["proximal", arch] == 0
    assert [(t.method, t.epochs) for t in tunings] == [("baseline", 160)] * 6  # not the baselines


def test_tables_1_and_3(missing):
    trained = [config_of(words).arch for words in missing("table1")]
    assert sorted(trained) == sorted(["vgg", "densenet", "resnet"] * 2)  # no prunings
    commands = missing("table3", "--seeds", 4, 5)
    assert len(commands) == 2 * 2 * 3
    betas = [config_of(words).options["beta"] for words in commands if "-sr" in words]
    assert betas == [100, 1] * 2


@pytest.mark.parametrize("part", ["vgg-cifar10", "densenet-cifar10", "resnet164-cifar10"])
def test_scaled_recipes_have_the_same_total_shrinkage(part, missing):
    train, *_ = missing(part, "--scale", 20)
    s = config_of(train)
    full = recipe(s.arch, s.depth)
    assert s.epochs == 20 and s.name != config_of(missing(part)[0]).name == "proximal_seed1"
    assert s.options["s"] > full.lambda_
    total = shrinkage(s.options["s"], s.options["beta"], schedule(20))
    assert total == pytest.approx(shrinkage(full.lambda_, full.beta, schedule()), rel=0.01)


@pytest.mark.parametrize("part", ["lp16", "lp56", "lp110"])
def test_lp_recipes_have_the_settings_of_their_published_row(part, missing, tmp_path):
    train, prune, refine = missing(part, "--seeds", 3)
    claim = admm.LP_RECIPES[part][1]
    s, t = config_of(train), config_of(refine)
    assert (s.arch, s.depth, s.dataset) == admm.LP_NETWORKS[admm.LP_RECIPES[part][0]]
    assert (s.method, s.epochs, s.seed, s.schedule) == ("lp-admm", 160, 3, "step")
    assert dict(s.options) == {"s": 1e-4, "p": 0.2, "rho": 1.5e-3, "bound": 1.0, "z_every": "epoch"}
    assert prune[0] == ("vgg_prune.py" if s.arch == "vgg" else "resnet_prune.py")
    assert float(value(prune, "--target-flops")) == pytest.approx(claim.flops / 100)
    assert (t.schedule, t.epochs, t.warmup, t.label_smoothing) == ("cosine", 350, 5, 0.1)
    assert (t.lr, t.batch_size, t.weight_decay, t.method) == (0.01, 256, 5e-4, "baseline")
    run = recorded.run(tmp_path, s.arch, s.depth, "lp-admm", 3, percent=0.0, mask="z")
    (tmp_path / run).mkdir()
    (tmp_path / run / "pruned.pth.tar").touch()  # at another size
    assert len(missing(part, "--seeds", 3)) == 2
    train, _, refine = missing(part, "--scale", 20)
    assert (config_of(train).epochs, config_of(refine).epochs) == (20, 20)
    assert config_of(refine).warmup == 0


def test_lp_recipe_for_imagenet(missing, tmp_path, monkeypatch):
    train, prune, refine = missing("lp50", "--data", "images")
    s, t = config_of(train), config_of(refine)
    assert (s.arch, s.dataset, s.size, s.method) == ("resnet50", "imagenet", 224, "lp-admm")
    assert (s.epochs, s.batch_size, t.epochs, t.schedule) == (90, 256, 100, "cosine")
    assert config_of(missing("lp50", "--data", "images", "--scale", 2)[2]).epochs == 2
    assert prune[:2] == ["-m", "utils.prune"] and value(prune, "--target-flops") == "0.624"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Job, "argv", lambda job: ["-m", "utils.prune", "-h"])
    job = Job(Experiment(s, True, 0), 1, "prune", tmp_path, (), None)
    assert scheduler.start(job, "", parallel=True).wait() == 0
    assert "utils.prune" in job.files.output("prune").read_text()


@pytest.mark.parametrize(("part", "depth", "ratio"), [("sas32", 32, 0.85), ("sas56", 56, 0.9)])
def test_sas_recipes_have_the_settings_of_the_program(part, depth, ratio, missing):
    s, t = map(config_of, missing(part))
    assert (s.arch, s.depth, s.method) == ("resnet-basic", depth, "sas-admm")
    assert (s.epochs, s.batch_size) == (190, 256)
    assert (t.prune_ratio, t.epochs, t.batch_size) == (ratio, 200, 128)
    assert (t.lr, t.nesterov, t.method) == (0.1, False, "baseline")
    assert t.refine.endswith(f"{s.run_name}/checkpoint.pth.tar")
    s, t = map(config_of, missing(part, "--scale", 19))
    assert [s.options[name] for name in ("outer", "growth_from", "average_from")] == [19, 5, 17]
    assert t.epochs == 19


@pytest.mark.parametrize(
    ("flags", "outer", "inner", "epochs"), [([], 190, 1000, 90), (["--scale", 2], 2, 10, 2)]
)
def test_sas_recipe_for_imagenet(flags, outer, inner, epochs, missing):
    s, t = map(config_of, missing("sasalex", "--data", "images", *flags))
    assert (s.arch, s.dataset, s.size) == ("alexnet", "imagenet", 224)
    assert (s.options["outer"], s.options["inner"]) == (outer, inner)
    assert (t.lr, t.prune_ratio, t.epochs) == (0.01, 0.9522, epochs)


def test_only_missing_stages_are_planned_with_their_cost(missing, tmp_path, capsys):
    paper = {"s": 0.0045, "beta": 100.0}
    done = recorded.run(tmp_path, "vgg", 19, "proximal", 1, **paper, percent=0.0, tuned=93)
    recorded.run(tmp_path, "vgg", 19, "proximal", 2, **paper)
    third = "proximal_seed3_vgg_19_cifar10"
    RunPaths(tmp_path, third).directory.mkdir()
    RunPaths(tmp_path, third).checkpoint.touch()
    log = "epoch,train_seconds,test_seconds,other\n" + "1,60,1,x\n" * 100
    RunPaths(tmp_path, third).log.write_text(log)
    flags = ["vgg-cifar10", "--seeds", 1, 2, 3]
    assert command(*flags, "--save", tmp_path, "--dry-run") == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if "_seed" in line.split()[0]}
    assert lines[done].split()[1:] == ["done", "done", "done", "-"]
    assert "60 of 160 epochs" in lines[third]
    commands = missing(*flags)
    assert not [words for words in commands if done in " ".join(words)]
    assert all(value(words, "--resume") == "auto" for words in commands if words[0] == "main.py")
    # Seed 2: 160 epochs of fine-tuning at 20 s, like seed 1; seed 3: also 60 epochs at 61 s.
    assert lines["proximal_seed2_vgg_19_cifar10"].endswith("53:20")
    assert lines[third].endswith("1:54:20")
    assert re.search(r"left: 1 trainings, 2 prunings, 2 fine-tunings, .* 2:47:40", out)


def test_a_rehearsal_takes_a_part_of_the_images(missing):
    commands = missing("table2a", "--subset", 50, "--scale", 2)
    settings = [config_of(words) for words in commands if words[0] == "main.py"]
    assert {(s.subset, s.test_subset, s.epochs) for s in settings if s.refine is None} == {
        (50, 50, 2)
    }


def test_cost_without_measurements_is_unknown(tmp_path, capsys):
    assert command("small", "--save", tmp_path / "logs", "--dry-run") == 0
    assert capsys.readouterr().out.count("unknown") == 7  # six runs, and the sum
    assert list(tmp_path.iterdir()) == []


def test_original_slimming_is_pruned_at_the_share_of_proximal(missing, tmp_path, capsys):
    prunings = [words for words in missing("small") if "--percent" in words]
    assert [value(words, "--percent") for words in prunings] == ["0", "SHARE"] * 2
    assert command("small", "--save", tmp_path, "--dry-run") == 0
    unknown = [line for line in capsys.readouterr().out.splitlines() if "SHARE" in line]
    assert len(unknown) == 2 and all(line.startswith("# ") for line in unknown)
    recorded.run(tmp_path, "vgg", 11, "proximal", 1, **VGG11, percent=0.0, removed=(39.3, 1, 1))
    for percent, done in ((0.5, False), (0.393, True)):
        run = recorded.run(
            tmp_path, "vgg", 11, "subgradient", 1, **recipes.SMALL_DATA, percent=percent
        )
        RunPaths(tmp_path, run).directory.mkdir(exist_ok=True)
        RunPaths(tmp_path, run).pruned().touch()
        prunings = [words for words in missing("small") if words[0] == "vgg_prune.py"]
        shares = [value(words, "--percent") for words in prunings if run in " ".join(words)]
        assert shares == ([] if done else ["0.393"])


def test_prunings_at_another_share_and_their_fine_tunings_do_not_count(tmp_path, capsys):
    def stages() -> str:
        assert command("table2a", "--save", tmp_path, "--dry-run") == 0
        lines = capsys.readouterr().out.splitlines()
        return " ".join(next(line for line in lines if line.startswith(run)).split()[1:])

    settings = {"arch": "vgg", "depth": 19, "method": "subgradient", "seed": 1, "s": 1e-4}
    run = recorded.run(tmp_path, **settings, percent=0.3, tuned=92)
    files, tuned = RunPaths(tmp_path, run), RunPaths(tmp_path, f"{run}_refine")
    for path in (files.pruned(), tuned.checkpoint):
        path.parent.mkdir()
        path.touch()
    tuned.log.write_text("epoch,train_seconds,test_seconds\n" + "1,60,1\n" * 160)
    assert stages().startswith("done to do 160 epochs")
    recorded.run(tmp_path, **settings, percent=0.74, removed=(74, 1, 1))
    assert stages().startswith("done done ") and stages().count("done") == 2
    recorded.run(tmp_path, **settings, percent=0.74, removed=(74, 1, 1), tuned=93)
    assert stages() == "done done done -"


def test_later_fine_tunings_with_other_settings_do_not_undo_a_stage(missing, tmp_path):
    settings = {**recipes.QUICKSTART, "percent": 0.0, "source": ""}
    for subset in ({}, {"subset": 100}):
        tuning = {**subset, "epochs": 1, "lr": 0.001}
        recorded.run(tmp_path, seed=1, **settings, tuned=80, tuning=tuning)
    assert missing("quickstart") == []


def test_bad_input_is_rejected_with_one_line(tmp_path, pictures, capsys):
    recorded.run(tmp_path / "a", "vgg", 19, "proximal", 1, s=0.009, beta=100)
    vgg = {"s": 0.0045, "beta": 100, "percent": 0.0, "tuned": 93}
    recorded.run(tmp_path / "f", "vgg", 19, "proximal", 1, **vgg, tuning={"epochs": 40})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / TRAINED).write_text("a,b\n1,2\n")
    (tmp_path / "c").touch()
    for arguments, message in (
        (["vgg-cifar10", "--save", tmp_path / "a"], "--lambda 0.009, not 0.0045"),
        (["vgg-cifar10", "--save", tmp_path / "f"], "--epochs 40, not 160"),
        (["vgg-cifar10", "--save", tmp_path / "b"], "no column run"),
        (["vgg-cifar10", "--save", tmp_path / "c"], "is not a folder"),
        (["small", "--scale", 5], "leave out --scale"),
        (["vgg-cifar10", "--save", tmp_path / "d", "--data", pictures], "2 classes"),
        (["vgg-cifar10", "--save", tmp_path / "d", "--data", tmp_path / "e"], "is not a directory"),
        (["table9"], "table9"),
        (["small", "--seeds", "-1"], "--seeds"),
    ):
        capsys.readouterr()
        assert command(*arguments) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "d").exists()
