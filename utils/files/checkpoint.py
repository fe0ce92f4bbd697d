"""Checkpoints on disk: of this program, of the earlier network-slimming programs, of others."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import torchvision_models
from models.registry import ARCHITECTURES
from netslim.files import State, unwrap
from utils.atomic import atomic_write
from utils.console import InputError, note
from utils.data.datasets import Dataset, Norm
from utils.device import PRECISIONS
from utils.files import safe_load, sparse
from utils.files.legacy_formats import (
    MAX_DEPTH,
    find_state_dict,
    from_admm_programs,
    largest_submodule,
    selection_before,
    to_compact,
    to_released,
)
from utils.flags.config import Config
from utils.methods import METHODS
from utils.methods.slimming import has_group_penalty
from utils.network import Network, restore
from utils.shell import format_command, path_argument


@dataclass
class Checkpoint:
    """A model, as wide as at the start of its run, and the other content of its file."""

    network: Network
    run_name: str | None = None
    config: Config | None = None
    classes: list[str] | None = None
    mean: list[float] | None = None  # of the normalisation, per channel
    std: list[float] | None = None
    # The state of a training:
    epoch: int | None = None  # number of finished epochs
    best: float = 0.0  # best test accuracy, in percent
    momentum: State = field(default_factory=dict)  # buffers by parameter name
    optimizer_settings: dict[str, Any] = field(default_factory=dict)
    method_state: State = field(default_factory=dict)
    removed: Tensor | None = None  # bool [channels]: channels that are not trained any more
    precision: str | None = None
    channels_last: bool = False
    images_checksum: int | None = None
    init_checksum: str | None = None  # of the file with the initial weights
    why_not_resumable: str = ""  # the reason, or "" for a checkpoint that can be resumed

    @property
    def size(self) -> int:
        """Height and width of the training images, in pixels."""
        return self.network.size

    @property
    def norm(self) -> Norm | None:
        """Mean and standard deviation that normalised the images, if the file has them."""
        return (
            None if self.mean is None or self.std is None else (tuple(self.mean), tuple(self.std))
        )

    def metadata(self) -> dict[str, Any]:
        """Returns the entries that a file of another form of this model shares with this one."""
        settings = None if self.config is None else self.config.to_dict()
        shared = {name: getattr(self, name) for name in ("classes", "mean", "std")}
        return {"run": self.run_name, "settings": settings, **shared}

    @property
    def scaling_factors(self) -> State:
        """The factors [channels] by which channels can be pruned: γ, and the method's own."""
        gamma = self.network.gamma
        names = self.method_state if self.config is None else METHODS[self.config.method].factors
        same = {n: x for n, x in self.method_state.items() if n in names and x.shape == gamma.shape}
        return {"gamma": gamma, **same}

    @property
    def default_mask(self) -> str:
        """Name of the scaling factor whose zeros are pruned by default."""
        name = "gamma" if self.config is None else METHODS[self.config.method].pruned_by
        return name if name in self.scaling_factors else "gamma"

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of the file."""
        model, full = self.network.model, self.network.is_full
        numbers = {name: i for i, (name, _) in enumerate(model.named_parameters())}
        buffers = {numbers[name]: {"momentum_buffer": x} for name, x in self.momentum.items()}
        group = {**self.optimizer_settings, "params": list(numbers.values())}
        return {
            # The entries of the earlier programs, ...
            "epoch": self.epoch,
            "state_dict": to_released(self.network) if full else model.state_dict(),
            "best_prec1": torch.tensor(self.best / 100, dtype=torch.float64),
            "optimizer": {"state": buffers, "param_groups": [group]},
            # ... and those that exact resuming and pruning need.
            "layout": "released" if full else "compact",
            "cfg": self.network.cfg,
            "best_accuracy": self.best,  # 100 · best_prec1 only up to rounding
            "method": self.method_state,
            "settings": None if self.config is None else self.config.to_dict(),
            **{key: getattr(self, name) for key, (name, _) in ENTRIES.items()},
        }

    def has_classes(self, classes: Sequence[str]) -> bool:
        """Whether the model was trained on these classes."""
        same = self.classes is None or self.classes == list(classes)
        return same and self.network.num_classes == len(classes)

    def check_classes(self, data: Dataset, path: Path) -> None:
        """Raises InputError if the model in ``path`` was trained on other classes than ``data``."""
        if self.has_classes(data.classes):
            return
        shown = []
        pairs = (self.network.num_classes, self.classes or ()), (len(data.classes), data.classes)
        for count, names in pairs:
            few = f" ({', '.join(names[:3])}{', ...' * (count > 3)})" if names else ""
            shown.append(f"{count} classes{few}")
        raise InputError(f"{path} has {shown[0]}, but {data.name} has {shown[1]}")


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` atomically, with its tensors copied to the CPU.

    Raises InputError: the file could not be written.
    """
    try:
        with atomic_write(path) as new, new.open("wb") as file:
            torch.save(to_cpu(content), file)
    except (OSError, RuntimeError) as error:
        # torch raises an error of its own after that of the disk.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = "; the previous file is unchanged" if path.exists() else ""
        raise InputError(f"{path} could not be written ({reason}){kept}") from None


def checksum(path: Path) -> str:
    """Returns the file's CRC-32, by which records identify checkpoints."""
    return f"{zlib.crc32(path.read_bytes()):08x}"


def sha256(path: Path) -> str:
    """Returns the file's SHA-256, by which records identify initial weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_cpu(value: Any) -> Any:
    """Returns ``value``, a tensor or containers of them, with copies of all tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # a view would be saved with its whole storage
    if isinstance(value, Mapping):
        return {key: to_cpu(item) for key, item in value.items()}
    return [to_cpu(item) for item in value] if isinstance(value, list) else value


def _are_tensors(x: Any) -> bool:
    """Whether ``x`` is a dict of finite tensors by name."""
    return isinstance(x, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) and bool(value.isfinite().all())
        for key, value in x.items()
    )


def _is_list(x: Any, kind: type, length: int | None = None) -> bool:
    return isinstance(x, list) and length in (None, len(x)) and all(type(y) is kind for y in x)


# Optional entries of the file: the fields of Checkpoint that hold them, and checks.
ENTRIES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "run": ("run_name", lambda x: isinstance(x, str)),
    "classes": ("classes", lambda x: _is_list(x, str)),
    "mean": ("mean", lambda x: _is_list(x, float, 3)),
    "std": ("std", lambda x: _is_list(x, float, 3) and min(x) > 0),
    "cut": ("removed", lambda x: isinstance(x, Tensor) and x.dtype == torch.bool),
    "precision": ("precision", lambda x: isinstance(x, str) and x in PRECISIONS),
    "channels_last": ("channels_last", lambda x: isinstance(x, bool)),
    "pictures": ("images_checksum", lambda x: isinstance(x, int)),
    "origin": ("init_checksum", lambda x: isinstance(x, str)),
}


def load(path: Path, arch: str | None = None) -> Checkpoint:
    """Reads a checkpoint of this or an earlier program, or weights of torchvision's ``arch``.

    Raises InputError: the file is missing, damaged, not a checkpoint, or inconsistent.
    """
    content = safe_load.read(path)
    try:
        return _from_content(content if isinstance(content, dict) else {}, arch, path)
    except ValueError as error:
        raise InputError(f"{path} {error}") from None


def _from_content(content: Mapping[str, Any], arch: str | None, path: Path) -> Checkpoint:
    """Returns the checkpoint in a file's ``content``. Raises ValueError: what is wrong with it."""
    state, ignored = find_state_dict(content)
    if ignored:
        note(f"note: {path}: other weights in the file are not read: {', '.join(ignored)}")
    if "sparse" in content and isinstance(state, dict):
        state = {**state, **sparse.unpack(content["sparse"])}
    if not state or not _are_tensors(state):
        names = _first_names(state or content if isinstance(state, dict) else ())
        but = f", but {names}" if names else ""
        raise ValueError(f"is not a checkpoint: it has no state_dict of finite tensors{but}")
    fields: dict[str, Any] = {}
    for key, (name, is_valid) in ENTRIES.items():
        if (value := content.get(key)) is not None:
            if not is_valid(value):
                raise ValueError(f"is damaged: its entry {key} is not valid")
            fields[name] = value
    config = None
    if (settings := content.get("settings")) is not None:
        try:
            config = Config.from_dict(dict(settings))
        except (TypeError, ValueError) as error:
            reason = f"its settings are damaged: {error}"
            raise ValueError(f"cannot be resumed or pruned: {reason}") from None
        arch = config.arch
    try:
        network, state, ignored = _build(state, arch, config)
    except ValueError as error:
        model = path_argument(path), "--arch", "NAME"
        init = format_command("main.py", "-sr", "--init", *model)
        prune = format_command("-m", "utils.prune", "--model", *model, "--ratio", "0.5")
        hint = (
            f". For a model of torchvision's: {init}; for any other: {prune}; for a model that was"
            " pruned so: netslim.load in Python"
        )
        raise ValueError(
            f"does not fit a network of this program: {error} (it has {_first_names(state)})"
            f"{'' if arch else hint}"
        ) from None
    if config is not None:
        network = replace(network, coupled=has_group_penalty(config.options))
    if ignored:
        note(f"note: {path}: weights of other modules are not read: {_first_names(ignored)}")
    checkpoint = Checkpoint(network, config=config, **fields)
    removed = checkpoint.removed
    if removed is not None and removed.any() and len(removed) != sum(network.widths):
        raise ValueError("is damaged: its entry cut has not one value per channel")
    try:
        _add_training_state(checkpoint, content, state)
    except ValueError as error:
        checkpoint.why_not_resumable = str(error)
    except Exception as error:  # of any kind, where an entry is missing or of another type
        checkpoint.why_not_resumable = f"no {error}"
    return checkpoint


def _build(
    state: State, arch: str | None, config: Config | None
) -> tuple[Network, State, list[str]]:
    """Builds the network of ``state`` or of the largest module in it that fits an architecture.

    Returns the network, its part of ``state``, and the names of the other weights.

    Raises ValueError: why ``state`` fits no network.
    """
    part, ignored, errors = unwrap(state), list[str](), list[ValueError]()
    size, depth = (config.size, config.depth) if config else (None, None)
    named = arch in torchvision_models.DEPTHS or (config and not ARCHITECTURES[config.arch].family)
    for _ in range(MAX_DEPTH):
        try:
            if named:
                return restore(part, arch, size, depth), part, ignored
            return restore(to_compact(from_admm_programs(part)), size=size), part, ignored
        except ValueError as error:
            errors.append(error)
        part, others = largest_submodule(part)
        ignored += others
    raise errors[0]


def _first_names(names: Iterable[object]) -> str:
    """Returns the first three names, and the number of the others."""
    first = [str(name)[:60] for name in names]
    more = f" and {len(first) - 3} more" if len(first) > 3 else ""
    return f"{', '.join(first[:3])}{more}"


def _add_training_state(checkpoint: Checkpoint, content: Mapping[str, Any], state: State) -> None:
    """Reads the entries that resuming needs. Raises ValueError and others if they are damaged."""
    tensors = content.get("method") or {}
    if not _are_tensors(tensors):
        raise ValueError("its method's tensors are damaged")
    checkpoint.method_state = tensors
    if "epoch" not in content:
        raise ValueError("it has no training state; fine-tune it with --refine")
    checkpoint.epoch = int(content["epoch"])
    checkpoint.best = float(content.get("best_accuracy", 100 * float(content["best_prec1"])))
    if checkpoint.epoch < 0 or not 0 <= checkpoint.best <= 100:
        raise ValueError("its epoch or best_prec1 is out of range")
    checkpoint.momentum = _momentum(content.get("optimizer"), state, checkpoint.network.model)


def _momentum(optimizer: Any, state: State, model: nn.Module) -> State:
    """Returns the momentum buffers by parameter name, {} if the optimizer has none.

    Raises ValueError: the optimizer is of another model.

    The earlier programs count ``select.indexes`` as parameters, and their batch norms before a
    selection have buffers of full width.
    """
    if optimizer is None:
        return {}
    parameters = dict(model.named_parameters())
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    buffers_of_model = ("running_mean", "running_var", "num_batches_tracked", ".index")
    released = [key for key in state if not key.endswith(buffers_of_model)]
    names = next((n for n in (list(parameters), released) if len(n) == len(numbers)), None)
    if names is None:
        raise ValueError(f"its optimizer has {len(numbers)} states, not {len(parameters)}")
    momentum = {}
    for name, number in zip(names, numbers, strict=True):
        buffer = optimizer["state"].get(number, {}).get("momentum_buffer")
        module, _, entry = name.rpartition(".")
        own = name if name in parameters else f"{module}.norm.{entry}"
        if buffer is None or own not in parameters:
            continue
        select = selection_before(module)
        if select in state and buffer.shape == state[select].shape:
            buffer = buffer[state[select].bool()]
        if buffer.shape != parameters[own].shape:
            raise ValueError(f"its optimizer state of {name} has another shape")
        momentum[own] = buffer
    return momentum
