"""Checkpoints on disk: ours, and those of the earlier network-slimming programs."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.registry import ARCHITECTURES
from models.torchvision_models import DEPTHS as NAMED
from utils.atomic import atomic_write
from utils.console import InputError, note
from utils.data.datasets import Dataset, Norm
from utils.device import PRECISIONS
from utils.files import safe_load
from utils.files.legacy_formats import (
    DEEPEST,
    EARLIER,
    State,
    from_admm_programs,
    state_dict_in,
    to_compact,
    to_released,
    unwrapped,
    within,
)
from utils.files.sparse import unpack
from utils.flags.config import Config
from utils.methods import METHODS, penalties
from utils.network import Network, restore


@dataclass
class Checkpoint:
    """A network, as wide as its run began, and what its file, maybe an earlier program's, says."""

    network: Network
    run_name: str | None = None
    config: Config | None = None
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    # Of a training:
    epoch: int | None = None  # how many are finished
    best: float = 0.0  # test accuracy, in percent
    momentum: State = field(default_factory=dict)  # by parameter
    optimizer_settings: dict[str, Any] = field(default_factory=dict)  # the optimiser's settings
    method_state: State = field(default_factory=dict)  # the method's
    removed: Tensor | None = None  # bool [channels]: which train no more
    precision: str | None = None
    channels_last: bool = False
    images_checksum: int | None = None  # their checksum
    init_checksum: str | None = None  # that of the file that the weights were begun with
    why_not_resumable: str = ""  # why it cannot be gone on from, where it cannot

    @property
    def size(self) -> int:
        """Pixels of the side of the pictures that it was trained on."""
        return self.network.size

    @property
    def norm(self) -> Norm | None:
        """Mean and deviation that its pictures were normalised with, None where it says none."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    @property
    def scaling_factors(self) -> State:
        """What a prune command may mask by: γ, and the method's other factors."""
        gammas = (bn.weight.detach() for bn in self.network.norms.values())
        gamma = torch.cat([torch.empty(0), *gammas])
        own = self.method_state if self.config is None else METHODS[self.config.method].factors
        same = {n: x for n, x in self.method_state.items() if n in own and x.shape == gamma.shape}
        return {"gamma": gamma, **same}

    @property
    def default_mask(self) -> str:
        """The one of ``factors`` whose zeros are pruned."""
        own = "gamma" if self.config is None else METHODS[self.config.method].pruned_by
        return own if own in self.scaling_factors else "gamma"

    def to_dict(self) -> dict[str, Any]:
        """As a file holds it."""
        model, full = self.network.model, self.network.is_full
        state = model.state_dict()
        numbers = {name: i for i, (name, _) in enumerate(model.named_parameters())}
        buffers = {numbers[name]: {"momentum_buffer": x} for name, x in self.momentum.items()}
        group = {**self.optimizer_settings, "params": list(numbers.values())}
        return {
            # What the earlier programs keep, ...
            "epoch": self.epoch,
            "state_dict": to_released(self.network) if full else state,
            "best_prec1": torch.tensor(self.best / 100, dtype=torch.float64),
            "optimizer": {"state": buffers, "param_groups": [group]},
            # ... and what else it takes to go on exactly, and to prune.
            "layout": "released" if full else "compact",
            "cfg": self.network.cfg,
            "best_accuracy": self.best,  # in percent: 100 · best_prec1 is it only to rounding
            "method": self.method_state,
            "cut": self.removed,
            "run": self.run_name,
            "settings": None if self.config is None else self.config.to_dict(),
            "precision": self.precision,
            "channels_last": self.channels_last,
            "pictures": self.images_checksum,
            "origin": self.init_checksum,
            "classes": self.classes,
            "mean": self.mean,
            "std": self.std,
        }

    def has_classes(self, classes: Sequence[str]) -> bool:
        """Whether the network tells just these apart."""
        same = self.classes is None or self.classes == list(classes)
        return same and self.network.num_classes == len(classes)

    def check_classes(self, data: Dataset, path: Path) -> None:
        """Raise InputError where the network at ``path`` knows other classes than ``data`` has."""
        if not self.has_classes(data.classes):
            count, classes = self.network.num_classes, self.classes or data.classes
            raise InputError(
                f"{path} tells {count} classes apart ({', '.join(classes[:3])}, ...), but"
                f" {data.name} has {len(data.classes)} ({', '.join(data.classes[:3])}, ...)"
            )


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` so that ``path`` is always either the old file or the new one, whole.

    Tensors are copied to the CPU first. Raises InputError where the disk refuses.
    """
    try:
        with atomic_write(path) as new, new.open("wb") as file:
            torch.save(to_cpu(content), file)
    except (OSError, RuntimeError) as error:
        # What the disk said, where torch raises its own error after it.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = "; the one before is kept" if path.exists() else ""
        raise InputError(f"{path} could not be written ({reason}){kept}") from None


def checksum(path: Path) -> str:
    """CRC-32 of the file, as records have it: what tells one checkpoint from another."""
    return f"{zlib.crc32(path.read_bytes()):08x}"


def sha256(path: Path) -> str:
    """Of the file, as records have it of what a run began with."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_cpu(value: Any) -> Any:
    """``value`` with all its tensors copied to the CPU."""
    if isinstance(value, Tensor):
        # A copy, for a view (γ is one) would take its whole storage along.
        return value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: to_cpu(item) for key, item in value.items()}
    return [to_cpu(item) for item in value] if isinstance(value, list) else value


def _is_list(x: Any, *types: type) -> bool:
    return isinstance(x, list) and all(isinstance(item, types) for item in x)


def _is_rgb(x: Any, low: float) -> bool:
    """Whether it is three floats above ``low``."""
    return _is_list(x, float) and len(x) == 3 and all(low < value < 1e30 for value in x)


def _are_tensors(x: Any) -> bool:
    """Whether it is a dict of finite tensors, by name."""
    return isinstance(x, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) and bool(value.isfinite().all())
        for key, value in x.items()
    )


# What our own checkpoints add to those of the earlier programs, where it is there: how it must be.
OURS: dict[str, Callable[[Any], bool]] = {
    "cfg": lambda x: _is_list(x, int, str),
    "classes": lambda x: _is_list(x, str),
    "mean": lambda x: _is_rgb(x, -1e30),
    "std": lambda x: _is_rgb(x, 0),
    "settings": lambda x: isinstance(x, dict),
    "run": lambda x: isinstance(x, str),
    "precision": lambda x: isinstance(x, str) and x in PRECISIONS,
    "channels_last": lambda x: isinstance(x, bool),
    "cut": lambda x: isinstance(x, Tensor) and x.dtype == torch.bool and x.dim() == 1,
    "pictures": lambda x: isinstance(x, int),
    "origin": lambda x: isinstance(x, str),
}


# Keys of the file whose field of Checkpoint has another name.
FIELDS = {
    "settings": "config",
    "run": "run_name",
    "cut": "removed",
    "pictures": "images_checksum",
    "origin": "init_checksum",
}


def load(path: Path, arch: str | None = None) -> Checkpoint:
    """Read a checkpoint of ours or of an earlier program, or torchvision's of ``arch``.

    Raises InputError when the file is missing, damaged, not a checkpoint, or does not fit itself.
    """
    content = safe_load.read(path)
    content = content if isinstance(content, dict) else {}
    state, others = state_dict_in(content)
    if others:
        note(f"note: {path} has other weights, too, which are not read: {', '.join(others)}")
    if "sparse" in content and isinstance(state, dict):
        try:
            state = {**state, **unpack(content["sparse"])}
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from None
    if not state or not _are_tensors(state):
        found = f", but {_some(state or content)}" if isinstance(state, dict) else ""
        raise InputError(
            f"{path} is not a checkpoint: it has no state_dict of finite tensors{found}"
        )
    ours = {key: content[key] for key in OURS if content.get(key) is not None}
    if bad := [key for key, value in ours.items() if not OURS[key](value)]:
        raise InputError(f"{path} is damaged: its {bad[0]} is not what it should be")
    if ("precision" in ours) != ("channels_last" in ours):
        raise InputError(f"{path} is damaged: it has only one of precision and channels_last")
    try:
        if "settings" in ours:
            ours["settings"] = Config.from_dict(ours["settings"])
    except ValueError as error:
        why = f"its settings are damaged: {error}"
        raise InputError(f"{path} cannot be resumed or pruned: {why}") from None
    settings = ours.get("settings")
    name = arch if settings is None else settings.arch
    try:
        network, state, left = _restored(state, name, settings)
    except ValueError as error:
        hint = "" if name else "; main.py --init takes one of torchvision's, with --arch NAME"
        raise InputError(
            f"{path} does not fit a network of this program: {error} (it has {_some(state)}){hint}"
        ) from None
    if settings is not None:
        network = replace(network, coupled=penalties.grouped(settings.options))
    if left:
        note(f"note: {path}: these are not of the network, and are not read: {_some(left)}")
    cfg = ours.pop("cfg", None)
    if not (cfg is None or _counts(cfg, network)):
        raise InputError(f"{path} contradicts itself: its cfg does not fit its weights")
    checkpoint = Checkpoint(network, **{FIELDS.get(key, key): x for key, x in ours.items()})
    try:
        _add_progress(checkpoint, content, state)
    except Exception as error:  # of all kinds, where the file lacks it or has something else
        checkpoint.why_not_resumable = (
            str(error) if isinstance(error, ValueError) else f"no {error}"
        )
    channels = None if cfg is None else sum(width for width in cfg if isinstance(width, int))
    if checkpoint.removed is not None and not _was_dead(checkpoint.removed, channels, checkpoint):
        raise InputError(f"{path} is damaged: its cut has channels that were not dead")
    return checkpoint


def _restored(
    state: State, name: str | None, settings: Config | None
) -> tuple[Network, State, list[str]]:
    """The network of ``state``, its part of it, and the names of the rest.

    Raises ValueError, that of the whole of it, where no part is a network of this program.
    """
    part, left, reasons = unwrapped(state), list[str](), list[ValueError]()
    for _ in range(DEEPEST):
        try:
            if name in NAMED or (settings and not ARCHITECTURES[settings.arch].family):
                size, depth = (settings.size, settings.depth) if settings else (None, None)
                return restore(part, name, size, depth), part, left
            size = settings.size if settings else None
            return restore(to_compact(from_admm_programs(part)), size=size), part, left
        except ValueError as error:
            reasons.append(error)
        part, others = within(part)
        left += others
    raise reasons[0]


def _some(names: Iterable[object]) -> str:
    """The first of them, and how many more there are."""
    first = [str(name)[:60] for name in names]
    more = f" and {len(first) - 3} more" if len(first) > 3 else ""
    return f"{', '.join(first[:3])}{more}"


def _counts(cfg: Sequence[int | str], network: Network) -> bool:
    """Whether ``cfg`` may be that of ``network``, which is not analyzed for it.

    The earlier programs' ``mask-impl`` keeps the full width, sets what it removes to 0, and counts
    the rest.
    """
    modules = network.model.modules()
    layers = [m for m in modules if isinstance(m, nn.MaxPool2d | nn.BatchNorm2d)]

    def fits(width: Callable[[nn.BatchNorm2d], int]) -> bool:
        found = ["M" if isinstance(m, nn.MaxPool2d) else width(m) for m in layers]
        if network.arch in EARLIER:  # all of their batch norms count
            return cfg == found
        rest = iter(found)
        return all(each in rest for each in cfg)

    return fits(lambda bn: bn.num_features) or (
        network.is_full and fits(lambda bn: int(bn.weight.count_nonzero()))
    )


def _add_progress(checkpoint: Checkpoint, content: Mapping[str, Any], state: State) -> None:
    """What it takes to go on."""
    tensors = content.get("method") or {}
    if not _are_tensors(tensors):
        raise ValueError("its method's tensors are damaged")
    checkpoint.method_state = tensors
    if "epoch" not in content:
        raise ValueError("no training is in it; fine-tune by --refine")
    checkpoint.epoch = int(content["epoch"])
    checkpoint.best = float(content.get("best_accuracy", 100 * float(content["best_prec1"])))
    if checkpoint.epoch < 0 or not 0 <= checkpoint.best <= 100:
        raise ValueError("its epoch or best_prec1 is out of range")
    checkpoint.momentum = _momentum(content.get("optimizer"), state, checkpoint.network.model)


def _was_dead(cut: Tensor, channels: int | None, checkpoint: Checkpoint) -> bool:
    """Whether what was cut may be: all factors 0, no bias above 0, no layer emptied.

    ``channels`` is how many there are, if known: where nothing was cut, nothing is analyzed then.
    """
    if channels is not None and not cut.any():
        return len(cut) == channels
    layers = list(checkpoint.network.norms.values())
    factors = checkpoint.scaling_factors
    if cut.shape != factors["gamma"].shape or (cut.any() and len(factors) == 1):
        return False
    if not cut.any():
        return True
    bias = torch.cat([bn.bias.detach() for bn in layers])
    dead = torch.stack([bias <= 0, *(factor == 0 for factor in factors.values())]).all(0)
    emptied = any(part.all() for part in cut.split([bn.num_features for bn in layers]))
    return not emptied and bool(dead[cut].all())


def _momentum(saved: Any, state: State, model: nn.Module) -> State:
    """Momentum buffers by parameter name, from the optimiser's state ``saved``; {} where none.

    The earlier programs number ``select.indexes`` among the parameters, and batch norms before a
    selection have full-width buffers there. Raises ValueError when the states do not fit.
    """
    if saved is None:
        return {}
    parameters = dict(model.named_parameters())
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    not_trained = ("running_mean", "running_var", "num_batches_tracked", ".index")
    released = [key for key in state if not key.endswith(not_trained)]
    names = next((n for n in (list(parameters), released) if len(n) == len(numbers)), None)
    if names is None:
        raise ValueError(f"its optimizer has {len(numbers)} states, not {len(parameters)}")
    buffers = {}
    for name, number in zip(names, numbers, strict=True):
        buffer = saved["state"].get(number, {}).get("momentum_buffer")
        if buffer is None or name not in parameters:
            continue
        path = name.rpartition(".")[0].removesuffix(".norm")
        select = f"{path.removesuffix('bn1').removesuffix('bn')}select.indexes"
        if select in state and buffer.shape == state[select].shape:
            buffer = buffer[state[select].bool()]
        if buffer.shape != parameters[name].shape:
            raise ValueError(f"its optimizer state of {name} has another shape")
        buffers[name] = buffer
    if len(buffers) not in (0, len(parameters)):
        raise ValueError("its optimizer has no momentum of some parameters")
    return buffers
