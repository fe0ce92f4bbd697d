"""Compare speeds in one run: ``python -m utils.bench --compare FULL SLIM``."""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from models import restore
from utils import checkpoint, cli
from utils.device import pick_device
from utils.flops import cost
from utils.folder import SIZE


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m utils.bench",
        description="Time inference of two networks in turn, and compare with their FLOPs.",
    )
    p.add_argument(
        "--compare",
        nargs=2,
        required=True,
        metavar=("FULL", "SLIM"),
        help="two checkpoints; prints how many times faster the second is",
    )
    p.add_argument(
        "--batch-size", nargs="+", type=cli.positive_int, default=[1, 64], metavar="N",
        help="pictures at a time (default 1 and 64)",
    )  # fmt: skip
    p.add_argument(
        "--repeats", type=cli.positive_int, default=30, help="timings of each (default 30)"
    )
    p.add_argument("--no-cuda", action="store_true", help="on the CPU")
    return p


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    device = pick_device(args.no_cuda)
    models = [
        checkpoint.load(Path(path), restore)[1].model.eval().to(device) for path in args.compare
    ]
    flops = [cost(model).flops for model in models]
    ratio = flops[0] / flops[1]
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {where}, {torch.get_num_threads()} threads, float32")
    print(f"FLOPs: {flops[0]:,} and {flops[1]:,}, ratio {ratio:.2f}")
    for batch_size in args.batch_size:
        times = interleaved(models, batch_size, args.repeats, device)
        pairs = [full / slim for full, slim in zip(*times, strict=True)]
        low, middle, high = quartiles(pairs)
        full, slim = (1000 * statistics.median(t) for t in times)
        print(
            f"batch {batch_size}: {full:.2f} ms and {slim:.2f} ms, speed-up {middle:.2f}"
            f" (quartiles {low:.2f} to {high:.2f}), {middle / ratio:.2f} of the FLOP ratio"
        )


@torch.inference_mode()
def interleaved(
    models: list[nn.Module], batch_size: int, repeats: int, device: torch.device
) -> tuple[list[float], ...]:
    """Seconds of a forward pass of each model, timed in turn, A B A B, after a warm-up."""
    pictures = torch.randn(batch_size, 3, SIZE, SIZE, device=device)
    times: tuple[list[float], ...] = tuple([] for _ in models)
    for turn in range(repeats + 3):
        for model, seconds in zip(models, times, strict=True):
            start = time.perf_counter()
            model(pictures)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 3:
                seconds.append(time.perf_counter() - start)
    return times


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


if __name__ == "__main__":
    sys.exit(cli.run(main))
