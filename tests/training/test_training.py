"""A training step: halting, capture, and what a graph must leave alone."""

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


def trained(step: Step) -> list[torch.Tensor]:
    """All that an update changes."""
    momenta = [s["momentum_buffer"] for s in step.optimizer.state.values()]
    return [*step.model.parameters(), *momenta, step.method.xi]


def test_nothing_is_updated_from_a_step_on_that_is_not_finite():
    step = make_step()
    order = step.batches.epoch_indices(0)
    step.launch(order[0])
    step.metrics(order)
    with torch.no_grad():
        step.model.layer2[0].conv2.weight[3, 2, 1, 1] = float("inf")
    before = [x.clone() for x in trained(step)]
    for where in order[1:]:
        step.launch(where)
    assert all(map(torch.equal, before, trained(step)))
    with pytest.raises(NonFiniteLoss, match=r"step 2 of 4 .*the parameters of layer2\.0\.conv2"):
        step.metrics(order)


def test_a_gamma_that_is_not_finite_is_seen_at_the_end_of_its_step():
    step = make_step()
    order = step.batches.epoch_indices(0)
    step.launch(order[0])
    with torch.no_grad():
        step.model.layer1[0].bn1.weight[0] = float("nan")
    with pytest.raises(NonFiniteLoss, match=r"step 1 of 4 .*the parameters of layer1\.0\.bn1"):
        step.metrics(order)


def test_an_activation_that_overflows_is_named():
    step = make_step()
    order = step.batches.epoch_indices(0)
    with torch.no_grad():
        step.model.conv1.weight.fill_(3e38)
    step.launch(order[0])
    with pytest.raises(NonFiniteLoss, match=r"step 1 of 4 .*the output of conv1"):
        step.metrics(order)


def test_what_a_capture_tries_leaves_no_trace():
    """Warm-up steps change weights, statistics, momentum, ξ and tallies: all are put back."""
    step, twin = make_step(), make_step()
    order = step.batches.epoch_indices(0)
    for each in (step, twin):
        each.launch(order[0])
    with preserved(step.state()):
        for where in order:
            step.eager(where)
    for each in (step, twin):
        each.launch(order[1])
    pairs = zip(step.state(), twin.state(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def tensors_of(thing: object, seen: set[int]) -> list[torch.Tensor]:
    """All tensors that ``thing`` reaches, however deep."""
    if id(thing) in seen or isinstance(thing, str | int | float | type(None)):
        return []
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, dict):
        parts = list(thing.values())
    elif isinstance(thing, list | tuple | set):
        parts = list(thing)
    else:
        parts = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    return [tensor for part in parts for tensor in tensors_of(part, seen)]


def test_state_is_everything_that_a_step_changes():
    step = make_step()
    order = step.batches.epoch_indices(0)
    step.launch(order[0])
    reached = [x for x in tensors_of(step, set()) if x.numel()]
    before = [x.detach().clone() for x in reached]
    step.launch(order[1])
    known = {x.data_ptr() for x in step.state()}
    changed = [x for x, old in zip(reached, before, strict=True) if not torch.equal(x, old)]
    assert len(changed) > 50
    assert {x.data_ptr() for x in changed} <= known


def fails_late(work):
    """A capture that tries the step three times, as it must, and then fails."""
    for _ in range(3):
        work()
    raise RuntimeError("no graphs here\nand more")


def test_where_capture_fails_the_run_is_none_the_worse(capsys, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "capture_cuda_graph", fails_late)
    step, plain = make_step(), make_step()
    step.launch = CapturedSteps(step)
    for each in (step, plain):
        for where in each.batches.epoch_indices(0):
            each.launch(where)
    said = capsys.readouterr().err
    assert said.count("could not be captured as a graph (no graphs here): going on without") == 1
    assert all(map(torch.equal, step.state(), plain.state()))


def test_what_a_capture_that_fails_halfway_recorded_is_no_gradient(monkeypatch):
    step, plain = make_step(), make_step()

    def fails_halfway(work):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(step.method, "step", lambda lr: 1 / 0)
            work()
        assert step.model.conv1.weight.grad is not None
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(cuda_graphs, "capture_cuda_graph", fails_halfway)
    step.launch = CapturedSteps(step)
    for each in (step, plain):
        for where in each.batches.epoch_indices(0):
            each.launch(where)
    assert all(map(torch.equal, step.state(), plain.state()))


def test_what_a_failed_capture_would_leave_is_seen(monkeypatch):
    """The control of the test above: without putting back, the two differ."""
    monkeypatch.setattr(cuda_graphs, "capture_cuda_graph", fails_late)
    monkeypatch.setattr(cuda_graphs, "preserved", lambda tensors: nullcontext())
    step, plain = make_step(), make_step()
    step.launch = CapturedSteps(step)
    for each in (step, plain):
        each.launch(each.batches.epoch_indices(0)[0])
    same = [torch.equal(one, other) for one, other in zip(step.state(), plain.state(), strict=True)]
    assert same.count(False) > 50


def test_a_step_multiplies_in_tf32_and_nothing_else_does():
    seen = []

    def looks(step, where):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        train_step(step, where)

    for precision, allowed in (("tf32", True), ("fp32", False), ("bf16", False)):
        step = make_step()
        step.execution, step.train_step = Execution(torch.device("cpu"), precision), looks
        step.launch(step.batches.epoch_indices(0)[0])
        assert seen.pop() == (allowed, allowed)
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("arch", "depth"), [("vgg", 11), ("resnet", 11), ("densenet", 7)])
def test_all_weights_cast_at_once_give_what_autocast_gives(arch, depth, last):
    """Bit for bit: the answers, every gradient and every statistic."""
    execution = Execution(torch.device("cpu"), "bf16", last)
    images = torch.randn(8, 3, 32, 32)
    model = execution.place(build_model(arch, depth, 10)).train()
    twin = copy.deepcopy(model)
    answers = execution.logits(model, images)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = twin(images.contiguous(memory_format=execution.memory_format)).float()
    assert torch.equal(answers, expected)
    for each in (answers, expected):
        F.cross_entropy(each, torch.arange(8)).backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.dtype == one.grad.dtype == torch.float32
        assert torch.equal(one.grad, other.grad)
        assert one.grad.stride() == other.grad.stride()
    assert all(map(torch.equal, model.buffers(), twin.buffers()))


def test_batches_are_counted_as_torch_counts_them():
    model = build_model("resnet", 11, 10)
    for train in (True, True, False):
        model.train(train)(torch.zeros(2, 3, 32, 32))
    assert {int(b) for n, b in model.named_buffers() if n.endswith("tracked")} == {2}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_computes_what_the_plain_loop_does():
    device = torch.device("cuda")
    steps = []
    for graphed in (True, False):
        torch.manual_seed(0)
        step = make_step()
        data = step.batches
        network = fresh("resnet", 11, 10, 32)
        model = network.model.to(device)
        method = proximal(network.graph)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, fused=True)
        data.images, data.labels = data.images.to(device), data.labels.to(device)
        data.mean, data.std = data.mean.to(device), data.std.to(device)
        step = Step(model, data, optimizer, method, Execution(device), train_step)
        if graphed:
            step.launch = CapturedSteps(step)
        for epoch, lr in enumerate((0.1, 0.1, 0.01)):
            step.begin(lr)
            for where in data.epoch_indices(epoch):
                step.launch(where)
            step.metrics(data.epoch_indices(epoch))
        steps.append(step)
    assert isinstance(steps[0].launch, CapturedSteps), "capture failed"
    for one, other in zip(steps[0].state(), steps[1].state(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
