"""The recipes: the published settings as commands, and the missing stages."""

import re
import shlex
from functools import partial

import pytest

import recorded
import runs
from recorded import VGG19
from utils.experiments import recipes
from utils.files.paths import TRAINED, RunPaths
from utils.flags.config import Config
from utils.flags.parser import parser, resolve
from utils.methods.slimming import shrinkage
from utils.paper.settings import recipe, schedule

command = partial(runs.command, recipes)


@pytest.fixture
def dry_run(tmp_path, capsys):
    """A function that returns the lines that --dry-run prints for arguments."""

    def dry_run(*arguments: object) -> list[str]:
        capsys.readouterr()
        assert command(*arguments, "--save", tmp_path, "--dry-run") == 0
        return capsys.readouterr().out.splitlines()

    return dry_run


@pytest.fixture
def missing(dry_run):
    """A function that returns the commands --dry-run prints for arguments, split into words."""

    def missing(*arguments: object) -> list[list[str]]:
        lines = [line.removeprefix("# ") for line in dry_run(*arguments)]
        commands = [line for line in lines if " --model " in line or " main.py " in line]
        return [shlex.split(line)[1:] for line in commands]

    return missing


def config_of(command: list[str]) -> Config:
    """The settings that main.py derives from its command."""
    return resolve(vars(parser().parse_args(command[1:])), None, {})


def value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


# λ of original slimming, λ and β of proximal slimming, shares of original slimming in Table 2.
TABLE_2 = {
    ("vgg", 19): (1e-4, 0.0045, 100, {"cifar10": 0.74, "cifar100": 0.55}),
    ("densenet", 40): (1e-5, 0.004, 100, {"cifar10": 0.7401, "cifar100": 0.6501}),
    ("resnet", 164): (1e-5, 0.002, 0.25, {"cifar10": 0.7198, "cifar100": 0.59}),
}


@pytest.mark.parametrize(("table", "dataset"), [("table2a", "cifar10"), ("table2b", "cifar100")])
def test_table_2_has_the_published_settings(table, dataset, missing):
    found, tunings = {}, []
    for words in missing(table):
        if "--refine" in words:
            tunings.append(config_of(words))
        elif words[0] == "main.py":
            s = config_of(words)
            assert (s.epochs, s.batch_size, s.lr, s.momentum) == (160, 64, 0.1, 0.9)
            assert (s.weight_decay, s.nesterov, s.subset, s.dataset) == (1e-4, True, None, dataset)
            found[s.arch, s.method] = s.depth, s.options.get("s"), s.options.get("beta")
        else:
            method = value(words, "--model").split("/")[-2].partition("_seed")[0]
            found[words[0].removesuffix("_prune.py"), method] += (value(words, "--percent"),)
    for (arch, depth), (lambda_, proximal, beta, shares) in TABLE_2.items():
        assert found.pop((arch, "baseline")) == (depth, None, None)
        share = f"{shares[dataset]:g}"
        assert found.pop((arch, "subgradient")) == (depth, lambda_, None, share)
        assert found.pop((arch, "proximal")) == (depth, proximal, beta, "0")
    assert not found
    assert [(t.method, t.epochs) for t in tunings] == [("baseline", 160)] * 6  # not the baselines


def test_tables_1_and_3(missing):
    trained = [config_of(words).arch for words in missing("table1")]
    assert sorted(trained) == sorted(["vgg", "densenet", "resnet"] * 2)  # no prunings
    assert (
        len(missing("table2a", "table1")) == 9 + 6 + 6 + 3
    )  # those of cifar100; others are shared
    commands = missing("table3", "--seeds", 4, 5)
    assert len(commands) == 2 * 2 * 3
    betas = [config_of(words).options["beta"] for words in commands if "-sr" in words]
    assert betas == [100, 1] * 2


def test_scaled_recipes_have_the_same_total_shrinkage(missing):
    for part in ("vgg-cifar10", "resnet164-cifar10"):
        s = config_of(missing(part, "--scale", 20, "--subset", 50)[0])
        full = recipe(s.arch, s.depth)
        assert (s.epochs, s.subset, s.test_subset) == (20, 50, 50)
        assert s.name != config_of(missing(part)[0]).name == "proximal_seed1"
        assert s.options["s"] > full.lambda_
        total = shrinkage(s.options["s"], s.options["beta"], schedule(20))
        assert total == pytest.approx(shrinkage(full.lambda_, full.beta, schedule()), rel=0.01)


LP = {"method": "lp-admm", "epochs": 160, "schedule": "step", "dataset": "cifar10", "seed": 1,
      "s": 1e-4, "p": 0.2, "rho": 1.5e-3, "bound": 1.0, "z_every": "epoch"}  # fmt: skip
LP_TUNING = {"schedule": "cosine", "epochs": 350, "warmup": 5, "label_smoothing": 0.1, "lr": 0.01,
             "batch_size": 256, "weight_decay": 5e-4, "method": "baseline"}  # fmt: skip
SAS = {"arch": "resnet-basic", "method": "sas-admm", "epochs": 190, "batch_size": 256}
SAS_TUNING = {"epochs": 200, "batch_size": 128, "lr": 0.1, "nesterov": False, "method": "baseline"}
IMAGENET = {"dataset": "imagenet", "size": 224, "data": "images"}
LP50 = {**IMAGENET, "arch": "resnet50", "batch_size": 256}
ALEX = {**IMAGENET, "arch": "alexnet", "method": "sas-admm"}
# Flags: settings of the training, first word and amount of the pruning, settings of the retraining.
ADMM = {
    "lp16": (LP | {"arch": "vgg", "depth": 16}, ("vgg_prune.py", "0.669"), LP_TUNING),
    "lp56": (LP | {"arch": "resnet-basic", "depth": 56}, ("resnet_prune.py", "0.673"), LP_TUNING),
    "lp110": (LP | {"arch": "resnet-basic", "depth": 110}, ("resnet_prune.py", "0.651"), LP_TUNING),
    "lp16 --scale 20": ({"epochs": 20}, ("vgg_prune.py", "0.669"), {"epochs": 20, "warmup": 0}),
    "lp50": (LP | LP50 | {"epochs": 90}, ("-m", "0.624"), LP_TUNING | {"epochs": 100}),
    "lp50 --scale 2": (LP50 | {"epochs": 2}, ("-m", "0.624"), {"epochs": 2}),
    "sas32": (SAS | {"depth": 32}, None, SAS_TUNING | {"prune_ratio": 0.85}),
    "sas56": (SAS | {"depth": 56}, None, SAS_TUNING | {"prune_ratio": 0.9}),
    "sas56 --scale 19": ({"outer": 19, "growth_from": 5, "average_from": 17}, None, {"epochs": 19}),
    "sasalex": (ALEX | {"outer": 190, "inner": 1000}, None,
                {"lr": 0.01, "prune_ratio": 0.9522, "epochs": 90}),
    "sasalex --scale 2": (ALEX | {"outer": 2, "inner": 10}, None, {"epochs": 2}),
}  # fmt: skip


@pytest.mark.parametrize("flags", ADMM)
def test_admm_recipes_have_the_published_settings(flags, missing):
    expected, pruning, retraining = ADMM[flags]
    words = [*flags.split(), *(["--data", "images"] if "data" in expected else [])]
    train, *prune, refine = missing(*words)
    s, t = config_of(train), config_of(refine)
    for config, settings in ((s, expected), (t, retraining)):
        assert {name: config.to_dict()[name] for name in settings} == settings
    file = "pruned" if prune else "checkpoint"
    assert t.refine.endswith(f"{s.run_name}/{file}.pth.tar")
    assert [(words[0], value(words, "--target-flops")) for words in prune] == [pruning] * len(prune)
    assert bool(prune) == (pruning is not None)


def test_a_pruning_to_another_target_does_not_count(missing, tmp_path):
    run = recorded.run(tmp_path, "vgg", 16, "lp-admm", 1, percent=0.0, mask="z")
    (tmp_path / run).mkdir()
    (tmp_path / run / "pruned.pth.tar").touch()
    assert len(missing("lp16")) == 2


def test_only_missing_stages_are_planned_with_their_cost(dry_run, missing, tmp_path):
    done = recorded.run(tmp_path, seed=1, **VGG19, percent=0.0, tuned=93)
    second = recorded.run(tmp_path, seed=2, **VGG19)
    third = RunPaths(tmp_path, "proximal_seed3_vgg_19_cifar10")
    third.directory.mkdir()
    third.checkpoint.touch()
    third.log.write_text("epoch,train_seconds,test_seconds,other\n" + "1,60,1,x\n" * 100)
    flags = ["vgg-cifar10", "--seeds", 1, 2, 3]
    out = dry_run(*flags)
    lines = {line.split()[0]: line for line in out if "_seed" in line.split()[0]}
    assert lines[done].split()[1:] == ["done", "done", "done", "-"]
    assert "60 of 160 epochs" in lines[third.run]
    commands = missing(*flags)
    assert not [words for words in commands if done in " ".join(words)]
    assert all(value(words, "--resume") == "auto" for words in commands if words[0] == "main.py")
    # Seed 2: 160 epochs of fine-tuning at 20 s, like seed 1; seed 3: also 60 epochs at 61 s.
    assert lines[second].endswith("53:20") and lines[third.run].endswith("1:54:20")
    assert re.search(r"left: 1 trainings, 2 prunings, 2 fine-tunings, .* 2:47:40", out[-1])
    assert " ".join(dry_run("small")).count("unknown") == 7  # six runs, and the sum
    recorded.run(tmp_path, "resnet", 110, "proximal", 1, s=0.002, beta=1.0)
    assert dry_run("resnet110-cifar10")[-2].endswith("1:22:40")  # fine-tuned at its 31 s an epoch


def test_original_slimming_is_pruned_at_the_share_of_proximal(dry_run, missing, tmp_path):
    prunings = [words for words in missing("small") if "--percent" in words]
    assert [value(words, "--percent") for words in prunings] == ["0", "SHARE"] * 2
    unknown = [line for line in dry_run("small") if "SHARE" in line]
    assert len(unknown) == 2 and all(line.startswith("# ") for line in unknown)
    vgg = {"arch": "vgg", "depth": 11, "seed": 1, **recipes.SMALL_DATA}
    proximal = vgg | recipes.SMALL["vgg", 11] | {"method": "proximal"}
    recorded.run(tmp_path, **proximal, percent=0.0, removed=(39.3, 1, 1))
    for percent, done in ((0.5, False), (0.393, True)):
        run = recorded.run(tmp_path, **vgg, method="subgradient", percent=percent)
        RunPaths(tmp_path, run).directory.mkdir(exist_ok=True)
        RunPaths(tmp_path, run).pruned().touch()
        prunings = [words for words in missing("small") if words[0] == "vgg_prune.py"]
        shares = [value(words, "--percent") for words in prunings if run in " ".join(words)]
        assert shares == ([] if done else ["0.393"])
    RunPaths(tmp_path, run).pruned().unlink()  # before the fine-tuning
    assert any("--percent" in words and run in " ".join(words) for words in missing("small"))


def test_prunings_at_another_share_and_their_fine_tunings_do_not_count(dry_run, tmp_path):
    def stages() -> str:
        (line,) = (line for line in dry_run("table2a") if line.startswith(run))
        return " ".join(line.split()[1:])

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
    recorded.run(tmp_path / "a", seed=1, **VGG19 | {"s": 0.009})
    recorded.run(tmp_path / "f", seed=1, **VGG19, percent=0.0, tuned=93, tuning={"epochs": 40})
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
