"""Export a checkpoint as ONNX, as a torch.export program, or sparse.

    python -m utils.export --model CHECKPOINT --format onnx

The exported program takes float32 [n, 3, size, size] RGB images from 0 to 1, for any n, and
returns logits [n, classes]. Class names, normalisation, and the pixels to which an image's shorter
side is resized (bilinear) before its centre is cropped are its metadata.
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netslim.weights import Compression
from utils import console
from utils.atomic import atomic_write
from utils.console import InputError, note, require_packages
from utils.data.batches import Batches, test_batches
from utils.data.datasets import DATASETS, IMAGENET, Dataset, load
from utils.data.image_folder import shorter_side
from utils.engines import ENGINES, milliseconds, onnx_session
from utils.files import checkpoint, sparse
from utils.files.init_from import config_from_checkpoint
from utils.files.locks import check_writable
from utils.pruning.report import accuracy

TOLERANCE = 1e-3  # of a logit
SHAPES = ({0: torch.export.Dim("n", min=1)},)
CPU = torch.device("cpu")
CALIBRATION_IMAGES = 256  # training images, for --int8
# Without Concat, whose single scale for a whole stream changed 35 % of a DenseNet-40's predictions
# (4 % without), and without BatchNormalization, whose γ get a single scale.
INT8_OPERATORS = ["Conv", "Gemm", "Relu", "MaxPool", "AveragePool", "Add"]


class Normalised(nn.Module):
    """Normalises images [n, 3, size, size] from 0 to 1 and applies ``model``."""

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.mean = nn.Buffer(torch.tensor(mean)[:, None, None])
        self.std = nn.Buffer(torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


def parser() -> argparse.ArgumentParser:
    p = console.Parser(
        prog="python -m utils.export",
        description="Export a checkpoint as ONNX, as a torch.export program, or sparse.",
    )
    p.add_argument("--model", required=True, metavar="CHECKPOINT", help="full or pruned model")
    formats = ("onnx", "pt2", "sparse")
    p.add_argument("--format", choices=formats, default="onnx", help="default: onnx")
    text = "the program takes normalised images instead of images from 0 to 1"
    p.add_argument("--normalised", action="store_true", help=text)
    text = "ONNX in int8, calibrated with training images; accuracy and speed are printed"
    p.add_argument("--int8", action="store_true", help=text)
    text, unset = "of --int8 (default: the checkpoint's)", argparse.SUPPRESS
    p.add_argument("--dataset", choices=DATASETS, default=unset, help=f"data set {text}")
    p.add_argument("--data", metavar="DIR", default=unset, help=f"folder of the data set {text}")
    text = "output file (default: the checkpoint's name, ending with the format)"
    p.add_argument("--output", metavar="FILE", help=text)
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    flags, path = vars(args), Path(args.model)
    loaded = checkpoint.load(path)
    stem = args.model.removesuffix(".tar").removesuffix(".pth")
    output = Path(args.output or f"{stem}{'_int8' * args.int8}.{args.format}")
    if output.resolve() == path.resolve():
        raise InputError(f"{output} is the checkpoint itself: choose another --output")
    check_writable(output.parent)
    unused = flags.keys() & {"dataset", "data"}
    if unused and not args.int8:
        raise InputError(f"--{min(unused)} is for --int8: add --int8, or leave it out")
    if args.int8 and args.format != "onnx":
        raise InputError(f"--int8 is for ONNX: --format {args.format} has no int8 form")
    if args.format != "sparse":
        data = load_images(loaded, args) if args.int8 else None
        export_program(loaded, output, args, data)
    elif args.normalised:
        raise InputError("--normalised is for programs: --format sparse keeps a checkpoint")
    else:
        write_sparse(loaded, output)


def load_images(loaded: checkpoint.Checkpoint, args: argparse.Namespace) -> Dataset:
    """Loads the data set of --int8, normalised outside of the program only if --normalised."""
    require_packages("--int8", *ENGINES["onnxruntime"])
    flags, path = vars(args), Path(args.model)
    data = load({**config_from_checkpoint(loaded, flags, path), **flags}, loaded.norm)
    loaded.check_classes(data, path)
    return data if args.normalised else replace(data, mean=(0.0,) * 3, std=(1.0,) * 3)


def export_program(
    loaded: checkpoint.Checkpoint, output: Path, args: argparse.Namespace, data: Dataset | None
) -> None:
    """Writes a program whose logits on random images agree with the checkpoint's.

    With ``data``, the program is then quantised to int8, and compared on the test images.

    Raises:
        InputError: the normalisation is unknown, or the logits differ; nothing is written then.
    """
    takes = "normalised" if args.normalised else "RGB from 0 to 1"
    size, imagenet = loaded.size, loaded.config is not None and loaded.config.dataset == IMAGENET
    metadata = {
        "classes": loaded.classes,
        "mean": loaded.mean,
        "std": loaded.std,
        "input": takes,
        "resize": shorter_side(size, imagenet),  # pixels of an image file's shorter side, and
        "center_crop": size,  # of the crop that follows
    }
    texts = {key: json.dumps(value) for key, value in metadata.items() if value is not None}
    model: nn.Module = loaded.network.model
    if not args.normalised:
        if loaded.mean is None or loaded.std is None:
            raise InputError(
                f"{args.model} has no normalisation: export it with --normalised, and normalise the"
                " images before the program"
            )
        model = Normalised(model, loaded.mean, loaded.std)
    model.eval()
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as folder:
        program = Path(folder, "float32.onnx")
        with atomic_write(output) as new:
            write = write_onnx if args.format == "onnx" else write_pt2
            logits = write(model, images, program if data else new, texts)
            difference = 0.0 if logits is None else (logits - model(images[:3])).abs().max().item()
            if not difference <= TOLERANCE:
                raise InputError(
                    f"the logits of the exported program differ by {difference:.2g}: try another"
                    " --format, or another version of torch or onnxruntime"
                )
            if data:
                quantize(program, new, Batches(data, "train", 64, CPU).sample(CALIBRATION_IMAGES))
        print(f"{output}: input {takes}, [n, 3, {size}, {size}]")
        if logits is None:
            note("onnxruntime is not installed: the logits of the file were not compared")
        else:
            before = " before quantisation" * bool(data)
            print(f"verified{before}: logits differ from the model's by {difference:.2g} at most")
        if data:
            print_comparison((program, output), test_batches(data, {}, CPU))


def write_pt2(
    model: nn.Module, images: Tensor, output: Path, metadata: dict[str, str]
) -> Tensor | None:
    """Writes with ``torch.export``; returns the file's logits of the first 3 ``images``."""
    program = torch.export.export(model, (images,), dynamic_shapes=SHAPES)
    with output.open("w+b") as file:
        torch.export.save(program, file, extra_files=metadata)
        file.seek(0)
        return torch.export.load(file).module()(images[:3])


def write_onnx(
    model: nn.Module, images: Tensor, output: Path, metadata: dict[str, str]
) -> Tensor | None:
    """Writes ONNX; returns the file's logits of the first 3 ``images``, None without onnxruntime.

    Raises:
        InputError: the optional packages of torch's exporter are missing.
    """
    require_packages("ONNX export", "onnx", "onnxscript")
    options: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    options |= {"dynamic_shapes": SHAPES, "dynamo": True, "verbose": False}
    program: Any = torch.onnx.export(model, (images,), **options)
    program.model.metadata_props.update(metadata)
    program.save(output)
    if console.missing_packages(["onnxruntime"]):
        return None
    (logits,) = onnx_session(output).run(None, {"images": images[:3].numpy()})
    return torch.from_numpy(logits)


def quantize(program: Path, output: Path, batches: Iterable[Tensor]) -> None:
    """Writes an ONNX ``program`` in int8 (QDQ, weights per channel), by onnxruntime.

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
        options |= {"op_types_to_quantize": INT8_OPERATORS, "per_channel": True}
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
        rows[f"ms at batch {size}"] = milliseconds(calls, CPU)
    print(f"{'':14}   float32      int8")
    for name, (float32, int8) in rows.items():
        print(f"{name:14}{float32:10.2f}{int8:10.2f}")
    changed = int((logits[0].argmax(1) != logits[1].argmax(1)).sum())
    print(f"predictions changed: {changed:,} of {len(batches.labels):,}")


def write_sparse(loaded: checkpoint.Checkpoint, output: Path) -> None:
    """Writes a checkpoint in which a weight of 0 takes one bit (:mod:`utils.files.sparse`).

    All commands read it; the model runs no faster.

    Raises:
        InputError: the file reads back with other values.
    """
    model = loaded.network.model
    content = {"cfg": loaded.network.cfg, "layout": "sparse", **loaded.metadata()}
    checkpoint.save(output, sparse.content(model, content))
    read = checkpoint.load(output).network.model.state_dict()
    if not all(torch.equal(read[key], value) for key, value in model.state_dict().items()):
        raise InputError(f"{output} does not read back as written: the disk may be faulty")
    compression, (dense, _) = Compression.of(model), sparse.bytes_of(model)
    print(
        f"{output}: {compression.kept:,} of {compression.weights:,} weights,"
        f" {compression.factor:.4f} times fewer;"
        f" {output.stat().st_size:,} bytes, and {dense:,} dense"
    )


if __name__ == "__main__":
    sys.exit(console.run(main))
