"""ONNX programs in int8, by onnxruntime's static quantisation."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from utils.data.batches import Batches
from utils.engines import milliseconds, onnx_session
from utils.pruning.report import accuracy

IMAGES = 256  # training images that calibrate
# Without Concat, whose single scale for a whole stream changed 35 % of a DenseNet-40's predictions
# (4 % without), and without BatchNormalization, whose γ get a single scale.
OPERATORS = ["Conv", "Gemm", "Relu", "MaxPool", "AveragePool", "Add"]


def quantize(program: Path, output: Path, batches: Iterable[Tensor]) -> None:
    """Writes ``program`` in int8 (QDQ, weights per channel).

    The ranges of activations are the least and the largest values (MinMax) for ``batches``, images
    [n, 3, size, size]: entropy chose the same ones in 2 to 3 times the time, and percentiles
    changed as many predictions (99.999) or up to four times as many (99.9).
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> object:
            return next(inputs, None)

    inputs = ({"images": images.numpy()} for images in batches)
    with TemporaryDirectory() as folder:
        folded = Path(folder, "folded.onnx")
        quant_pre_process(program, folded, skip_symbolic_shape=True)  # symbolic ones need sympy
        # With uint8 weights the bias of a channel whose γ is tiny would be clipped
        # (findings/ort_u8_bias_of_faint_channel.sh).
        options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        options |= {"op_types_to_quantize": OPERATORS, "per_channel": True}
        quantize_static(folded, output, Reader(), **options)
    quantised, metadata = onnx.load(output), onnx.load(program).metadata_props
    onnx.helper.set_model_props(quantised, {p.key: p.value for p in metadata})  # and no others
    onnx.save(quantised, output)


def print_comparison(programs: Sequence[Path], batches: Batches) -> None:
    """Prints accuracy on the test images, and milliseconds in turn, of float32 and of int8."""
    sessions = [onnx_session(path) for path in programs]
    outputs = [
        [session.run(None, {"images": images.numpy()})[0] for session in sessions]
        for images, _ in batches.iter_eval()
    ]
    logits = [torch.from_numpy(np.concatenate(parts)) for parts in zip(*outputs, strict=True)]
    rows = {"accuracy, %": [float(accuracy(x, batches.labels)) for x in logits]}
    shape = sessions[0].get_inputs()[0].shape[1:]
    for size in 1, 64:
        images = {"images": np.random.default_rng(0).random((size, *shape), np.float32)}
        calls = [partial(session.run, None, images) for session in sessions]
        rows[f"ms at batch {size}"] = milliseconds(calls, torch.device("cpu"))
    print(f"{'':14}   float32      int8")
    for name, (float32, int8) in rows.items():
        print(f"{name:14}{float32:10.2f}{int8:10.2f}")
    changed = int((logits[0].argmax(1) != logits[1].argmax(1)).sum())
    print(f"predictions changed: {changed:,} of {len(batches.labels):,}")
