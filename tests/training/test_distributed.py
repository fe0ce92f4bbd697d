"""Two processes that train one model, started by torchrun as a user starts them."""

import os
import re
import signal
import subprocess
import time
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
LOST = re.compile("SIGKILL|the process group lost")


def torchrun(
    folder: Path, pictures: Path, *flags: object, script: Path = Path("main.py")
) -> subprocess.Popen:
    argv = [warm.PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    # Without --, torchrun reads --s as an abbreviation of a flag of its own.
    argv += ["--", script, *QUICK, *RESNET, "--dataset", "folder", "--data", pictures]
    return subprocess.Popen(
        [str(arg) for arg in [*argv, "--save", folder, *flags]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def failed(process: subprocess.Popen) -> str:
    start = time.monotonic()
    output, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert time.monotonic() - start < 100
    return output


def content(folder: Path) -> dict:
    return torch.load(next(folder.glob("*/checkpoint.pth.tar")), weights_only=True)


def load_batches(pictures: Path, batch_size: int) -> Batches:
    return Batches(load_dataset("folder", pictures), "train", batch_size, torch.device("cpu"), 1)


def test_two_processes_compute_what_one_does_with_two_half_batches(tmp_path, pictures):
    """Only batch norm differs: each process normalises by its half, and rank 0's are kept."""
    epochs, batch_size = 2, 5  # 32 images: six batches of 3 + 2 and one of 1 + 1
    initial_lr = 0.001  # small, because batch norm amplifies rounding
    flags = ["--epochs", epochs, "--batch-size", batch_size, "--lr", initial_lr]
    output = finished(torchrun(tmp_path, pictures, *flags))
    assert len(rows(tmp_path / "train_record.csv")) == 1  # one process writes
    assert len(re.findall("^epoch 1/2: lr", output, re.M)) == 1

    torch.manual_seed(1)
    network = fresh("resnet", 11, 2, 32)
    model = network.model.train()
    method = ProximalSlimming(network.graph, lambda_=1, beta=100, xi_init=XI_INIT)
    sgd = {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": True, "fused": True}
    optimizer = torch.optim.SGD(model.parameters(), initial_lr, **sgd)
    batches = load_batches(pictures, batch_size)
    for epoch in range(epochs):
        lr = learning_rate(epoch, epochs, initial_lr)
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
    state = content(tmp_path)
    torch.testing.assert_close(state["method"]["xi"], method.xi, rtol=1e-4, atol=1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state["state_dict"][name], value, rtol=1e-3, atol=1e-5)


def test_two_processes_run_sas_admm_as_one_does(tmp_path, pictures):
    flags = "--method sas-admm --arch resnet-basic --depth 8 --batch-size 6 --inner 3".split()
    flags += "--v 1000 --outer 2 --average-from 2 --s 0.01".split()  # small steps
    finished(torchrun(tmp_path, pictures, *flags))

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
    state = content(tmp_path)
    for name, value in method.state_dict().items():
        torch.testing.assert_close(state["method"][name], value, rtol=1e-3, atol=1e-5)
    assert (method.w - start).abs().max() > 1e-3


@pytest.mark.parametrize(("count", "size"), [(64, 2), (7, 3), (5, 4), (3, 4), (1, 2)])
def test_weighted_shards_average_to_the_mean_of_the_batch(count, size):
    batch_index = torch.arange(4 * count).reshape(4, count)
    shards = [ProcessGroup(rank, size).local_shard(batch_index) for rank in range(size)]
    losses = batch_index[0].double() ** 2
    mean = sum(losses[part[0]].mean() * weight for part, weight in shards) / size
    assert mean == pytest.approx(losses.mean())
    assert {int(x) for part, _ in shards for x in part[0]} == set(range(count))
    assert all(part.shape[1] > 0 for part, _ in shards)


def test_sigterm_ends_all_processes_and_names_the_command_to_resume(tmp_path, pictures):
    process = torchrun(tmp_path, pictures, "--epochs", 500)
    read_until(process, "epoch 2/500: lr")
    process.terminate()
    (command,) = re.findall(r"in epoch \d+: resume with (.*)", failed(process))
    assert "torch.distributed.run --nproc-per-node 2 -- " in command
    assert content(tmp_path)["epoch"] >= 2


NOT_FINITE = """
import os, sys
sys.path.insert(0, {root!r})
import main
from utils import console
from utils.device import Execution

logits, calls = Execution.logits, 0

def nan_in_step_6(self, model, images):
    global calls
    calls += model.training
    result = logits(self, model, images)
    return result * float("nan") if model.training and calls == 6 else result

if os.environ["RANK"] == "1":
    Execution.logits = nan_in_step_6
sys.exit(console.run(main.main))
"""


def test_a_loss_that_is_not_finite_in_one_process_ends_all(tmp_path, pictures):
    """In step 2 of epoch 2; rank 0 sees it in the gradients."""
    script = tmp_path / "script.py"
    script.write_text(NOT_FINITE.format(root=str(ROOT)))
    output = failed(torchrun(tmp_path / "logs", pictures, "--epochs", 500, script=script))
    errors = {line for line in output.splitlines() if line.startswith("error: ")}
    assert 1 <= len(errors) <= 2, output
    assert all(re.match(r"error: epoch 2: .* is not finite in step [23] of 4", e) for e in errors)
    state = content(tmp_path / "logs")
    assert state["epoch"] == 1
    assert all(x.isfinite().all() for x in state["state_dict"].values())


def test_a_stalled_process_fails_the_others_within_a_minute(monkeypatch):
    timeouts: list = []
    monkeypatch.setattr(dist, "new_group", lambda timeout: timeouts.append(timeout))
    assert ProcessGroup(1, 2).with_timeout() == ProcessGroup(1, 2)
    assert timeouts[0].total_seconds() < 60


def test_two_processes_remove_channels_and_resume_with_the_same_bits(tmp_path, pictures):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    output = finished(torchrun(whole, pictures, *DYING))
    widths = [row["channels"] for row in rows(whole / "proximal_seed1_resnet_11_folder/log.csv")]
    assert len(set(widths)) > 2, output
    process = torchrun(parts, pictures, *DYING)  # it ends if rank 0 is killed
    kill_at(process, r"epoch \d+: \d+ dead channels are removed", 0, parts)
    assert LOST.search(failed(process))
    finished(torchrun(parts, pictures, *DYING, "--resume", "auto"))
    assert_same_run(whole, parts)


def read_until(process: subprocess.Popen, pattern: str) -> list[str]:
    """Returns its output until a line begins so."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(pattern, line):
            break
    return lines


def kill_at(process: subprocess.Popen, pattern: str, rank: int, folder: Path) -> None:
    """Kills the process of a rank as soon as a line begins so."""
    lines = read_until(process, pattern)
    workers = [
        int(p.parent.name)
        for p in Path("/proc").glob("[0-9]*/environ")
        if f"\0RANK={rank}\0" in read(p) and str(folder) in read(p.with_name("cmdline"))
    ]
    assert len(workers) == 1, "".join(lines)
    os.kill(workers[0], signal.SIGKILL)


def read(path: Path) -> str:
    try:
        return "\0" + path.read_text(errors="replace")
    except OSError:  # not ours, or gone
        return ""
