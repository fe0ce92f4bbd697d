"""Saving and loading pruned models: the state dict's shapes say how to shrink a full model."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from netslim.selection import WIDTH, selecting
from netslim.surgery import resize, set_width
from netslim.trace import first_line, ints_of

Model = TypeVar("Model", bound=nn.Module)
State = dict[str, Tensor]
EXTRA = "_extra_state"  # last part of the names of torch's extra state
INDEX = ".select.index"  # end of the state dict's names of channel selections
COUNT = "num_batches_tracked"  # which torch < 0.4.1 did not write
# Parts of names that DataParallel, torch.compile, FSDP, activation checkpointing and Fabric add.
WRAPPERS = set(
    "module _orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module _forward_module".split()
)
WRAPPING = nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel
THOP = ("total_ops", "total_params")  # buffers that thop adds to count operations


def save(model: nn.Module, path: str | Path) -> None:
    """Writes the parameters and buffers of ``model`` for :func:`load`, by their names in the model.

    These are its state dict, unless the model renames entries there. Extra state
    (``get_extra_state``) may consist of tensors and plain values. No code is written.

    Raises:
        ValueError: names an entry of the state dict that cannot be saved; nothing is written.
    """
    own, extra = _tensors(model), _with_extra_state(model)
    known = {id(x) for x in own.values()}
    for name, x in model.state_dict(keep_vars=True).items():
        if name not in own and id(x) not in known and not name.endswith(EXTRA):
            raise ValueError(
                f"{name} in the state dict is no parameter or buffer of the model: cannot save it"
            )
    modules = dict(model.named_modules(remove_duplicate=False))
    state: dict[str, Any] = {}
    for name, x in own.items():
        parent, _, key = name.rpartition(".")
        if key not in modules[parent]._non_persistent_buffers_set:
            state[name] = x.detach().cpu().clone()
    for name, module in extra.items():
        file = io.BytesIO()
        try:
            torch.save(module.get_extra_state(), file)
            file.seek(0)
            state[name] = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind: it is the user's code
            raise ValueError(
                f"cannot save {name}, which may have tensors and plain values only:"
                f" {first_line(error)}"
            ) from None
    torch.save(state, path)


def load(model: Model, path: str | Path) -> Model:
    """Shrinks a fresh full ``model`` in place to the pruned one in ``path``, and returns it.

    Nothing is traced, and no code is read from the file. Either may be wrapped, as by
    DataParallel or torch.compile.

    Raises:
        ValueError: the file does not fit the model, which is left unchanged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # of any kind, where it is no file of torch's
        raise ValueError(f"{path} is not a file of netslim.save: {first_line(error)}") from None
    if not isinstance(state, dict) or not all(
        isinstance(x, Tensor) or str(name).endswith(EXTRA) for name, x in state.items()
    ):
        raise ValueError(f"{path} is not a file of netslim.save: it is no dict of tensors")
    inner: nn.Module = model
    while isinstance(inner, WRAPPING) or hasattr(inner, "_orig_mod"):
        inner = getattr(inner, "_orig_mod", None) or inner.get_submodule("module")
    try:
        take(inner, state)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this model: {error}") from None
    return model


def unwrap(state: Mapping[str, Any]) -> State:
    """Returns ``state`` with the WRAPPERS removed from its names, and without THOP's entries.

    Raises ValueError: two entries get the same name.
    """
    plain: State = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if name in plain:
            raise ValueError(f"it has {name} twice, once as {key}")
        plain[name] = value.detach() if isinstance(value, Tensor) else value
    plain.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    return {key: x for key, x in plain.items() if key.rpartition(".")[2] not in THOP}


def take(model: Model, state: Mapping[str, Any]) -> Model:
    """Shrinks ``model`` in place to the shapes of a pruned model's state dict, and loads it.

    Tensors that the model has under several names stay one tensor.

    Raises:
        ValueError: names the first tensor that does not fit; ``model`` is left unchanged.
    """
    own, extra = _tensors(model), _with_extra_state(model)
    if not own.keys() & state.keys():
        state = unwrap(state)
    theirs: dict[str, Any] = dict(model.state_dict(keep_vars=True))
    names = {id(x): name for name, x in own.items()}
    # A model's own state_dict() may have other names.
    renamed = {k: names[id(x)] for k, x in theirs.items() if k not in own and id(x) in names}
    rest = {renamed.get(k, k): x for k, x in state.items()}
    widths = {k.removesuffix(WIDTH): rest.pop(k) for k in [*rest] if k.endswith(WIDTH)}
    for name in [k for k in own if k.endswith(WIDTH)]:
        widths.setdefault(name.removesuffix(WIDTH), own.pop(name))
    for name, width in widths.items():
        _check_width(model, name, width)
    modules = dict(model.named_modules(remove_duplicate=False))
    new = [k.removesuffix(INDEX) for k in rest if k.endswith(INDEX) and k not in own]
    chosen = {name: rest.pop(f"{name}{INDEX}") for name in new if name in modules}
    for name, index in chosen.items():
        is_list = index.dim() == 1 and index.dtype == torch.int64
        if not is_list or (index < 0).any() or (index.diff() <= 0).any():
            raise ValueError(f"{name}{INDEX} is not a sorted list of channels")
        if index.shape != rest.get(f"{name}.norm.weight", index).shape:
            raise ValueError(f"{name}{INDEX} does not have the length of the batch norm behind it")
        for key in [k for k in rest if k.startswith(f"{name}.norm.")]:
            rest[f"{name}.{key.removeprefix(f'{name}.norm.')}"] = rest.pop(key)
    extra_state = {k: rest.pop(k) for k in extra if k in rest}
    sources: dict[int, str] = {}
    for name, x in own.items():
        if name in rest:
            first = sources.setdefault(id(x), name)
            if not _equal(rest[first], rest[name]):
                raise ValueError(f"{first} and {name} are one tensor in this model, and differ")
    saved = {id(x) for x in theirs.values()}
    required = {k for k, x in own.items() if k in theirs or id(x) in saved}
    missing = {k for k in required if id(own[k]) not in sources and not k.endswith(COUNT)}
    missing |= extra.keys() - extra_state.keys()
    biases = {k for k in rest.keys() - own.keys() if _may_have_bias(model, k, rest)}
    odd = sorted(missing) + sorted(rest.keys() - own.keys() - biases)
    if odd:
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in missing else 'not expected'}")
    for name, x in own.items():
        y = rest.get(name, x)
        narrower = y.dim() == x.dim() and y.shape[2:] == x.shape[2:]  # such as those of kernels
        narrower &= all(0 < a <= b for a, b in zip(y.shape, x.shape, strict=False))
        narrower &= not isinstance(modules[name.rpartition(".")[0]], torch.jit.ScriptModule)
        if (not narrower and y.shape != x.shape) or y.is_floating_point() != x.is_floating_point():
            raise ValueError(
                f"{name} is {tuple(y.shape)} of {y.dtype},"
                f" and in the full model {tuple(x.shape)} of {x.dtype}"
            )
    values: dict[int, Tensor] = {}
    for name, x in own.items():
        path, _, key = name.rpartition(".")
        module, source = modules[path], sources.get(id(x))
        if source is None and key != COUNT:
            continue  # neither the file nor its state dict has it
        if id(x) not in values:
            value = torch.zeros_like(x, device="cpu") if source is None else rest[source].clone()
            value = value if x.is_meta else value.to(x.device)
            if x.dim() == 4 and not x.is_contiguous():  # channels last
                value = value.contiguous(memory_format=torch.channels_last)
            is_parameter = isinstance(x, nn.Parameter)
            values[id(x)] = nn.Parameter(value, x.requires_grad) if is_parameter else value
        if isinstance(module, torch.jit.ScriptModule):
            x.data.copy_(values[id(x)])
        elif key in module._parameters:
            vars(module)["_parameters"][key] = values[id(x)]
        else:
            module._buffers[key] = values[id(x)]
            if name in rest:
                module._non_persistent_buffers_set.discard(key)
    for name in biases:
        module = modules[name.rpartition(".")[0]]
        weight = next(module.parameters())
        module.bias = nn.Parameter(rest[name].to(weight.device, copy=True), weight.requires_grad)
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            resize(module)
    for name, width in widths.items():
        set_width(model, name, width)
    norms = {name: model.get_submodule(name) for name in chosen}
    selects: dict[int, nn.Module] = {}  # by id of the batch norm, which may have several names
    for name, norm in norms.items():
        if id(norm) not in selects:
            selects[id(norm)] = selecting(chosen[name].clone(), norm).train(norm.training)
        model.set_submodule(name, selects[id(norm)])
    for name, value in extra_state.items():
        extra[name].set_extra_state(value)
    return model


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, in module order; shared ones have several names."""
    return {
        f"{path}.{key}".lstrip("."): x
        for path, module in model.named_modules(remove_duplicate=False)
        for named in (module.named_parameters, module.named_buffers)
        for key, x in named(recurse=False, remove_duplicate=False)
    }


def _with_extra_state(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that define ``get_extra_state``, by the name of their entry."""
    modules = model.named_modules(remove_duplicate=False)
    plain = nn.Module.get_extra_state
    return {
        f"{path}.{EXTRA}".lstrip("."): m for path, m in modules if type(m).get_extra_state != plain
    }


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN to NaN."""
    return a is b or (a.shape == b.shape and not ((a != b) & ((a == a) | (b == b))).any())


def _check_width(model: nn.Module, name: str, width: Tensor) -> None:
    """Raises ValueError where ``width`` is none for an int attribute, or a list of them."""
    path, _, attribute = name.rpartition(".")
    modules = dict(model.named_modules())
    full = ints_of(modules[path]).get(attribute) if path in modules else None
    if full is None:
        raise ValueError(f"{name}{WIDTH} is not expected")
    most = torch.tensor(full)
    if width.shape != most.shape or width.dtype != most.dtype or not (width > 0).all():
        raise ValueError(f"{name}{WIDTH} is no width for {full}")
    if (width > most).any():
        raise ValueError(f"{name}{WIDTH} is {width.tolist()}, and in the full model {full}")


def _may_have_bias(model: nn.Module, key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether ``key`` is a bias that pruning added to a layer without one."""
    path, _, name = key.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    return name == "bias" and module._parameters.get("bias", key) is None and state[key].dim() == 1
