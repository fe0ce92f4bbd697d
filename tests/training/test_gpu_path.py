"""The GPU path on a CUDA runtime that computes nothing: see ``no_gpu``."""

import fcntl
import json
import os
import subprocess
import sys

import pytest
import torch

import no_gpu
from utils.methods import METHODS

pytestmark = pytest.mark.skipif(bool(no_gpu.lacks()), reason=no_gpu.lacks())

COUNTED = torch.__version__.startswith("2.15")
# Nodes of a captured step of proximal slimming in bfloat16, channels last, of torch 2.15; a
# convolution counts as one node forward and two backward.
NODES = {"vgg-19": 259, "densenet-40": 615, "resnet-110": 1460, "resnet-164": 2145}
CASES = [f"resnet-11,{method},bf16,last,full" for method in METHODS]
CASES += ["vgg-11,proximal,tf32,last,pruned", "densenet-7,proximal,fp32,first,pruned"]
CASES += [f"{model},proximal,bf16,last,full" for model in NODES if COUNTED]
WAITING = "waiting:resnet-11,baseline,bf16,last,full"
REMOVAL, TRAINING = (
    f"{kind}:resnet-11,proximal,bf16,last,full" for kind in ("removal", "training")
)


@pytest.fixture(scope="session")
def captured(tmp_path_factory):
    """The results of ``captured.py`` by case, and its stderr; one of xdist's workers runs it."""
    words = [*(f"steps:{case}" for case in CASES), WAITING, REMOVAL, TRAINING]
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
    stdout, stderr = json.loads(written)
    results = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    return {result["word"]: result for result in results}, stderr


def is_replay(step: dict[str, int]) -> bool:
    """One launch of a graph, and one copy of the batch's indices."""
    return (step["graphs"], step["kernels"] + step["on_device"]) == (1, 1) and not any(
        step[kind] for kind in ("to_device", "to_host", "fills", "waits", "captures")
    )


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_captured_once_per_batch_size_and_learning_rate(captured, case):
    """With as many nodes as are recorded, or somewhat fewer."""
    result = captured[0][f"steps:{case}"]
    first, second, dropped = (result[epoch] for epoch in ("first", "second", "dropped"))
    for steps in (first, dropped):  # the first full batch, and the smaller last one
        assert [step["captures"] for step in steps] == [1, 0, 0, 1]
        assert all(is_replay(step) for step in steps[1:3])
        for step in (steps[0], steps[3]):
            assert step["forbidden"] == step["to_device"] == step["to_host"] == 0
            assert step["graphs"] == 1 and step["nodes"] > 100
    assert all(is_replay(step) for step in second)
    if most := NODES.get(case.partition(",")[0]):
        assert 0.9 * most < first[0]["nodes"] <= most


def test_a_step_that_waits_for_the_device_runs_without_graph(captured):
    result, stderr = captured[0][WAITING], captured[1]
    assert stderr.count("cannot be captured") == 1  # this case only
    assert result["failed"]
    assert result["first"][0]["forbidden"] == 2  # the copy to the host, and the wait for it
    for step in result["first"][1:]:
        assert step["captures"] == step["graphs"] == 0
        assert step["kernels"] > 100 and step["waits"] == 1


def test_a_step_is_captured_again_after_channels_are_removed(captured):
    result = captured[0][REMOVAL]
    assert result["removed"] > 0
    for steps in (result["before"], result["after"]):
        assert [step["captures"] for step in steps] == [1, 0, 0, 1]
    # Some layers select channels now.
    assert result["after"][0]["nodes"] > result["before"][0]["nodes"]


def test_an_epoch_waits_once_per_progress_line_and_five_times_more(captured):
    """Four steps, a line every two, and one for the epoch: three lines."""
    epochs = captured[0][TRAINING]["epochs"]
    assert "epoch 3/8: 4/4" in captured[1]
    for epoch in (1, 2, 3):
        assert epochs[epoch]["captures"] == 0
        assert epochs[epoch]["waits"] <= 3 + 5
        assert epochs[epoch]["to_host"] <= 3 + 4
        assert epochs[epoch]["to_device"] <= 2
    assert epochs[4]["captures"] == 2  # the learning rate dropped
