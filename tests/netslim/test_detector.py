"""The README's detector, where ultralytics is installed."""

import re
from pathlib import Path

import checks
import pytest
import torch

import netslim

tasks = pytest.importorskip("ultralytics.nn.tasks")
onnxruntime = pytest.importorskip("onnxruntime")
README = Path(netslim.__file__).parent / "README.md"


class Trained(tasks.DetectionModel):
    """With scaling factors that differ, as after some training."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        checks.disturb(self)


def boxes_in_images(count: int, of_each: int = 4) -> dict[str, torch.Tensor]:
    many = count * of_each
    return {
        "img": torch.rand(count, 3, 64, 64),
        "batch_idx": torch.arange(count).repeat_interleave(of_each).to(torch.get_default_dtype()),
        "cls": torch.randint(0, 80, (many, 1)).to(torch.get_default_dtype()),
        "bboxes": 0.2 + 0.4 * torch.rand(many, 4),
    }


def test_yolo_is_driven_to_zeros_pruned_and_exported(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "DetectionModel", Trained)
    torch.manual_seed(0)
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    training, start, export = block.partition("small.yolo.eval()")
    batches = (boxes_in_images(2) for _ in range(8))
    shown = {"batches": batches, "lambda_": 30, "beta": 100, "lr": 0.01}
    torch.set_default_dtype(torch.float64)
    try:
        exec(training, shown)
        x = torch.rand(2, 3, 64, 64)
    finally:
        torch.set_default_dtype(torch.float32)
    graph, keep, small, report = (shown[name] for name in ("graph", "keep", "small", "report"))
    assert sum(map(len, keep.values())) == 5296
    assert all(mask.all() for mask in graph.prunable().values())
    assert report.removed > 1000 and not report.staying and report.carriers and not report.reasons
    full = checks.masked(graph.model, x, keep)
    for train in (True, False):
        for mine, theirs in zip(small.train(train)(x), full.train(train)(x), strict=True):
            checks.assert_close(mine, theirs)
    small.float()
    exec(start + export, shown)
    session = onnxruntime.InferenceSession("yolo.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 64, 64)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    checks.assert_close(torch.from_numpy(found), small.yolo(images), 1e-5)
