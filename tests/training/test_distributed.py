"""Two processes that train one network, started by torchrun as a user starts them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from runs import DYING, QUICK, ROOT, assert_same_run, rows
from utils.data.batches import Batches
from utils.data.datasets import load_dataset
from utils.methods.sas_admm import SasAdmm
from utils.methods.slimming import ProximalSlimming
from utils.network import fresh
from utils.paper.settings import SAS, XI_INIT, learning_rate
from utils.training.distributed import ProcessGroup

NETWORK = ["--arch", "resnet", "--depth", "11", "-sr", "--s", "1", "--beta", "100"]


def torchrun(
    folder: Path, pictures: Path, *more: object, script: Path = Path("main.py")
) -> subprocess.Popen:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    # Without the --, torchrun takes our --s for an abbreviation of its own flags.
    argv += ["--", script, *QUICK, *NETWORK, "--dataset", "folder", "--data", pictures]
    return subprocess.Popen(
        [str(arg) for arg in [*argv, "--save", folder, *more]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_compute_what_one_does_with_two_half_batches(tmp_path, pictures):
    """Equal: initial values, ξ, batches, the mean of the weighted gradients, every update. Not
    equal: each process normalises by its own half's batch statistics, and the first one's are
    kept. So one process that takes the halves in turn, as below, must give the same."""
    epochs, batch_size = 2, 5  # 32 pictures: six batches of 3 + 2 and one of 1 + 1
    initial = 0.001  # a small learning rate, for batch norm enlarges differences in rounding
    flags = ["--epochs", epochs, "--batch-size", batch_size, "--lr", initial]
    process = torchrun(tmp_path, pictures, *flags)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert len(rows(tmp_path / "train_record.csv")) == 1  # one writer
    assert len(re.findall("^epoch 1/2: lr", said, re.M)) == 1
    content = torch.load(next(tmp_path.glob("*checkpoint.pth.tar")), weights_only=True)

    torch.manual_seed(1)
    network = fresh("resnet", 11, 2, 32)
    model = network.model
    method = ProximalSlimming(network.graph, lambda_=1, beta=100, xi_init=XI_INIT)
    optimizer = torch.optim.SGD(
        model.parameters(), initial, 0.9, weight_decay=1e-4, nesterov=True, fused=True
    )
    batches = Batches(load_dataset("folder", pictures), "train", batch_size, torch.device("cpu"), 1)
    model.train()
    for epoch in range(epochs):
        lr = learning_rate(epoch, epochs, initial)
        optimizer.param_groups[0]["lr"] = lr
        for where in batches.epoch_indices(epoch):
            optimizer.zero_grad()
            buffers = [b.clone() for b in model.buffers()]
            for rank in (1, 0):  # the first process's statistics are the last ones
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
                images, labels = batches.get_batch(where.tensor_split(2, dim=1)[rank])
                share = len(labels) / where.shape[1]
                (F.cross_entropy(model(images), labels) * share).backward()
            optimizer.step()
            method.step(lr)
    torch.testing.assert_close(content["method"]["xi"], method.xi, rtol=1e-4, atol=1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(content["state_dict"][name], value, rtol=1e-3, atol=1e-5)


def test_two_processes_run_sas_admm_as_one_does(tmp_path, pictures):
    """As above: one process that takes the halves in turn must give the same weights."""
    # Small steps, for batch norm enlarges differences in rounding.
    flags = "--method sas-admm --arch resnet-basic --depth 8 --batch-size 6 --inner 3".split()
    flags += ["--v", "1000"]
    process = torchrun(tmp_path, pictures, *flags, "--outer", 2, "--average-from", 2, "--s", 0.01)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    content = torch.load(next(tmp_path.glob("*checkpoint.pth.tar")), weights_only=True)

    torch.manual_seed(1)
    network = fresh("resnet-basic", 8, 2, 32)
    model = network.model
    SasAdmm.initialise(model)
    defaults = {name: value for name, value in vars(SAS).items() if name != "batch_size"}
    method = SasAdmm(network.graph, **defaults | {"lambda_": 0.01, "inner": 3, "v": 1000})
    start = method.w.clone()
    batches = Batches(load_dataset("folder", pictures), "train", 6, torch.device("cpu"), 1)
    model.train()
    for epoch in range(2):
        method.begin(epoch)
        for where in batches.epoch_indices(epoch, method.steps(epoch)):
            model.zero_grad()
            method.before_forward()
            for half in where.tensor_split(2, dim=1):
                images, labels = batches.get_batch(half)
                (F.cross_entropy(model(images), labels) / 2).backward()
            method.step(0.1)
        method.end_epoch(0.1)
    for name, value in method.state_dict().items():
        torch.testing.assert_close(content["method"][name], value, rtol=1e-3, atol=1e-5)
    assert (method.w - start).abs().max() > 1e-3


@pytest.mark.parametrize(("count", "size"), [(64, 2), (7, 3), (5, 4), (3, 4), (1, 2)])
def test_shares_cover_a_batch_and_their_weights_make_its_mean(count, size):
    where = torch.arange(4 * count).reshape(4, count)
    shares = [ProcessGroup(rank, size).local_shard(where) for rank in range(size)]
    losses = where[0].double() ** 2  # of each picture
    mean = sum(losses[part[0]].mean() * weight for part, weight in shares) / size
    assert mean == pytest.approx(losses.mean())
    assert {int(x) for part, _ in shares for x in part[0]} == set(range(count))
    assert all(part.shape[1] > 0 for part, _ in shares)


def test_when_the_first_process_is_killed_the_job_ends_and_the_run_can_go_on(tmp_path, pictures):
    """The second one is, where it cuts, in a test below."""
    process = torchrun(tmp_path, pictures, "--epochs", 500)
    kill_at(process, "epoch 2/500: lr", 0, tmp_path)
    killed = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert "SIGKILL" in said or "the process group lost" in said
    content = torch.load(next(tmp_path.glob("*checkpoint.pth.tar")), weights_only=True)
    assert content["epoch"] >= 1


def test_sigterm_ends_all_and_the_run_can_go_on(tmp_path, pictures):
    process = torchrun(tmp_path, pictures, "--epochs", 500)
    until(process, "epoch 2/500: lr")
    process.terminate()
    began = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert process.returncode != 0
    (way_on,) = re.findall(r"in epoch \d+: go on with (.*)", said)
    assert "torch.distributed.run --nproc-per-node 2 -- " in way_on
    content = torch.load(next(tmp_path.glob("*checkpoint.pth.tar")), weights_only=True)
    assert content["epoch"] >= 2


NOT_FINITE = """
import os, sys
sys.path.insert(0, {root!r})
import main
from utils import console
from utils.device import Execution

logits, calls = Execution.logits, 0

def spoilt(self, model, images):
    global calls
    calls += model.training
    answers = logits(self, model, images)
    return answers * float("nan") if model.training and calls == 6 else answers

if os.environ["RANK"] == "1":
    Execution.logits = spoilt
sys.exit(console.run(main.main))
"""


def test_a_loss_that_is_not_finite_in_one_process_ends_all(tmp_path, pictures):
    """It is in the sixth step, the second of epoch 2; the first process hears of it by way of the
    gradients."""
    script = tmp_path / "script.py"
    script.write_text(NOT_FINITE.format(root=str(ROOT)))
    process = torchrun(tmp_path / "logs", pictures, "--epochs", 500, script=script)
    began = time.monotonic()
    said, _ = process.communicate(timeout=100)
    assert time.monotonic() - began < 100
    assert process.returncode != 0
    errors = {line for line in said.splitlines() if line.startswith("error: ")}
    assert 1 <= len(errors) <= 2, said
    assert all(re.match(r"error: epoch 2: .* is not finite in step [23] of 4", e) for e in errors)
    content = torch.load(next(tmp_path.glob("logs/*checkpoint.pth.tar")), weights_only=True)
    assert content["epoch"] == 1
    assert all(x.isfinite().all() for x in content["state_dict"].values())


def test_a_process_that_is_not_where_the_others_are_is_soon_lost(monkeypatch):
    """Once the data is loaded: before, others may wait half an hour for the one that loads."""
    waits = []
    monkeypatch.setattr(dist, "new_group", lambda timeout: waits.append(timeout))
    assert ProcessGroup(1, 2).with_timeout() == ProcessGroup(1, 2)
    assert waits[0].total_seconds() < 60


def test_two_processes_cut_what_died_and_go_on_from_there_when_killed(tmp_path, pictures):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    said, _ = torchrun(whole, pictures, *DYING).communicate(timeout=240)
    widths = [row["channels"] for row in rows(whole / "proximal_seed1_resnet_11_folderlog.csv")]
    assert len(set(widths)) > 2, said
    process = torchrun(parts, pictures, *DYING)
    kill_at(process, r"epoch \d+: \d+ dead channels are cut", 1, parts)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "SIGKILL" in said or "the process group lost" in said
    said, _ = torchrun(parts, pictures, *DYING, "--resume", "auto").communicate(timeout=240)
    assert "going on with" in said
    assert_same_run(whole, parts)


def until(process: subprocess.Popen, line: str) -> list[str]:
    """What it says until a line begins so."""
    lines = []
    for each in process.stdout:
        lines.append(each)
        if re.match(line, each):
            break
    return lines


def kill_at(process: subprocess.Popen, line: str, rank: int, folder: Path) -> None:
    """Kill the process of that rank as soon as a line begins so."""
    lines = until(process, line)
    workers = [
        int(p.parent.name)
        for p in Path("/proc").glob("[0-9]*/environ")
        if f"\0RANK={rank}\0" in _environ(p) and str(folder) in _environ(p.with_name("cmdline"))
    ]
    assert len(workers) == 1, "".join(lines)
    os.kill(workers[0], signal.SIGKILL)


def _environ(path: Path) -> str:
    try:
        return "\0" + path.read_text(errors="replace")
    except OSError:  # a process of somebody else's, or gone
        return ""
