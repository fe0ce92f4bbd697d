"""A user's method is one class and one line in the registry: ``tests/toy.py``."""

import ast
import re
import subprocess

import torch

import warm
from runs import QUICK, ROOT, assert_same_run, rows

TOY = "tests/toy.py"


def toy(*argv: object) -> str:
    words = [warm.PYTHON, TOY, *map(str, argv)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_users_method_trains_resumes_and_is_recorded(tmp_path, pictures):
    flags = ["-sr", "--method", "toy", "--decay", "0.02", "--arch", "resnet", "--depth", "11"]
    flags = ["main", *QUICK, *flags, "--dataset", "folder", "--data", str(pictures), "--save"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert re.search(r"\nnext: \S+ resnet_prune.py .*--percent 0.1", toy(*flags, whole))

    command = [warm.PYTHON, TOY, *flags, str(parts), "--resume", "auto"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 2/4"):
            process.kill()
            break
    process.wait()
    assert "epoch 4/4" in toy(*flags, parts, "--resume", "auto")
    assert_same_run(whole, parts)

    content = torch.load(next(whole.glob("*/checkpoint.pth.tar")), weights_only=True)
    assert content["method"]["count"].sum() > 0
    log = rows(next(whole.glob("*/log.csv")))
    assert float(log[-1]["above"]) > float(log[0]["above"]) > 0
    (row,) = rows(whole / "train_record.csv")
    assert (row["method"], row["decay"], row["s"]) == ("toy", "0.02", "")
    assert "Toy NS" in toy("tables", "--save", whole, "--only", "runs")
    assert "--decay" in toy("main", "-h")
    nodes = ast.parse((ROOT / TOY).read_text()).body
    (toy_class,) = (node for node in nodes if isinstance(node, ast.ClassDef))
    assert toy_class.end_lineno - toy_class.lineno + 1 < 22
