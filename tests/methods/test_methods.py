"""A method is one class: what that buys is tried with one that nothing else knows of."""

import ast
import re
import subprocess
import sys

import torch

from runs import QUICK, ROOT, assert_same_run, rows

TOY = [sys.executable, "tests/toy.py"]


def toy(*argv: object) -> str:
    done = subprocess.run([*TOY, *map(str, argv)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_method_of_ones_own_trains_resumes_and_is_recorded(tmp_path, pictures):
    flags = ["-sr", "--method", "toy", "--decay", "0.02", "--arch", "resnet", "--depth", "11"]
    flags = [*QUICK, *flags, "--dataset", "folder", "--data", str(pictures)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said = toy("main", *flags, "--save", whole)
    assert re.search(r"\nnext: \S+ resnet_prune.py .*--percent 0.1", said)

    command = [*TOY, "main", *flags, "--save", str(parts), "--resume", "auto"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 3/8"):
            process.kill()
            break
    process.wait()
    assert "epoch 8/8" in toy("main", *flags, "--save", parts, "--resume", "auto")
    assert_same_run(whole, parts)

    content = torch.load(next(whole.glob("*checkpoint.pth.tar")), weights_only=True)
    log = rows(next(whole.glob("*log.csv")))
    assert content["method"]["count"].sum() > 0
    assert float(log[-1]["above"]) > float(log[0]["above"]) > 0
    (row,) = rows(whole / "train_record.csv")
    assert (row["method"], row["decay"], row["s"]) == ("toy", "0.02", "")
    assert "Toy NS" in toy("tables", "--save", whole, "--only", "runs")


def test_its_flags_stand_in_the_help():
    said = toy("main", "-h")
    assert "--decay" in said and "toy, γ decays" in said


def test_its_tensors_are_part_of_what_a_step_changes(tmp_path):
    """In a process of its own, as the others: the registry is everybody's."""
    code = """
import sys; sys.path[:0] = ["tests"]
import toy, torch
from steps import make_step
step = make_step(method=lambda graph: toy.Toy(graph, 0.1))
known = {x.data_ptr() for x in step.state()}
assert step.method.count.data_ptr() in known
step.launch(step.batches.epoch_indices(0)[0])
assert step.method.count.sum() > 0
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_it_is_short():
    (toy_class,) = (
        node
        for node in ast.parse((ROOT / "tests" / "toy.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert toy_class.end_lineno - toy_class.lineno + 1 < 22  # blank lines among them
