"""Take a network out of the house: ``python -m utils.export --model <checkpoint> --format onnx``.

The exported program takes float32 [n, 3, 32, 32] RGB pictures from 0 to 1, for any n, and returns
logits [n, classes]. Class names and normalisation go along as metadata.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import SIZE
from utils import arguments, console
from utils.atomic import check_writable, replacing
from utils.console import InputError, note
from utils.files import checkpoint

TOLERANCE = 1e-3  # of a logit


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
    p.add_argument("--format", choices=("onnx", "pt2"), default="onnx", help="default onnx")
    p.add_argument(
        "--normalised",
        action="store_true",
        help="the program takes pictures that are normalised already, instead of from 0 to 1",
    )
    p.add_argument(
        "--output", metavar="FILE", help="default: the checkpoint's name with the format's ending"
    )
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    given = checkpoint.load(Path(args.model))
    default = f"{args.model.removesuffix('.tar').removesuffix('.pth')}.{args.format}"
    output = Path(args.output or default)
    if output.resolve() == Path(args.model).resolve():
        raise InputError(f"{output} is what is to be exported: choose another --output")
    check_writable(output.parent)
    known = {"classes": given.classes, "mean": given.mean, "std": given.std}
    metadata: dict[str, Any] = {key: value for key, value in known.items() if value is not None}
    model: nn.Module = given.network.model.eval()
    if not args.normalised:
        if given.mean is None or given.std is None:
            raise InputError(
                f"{args.model} does not say how its pictures were normalised: export it with"
                " --normalised and normalise in front of it"
            )
        model = Normalised(model, given.mean, given.std).eval()
    metadata["input"] = "normalised" if args.normalised else "RGB from 0 to 1"
    write = write_onnx if args.format == "onnx" else write_pt2
    with replacing(output) as new:
        difference = write(model, new, {key: json.dumps(value) for key, value in metadata.items()})
        if difference is not None and not difference <= TOLERANCE:
            raise InputError(
                f"the exported network does not give the same answers: they differ by"
                f" {difference:.2g}; try another --format, or another version of torch or"
                " onnxruntime"
            )
    print(f"{output}: input {metadata['input']}, [n, 3, {SIZE}, {SIZE}]")
    if difference is None:
        note("onnxruntime is not installed, so the file was not checked against the network")
    else:
        print(f"checked: answers differ from the network's by {difference:.2g} at most")


def example() -> Tensor:
    return torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def write_pt2(model: nn.Module, output: Path, metadata: dict[str, str]) -> float:
    """Write with ``torch.export``; returns the largest difference of an answer."""
    batch = torch.export.Dim("n", min=1)
    program = torch.export.export(model, (example(),), dynamic_shapes=({0: batch},))
    with output.open("wb") as file:
        torch.export.save(program, file, extra_files=metadata)
    with output.open("rb") as file:
        loaded = torch.export.load(file).module()
    pictures = example()[:3]  # another batch size than it was traced with
    with torch.no_grad():
        return (loaded(pictures) - model(pictures)).abs().max().item()


def write_onnx(model: nn.Module, output: Path, metadata: dict[str, str]) -> float | None:
    """Write with ``torch.onnx``; returns the largest difference under onnxruntime, if installed.

    Raises InputError where the optional packages that torch's exporter needs are missing.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError:
        raise InputError(
            "ONNX export needs two more packages: pip install onnx onnxscript"
        ) from None
    torch.onnx.export(
        model,
        (example(),),
        output,
        input_names=["pictures"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    written = onnx.load(output)
    onnx.helper.set_model_props(written, metadata)
    onnx.save(written, output)
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    pictures: Any = example()[:3]  # another batch size than it was traced with
    (answers,) = session.run(None, {"pictures": pictures.numpy()})
    with torch.no_grad():
        return (torch.from_numpy(answers) - model(pictures)).abs().max().item()


if __name__ == "__main__":
    sys.exit(console.run(main))
