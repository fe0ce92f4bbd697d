"""Take a network out of the house: ``python -m utils.export --model <checkpoint> --format onnx``.

The exported program takes float32 [n, 3, size, size] RGB pictures from 0 to 1, for any n, and
returns logits [n, classes]. Class names and normalisation go along as metadata.
"""

if __name__ == "__main__":
    from utils import startup as startup  # before all others

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netslim.weights import Compression
from utils import arguments, console
from utils.atomic import atomic_write, check_writable
from utils.console import InputError, note
from utils.files import checkpoint, sparse
from utils.shell import format_command

TOLERANCE = 1e-3  # of a logit
SHAPES = ({0: torch.export.Dim("n", min=1)},)


class Normalised(nn.Module):
    """``model`` behind the normalisation it was trained with."""

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.mean = nn.Buffer(torch.tensor(mean)[:, None, None])
        self.std = nn.Buffer(torch.tensor(std)[:, None, None])

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model((pictures - self.mean) / self.std)


def parser() -> argparse.ArgumentParser:
    p = arguments.Parser(
        prog="python -m utils.export", description="Write a network as ONNX or as a torch program."
    )
    p.add_argument("--model", required=True, metavar="CHECKPOINT", help="full or slim")
    formats = ("onnx", "pt2", "sparse")
    p.add_argument("--format", choices=formats, default="onnx", help="default onnx")
    said = "the program takes pictures that are normalised already, instead of from 0 to 1"
    p.add_argument("--normalised", action="store_true", help=said)
    said = "default: the checkpoint's name with the format's ending"
    p.add_argument("--output", metavar="FILE", help=said)
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    given = checkpoint.load(Path(args.model))
    default = f"{args.model.removesuffix('.tar').removesuffix('.pth')}.{args.format}"
    output = Path(args.output or default)
    if output.resolve() == Path(args.model).resolve():
        raise InputError(f"{output} is what is to be exported: choose another --output")
    check_writable(output.parent)
    if args.format == "sparse":
        if args.normalised:
            raise InputError("--normalised is for programs: --format sparse keeps a checkpoint")
        write_sparse(given, output)
        return
    takes = "normalised" if args.normalised else "RGB from 0 to 1"
    said = {"classes": given.classes, "mean": given.mean, "std": given.std, "input": takes}
    metadata = {key: json.dumps(value) for key, value in said.items() if value is not None}
    model: nn.Module = given.network.model
    if not args.normalised:
        if given.mean is None or given.std is None:
            raise InputError(
                f"{args.model} does not say how its pictures were normalised: export it with"
                " --normalised and normalise in front of it"
            )
        model = Normalised(model, given.mean, given.std)
    model.eval()
    size = given.size
    pictures = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with atomic_write(output) as new:
        write = write_onnx if args.format == "onnx" else write_pt2
        answers = write(model, pictures, new, metadata)
        difference = 0.0 if answers is None else (answers - model(pictures[:3])).abs().max().item()
        if not difference <= TOLERANCE:
            raise InputError(
                "the exported network does not give the same answers: they differ by"
                f" {difference:.2g}; try another --format, or another torch or onnxruntime"
            )
    print(f"{output}: input {takes}, [n, 3, {size}, {size}]")
    if answers is None:
        note("onnxruntime is not installed, so the file was not checked against the network")
    else:
        print(f"checked: answers differ from the network's by {difference:.2g} at most")


def write_sparse(given: checkpoint.Checkpoint, output: Path) -> None:
    """Write the network so that a weight of 0 takes a bit, and read it back.

    It is the layout of :mod:`utils.files.sparse`, which all commands read; nothing runs faster.
    """
    model = given.network.model
    known: dict[str, Any] = {
        "cfg": given.network.cfg,
        "classes": given.classes,
        "run": given.run_name,
    }
    known |= {"mean": given.mean, "std": given.std, "layout": "sparse"}
    if given.config is not None:
        known["settings"] = given.config.to_dict()
    checkpoint.save(output, sparse.content(model, known))
    read = checkpoint.load(output).network.model.state_dict()
    if not all(torch.equal(read[key], value) for key, value in model.state_dict().items()):
        raise InputError(f"{output} does not read back as it was written: the disk may be faulty")
    found, (dense, _) = Compression.of(model), sparse.bytes_of(model)
    print(
        f"{output}: {found.kept:,} of {found.weights:,} weights, {found.factor:.4f} times fewer;"
        f" {output.stat().st_size:,} bytes, and {dense:,} dense"
    )


def write_pt2(
    model: nn.Module, pictures: Tensor, output: Path, metadata: dict[str, str]
) -> Tensor | None:
    """Write with ``torch.export``, traced with ``pictures``; returns the answers to the first 3."""
    program = torch.export.export(model, (pictures,), dynamic_shapes=SHAPES)
    with output.open("w+b") as file:
        torch.export.save(program, file, extra_files=metadata)
        file.seek(0)
        return torch.export.load(file).module()(pictures[:3])


def write_onnx(
    model: nn.Module, pictures: Tensor, output: Path, metadata: dict[str, str]
) -> Tensor | None:
    """As :func:`write_pt2`, with ``torch.onnx``; None where onnxruntime is not installed.

    Raises InputError where the optional packages that torch's exporter needs are missing.
    """
    names: Any = {"input_names": ["pictures"], "output_names": ["logits"]}
    try:
        program = torch.onnx.export(
            model, (pictures,), dynamic_shapes=SHAPES, dynamo=True, verbose=False, **names
        )
    except ImportError:
        how = format_command("-m", "pip", "install", "onnx", "onnxscript")
        raise InputError(f"ONNX export needs more packages: {how}") from None
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(output)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"pictures": pictures[:3].numpy()})
    return torch.from_numpy(answers)


if __name__ == "__main__":
    sys.exit(console.run(main))
