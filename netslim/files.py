"""Saving and loading pruned models: the state dict's shapes say how to shrink a full model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from netslim.selection import WIDTH, selecting
from netslim.surgery import resize, set_width
from netslim.trace import first_line, ints_of

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: str | Path) -> None:
    """Writes the state dict of ``model`` (tensors only) for :func:`load`."""
    torch.save({name: x.detach().cpu().clone() for name, x in model.state_dict().items()}, path)


def load(model: Model, path: str | Path) -> Model:
    """Shrinks a fresh full ``model`` in place to the pruned one in ``path``, and returns it.

    Nothing is traced, and no code is read from the file.

    Raises:
        ValueError: the file does not fit the model, which is left unchanged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # of any kind, where it is no file of torch's
        raise ValueError(f"{path} is not a file of netslim.save: {first_line(error)}") from None
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"{path} is not a file of netslim.save: it is no dict of tensors")
    try:
        return take(model, state)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this model: {error}") from None


def take(model: Model, state: Mapping[str, Tensor]) -> Model:
    """Shrinks ``model`` in place to the shapes of a pruned model's state dict, and loads it.

    Raises:
        ValueError: names the first tensor that does not fit; ``model`` is left unchanged.
    """
    chosen = {
        k.removesuffix(".select.index"): x for k, x in state.items() if k.endswith(".select.index")
    }
    own: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    new = {n for n in chosen if f"{n}.select.index" not in own}  # without a ChannelSelection yet
    rest = dict(state)
    widths = {k.removesuffix(WIDTH): rest.pop(k) for k in state if k.endswith(WIDTH)}
    for name in [k for k in own if k.endswith(WIDTH)]:
        widths.setdefault(name.removesuffix(WIDTH), own.pop(name))
    for name, width in widths.items():
        _check_width(model, name, width)
    for name in new:
        index = rest.pop(f"{name}.select.index")
        is_list = index.dim() == 1 and index.dtype == torch.int64
        if not is_list or (index < 0).any() or (index.diff() <= 0).any():
            raise ValueError(f"{name}.select.index is not a sorted list of channels")
        if index.shape != rest.get(f"{name}.norm.weight", index).shape:
            raise ValueError(
                f"{name}.select.index does not have the length of the batch norm behind it"
            )
        for key in [k for k in rest if k.startswith(f"{name}.norm.")]:
            rest[f"{name}.{key.removeprefix(f'{name}.norm.')}"] = rest.pop(key)
    counters = {k for k in own if k.endswith("num_batches_tracked")}  # torch < 0.4.1 wrote none
    missing = own.keys() - rest.keys() - counters
    biases = {k for k in rest.keys() - own.keys() if _may_have_bias(model, k, rest)}
    odd = sorted(missing) + sorted(rest.keys() - own.keys() - biases)
    if odd:
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in missing else 'not expected'}")
    for name, x in own.items():
        y = rest.get(name, x)
        pairs = zip(y.shape, x.shape, strict=True)
        narrower = y.dim() == x.dim() and all(0 < a <= b for a, b in pairs)
        if (not narrower and y.shape != x.shape) or y.is_floating_point() != x.is_floating_point():
            raise ValueError(
                f"{name} is {tuple(y.shape)} of {y.dtype},"
                f" and in the full model {tuple(x.shape)} of {x.dtype}"
            )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        tensors: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for named in tensors:
            for key, x in list(named.items()):
                name = f"{path}.{key}" if path else key
                if x is None and name in biases:
                    weight = next(iter(module.parameters(recurse=False)))
                    named[key] = nn.Parameter(rest[name].clone(), weight.requires_grad)
                elif x is not None and name in own:
                    value = (
                        rest[name].clone() if name in rest else torch.zeros_like(x, device="cpu")
                    )
                    value = value if x.is_meta else value.to(x.device)
                    if isinstance(x, nn.Parameter):
                        value = nn.Parameter(value, x.requires_grad)
                    named[key] = value
        resize(module)
    for name, width in widths.items():
        set_width(model, name, width)
    for name in new:
        norm = model.get_submodule(name)
        index = chosen[name].clone()
        model.set_submodule(name, selecting(index, norm).train(norm.training))
    return model


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
