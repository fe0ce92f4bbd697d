"""Record files as finished runs leave them, with columns that later versions may add."""

from collections.abc import Mapping
from pathlib import Path

from utils.files import records

LATER = {"commit": "abc1234", "device": "GPU X"}


def append(path: Path, columns: list[str], row: Mapping[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    columns = list(dict.fromkeys([*columns, *LATER, *row]))
    records.append(path, columns, {**dict.fromkeys(columns, ""), **LATER, **row})


def run(
    folder: Path,
    arch: str,
    depth: int,
    method: str,
    seed: int,
    *,
    epochs: int = 160,
    s: float | str = "",
    beta: float | str = "",
    dataset: str = "cifar10",
    flags: str = "",
    accuracy: float = 90.0,
    zeros: int = 0,
    percent: float | None = None,
    pruned: tuple[float, float, float] = (50.0, 60.0, 70.0),
    slim: float = 90.0,
    tuned: float | None = None,
    mask: str = "gamma",
    more: Mapping[str, object] | None = None,
    tuned_more: Mapping[str, object] | None = None,
) -> str:
    """Record a training, its pruning if ``percent`` is given, its fine-tuning if ``tuned`` is.

    ``pruned`` are percent of channels, parameters and FLOPs, the latter in the paper's accounting.
    ``more`` and ``tuned_more`` are further columns of the training and of the fine-tuning.
    """
    name = f"{method}_seed{seed}{'' if epochs == 160 else epochs}_{arch}_{depth}_{dataset}"
    every = "step" if method == "proximal" else ""
    row = {"run": name, "method": method, "arch": arch, "depth": depth, "dataset": dataset,
           "seed": seed, "epochs": epochs, "s": s, "beta": beta, "prox_every": every,
           "precision": "bf16", "channels": 1000, "gamma_zeros": zeros, "test_accuracy": accuracy,
           "seconds_per_epoch": 30 + seed,
           "command": f"python main.py --arch {arch} {flags}"}  # fmt: skip
    append(folder / "train_record.csv", records.TRAINED, {**row, **(more or {})})
    if percent is not None:
        channels, parameters, flops = pruned
        row |= {"percent": percent, "mask": mask,
                "channels_kept": round(10 * (100 - channels)), "channels_pruned_percent": channels,
                "paper_parameters_pruned_percent": parameters, "paper_flops_pruned_percent": flops,
                # the other accounting, which no table shows
                "parameters_pruned_percent": 99, "flops_pruned_percent": 99,
                "accuracy_before": accuracy, "accuracy_slim": slim}  # fmt: skip
        keep = {key: value for key, value in row.items() if key in records.PRUNED}
        append(folder / "pruned_record.csv", records.PRUNED, keep)
    if tuned is not None:
        row |= {"run": f"{name}_refine", "method": "baseline", "s": "", "beta": "",
                "prox_every": "", "channels": row.get("channels_kept", 1000),
                "test_accuracy": tuned, "seconds_per_epoch": 20}  # fmt: skip
        row |= {**(more or {}), **(tuned_more or {})}
        keep = {key: value for key, value in row.items() if key in records.TRAINED}
        append(folder / "refine_record.csv", records.TRAINED, keep)
    return name
