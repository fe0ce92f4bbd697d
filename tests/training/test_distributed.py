"""Two processes that train one model, started by torchrun as a user starts them."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import warm
from runs import DYING, QUICK, ROOT, assert_same_run, rows
from utils.data.batches import Batches
from utils.data.datasets import load_dataset
from utils.methods.sas_admm import SasAdmm
from utils.methods.slimming import ProximalSlimming
from utils.network import fresh
from utils.paper.settings import SAS, XI_INIT, learning_rate
from utils.training.distributed import ProcessGroup

RESNET = ["--arch", "resnet", "--depth", "11", "-sr", "--s", "1", "--beta", "100"]
# Small steps: batch norm amplifies rounding. 32 images: six batches of 3 + 2 and one of 1 + 1.
PROXIMAL = [*RESNET, *"--epochs 2 --batch-size 5 --lr 0.001".split()]
ADMM = "-sr --method sas-admm --arch resnet-basic --depth 8 --batch-size 6 --inner 3".split()
ADMM += "--v 1000 --outer 2 --average-from 2 --s 0.01".split()
REMOVING = [*DYING, "--epochs", "6"]


def torchrun(*argv: object) -> subprocess.Popen:
    launcher = [warm.PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    # Without --, torchrun reads --s as an abbreviation of a flag of its own.
    return subprocess.Popen(
        [str(arg) for arg in [*launcher, "--", *argv]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def flags(folder: Path, pictures: Path, *more: object) -> list[str]:
    data = ["--dataset", "folder", "--data", pictures, "--save", folder]
    return [str(arg) for arg in [*QUICK, *data, *more]]


def content(folder: Path) -> dict:
    return torch.load(next(folder.glob("*/checkpoint.pth.tar")), weights_only=True)


def load_batches(pictures: Path, batch_size: int) -> Batches:
    return Batches(load_dataset("folder", pictures), "train", batch_size, torch.device("cpu"), 1)


# Several trainings, the last of which has a loss that is not finite in step 2 of epoch 2 of rank 1.
SEVERAL = """
import json, os, sys
import torch.distributed as dist
import main
from utils import console
from utils.device import Execution

initialise = dist.init_process_group  # once for all trainings
dist.init_process_group = lambda *args, **options: (
    dist.is_initialized() or initialise(*args, **options))
dist.destroy_process_group = lambda: None
logits, calls = Execution.logits, 0

def nan_in_step_6(self, model, images):
    global calls
    calls += model.training
    result = logits(self, model, images)
    return result * float("nan") if model.training and calls == 6 else result

*trainings, last = json.loads(sys.argv[1])
for argv in trainings:
    assert console.run(main.main, argv) == 0
if os.environ["RANK"] == "1":
    Execution.logits = nan_in_step_6
sys.exit(console.run(main.main, last))
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, pictures) -> tuple[Path, str]:
    """A run that got a SIGTERM after it had removed channels, and its output."""
    folder = tmp_path_factory.mktemp("stopped")
    process = torchrun("main.py", *flags(folder, pictures, *REMOVING))
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch 3/6: lr"):
            process.terminate()
    assert process.wait(timeout=100) != 0
    return folder, "".join(lines)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures, stopped) -> tuple[Path, str]:
    """The folder with several runs of two processes, and their output."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SEVERAL)
    runs = {"proximal": PROXIMAL, "admm": ADMM, "whole": REMOVING}
    argvs = [flags(folder / name, pictures, *more) for name, more in runs.items()]
    argvs.append(flags(stopped[0], pictures, *REMOVING, "--resume", "auto"))
    argvs.append(flags(folder / "nan", pictures, *RESNET, "--epochs", 9))
    process = torchrun(folder / "script.py", json.dumps(argvs))
    output, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    return folder, output


def test_a_sigterm_ends_all_processes_and_names_the_command_to_resume(stopped):
    (command,) = re.findall(r"in epoch \d+: resume with (.*)", stopped[1])
    assert "torch.distributed.run --nproc-per-node 2 -- " in command


def test_the_resumed_run_has_the_same_bits(trained, stopped):
    folder, output = trained
    log = rows(next(folder.glob("whole/*/log.csv")))
    assert len({row["channels"] for row in log}) > 1, output
    assert_same_run(folder / "whole", stopped[0])


def test_two_processes_compute_what_one_does_with_two_half_batches(trained, pictures):
    """Only batch norm differs: each process normalises by its half, and rank 0's are kept."""
    folder, output = trained
    assert len(rows(folder / "proximal/train_record.csv")) == 1, output  # one process writes
    assert len(re.findall("^epoch 1/2: lr", output, re.M)) == 1

    torch.manual_seed(1)
    network = fresh("resnet", 11, 2, 32)
    model = network.model.train()
    method = ProximalSlimming(network.graph, lambda_=1, beta=100, xi_init=XI_INIT)
    sgd = {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": True, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), 0.001, **sgd)
    batches = load_batches(pictures, 5)
    for epoch in range(2):
        lr = learning_rate(epoch, 2, 0.001)
        optimizer.param_groups[0]["lr"] = lr
        for batch_index in batches.epoch_indices(epoch):
            optimizer.zero_grad()
            buffers = [b.clone() for b in model.buffers()]
            for rank in (1, 0):  # rank 0's statistics are the last ones
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
                images, labels = batches.get_batch(batch_index.tensor_split(2, dim=1)[rank])
                share = len(labels) / batch_index.shape[1]
                (F.cross_entropy(model(images), labels) * share).backward()
            optimizer.step()
            method.step(lr)
    state = content(folder / "proximal")
    torch.testing.assert_close(state["method"]["xi"], method.xi, rtol=1e-4, atol=1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state["state_dict"][name], value, rtol=1e-3, atol=1e-5)


def test_two_processes_run_sas_admm_as_one_does(trained, pictures):
    torch.manual_seed(1)
    network = fresh("resnet-basic", 8, 2, 32)
    model = network.model.train()
    SasAdmm.initialise(model)
    defaults = {name: value for name, value in vars(SAS).items() if name != "batch_size"}
    method = SasAdmm(network.graph, **defaults | {"lambda_": 0.01, "inner": 3, "v": 1000})
    start, batches = method.w.clone(), load_batches(pictures, 6)
    for epoch in range(2):
        method.begin_epoch(epoch)
        for batch_index in batches.epoch_indices(epoch, method.steps(epoch)):
            model.zero_grad()
            method.before_forward()
            for half in batch_index.tensor_split(2, dim=1):
                images, labels = batches.get_batch(half)
                (F.cross_entropy(model(images), labels) / 2).backward()
            method.step(0.1)
        method.end_epoch(0.1)
    state = content(trained[0] / "admm")
    for name, value in method.state_dict().items():
        torch.testing.assert_close(state["method"][name], value, rtol=1e-3, atol=1e-5)
    assert (method.w - start).abs().max() > 1e-3


def test_a_loss_that_is_not_finite_in_one_process_ends_all(trained):
    """Rank 0 sees it in the gradients."""
    folder, output = trained
    errors = {line for line in output.splitlines() if line.startswith("error: ")}
    assert 1 <= len(errors) <= 2, output
    assert all(re.match(r"error: epoch 2: .* is not finite in step [23] of 4", e) for e in errors)
    state = content(folder / "nan")
    assert state["epoch"] == 1
    assert all(x.isfinite().all() for x in state["state_dict"].values())


@pytest.mark.parametrize(("count", "size"), [(64, 2), (7, 3), (5, 4), (3, 4), (1, 2)])
def test_weighted_shards_average_to_the_mean_of_the_batch(count, size):
    batch_index = torch.arange(4 * count).reshape(4, count)
    shards = [ProcessGroup(rank, size).local_shard(batch_index) for rank in range(size)]
    losses = batch_index[0].double() ** 2
    mean = sum(losses[part[0]].mean() * weight for part, weight in shards) / size
    assert mean == pytest.approx(losses.mean())
    assert {int(x) for part, _ in shards for x in part[0]} == set(range(count))
    assert all(part.shape[1] > 0 for part, _ in shards)


def test_a_stalled_process_fails_the_others_within_a_minute(monkeypatch):
    timeouts: list = []
    monkeypatch.setattr(dist, "new_group", lambda timeout: timeouts.append(timeout))
    assert ProcessGroup(1, 2).with_timeout() == ProcessGroup(1, 2)
    assert timeouts[0].total_seconds() < 60
