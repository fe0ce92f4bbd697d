"""Invalid flags are refused: one line with the reason, exit status 2, no file changed."""

import subprocess

import pytest

import main
import resnet_prune
import warm
from runs import command
from utils import export
from utils.arguments import share
from utils.flags.parser import parser
from workshop import PRUNE, QUICK, ROOT, dump, error_line, snapshot

# Values that the parser refuses, also where the method does not use the flag.
VALUES = """--lambda=nan --s=-1 --beta=0 --lr=0 --batch-size=1000000000000 --test-batch-size=0
    --momentum=1 --wd=nan --seed=9223372036854775808 --label-smoothing=1.5 --size=4
    --log-interval=0 --workers=257 --p=1.5 --inner=0 --prune-ratio=1.5 --warmup=-1 --subset=0
    --target-flops=0 --start-epoch=-1 --normalise=mine --z-every=never --name=a/b --method=ista"""
# Flags that the parser refuses, and the end of the message.
MISTYPED = {
    "--taget-flops=30": ": did you mean --target-flops?",
    "--epoch=3": ": did you mean --epochs?",
    "--arch=resnet51": ": did you mean resnet50?",
    "--arch=VGG19": "use --arch vgg --depth 19",
    "--arch=resnet-basic-56": "use --arch resnet-basic --depth 56",
    "--arch=\x1b[2J": ")",
    "--epochs=0": "'0' is not an integer from 1 to 10**6",
    "a\nb": r"unrecognized arguments: a\x0ab",
    f"--name={'x' * 300}": "' cannot be the beginning of file names",
    **dict.fromkeys(VALUES.split(), ""),
}


@pytest.mark.parametrize(("flag", "end"), MISTYPED.items(), ids=lambda text: text[:20])
def test_a_mistyped_flag_is_refused_in_one_line_with_the_most_similar_one(flag, end, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args([flag])
    assert stop.value.code == 2
    message = error_line(capsys.readouterr().err)
    assert message.endswith(end) and (end or flag.partition("=")[0] in message)


# Flags that are added to a valid command, and a part of the message.
FLAGS = {
    "--depth 12": "resnet has no depth 12: choose 9n + 2 (11, 20",
    "--arch densenet --depth 20": "densenet has no depth 20: choose 3n + 4 (7, 10, 22, 40",
    "--dataset imagenet --data nowhere": "nowhere has neither",
    "--size 64": "32×32",
    "--start-epoch 1": "--start-epoch 1 must be below the 1 epochs",
    "--warmup 1": "--warmup 1 must be below the 1 epochs",
    "-sr --xi-init 0.5 0.47": "--xi-init",
    "--method proximal": "needs -sr",
    "-sr --shape 2": "--shape 2",  # l1 has no shape
    "-sr --penalty lp --shape 1.5": "up to 1",
    "-sr --method subgradient --penalty lp": "tl1, mcp, scad, not lp",
    "-sr --method sas-admm --q 9": "beyond 1,000,000 mini-batches",
    "--prune-ratio 0.85": "--prune-ratio needs --refine",
    "--precision tf32": "tf32",
    "--subset 33": "--subset 33",
    "--test-subset 17": "--test-subset 17",
    "--data nowhere": "nowhere",
    "--dataset shapes": "--data",
    "--dataset cifar10": "2 classes",
}


@pytest.mark.parametrize(("flags", "reason"), FLAGS.items())
def test_invalid_flags_of_main_are_refused(shop, refused, flags, reason):
    assert reason in refused(main, *shop.train(), *flags.split())


PRUNE_FLAGS = {
    "--percent 1.01": "--percent",
    "--percent 0.5 --ratio 0.5 --target-flops 0.5": "not allowed with",
    "--criterion norms": "norms",
    "--test-subset 17": "--test-subset 17",
    "--depth 20": "depth 11, not 20",
    "--epochs 3": "--epochs",
    "--model": "--model",
    "--name checkpoint": "choose another --name",  # it takes no checkpoint's place
    "--name model_best": "choose another --name",
}


@pytest.mark.parametrize(("flags", "reason"), PRUNE_FLAGS.items())
def test_invalid_flags_of_the_prune_command_are_refused(shop, refused, tmp_path, flags, reason):
    save = ("--save", tmp_path / "new") if "--name" not in flags else ()  # must not be created
    args = ("--model", shop.trained, "--no-cuda", *save, *flags.split())
    assert reason in refused(resnet_prune, *args)


MISSING = [
    (main, ["--dataset", "folder", "--arch", "vgg", *QUICK], "--data DIR"),
    (export, ["--format", "sparse", "--model", "nowhere"], "nowhere"),
    *((program, [], "--model") for program in PRUNE.values()),
]


@pytest.mark.parametrize(("program", "args", "reason"), MISSING)
def test_missing_inputs_are_named(refused, program, args, reason):
    assert reason in refused(program, *args)


def test_the_prune_ratio_must_match_on_resuming(shop, refused, tmp_path):
    refine = ["--refine", shop.slim, "--prune-ratio", 0.5, "--epochs", 1, "--no-cuda"]
    assert command(main, *refine, "--save", tmp_path / "run") == 0
    (path,) = (tmp_path / "run").glob("*/checkpoint.pth.tar")
    line = refused(main, "--resume", path, "--prune-ratio", 0.6)
    assert "started with --prune-ratio 0.5, not 0.6" in line


SCRIPTS = {  # an InputError, and an error of the parser
    "main.py --resume {pickle} --no-cuda": "{pickle}",
    "densenet_prune.py --model {resnet} --percent 2": "argument --percent",
}


@pytest.mark.parametrize("line", SCRIPTS)
def test_scripts_exit_with_status_2_and_one_line(shop, tmp_path, line):
    paths = {"resnet": shop.trained, "pickle": tmp_path / "pickle"}
    dump(paths["pickle"], {"state_dict": {}})
    before = snapshot(tmp_path), snapshot(shop.folder)
    script, *args = line.format(**paths).split()
    argv = [warm.PYTHON, ROOT / script, *args]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert SCRIPTS[line].format(**paths) in error_line(done.stderr)
    assert (snapshot(tmp_path), snapshot(shop.folder)) == before


def test_a_half_is_written_in_three_ways():
    assert share("0.5") == share("50") == share("50%") == 0.5
