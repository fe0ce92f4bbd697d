"""Record files as finished runs leave them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.files import records
from utils.files.paths import PRUNED, REFINED, TRAINED
from utils.flags.config import FLAGS, Config


def append(path: Path, row: Mapping[str, object]) -> None:
    path.parent.mkdir(exist_ok=True)
    records.append(path, row)


def training(settings: Config, **results: object) -> dict[str, object]:
    """A row of the record of trainings."""
    row = {"run": settings.run_name, **settings.to_row(), "precision": "bf16", "channels": 1000,
           "gamma_zeros": 0, "xi_zeros": "", "seconds_per_epoch": 30 + settings.seed,
           "command": "python main.py", "commit": "abc1234", "device": "GPU X",
           "source": "torchvision", "test_pictures": "0000bbbb",
           "checksum": f"{settings.seed:08x}"}  # fmt: skip
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
    pruned: tuple[float, float, float] = (50.0, 60.0, 70.0),
    slim: float = 90.0,
    tuned: float | None = None,
    mask: str = "gamma",
    source: str = "torchvision",
    pictures: str = "0000aaaa",
    precision: str = "bf16",
    tuned_more: Mapping[str, Any] | None = None,
    **told: Any,
) -> str:
    """Record a training, its pruning if ``percent`` is given, its fine-tuning if ``tuned`` is.

    ``told`` are further flags by name. ``pruned`` are percent of channels, parameters and FLOPs,
    the latter in the paper's accounting. ``tuned_more`` are flags or columns that the
    fine-tuning has otherwise. Returns the run's name.
    """
    network = {"arch": arch, "depth": depth, "method": method, "seed": seed}
    settings = Config.from_dict({"name": f"{method}_seed{seed}", **network, **told})
    channels, parameters, flops = pruned
    kept = 1000 if percent is None else round(10 * (100 - channels))
    result = {"gamma_zeros": zeros, "test_accuracy": accuracy, "source": source}
    result |= {"pictures": pictures, "precision": precision}
    append(folder / TRAINED, training(settings, **result))
    if percent is not None:
        row = {"model": f"{settings.run_name}_pruned.pth.tar", "run": settings.run_name,
               "checksum": f"{seed:08x}", "test_pictures": "0000bbbb", "percent": percent,
               "mask": mask, "channels": 1000,
               "channels_kept": kept, "channels_pruned_percent": channels,
               "paper_parameters_pruned_percent": parameters, "paper_flops_pruned_percent": flops,
               # the other accounting, which no table shows
               "parameters_pruned_percent": 99, "flops_pruned_percent": 99,
               "accuracy_before": accuracy, "accuracy_slim": slim}  # fmt: skip
        append(folder / PRUNED, row)
    if tuned is not None:
        more = dict(tuned_more or {})
        precision = more.pop("precision", precision)
        own = {k: v for k, v in settings.to_dict().items() if k not in settings.options}
        own |= {"method": "baseline", "refine": f"logs/{settings.run_name}_pruned.pth.tar"}
        own |= {k: more.pop(k) for k in list(more) if k in FLAGS}
        result = {"channels": kept, "test_accuracy": tuned, "seconds_per_epoch": 20}
        result["precision"] = precision
        row = training(
            Config.from_dict(own), **{**result, "source": source, "pictures": pictures, **more}
        )
        append(folder / REFINED, row)
    return settings.run_name
