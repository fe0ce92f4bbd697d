"""Removal of channels from a model: :func:`prune`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from netslim.folding import LAYERS, Folding, constants_of, double
from netslim.graph import Graph, analyze, commonest
from netslim.selection import WIDTH, selecting, selections
from netslim.trace import call, copied, first_line, moved, named_tensors, passed

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class Report:
    """Result of :func:`prune`; printed as text.

    Attributes:
        channels: {name of the batch norm: (before, after)}.
        silent: number of removed channels that were 0 for every input.
        folded: number of removed channels with another constant, which is folded into the layers
            behind.
        alive: number of removed channels with γ ≠ 0 in all batch norms that lose the same ones: the
            outputs change.
        staying: {name: number of channels that stay because other layers need them}.
        carriers: number of channels that stay, with γ = 0, to carry the constants of removed ones
            through zero padding.
        reasons: {name: reason} of batch norms without removable channels that keep did not name.
        parameters: (before, after).
        selections: names of the batch norms that now select their channels from a stream.
        difference: the largest change of an output on the example, None if it was not measured,
            NaN if there is none.
        largest: the largest output on the example, for comparison.
    """

    channels: dict[str, tuple[int, int]] = field(default_factory=dict)
    silent: int = 0
    folded: int = 0
    alive: int = 0
    staying: dict[str, int] = field(default_factory=dict)
    carriers: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    selections: list[str] = field(default_factory=list)
    difference: float | None = None
    largest: float | None = None

    @property
    def removed(self) -> int:
        return sum(before - after for before, after in self.channels.values())

    def __str__(self) -> str:
        before = sum(width for width, _ in self.channels.values())
        lines = [
            f"channels: {before:,} -> {before - self.removed:,}",
            f"parameters: {self.parameters[0]:,} -> {self.parameters[1]:,}",
            f"removed: {self.silent} silent, {self.folded} constant (folded); of these"
            f" {self.alive} had a scaling factor that was not 0",
        ]
        if self.staying:
            lines.append(f"kept, because other layers need them: {sum(self.staying.values())}")
        if self.carriers:
            lines.append(f"kept with a factor of 0, to carry constants: {self.carriers}")
        if self.selections:
            lines.append(f"selecting from a shared stream: {len(self.selections)} batch norms")
        if self.difference is not None:
            lines.append(
                f"outputs on the example change by {self.difference:.3g}"
                f" (largest {self.largest:.3g})"
            )
        lines += [f"not prunable: {text}" for text in commonest(self.reasons)]
        return "\n".join(lines)


@dataclass
class Removal:
    """Plan of a removal, made by :func:`plan_removal` for :func:`apply_removal`.

    Attributes:
        removed_classes: bool [classes of the graph].
        constants: float64 [signals]: the value for every input, NaN where it varies.
        keep: {name of a batch norm: bool [channels]}, True where a channel stays.
        carriers: bool [classes]: channels that stay with γ = 0, see :class:`Folding`.
        index: {entry of the state dict: kept indices along each axis}, for entries that shrink.
        selects: {batch norm, or index of a selection: int64 indices into its input}.
        wholes: selections of a whole stream, which are dropped.
        widths: {int attribute of a module: new value}, see :func:`set_width`.
        added: {entry of the state dict: correction to add}; missing biases are created.
    """

    removed_classes: Tensor
    constants: Tensor
    keep: dict[str, Tensor]
    carriers: Tensor
    index: dict[str, tuple[Tensor, ...]]
    selects: dict[str, Tensor]
    wholes: list[str]
    widths: dict[str, Tensor]
    added: dict[str, Tensor] = field(default_factory=dict)

    def full_name(self, name: str) -> str:
        """Returns the full model's name of an entry of the pruned model's state dict."""
        path, _, key = name.rpartition(".")
        if path in self.wholes:
            return f"{path}.norm.{key}"
        full = path.removesuffix(".norm")
        return f"{full}.{key}" if full in self.selects else name

    def part(self, name: str, x: Tensor) -> Tensor:
        """Returns the kept part of ``x``, which has the shape of the full model's ``name``."""
        for axis, kept in enumerate(self.index.get(name, ())[: x.dim()]):
            if len(kept) < x.shape[axis]:
                x = x.index_select(axis, kept.to(x.device))
        return x

    def scatter_into(self, part: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> None:
        """Writes ``part``, entries of the pruned model, into their places in ``full``, in place.

        Removed elements of ``full`` and the indices of selections keep their values.
        """
        for name, value in part.items():
            if name.endswith((".select.index", WIDTH)):
                continue
            target = full[self.full_name(name)]
            index = self.index.get(self.full_name(name), ())[: target.dim()]
            kept = (x.to(target.device) for x in index)
            grid = torch.meshgrid(*kept, indexing="ij") if index else ...
            target[grid] = value.to(target)


@torch.no_grad()
def plan_removal(
    graph: Graph,
    keep: Mapping[str, Tensor],
    model: nn.Module | None = None,
    streams: bool = True,
) -> Removal:
    """Plans the removal of the channels with False in ``keep``.

    A layer that would lose all its channels keeps the first one.

    Args:
        graph: dependency graph.
        keep: {name of a batch norm: bool [channels]}; unnamed batch norms keep all.
        model: the graph's model (default), or one of the same code.
        streams: whether stream channels that no layer reads any more are removed, too.

    Raises:
        ValueError: ``keep`` names a batch norm without removable channels, or a mask has another
            length.
    """
    check_keep(graph, keep)
    prunable, tensors = graph.prunable(), named_tensors(graph.model if model is None else model)
    if any(x.is_meta for x in tensors.values()):
        raise ValueError("the model has no values: it is on the meta device")
    classes = {name: graph.norm_classes(name) for name in prunable}
    masked = {name: ~mask.cpu() & prunable[name] for name, mask in keep.items()}
    stays = torch.full((len(graph.classes),), not streams)
    for name in prunable:
        stays[classes[name]] = False
    carriers = torch.zeros_like(stays)
    folding = Folding(graph, graph.model if model is None else model)
    constants = constants_of(graph, tensors, masked)
    layers = [s.output for s in graph.steps if s.kind in (*LAYERS, "norm", "select")]
    written = [*map(graph.classes_of, layers), *graph.parts]  # also parts after a split
    while True:
        removed_classes = _classes_without_reader(graph, constants, stays | carriers, folding)
        constant = removed_classes | carriers
        left = {name: mask & constant[classes[name]] for name, mask in masked.items()}
        if any(not torch.equal(left[name], masked[name]) for name in masked):
            masked, constants = left, constants_of(graph, tensors, left)
        elif folding.more_carriers(removed_classes, constants, carriers):
            continue
        elif empty := [part for part in written if removed_classes[part].all()]:
            for part in empty:  # a layer keeps at least one channel
                stays[part[0]] = True
        else:
            break
    names = [name for name in prunable if name in graph.norms or name in keep]
    kept = {name: ~removed_classes[classes[name]] for name in names}
    index, selects, wholes = _indices(graph, removed_classes)
    added = folding.corrections(tensors, removed_classes, constants, carriers)
    for name, mask in masked.items():
        carrying = mask & carriers[classes[name]]
        if carrying.any():
            weight = f"{name}.weight".lstrip(".")
            added[weight] = -double(tensors[weight]) * carrying
    widths: dict[str, Tensor] = {}
    for (path, attribute, position), counted in graph.widths.items():
        if removed_classes[counted].any():
            old = torch.tensor(vars(graph.model.get_submodule(path))[attribute])
            new = widths.setdefault(f"{path}.{attribute}".lstrip("."), old)
            new.view(-1)[position] = (~removed_classes[counted]).sum()
    return Removal(
        removed_classes, constants, kept, carriers, index, selects, wholes, widths, added
    )


def check_keep(graph: Graph, keep: Mapping[str, Tensor]) -> None:
    """Raises ValueError as :func:`plan_removal` does where ``keep`` does not fit."""
    prunable = graph.prunable()
    for name, mask in keep.items():
        if name not in prunable:
            why = graph.reasons.get(name, "there is no such batch norm")
            raise ValueError(f"no channel of {name!r} can be removed: {why}")
        is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool
        if not is_mask or mask.shape != prunable[name].shape:
            found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
            raise ValueError(
                f"the mask of {name} is {found}, not torch.bool ({len(prunable[name])},)"
            )


def _classes_without_reader(
    graph: Graph, constants: Tensor, stays: Tensor, folding: Folding
) -> Tensor:
    """Classes that no reader needs: it sees a constant, or loses the channel itself."""
    removed_classes = graph.reached & ~graph._pins & ~stays
    for step, classes in graph._readers:
        if step.kind in ("convolution", "linear"):
            seen = constants[step.inputs[0]]
            needed = seen != 0  # NaN is not 0
            if step.weight in folding.reads:  # and in training the constant is the same
                needed &= seen != constants[folding.reads[step.weight]]
            removed_classes[classes[needed]] = False
    while True:
        before = removed_classes.clone()
        for step, classes in graph._readers:
            if step.kind in ("norm", "select"):
                removed_classes[classes[~removed_classes[graph.classes_of(step.output)]]] = False
        if torch.equal(removed_classes, before):
            return removed_classes


def _indices(
    graph: Graph, removed_classes: Tensor
) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, Tensor], list[str]]:
    """``index``, ``selects`` and ``wholes`` of a :class:`Removal`."""
    index = {}
    for name, axes in graph._axes.items():
        stays = [~removed_classes[graph.classes[atoms]] for atoms in axes]
        if not name.endswith(":out") and not all(x.all() for x in stays):
            index[name] = tuple(x.nonzero().flatten() for x in stays)
    selects, wholes = {}, set()
    for step, classes in graph._readers:
        if step.kind not in ("norm", "select"):
            continue
        stream = classes if step.stream is None else graph.classes_of(step.stream)
        positions = (~removed_classes[stream]).cumsum(0) - 1  # in the pruned stream
        if step.kind == "select":
            positions = positions[graph.model.get_buffer(step.name).cpu()]
        chosen = positions[~removed_classes[graph.classes_of(step.output)]]
        whole = len(chosen) == int((~removed_classes[stream]).sum())
        if step.kind == "select" or not whole:
            selects[step.name] = chosen
        if step.kind == "select" and whole:
            wholes.add(step.name.removesuffix(".select.index"))
    return index, selects, [name for name, _ in selections(graph.model) if name in wholes]


@torch.no_grad()
def apply_removal(graph: Graph, model: Model, removal: Removal) -> Model:
    """Returns a new model without the removed channels; ``model`` is not changed."""
    named = named_tensors(model)
    less = removal.index.keys() | removal.selects.keys() | removal.added.keys()
    small = copied(
        model, {id(x): _smaller(x, name, removal) for name, x in named.items() if name in less}
    )
    for path, module in small.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # its layers are never pruned
        name = f"{path}.bias".lstrip(".")
        if name in removal.added and name not in named:  # a layer without a bias
            weight: Any = module.weight
            kept = removal.index.get(f"{path}.weight".lstrip("."), (slice(None),))[0]
            rows = removal.added[name][kept].to(weight)
            module.register_parameter("bias", nn.Parameter(rows, weight.requires_grad))
        # Shortened buffers are saved: those of a fresh model would be too long.
        module._non_persistent_buffers_set -= {
            key for key in module._buffers if f"{path}.{key}".lstrip(".") in less
        }
        resize(module)
    for attribute, width in removal.widths.items():
        set_width(small, attribute, width)
    modules = [*small.named_modules(remove_duplicate=False)]
    for name in removal.selects.keys() & graph.all_norms.keys():
        norm: Any = small.get_submodule(name)
        index = removal.selects[name].to(norm.weight.device)
        selects = selecting(index, norm).train(norm.training)
        for path in [path for path, module in modules if module is norm]:
            parent, _, key = path.rpartition(".")  # whose __setattr__ may be its own
            small.get_submodule(parent)._modules[key] = selects
    for name in removal.wholes:
        small.set_submodule(name, small.get_submodule(f"{name}.norm"))
    return small


def _smaller(x: Tensor, name: str, removal: Removal) -> Tensor:
    """Returns the kept part of an entry of the state dict, corrected."""
    new = removal.part(name, x.detach())
    if name in removal.selects:  # the index of a selection
        new = removal.selects[name].to(x)
    elif name in removal.added:
        new = (new.double() + removal.part(name, removal.added[name]).to(new.device)).to(new)
    if x.dim() == 4 and not x.is_contiguous():  # channels last, which index_select leaves
        new = new.contiguous(memory_format=torch.channels_last)
    if new.data_ptr() == x.data_ptr():
        new = new.clone()
    return nn.Parameter(new, x.requires_grad) if isinstance(x, nn.Parameter) else new


def set_width(model: nn.Module, name: str, width: Tensor) -> None:
    """Sets an int (or list of ints) attribute of a module, and its buffer in the state dict."""
    path, _, attribute = name.rpartition(".")
    module, new = model.get_submodule(path), width.tolist()
    old = vars(module)[attribute]
    vars(module)[attribute] = type(old)(new) if isinstance(old, list | tuple) else new
    own = next((x for x in module.state_dict(keep_vars=True).values()), width)
    module.register_buffer(attribute + WIDTH, width.to(own.device, copy=True))


def resize(module: nn.Module) -> None:
    """Sets the size attributes of one of torch's layers to the shape of its weight."""
    # Computing a parametrized weight may have side effects: spectral_norm updates its vectors.
    parametrized = nn.utils.parametrize.is_parametrized(module)
    source: Any = copied(module).eval() if parametrized else module
    match module:
        case nn.modules.conv._ConvNd() if source.weight is not None:
            rows, columns = source.weight.shape[:2]
            before = module.in_channels if module.transposed else module.out_channels
            if module.groups > 1:  # each as wide as before
                module.groups = module.groups * rows // before
            if module.transposed:
                module.in_channels, module.out_channels = rows, columns * module.groups
            else:
                module.out_channels, module.in_channels = rows, columns * module.groups
        case nn.Linear():
            module.out_features, module.in_features = source.weight.shape
        case nn.modules.batchnorm._NormBase() if (
            module.running_mean is not None or source.weight is not None
        ):
            x = source.weight if source.weight is not None else source.running_mean
            module.num_features = len(x)
        case nn.PReLU():
            module.num_parameters = source.weight.numel()


def report_of(
    graph: Graph, model: nn.Module, removal: Removal, keep: Mapping[str, Tensor], small: nn.Module
) -> Report:
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    report = Report(
        parameters=(before, after),
        reasons={name: why for name, why in graph.reasons.items() if name not in keep},
        selections=[name for name in removal.selects if name in graph.all_norms],
    )
    weights = {n: model.get_parameter(f"{n}.weight".lstrip(".")) for n in graph.all_norms}
    zeros = {name: weight.detach().cpu() == 0 for name, weight in weights.items()}
    for tie in graph.ties:  # one of them is enough
        zeros |= dict.fromkeys(tie, torch.stack([zeros[name] for name in tie]).any(0))
    for name, stays in removal.keep.items():
        report.channels[name] = len(stays), int(stays.sum())
        needed = stays & ~keep.get(name, stays).cpu()
        carrying = needed & removal.carriers[graph.norm_classes(name)]
        report.carriers += int(carrying.sum())
        if count := int((needed & ~carrying).sum()):
            report.staying[name] = count
        silent = graph.behind(name, removal.constants) == 0
        report.silent += int((silent & ~stays).sum())
        report.folded += int((~silent & ~stays).sum())
        report.alive += int((~zeros[name] & ~stays).sum())
    return report


@torch.inference_mode(False)
def prune(model: Model, keep: Mapping[str, Tensor], example: Any) -> tuple[Model, Report]:
    """Removes channels; returns a smaller model of the same class, with torch's own layers.

    Removed channels are treated as γ = 0; their constant outputs are folded into the layers that
    read them. A buffer that loses channels is in the smaller model's state dict, even if it was not
    persistent. ``model`` is not changed.

    Args:
        model: any module that :func:`netslim.analyze` can run.
        keep: {name of a batch norm: bool [channels]}, True where a channel is kept. Batch norms
            that are not named keep all; a layer that would lose all channels keeps its first.
        example: arguments of the forward pass, as for :func:`netslim.analyze`.

    Returns:
        The smaller model and a :class:`Report`.

    Raises:
        ValueError: the model cannot take the example, ``keep`` does not fit it, or the smaller
            model does not compute on the example what ``model`` does with γ = 0.
    """
    graph = analyze(model, example)
    model = cast(Model, graph.model)  # of a compiled one, the model it was made from
    removal = plan_removal(graph, keep)
    small = apply_removal(graph, model, removal)
    report = report_of(graph, model, removal, keep, small)
    report.difference, report.largest = compare(model, small, example)
    if _differs(model, report.difference, report.largest):
        _check_masked(model, small, removal, example)
    return small, report


def _differs(model: nn.Module, difference: float, largest: float) -> bool:
    """Whether outputs differ by more than rounding in the dtype of ``model``."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return difference > torch.finfo(dtype).eps ** 0.5 * largest


@torch.no_grad()
def _check_masked(model: nn.Module, small: nn.Module, removal: Removal, example: Any) -> None:
    """Compares ``small`` with ``model`` with γ = 0 in the removed channels.

    Raises ValueError: they compute different functions, in float64, too.
    """
    masked, own = copied(model), dict(small.named_parameters())
    gammas = {removal.full_name(name): gamma for name, gamma in own.items()}
    for name, stays in removal.keep.items():
        key = f"{name}.weight".lstrip(".")
        masked.get_parameter(key).zero_()[stays] = gammas[key]
    if not _differs(model, *compare(masked, small, example)):
        return
    masked, small = masked.double(), copied(small).double()  # where rounding is negligible
    try:
        chance, _ = compare(masked, masked, example)  # of a model that draws numbers
        difference, largest = compare(masked, small, example)
    except Exception:  # it cannot compute in float64
        return
    if chance == 0 and _differs(model, difference, largest):
        raise ValueError(
            f"the pruned model computes something else than with γ = 0: outputs differ by"
            f" {difference:.2g} of {largest:.2g}. Code of the model computes with a number of"
            " channels where that is not seen: keep all channels of that part"
        )


@torch.no_grad()
def compare(model: nn.Module, small: nn.Module, example: Any) -> tuple[float, float]:
    """Returns the largest difference of the outputs in evaluation mode, and the largest output.

    NaN if no output is a tensor of floating-point numbers, infinite if their shapes differ.

    Raises:
        ValueError: ``small`` does not run.
    """
    before = _outputs(model, example)
    try:
        after = _outputs(small, example)
    except Exception as error:
        raise ValueError(
            f"the pruned model does not run, as code of the model needs what was removed:"
            f" {first_line(error)}; keep all channels of that part"
        ) from error
    if [x.shape for x in before] != [x.shape for x in after]:
        return math.inf, max((float(x.abs().max()) for x in before if x.numel()), default=0.0)
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.numel()]
    sizes = [[float((a - b).abs().max()), float(a.abs().max())] for a, b in pairs]
    worst = torch.tensor(sizes or [[math.nan, math.nan]], dtype=torch.float64).amax(0)
    return float(worst[0]), float(worst[1])


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    answers = call(copied(model).eval(), moved(model, example))
    return [x.double() for x in passed(answers) if x.is_floating_point()]
