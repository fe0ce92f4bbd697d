"""Record files as finished runs write them."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.files import records
from utils.files.paths import PRUNED, REFINED, TRAINED
from utils.flags.config import FLAGS, Config

VGG19 = {"arch": "vgg", "depth": 19, "method": "proximal", "s": 0.0045, "beta": 100.0}


def append(path: Path, row: Mapping[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    records.append(path, row)


def set_cells(path: Path, index: int = -1, **cells: object) -> None:
    """Change cells of a row, for all rows remove the columns whose cell is None."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[index] |= {name: str(cell) for name, cell in cells.items() if cell is not None}
    removed = {name for name, cell in cells.items() if cell is None}
    columns = [name for name in dict.fromkeys([*rows[0], *cells]) if name not in removed]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def training(config: Config, **results: object) -> dict[str, object]:
    """A row of the record of trainings."""
    row = {"run": config.run_name, **config.to_row(), "precision": "bf16", "channels": 1000,
           "gamma_zeros": 0, "xi_zeros": "", "seconds_per_epoch": 30 + config.seed,
           "command": "python main.py", "commit": "abc1234", "device": "GPU X",
           "source": "torchvision", "test_pictures": "0000bbbb",
           "checksum": f"{config.seed:08x}"}  # fmt: skip
    return row | results


def run(
    folder: Path,
    arch: str,
    depth: int,
    method: str,
    seed: int,
    *,
    accuracy: float = 90.0,
    zeros: int = 0,
    percent: float | None = None,
    removed: tuple[float, float, float] = (50.0, 60.0, 70.0),
    pruned: float = 90.0,
    tuned: float | None = None,
    mask: str = "gamma",
    source: str = "torchvision",
    images: str = "0000aaaa",
    precision: str = "bf16",
    tuning: Mapping[str, Any] | None = None,
    **settings: Any,
) -> str:
    """Record a training, with ``percent`` its pruning, with ``tuned`` its fine-tuning.

    Args:
        removed: percent of channels, and of parameters and FLOPs in the paper's accounting.
        pruned: accuracy after pruning.
        tuned: accuracy after fine-tuning.
        tuning: flags or columns of the fine-tuning that differ from the training's.
        settings: more flags by name.

    Returns the run's name.
    """
    network = {"arch": arch, "depth": depth, "method": method, "seed": seed}
    config = Config.from_dict({"name": f"{method}_seed{seed}", **network, **settings})
    channels, parameters, flops = removed
    kept = 1000 if percent is None else round(10 * (100 - channels))
    shared = {"source": source, "pictures": images, "precision": precision}
    results = {"gamma_zeros": zeros, "test_accuracy": accuracy}
    append(folder / TRAINED, training(config, **shared, **results))
    if percent is not None:
        row = {"model": f"{config.run_name}/pruned.pth.tar", "run": config.run_name,
               "checksum": f"{seed:08x}", "test_pictures": "0000bbbb", "percent": percent,
               "mask": mask, "channels": 1000, "channels_kept": kept,
               "channels_pruned_percent": channels,
               "paper_parameters_pruned_percent": parameters, "paper_flops_pruned_percent": flops,
               # torch's accounting, which no table shows
               "parameters_pruned_percent": 99, "flops_pruned_percent": 99,
               "accuracy_before": accuracy, "accuracy_slim": pruned}  # fmt: skip
        append(folder / PRUNED, row)
    if tuned is not None:
        values = {k: v for k, v in config.to_dict().items() if k not in config.options}
        values |= {"method": "baseline", "refine": f"logs/{config.run_name}/pruned.pth.tar"}
        changes = dict(tuning or {})
        shared["precision"] = changes.pop("precision", precision)
        values |= {k: changes.pop(k) for k in list(changes) if k in FLAGS}
        results = {"channels": kept, "test_accuracy": tuned, "seconds_per_epoch": 20}
        row = training(Config.from_dict(values), **{**shared, **results, **changes})
        append(folder / REFINED, row)
    return config.run_name
