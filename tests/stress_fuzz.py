"""Spoil every kind of file the programs read, and their flags, and see that they take it well.

    python tests/stress_fuzz.py --count 2000 --commands 100 --seed 0

Each case must end with status 0, 2 or 3, without a traceback, within a minute and 4 gigabytes, and
with one line of error. Status 2 must leave everything on disk as it was (but for the cache of
decoded pictures). ``--only N`` runs one case again and says all. Not collected by pytest.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import densenet_prune  # noqa: E402
import main as train  # noqa: E402
import mutations  # noqa: E402
import resnet_prune  # noqa: E402
import vgg_prune  # noqa: E402
from models import build_model, full_cfg  # noqa: E402
from test_checkpoint import released_training_checkpoint  # noqa: E402
from utils import bench, cli, data, export, prune_command  # noqa: E402

PROGRAMS = {
    "main.py": train,
    "vgg_prune.py": vgg_prune,
    "resnet_prune.py": resnet_prune,
    "densenet_prune.py": densenet_prune,
    "-m utils.export": export,
    "-m utils.bench": bench,
}
SECONDS = 60
QUICK = ["--no-cuda", "--precision", "fp32", "--log-interval", "1000"]
FOLDER = ["--dataset", "folder", "--data", "pictures"]
FORMATS = ("a.png", "b.jpg", "c.bmp", "d.tif", "e.webp", "f.ppm")


class Case(NamedTuple):
    program: str
    argv: list[str]


class Hang(BaseException):
    pass


def run(program: str, argv: list[str]) -> tuple[int | str | None, str]:
    """Status and standard error of a program in this process."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        signal.alarm(SECONDS)
        try:
            status: int | str | None = cli.run(PROGRAMS[program].main, argv)
        except SystemExit as stop:
            status = stop.code
        except Hang:
            status = "hang"
            traceback.print_exc()
        except BaseException:
            status = "traceback"
            traceback.print_exc()
        finally:
            signal.alarm(0)
    return status, err.getvalue()


def run_command(program: str, argv: list[str]) -> tuple[int | str | None, str]:
    """The same as a real command."""
    where = [str(ROOT / program)] if program.endswith(".py") else program.split()
    try:
        done = subprocess.run(
            [sys.executable, *where, *argv],
            capture_output=True,
            timeout=2 * SECONDS,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    except subprocess.TimeoutExpired:
        return "hang", ""
    return done.returncode, done.stderr.decode(errors="replace")


def make_goods(folder: Path) -> None:
    """A good file of every kind, in ``folder``."""
    random = np.random.default_rng(0)
    os.chdir(folder)
    for part in ("train", "test"):
        for label in ("blue", "red"):
            place = Path("pictures", part, label)
            place.mkdir(parents=True)
            for name in FORMATS:
                picture = Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8))
                picture.save(place / name)
    shapes = lru_cache(data._shapes)  # drawing takes seconds
    data._shapes = shapes

    def good(program: str, *argv: str) -> None:
        status, err = run(program, list(argv))
        assert status == 0, err

    for arch, depth in (("resnet", "11"), ("densenet", "7")):
        net = ["--arch", arch, "--depth", depth, "--epochs", "1", "--save", "."]
        good("main.py", "-sr", *net, *FOLDER, *QUICK)
        path = Path(f"proximal_{arch}_{depth}_foldercheckpoint.pth.tar")
        good(f"{arch}_prune.py", "--model", str(path), "--percent", "0.3", "--no-cuda")
        released = ["--layout", "released", "--name", f"released_{arch}"]
        good(f"{arch}_prune.py", "--model", str(path), "--percent", "0.3", *released, "--no-cuda")
    cfg = [w if w == "M" else 8 for w in full_cfg("vgg", 11)]
    torch.save({"cfg": cfg, "state_dict": build_model("vgg", 11, 2, cfg).state_dict()}, "vgg.pth")
    refine = ["--refine", "vgg.pth", "-sr", "--epochs", "1", "--save", "."]
    good("main.py", *refine, *FOLDER, *QUICK)
    for path in Path().glob("*checkpoint.pth.tar"):  # as if half way
        content = torch.load(path, weights_only=True)
        content["settings"]["epochs"] = 2
        torch.save(content, path)
        path.with_name(path.name.replace("checkpoint", "model_best")).unlink()
    best = np.float64(0.5)
    content = released_training_checkpoint(Path("released.pth"), "resnet", 11, best)
    mutations.old_format(Path("old.pth"), {k: v for k, v in content.items() if k != "names"})


def read_checkpoint(random: Random, path: str) -> Case:
    """A program that reads the checkpoint at ``path``."""
    name = path.lower()
    arch = next((a for a in ("densenet", "vgg") if a in name), "resnet")
    kind = random.random()
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


def log_case(random: Random) -> Case:
    path = Path(trained(random))
    log = Path(path.name.replace("checkpoint.pth.tar", "log.csv"))
    log.write_bytes(mutations.text(random, log.read_bytes()))
    return Case("main.py", ["--resume", str(path), *QUICK])


def record_case(random: Random) -> Case:
    record = random.choice(["train_record.csv", "refine_record.csv", "pruned_record.csv"])
    Path(record).write_bytes(mutations.text(random, Path(record).read_bytes()))
    if record.startswith("pruned"):
        path = random.choice(["resnet_11", "densenet_7"])
        model = f"proximal_{path}_foldercheckpoint.pth.tar"
        return Case(f"{path.partition('_')[0]}_prune.py", ["--model", model, "--no-cuda"])
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
    of_class = getattr(data.datasets, name.upper())
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
    cli.positive_int: ["1", "2", "3", "16", "2147483648"],
    cli.natural: ["0", "1", "2147483648"],
    cli.seed: ["0", "7", str(2**63 - 1)],
    cli.positive: ["0.01", "0.1", "3", "100", "1e-30", "1e30"],
    cli.not_negative: ["0", "0.01", "3", "1e-30", "1e30"],
    cli.number: ["0", "-1", "0.5", "1", "1e30", "-1e30"],
    cli.fraction: ["0", "0.3", "0.9", "0.999999", "1"],
    cli.momentum: ["0", "0.5", "0.999999"],
    cli.file_name: ["mine", "a b", "γ", "-", "%s", "\udcff", "a\nb", "a" * 150],
}
FILES = ("--resume", "--refine", "--evaluate", "--model", "--compare")
UNFIT = [*mutations.TEXTS, *map(str, mutations.NUMBERS)]


def flags_case(random: Random) -> Case:
    """Any flags of a program, with values that fit, and in half of the cases also others."""
    program = random.choice(["main.py", "main.py", "main.py", *PROGRAMS])
    module = PROGRAMS[program]
    prunes = program.endswith("_prune.py")
    parser = prune_command.parser(program, "slim") if prunes else module.parser()
    arch = program.partition("_")[0] if prunes else random.choice(["resnet", "densenet", "vgg"])
    own = [path for path in [*TRAINED, *SLIM] if arch in path.lower()]
    files = own if random.random() < 0.9 else [*own, "released.pth", "nowhere", "pictures", ""]
    bad = random.choice([0, 0, 0.05, 0.2])
    argv = {train: [*QUICK], bench: ["--no-cuda", "--repeats", "1"]}.get(module, [])
    argv += ["--no-cuda", *FOLDER] if prunes else []
    if module is not train:
        argv += ["--compare" if module is bench else "--model", random.choice(files)]
        argv += [random.choice(files)] if module is bench else []
    elif random.random() < 0.4:
        argv += [random.choice(FILES[:3]), random.choice(files)]
    else:
        argv += [*FOLDER, "--arch", "resnet", "--depth", "11", "--epochs", "1"]
    actions = [a for a in parser._actions if a.dest != "help"]
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


TRAINED = [f"proximal_{x}_foldercheckpoint.pth.tar" for x in ("resnet_11", "densenet_7")]
TRAINED += ["proximal_vgg_11_folder_refinecheckpoint.pth.tar"]
SLIM = ["vgg.pth", "ResNetpruned.pth.tar", "densenetpruned.pth.tar"]
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


def snapshot() -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(Path().rglob("*"))
        if path.name != "pictures-32x32.npz"
    }


def trouble(status: int | str | None, err: str, before: dict[str, str]) -> str | None:
    """What is wrong with how a case ended."""
    lines = err.splitlines()
    if status not in (0, 2, 3):
        return f"status {status}"
    if "Traceback" in err:
        return "traceback"
    errors = [line for line in lines if line.startswith("error: ") or ": error: " in line]
    if len(errors) != (status != 0) or errors != lines[len(lines) - len(errors) :]:
        return "not one line of error at the end"
    after = snapshot()
    if status == 2 and after != before:
        changed = sorted({k for k, _ in before.items() ^ after.items()})
        return f"changed {', '.join(changed)}"
    if left := [name for name in after if name.endswith(".tmp")]:
        return f"left {left}"
    return None


def one_case(seed: int, number: int, goods: Path, as_command: bool) -> tuple[str, Any, str, Case]:
    """Kind, status, trouble or "", and the case itself."""
    random = Random(f"{seed}-{number}")
    kind, make = list(KINDS.items())[number % len(KINDS)]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(goods, folder, dirs_exist_ok=True)
        shutil.copyfile(goods / "vgg.pth", Path(folder, "good.pth"))
        os.chdir(folder)
        case = make(random)
        before = snapshot()
        status, err = (run_command if as_command else run)(*case)
        if os.environ.get("TELL"):
            import re

            print(
                "TELL",
                kind,
                "|",
                case.program,
                case.argv[0],
                status,
                "|",
                re.sub(
                    r"/?[\w./]*(pth|tar|csv)\b",
                    "F",
                    err.strip().splitlines()[-1] if err.strip() else "",
                )[:110],
            )
        wrong = trouble(status, err, before) or ""
        os.chdir(goods)
    return kind, status, f"{wrong}\n{err[-3000:]}" if wrong else "", case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--commands", type=int, default=100, help="as real commands, of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case again")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(Hang()))
    counts: Counter[tuple[str, Any]] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        os.environ["https_proxy"] = "http://127.0.0.1:9"  # nothing is downloaded
        make_goods(Path(folder))
        (pages, *_) = Path("/proc/self/statm").read_text().split()
        resource.setrlimit(resource.RLIMIT_AS, (int(pages) * resource.getpagesize() + 2**32,) * 2)
        numbers = range(args.count) if args.only is None else [args.only]
        every = max(args.count // max(args.commands, 1), 1)
        for number in numbers:
            # Shifted by one kind a time, so that all kinds get their share of real commands.
            as_command = args.commands and number % every == (number // every) % every
            kind, status, wrong, case = one_case(args.seed, number, Path(folder), bool(as_command))
            counts[kind, status] += 1
            if as_command:
                counts["(as real commands)", status] += 1
            if wrong or args.only is not None:
                failures += bool(wrong)
                print(f"case {number} ({kind}): {case.program} {json.dumps(case.argv)}: {status}")
                print(wrong, f"again: --seed {args.seed} --only {number}", "", sep="\n", flush=True)
            if number % 100 == 99:
                print(f"{number + 1}/{args.count}, {failures} failures", file=sys.stderr)
    for kind in [*KINDS, "(as real commands)"]:
        by_status = {status: n for (k, status), n in counts.items() if k == kind}
        total = sum(by_status.values())
        detail = ", ".join(f"{n} with {s}" for s, n in sorted(by_status.items(), key=str))
        print(f"{kind}: {total} cases ({detail})")
    print(f"{failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
