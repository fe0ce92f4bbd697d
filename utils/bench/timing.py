"""How seconds are measured, and what is said of them."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What ``work`` takes, until an idle ``device`` is idle again."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def in_turn(
    measures: Sequence[Callable[[], float]], repeats: int, warm_up: int = 1
) -> list[list[float]]:
    """What each of ``measures`` gives, in ``repeats`` rounds of all, after some to warm up."""
    rounds = [[measure() for measure in measures] for _ in range(warm_up + repeats)]
    return [list(figures) for figures in zip(*rounds[warm_up:], strict=True)]


def timed(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of ``work``, after one for warming up."""
    return statistics.median(in_turn([lambda: seconds(work, device)], repeats)[0])


def quartiles(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Those of the ratio, round by round."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
