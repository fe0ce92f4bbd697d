"""The path of a GPU, over a CUDA runtime that does nothing: see ``no_gpu``."""

import fcntl
import json
import os
import subprocess
import sys
from itertools import product

import pytest
import torch

import no_gpu
from utils.methods import METHODS

pytestmark = pytest.mark.skipif(bool(no_gpu.lacks()), reason=no_gpu.lacks())

SMALL = ("vgg-11", "resnet-11", "densenet-7")
FORMATS = ("bf16,last", "fp32,first", "tf32,last")
CASES = [
    f"{network},{method},{how},{width}"
    for network, method, how, width in product(SMALL, METHODS, FORMATS, ("full", "slim"))
    if how == "bf16,last" or method == "proximal"
]
# Nodes of a captured step of proximal slimming in bfloat16, channels last and channels first: of
# torch 2.15, a convolution counted as one forward and two backward.
NODES = {
    "vgg-19": (259, 228),
    "densenet-40": (615, 499),
    "resnet-110": (1460, 1134),
    "resnet-164": (2145, 1657),
}


BIG = [f"{network},proximal,bf16,{last},full" for network in NODES for last in ("last", "first")]
WAITING = "waiting:resnet-11,baseline,bf16,last,full"
CUTTING, TRAINING = (
    f"{what}:resnet-11,proximal,bf16,last,full" for what in ("cutting", "training")
)


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """What ``captured.py`` saw of all of these, by word, and what it said; of several processes of
    tests the first one runs it."""
    words = [*(f"steps:{case}" for case in (*CASES, *BIG)), WAITING, CUTTING, TRAINING]
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (folder / "gpu_path").open("a+") as shared:
        fcntl.flock(shared, fcntl.LOCK_EX)
        shared.seek(0)
        if (written := shared.read()) == "":
            done = subprocess.run(
                [sys.executable, no_gpu.HERE / "captured.py", *words],
                env=no_gpu.build(tmp_path_factory.mktemp("no_gpu")), cwd=no_gpu.HERE.parents[1],
                capture_output=True, text=True, timeout=500,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            written = json.dumps([done.stdout, done.stderr])
            shared.write(written)
    lines, said = json.loads(written)
    found = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    return {each["word"]: each for each in found}, said


def is_replay(step: dict[str, int]) -> bool:
    """One launch, and the copy of which pictures."""
    return (step["graphs"], step["kernels"] + step["on_device"]) == (1, 1) and not any(
        step[kind] for kind in ("to_device", "to_host", "fills", "waits", "captures")
    )


@pytest.mark.parametrize("case", [*CASES, *BIG])
def test_a_step_is_captured_once_for_each_size_and_learning_rate(ran, case):
    found = ran[0][f"steps:{case}"]
    first, second, dropped = (found[epoch] for epoch in ("first", "second", "dropped"))
    for seen in (first, dropped):  # the first whole batch, and the smaller last one
        assert [step["captures"] for step in seen] == [1, 0, 0, 1]
        assert all(is_replay(step) for step in seen[1:3])
        for captured in (seen[0], seen[3]):
            assert captured["forbidden"] == 0
            assert captured["to_device"] == captured["to_host"] == 0
            assert captured["graphs"] == 1
            assert captured["nodes"] > 100
    assert all(is_replay(step) for step in second)


@pytest.mark.skipif(not torch.__version__.startswith("2.15"), reason="counted with torch 2.15")
@pytest.mark.parametrize("network", NODES)
def test_a_captured_step_has_no_more_nodes_than_it_had(ran, network):
    for memory_format, most in zip(("last", "first"), NODES[network], strict=True):
        found = ran[0][f"steps:{network},proximal,bf16,{memory_format},full"]
        assert 0.9 * most < found["first"][0]["nodes"] <= most


def test_a_step_that_waits_is_not_captured_and_the_run_goes_on(ran):
    found, said = ran[0][WAITING], ran[1]
    assert said.count("could not be captured") == 1  # and of all others none
    assert not found["graphed"]
    assert found["first"][0]["forbidden"] == 1 + 1  # the copy to the host, and the wait for it
    for step in found["first"][1:]:
        assert step["captures"] == step["graphs"] == 0
        assert step["kernels"] > 100
        assert step["waits"] == 1


def test_a_step_is_captured_anew_after_a_cut(ran):
    found = ran[0][CUTTING]
    assert found["cut"] > 0
    for seen in (found["before"], found["after"]):
        assert [step["captures"] for step in seen] == [1, 0, 0, 1]
    # A selection of what is left, in some layers.
    assert found["after"][0]["nodes"] > found["before"][0]["nodes"]


def test_an_epoch_waits_once_a_line_and_five_times_besides(ran):
    """Four steps, a line every two, and the epoch's own: three lines."""
    epochs = ran[0][TRAINING]["epochs"]
    assert "epoch 3/8: 4/4" in ran[1]
    # Learning rates drop after epochs 4 and 6: then a checkpoint is written, and the next captured.
    for epoch in (1, 2):
        assert epochs[epoch]["captures"] == 0
        assert epochs[epoch]["waits"] <= 3 + 5
        assert epochs[epoch]["to_host"] <= 3 + 4
        assert epochs[epoch]["to_device"] <= 2
    assert epochs[3]["to_host"] <= 3 + 4 + 2  # all float32 tensors, and all integers
    assert epochs[4]["captures"] == 2
