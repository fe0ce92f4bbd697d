"""Inference engines, and the time that models take in them."""

import copy
import io
import statistics
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.device import Execution, time_call

Call = Callable[[], object]
# Engines and the packages that they need.
ENGINES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "torch": (),
    "torch-bf16": (),
    "openvino": ("onnx", "openvino"),
}
LEAST, MOST = 5, 30  # measurements of each call


def prepare(engine: str, model: nn.Module, images: Tensor) -> Call:
    """Returns a call that runs ``model`` on ``images`` [n, 3, size, size] in ``engine``.

    torch runs on the images' device, in the memory format that is faster for this model; the other
    engines run on the CPU, in float32 and with as many threads as torch.
    """
    if engine in ("torch", "torch-bf16"):
        dtype = torch.bfloat16 if engine == "torch-bf16" else torch.float32
        calls: list[Call] = []
        for execution in (Execution(images.device, channels_last=last) for last in (False, True)):
            placed = execution.place(copy.deepcopy(model).eval()).to(dtype)
            inputs = images.to(dtype).contiguous(memory_format=execution.memory_format)
            calls.append(torch.inference_mode()(partial(placed, inputs)))
        return min(calls, key=lambda call: min(time_call(call, images.device) for _ in range(3)))
    content, array = to_onnx(model, images), images.cpu().numpy()
    if engine == "onnxruntime":
        return partial(onnx_session(content).run, None, {"images": array})
    import openvino

    core, threads = openvino.Core(), torch.get_num_threads()
    # By default it computes in bfloat16 where the CPU can.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    return partial(core.compile_model(core.read_model(content), "CPU", settings), array)


def onnx_session(program: bytes | Path) -> Any:
    """Returns onnxruntime's session of an ONNX program, on the CPU with torch's threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])


def to_onnx(model: nn.Module, images: Tensor) -> bytes:
    """Returns ``model`` as ONNX, for measurements.

    torch's older exporter takes 0.3 s instead of the newer one's 5 to 10, and engines make the same
    graph of both.
    """
    file, model = io.BytesIO(), copy.deepcopy(model).cpu().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images.cpu(),), file, dynamo=False, input_names=["images"])  # type: ignore[arg-type]
    return file.getvalue()


def in_turn(calls: Sequence[Call], device: torch.device, repeats: int) -> list[list[float]]:
    """Returns the seconds of each of ``calls``, made in turn ``repeats`` times after a warm-up."""
    rounds = [[time_call(call, device) for call in calls] for _ in range(1 + repeats)]
    return [list(seconds) for seconds in zip(*rounds[1:], strict=True)]


def milliseconds(
    calls: Sequence[Call], device: torch.device, repeats: int | None = None
) -> list[float]:
    """Returns the median milliseconds of each of ``calls``, made in turn.

    By default each is measured for about half a second, 5 to 30 times.
    """
    if repeats is None:
        total = sum(seconds for (seconds,) in in_turn(calls, device, 1))
        repeats = min(MOST, max(LEAST, int(0.5 * len(calls) / total)))
    return [1000 * statistics.median(seconds) for seconds in in_turn(calls, device, repeats)]
