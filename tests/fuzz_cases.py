"""The programs' good files, and the cases that :mod:`stress_fuzz` makes of them."""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image

import densenet_prune
import main as train
import mutations
import resnet_prune
import vgg_prune
from released import training_checkpoint
from utils import arguments, export
from utils.bench import __main__ as bench
from utils.data import datasets
from utils.experiments import recipes
from utils.network import fresh
from utils.pruning import command
from utils.reports import plots, tables

PROGRAMS = {
    "main.py": train,
    "vgg_prune.py": vgg_prune,
    "resnet_prune.py": resnet_prune,
    "densenet_prune.py": densenet_prune,
    "-m utils.export": export,
    "-m utils.bench": bench,
    "-m utils.reports.tables": tables,
    "-m utils.reports.plots": plots,
    "-m utils.experiments.recipes": recipes,
}
QUICK = ["--no-cuda", "--precision", "fp32", "--log-interval", "1000"]
FOLDER = ["--dataset", "folder", "--data", "pictures"]
FORMATS = ("a.png", "b.jpg", "c.bmp", "d.tif", "e.webp", "f.ppm")


class Case(NamedTuple):
    program: str
    argv: list[str]


def make_goods(folder: Path, run: Callable[[str, list[str]], tuple[Any, str]]) -> None:
    """A good file of every kind, in ``folder``; ``run`` gives a program's status and errors."""
    random = np.random.default_rng(0)
    os.chdir(folder)
    for part in ("train", "test"):
        for label in ("blue", "red"):
            place = Path("pictures", part, label)
            place.mkdir(parents=True)
            for name in FORMATS:
                picture = Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8))
                picture.save(place / name)
    datasets._shapes = lru_cache(datasets._shapes)  # drawing takes seconds

    def good(program: str, *argv: str) -> None:
        status, err = run(program, list(argv))
        assert status == 0, err

    for arch, depth in (("resnet", "11"), ("densenet", "7")):
        net = ["--arch", arch, "--depth", depth, "--epochs", "1", "--save", "."]
        good("main.py", "-sr", *net, *FOLDER, *QUICK)
        path = Path(f"proximal_seed1_{arch}_{depth}_foldercheckpoint.pth.tar")
        good(f"{arch}_prune.py", "--model", str(path), "--percent", "0.3", "--no-cuda")
        released = ["--layout", "released", "--name", f"released_{arch}"]
        good(f"{arch}_prune.py", "--model", str(path), "--percent", "0.3", *released, "--no-cuda")
    network = fresh("vgg", 11, 2, 32)
    small = network.remove(network.plan([torch.arange(width) < 8 for width in network.widths]))
    torch.save({"cfg": small.cfg, "state_dict": small.model.state_dict()}, "vgg.pth")
    refine = ["--refine", "vgg.pth", "-sr", "--epochs", "1", "--save", "."]
    good("main.py", *refine, *FOLDER, *QUICK)
    for path in Path().glob("*checkpoint.pth.tar"):  # as if half way
        content = torch.load(path, weights_only=True)
        content["settings"]["epochs"] = 2
        torch.save(content, path)
        path.with_name(path.name.replace("checkpoint", "model_best")).unlink()
    best = np.float64(0.5)
    content = training_checkpoint(Path("released.pth"), "resnet", 11, best)
    mutations.old_format(Path("old.pth"), {k: v for k, v in content.items() if k != "names"})


def read_checkpoint(random: Random, path: str) -> Case:
    """A program that reads the checkpoint at ``path``."""
    name = path.lower()
    arch = next((a for a in ("densenet", "vgg") if a in name), "resnet")
    kind = random.random()
    if kind < 0.1 and path.endswith("checkpoint.pth.tar"):
        return Case("-m utils.reports.plots", ["--save", ".", "--run", run_of(path)])
    if kind < 0.03:
        return Case("-m utils.export", ["--model", path, "--format", "pt2", "--normalised"])
    if kind < 0.1:
        other = random.choice([path, "good.pth"])
        few = ["--batch-size", "1", "--repeats", "1", "--no-cuda"]
        return Case("-m utils.bench", ["--compare", path, other, *few])
    if kind < 0.5:
        how = random.choice([[], ["--percent", "0.5"], ["--mask", "xi"], ["--layout", "released"]])
        if random.random() < 0.1:
            how = ["--target-params", "0.3"]
        where = ["--model", path, "--name", "slim", "--no-cuda"]
        return Case(f"{arch}_prune.py", [*where, *FOLDER, *how])
    mode = random.choice(["--resume", "--resume", "--refine", "--evaluate"])
    more = [] if mode == "--resume" and random.random() < 0.5 else FOLDER
    epochs = ["--epochs", "2"] if mode == "--refine" or path.endswith(".pth") else []
    return Case("main.py", [mode, path, *more, *epochs, *QUICK])


def checkpoint_case(
    random: Random, names: list[str], spoil: Callable[[Random, Path], None]
) -> Case:
    name = random.choice(names)
    spoil(random, Path(name))
    return read_checkpoint(random, name)


def spoil_bytes(random: Random, path: Path) -> None:
    path.write_bytes(mutations.data(random, path.read_bytes()))


def spoil_zip(random: Random, path: Path) -> None:
    path.write_bytes(mutations.zipped(random, path.read_bytes()))


def spoil_content(random: Random, path: Path) -> None:
    content = torch.load(path, weights_only=False)
    for _ in range(random.choice([1, 1, 2, 3])):
        content = mutations.checkpoint(random, content)
    (mutations.old_format if random.random() < 0.2 else lambda p, x: torch.save(x, p))(
        path, content
    )


def trained(random: Random) -> str:
    return random.choice(sorted(map(str, Path().glob("*checkpoint.pth.tar"))))


def run_of(path: str) -> str:
    return path.removesuffix("checkpoint.pth.tar")


def log_case(random: Random) -> Case:
    path = Path(trained(random))
    log = Path(f"{run_of(path.name)}log.csv")
    log.write_bytes(mutations.text(random, log.read_bytes()))
    if random.random() < 0.3:
        return Case("-m utils.reports.plots", ["--save", ".", "--run", run_of(path.name)])
    return Case("main.py", ["--resume", str(path), *QUICK])


def record_case(random: Random) -> Case:
    record = random.choice(["train_record.csv", "refine_record.csv", "pruned_record.csv"])
    Path(record).write_bytes(mutations.text(random, Path(record).read_bytes()))
    kind = random.random()
    if kind < 0.5:
        reader = random.choice(["tables", "tables", "tables", "plots", "recipes"])
        more = ["small", "--dry-run", "--no-cuda"] if reader == "recipes" else []
        package = "experiments" if reader == "recipes" else "reports"
        return Case(f"-m utils.{package}.{reader}", ["--save", ".", *more])
    if record.startswith("pruned"):
        path = random.choice(["resnet_11", "densenet_7"])
        model = f"proximal_seed1_{path}_foldercheckpoint.pth.tar"
        return Case(
            f"{path.partition('_')[0]}_prune.py", ["--model", model, "--name", "again", "--no-cuda"]
        )
    return Case("main.py", ["--resume", trained(random), *QUICK])


def picture_case(random: Random) -> Case:
    Path("pictures/pictures-32x32.npz").unlink()
    for _ in range(random.choice([1, 1, 3])):
        spoil_bytes(random, random.choice(sorted(Path("pictures").glob("*/*/*"))))
    return Case("main.py", ["--evaluate", trained(random), "--no-cuda"])


def cache_case(random: Random) -> Case:
    cache = Path("pictures/pictures-32x32.npz")
    (spoil_zip if random.random() < 0.5 else spoil_bytes)(random, cache)
    return Case("main.py", ["--evaluate", trained(random), "--no-cuda"])


def batches_case(random: Random) -> Case:
    """CIFAR as torchvision keeps it: half of the files, or spoilt ones, or strangers'."""
    name = random.choice(["cifar10", "cifar100"])
    folder = Path("batches", {"cifar10": "cifar-10-batches-py"}.get(name, "cifar-100-python"))
    folder.mkdir(parents=True)
    of_class = getattr(torchvision.datasets, name.upper())
    content = {"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 4, "fine_labels": [0] * 4}
    for file, _ in (*of_class.train_list, *of_class.test_list, [of_class.meta["filename"], ""]):
        if random.random() < 0.9:
            whole = mutations.pickle.dumps(content)
            spoilt = random.random() < 0.5
            (folder / file).write_bytes(mutations.data(random, whole) if spoilt else whole)
    return Case("main.py", ["--dataset", name, "--data", "batches", *QUICK])


# What fits a flag, by its name or its type; extreme values too.
FITTING: dict[Any, list[str]] = {
    "--arch": ["resnet", "resnet", "vgg", "densenet"],
    "--depth": ["11", "11", "7", "2000000000"],
    "--dataset": ["folder", "folder", "folder", "shapes", "cifar10"],
    "--data": ["pictures", "pictures", "pictures/train", "nowhere", "vgg.pth", ""],
    "--epochs": ["1", "2"],
    "--save": [".", "new/er", "", "γ", "vgg.pth", "vgg.pth/x", "/proc/x", "a" * 300],
    "--output": ["out", "new/out", "pictures", "vgg.pth", "/proc/x", ""],
    "--format": ["pt2"],
    "--repeats": ["1", "2"],
    "--batch-size": ["1", "5", "64", "2147483648"],
    arguments.epochs: ["1", "2", "160", "1000000"],
    arguments.positive_int: ["1", "2", "3", "16", "2147483648"],
    arguments.size: ["32", "64", "4096"],
    arguments.workers: ["0", "1", "2"],
    arguments.natural: ["0", "1", "2147483648"],
    arguments.seed: ["0", "7", str(2**63 - 1)],
    arguments.positive: ["0.01", "0.1", "3", "100", "1e-30", "1e30"],
    arguments.not_negative: ["0", "0.01", "3", "1e-30", "1e30"],
    arguments.number: ["0", "-1", "0.5", "1", "1e30", "-1e30"],
    arguments.fraction: ["0", "0.3", "0.9", "0.999999", "1"],
    arguments.momentum: ["0", "0.5", "0.999999"],
    arguments.file_name: ["mine", "a b", "γ", "-", "%s", "\udcff", "a\nb", "a" * 150],
}
FILES = ("--resume", "--refine", "--evaluate", "--model", "--compare")
UNTRIED = ("help", "seeds")  # seeds: starts processes, whose errors are their own
UNFIT = [*mutations.TEXTS, *map(str, mutations.NUMBERS)]


def flags_case(random: Random) -> Case:
    """Any flags of a program, with values that fit, and in half of the cases also others."""
    program = random.choice(["main.py", "main.py", "main.py", *PROGRAMS])
    module = PROGRAMS[program]
    prunes = program.endswith("_prune.py")
    parser = command.parser(program, "slim") if prunes else module.parser()
    arch = program.partition("_")[0] if prunes else random.choice(["resnet", "densenet", "vgg"])
    own = [path for path in [*TRAINED, *SLIM] if arch in path.lower()]
    files = own if random.random() < 0.9 else [*own, "released.pth", "nowhere", "pictures", ""]
    bad = random.choice([0, 0, 0.05, 0.2])
    argv = {
        train: [*QUICK],
        bench: ["--no-cuda", "--repeats", "1"],
        recipes: ["--save", ".", "--no-cuda", "--dry-run", random.choice(recipes.PARTS)],
        tables: ["--save", "."],
        plots: ["--save", "."],
    }.get(module, [])
    argv += ["--no-cuda", *FOLDER] if prunes else []
    if module in (recipes, tables, plots):
        pass
    elif module is not train:
        argv += ["--compare" if module is bench else "--model", random.choice(files)]
        argv += [random.choice(files)] if module is bench else []
    elif random.random() < 0.4:
        mode = random.choice(FILES[:3])
        argv += [mode, "auto" if mode == "--resume" and random.random() < 0.2 else
                 random.choice(files)]  # fmt: skip
    else:
        argv += [*FOLDER, "--arch", "resnet", "--depth", "11", "--epochs", "1"]
    actions = [a for a in parser._actions if a.option_strings and a.dest not in UNTRIED]
    for action in random.sample(actions, min(random.randrange(1, 6), len(actions))):
        flag = random.choice(action.option_strings)
        count = {None: 1, "+": 2}.get(action.nargs, action.nargs)
        count += random.choice([-1, 1]) if random.random() < bad else 0
        if flag in FILES:
            fit = files
        else:
            named = FITTING.get(flag) or FITTING.get(action.type)
            fit = named or list(action.choices or UNFIT)
        some = (UNFIT if random.random() < bad else fit for _ in range(count))
        argv += [flag, *(random.choice(pool) for pool in some)]
    if "shapes" in argv:
        argv += ["--subset", "64", "--test-subset", "32"]
    if module is train and not {*FILES[:1], "--epochs"} & {*argv}:  # 160 epochs would take long
        argv += ["--epochs", "1"]
    return Case(program, argv)


TRAINED = [f"proximal_seed1_{x}_foldercheckpoint.pth.tar" for x in ("resnet_11", "densenet_7")]
TRAINED += ["vgg_vgg_11_folder_refinecheckpoint.pth.tar"]
SLIM = ["vgg.pth", "proximal_seed1_resnet_11_folder_pruned.pth.tar"]
SLIM += ["proximal_seed1_densenet_7_folder_pruned.pth.tar"]
RELEASED = ["released.pth", "released_densenetpruned.pth.tar", "released_resnetpruned.pth.tar"]
OLD = ["old.pth"]
KINDS: dict[str, Callable[[Random], Case]] = {
    "training checkpoint, bytes": lambda r: checkpoint_case(r, TRAINED, spoil_bytes),
    "training checkpoint, files in the zip": lambda r: checkpoint_case(r, TRAINED, spoil_zip),
    "training checkpoint, content": lambda r: checkpoint_case(r, TRAINED, spoil_content),
    "slim checkpoint, bytes": lambda r: checkpoint_case(r, SLIM, spoil_bytes),
    "slim checkpoint, files in the zip": lambda r: checkpoint_case(r, SLIM, spoil_zip),
    "slim checkpoint, content": lambda r: checkpoint_case(r, SLIM, spoil_content),
    "released checkpoint, bytes": lambda r: checkpoint_case(r, RELEASED + OLD * 3, spoil_bytes),
    "released checkpoint, files in the zip": lambda r: checkpoint_case(r, RELEASED, spoil_zip),
    "released checkpoint, content": lambda r: checkpoint_case(r, RELEASED + OLD, spoil_content),
    "log": log_case,
    "record": record_case,
    "picture": picture_case,
    "picture cache": cache_case,
    "torchvision's batches": batches_case,
    "flags": flags_case,
    "flags and a checkpoint's content": lambda r: (
        checkpoint_case(r, TRAINED + SLIM, spoil_content),
        flags_case(r),
    )[1],
}
