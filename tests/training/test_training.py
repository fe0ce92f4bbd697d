"""The training step: steps that are not finite, CUDA graphs, precision."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from main import train_step
from models import build_model
from steps import make_step, proximal
from utils.console import NonFiniteLoss
from utils.device import Execution
from utils.network import fresh
from utils.training import cuda_graphs
from utils.training.cuda_graphs import CapturedSteps, preserved
from utils.training.step import Step


def run_epoch(step: Step, run_step=None) -> None:
    for batch_index in step.batches.epoch_indices(0):
        run_step(batch_index) if run_step else train_step(step, batch_index)


def assert_same_state(one: Step, other: Step) -> None:
    assert all(map(torch.equal, one.state(), other.state()))


@pytest.mark.parametrize(
    ("parameter", "value", "before", "after", "message"),
    [
        ("layer2.0.conv2.weight", "inf", 1, 3, "step 2 .*the parameters of layer2.0.conv2"),
        ("layer1.0.bn1.weight", "nan", 1, 0, "step 1 .*the parameters of layer1.0.bn1"),
        ("conv1.weight", "3e38", 0, 1, "step 1 .*the output of conv1"),
    ],
)
def test_from_a_step_on_that_is_not_finite_nothing_changes(
    parameter, value, before, after, message
):
    """The message names the step and the first layer that is not finite."""
    step = make_step()
    order = step.batches.epoch_indices(0)
    for batch_index in order[:before]:
        train_step(step, batch_index)
    with torch.no_grad():
        step.model.get_parameter(parameter).fill_(float(value))
    tensors = [*step.model.parameters(), *step.momentum().values(), step.method.xi]
    copies = [x.clone() for x in tensors]
    for batch_index in order[before:][:after]:
        train_step(step, batch_index)
    for x, old in zip(tensors, copies, strict=True):
        torch.testing.assert_close(x, old, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(NonFiniteLoss, match=message):
        step.metrics(order)


def test_the_warm_up_of_a_capture_leaves_no_trace():
    step, twin = make_step(), make_step()
    order = step.batches.epoch_indices(0)
    for each in (step, twin):
        train_step(each, order[0])
    with preserved(step.state()):
        run_epoch(step)
    for each in (step, twin):
        train_step(each, order[1])
    assert_same_state(step, twin)
    assert step.metrics(order) == twin.metrics(order)
    counters = [b for n, b in step.model.named_buffers() if n.endswith("num_batches_tracked")]
    assert counters and {int(b) for b in counters} == {2}


def test_after_a_failed_capture_training_continues_without_graphs(capsys, monkeypatch):
    def warm_up_and_fail(work) -> None:
        for _ in range(3):
            work()
        raise RuntimeError("no graphs here\nand more")

    def fail_halfway(work) -> None:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(step.method, "step", lambda lr: 1 / 0)
            work()
        assert step.model.conv1.weight.grad is not None  # which was never computed
        raise RuntimeError("no graphs here")

    plain = make_step()
    run_epoch(plain)
    for capture in (warm_up_and_fail, fail_halfway):
        monkeypatch.setattr(cuda_graphs, "capture_cuda_graph", capture)
        step = make_step()
        run_epoch(step, CapturedSteps(train_step, step))
        assert capsys.readouterr().err.count("captured as a CUDA graph (no graphs here)") == 1
        assert_same_state(step, plain)
    # Without restoring the state, the two would differ.
    monkeypatch.setattr(cuda_graphs, "capture_cuda_graph", warm_up_and_fail)
    monkeypatch.setattr(cuda_graphs, "preserved", lambda tensors: nullcontext())
    step = make_step()
    run_epoch(step, CapturedSteps(train_step, step))
    assert not all(map(torch.equal, step.state(), plain.state()))


@pytest.mark.parametrize(("precision", "allowed"), [("tf32", True), ("fp32", False)])
def test_tf32_is_allowed_in_training_steps_only(precision, allowed, monkeypatch):
    step, seen = make_step(), []
    step.execution = Execution(torch.device("cpu"), precision)
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    monkeypatch.setattr(
        step.method, "before_step", lambda: seen.append([b.allow_tf32 for b in backends])
    )
    train_step(step, step.batches.epoch_indices(0)[0])
    assert seen == [[allowed, allowed]]
    assert not any(b.allow_tf32 for b in backends)


@pytest.mark.parametrize(
    ("arch", "depth", "channels_last"), [("resnet", 11, True), ("densenet", 7, False)]
)
def test_bf16_is_autocast_bit_for_bit(arch, depth, channels_last):
    execution = Execution(torch.device("cpu"), "bf16", channels_last)
    images = torch.randn(8, 3, 32, 32)
    model = execution.place(build_model(arch, depth, 10)).train()
    twin = copy.deepcopy(model)
    logits = execution.logits(model, images)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = twin(images.contiguous(memory_format=execution.memory_format)).float()
    assert torch.equal(logits, expected)
    for each in (logits, expected):
        F.cross_entropy(each, torch.arange(8)).backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.dtype == one.grad.dtype == torch.float32
        assert torch.equal(one.grad, other.grad)
        assert one.grad.stride() == other.grad.stride()
    assert all(map(torch.equal, model.buffers(), twin.buffers()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_compute_what_eager_steps_do():
    device, steps = torch.device("cuda"), []
    for use_graphs in (True, False):
        torch.manual_seed(0)
        data = make_step().batches
        network = fresh("resnet", 11, 10, 32)
        model = network.model.to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, fused=True)
        for name in ("images", "labels", "mean", "std"):
            setattr(data, name, getattr(data, name).to(device))
        step = Step(model, data, optimizer, proximal(network.graph), Execution(device))
        run_step = CapturedSteps(train_step, step) if use_graphs else None
        for lr in (0.1, 0.1, 0.01):
            step.start_epoch(lr)
            run_epoch(step, run_step)
        assert run_step is None or not run_step.failed
        steps.append(step)
    for one, other in zip(steps[0].state(), steps[1].state(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
