"""The constants that removed channels gave, and how what read them still feels them."""

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.signals import ZERO, Step

LAYERS = ("convolution", "grouped", "linear")
ADDING = {"add", "radd", "iadd"}  # they hand on a constant that is missing in their inputs
PLAIN = {m.forward for m in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}  # they add their bias


def constants_of(
    graph: Graph, tensors: Mapping[str, Tensor], masked: Mapping[str, Tensor]
) -> Tensor:
    """By signal: its value on every input where γ = 0 in the ``masked`` channels; NaN if it
    varies."""
    constants = torch.full((len(graph._atoms),), math.nan, dtype=torch.float64)
    constants[ZERO] = 0
    for step in graph.steps:
        if step.output is None:
            continue
        inputs = [constants[x] for x in step.inputs]
        if step.kind == "known":
            out = double(tensors[step.name]).view(step.output.shape)
        elif step.kind == "norm":
            out = _normalised(step, tensors, inputs[0])
            if step.name in masked:
                bias = double(tensors[step.bias]) if step.bias else torch.zeros_like(out)
                out = torch.where(masked[step.name], bias, out)
        elif step.kind == "grouped" and step.one_by_one:
            seen = inputs[0].masked_fill(inputs[0] != 0, math.nan) if step.bordered else inputs[0]
            out = _response(tensors, step, seen)
            out = out + double(tensors[step.bias]) if step.bias else out
        elif step.kind == "select":
            out = inputs[0]
        elif step.kind == "elementwise" and step.function is not None:
            out = step.function(*inputs)
        else:
            continue
        constants[step.output] = out.masked_fill(~out.isfinite(), math.nan)
    return constants


def double(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def _normalised(step: Step, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What a batch norm makes of the constants ``x``, [channels]."""
    if not step.mean:
        return torch.full_like(x, math.nan)
    assert step.call is not None
    variance, eps = double(tensors[step.variance]), step.call.argument(7, "eps")
    x = (x - double(tensors[step.mean])) / (variance + eps).sqrt()
    x = x * double(tensors[step.weight]) if step.weight else x
    return x + double(tensors[step.bias]) if step.bias else x


def _response(tensors: Mapping[str, Tensor], step: Step, constants: Tensor) -> Tensor:
    """What constant inputs add to each output of a layer, where it sees nothing else: [outputs]."""
    weight = double(tensors[step.weight])
    if step.kind == "linear":
        return weight @ constants
    groups = step.options.groups
    if step.transposed:  # of one channel each; other than 0, the outputs differ by place
        return constants.repeat_interleave(weight.shape[1] * groups // len(constants))
    inside = weight.flatten(2).sum(2)  # [outputs, inputs of a group]
    return (inside.view(groups, -1, inside.shape[1]) @ constants.view(groups, -1, 1)).flatten()


class Folding:
    """How the constants of removed channels are still felt by what read them.

    What a layer without a bias lacks then is handed on, through sums, to the running means of the
    batch norms that read it; where something else reads it, the layer gets a bias. Where the layer
    pads its input with zeros, a constant is none at the border: there one of the removed channels
    stays with γ = 0 as the *carrier* of the others' constants, which are folded into the weights
    that read it, and it is padded as they were.

    Attributes:
        steps: those of the evaluation mode.
        absorbs: for each of them, whether what its output lacks is made up for behind it.
        folds: weights of the layers that can do without inputs of constants other than 0.
        carried: those of ``folds`` that need a carrier.
    """

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph, self.model = graph, model
        self.steps = [s for s in graph.steps if not s.training]
        # A parameter that several calls share cannot make up for what each of them lacks.
        self.calls = Counter(
            name for s in self.steps for name in {s.weight, s.bias, s.mean} if name
        )
        made_by = torch.full((len(graph._atoms),), -1)
        for i, step in enumerate(self.steps):
            if step.output is not None:
                made_by[step.output] = i
        consumers: dict[int, set[int]] = {}
        for i, step in enumerate(self.steps):
            for x in step.inputs:
                for maker in made_by[x].unique().tolist():
                    consumers.setdefault(maker, set()).add(i)
        self.absorbs = [False] * len(self.steps)
        for i in reversed(range(len(self.steps))):  # what nobody reads lacks nothing
            followed = self.steps[i].output is not None
            self.absorbs[i] = followed and all(self._hands_on(j) for j in consumers.get(i, ()))
        self.folds, self.carried = set(), set()
        for step, absorbs in zip(self.steps, self.absorbs, strict=True):
            if step.kind in ("convolution", "linear") and self.calls[step.weight] == 1:
                self.folds.add(step.weight)
                biased = self.calls[step.bias] == 1 if step.bias else self._takes_bias(step)
                if step.bordered or not (absorbs or biased):
                    self.carried.add(step.weight)

    def _hands_on(self, i: int) -> bool:
        """Whether a constant that step ``i`` lacks in its input is made up for, there or behind
        it."""
        step = self.steps[i]
        if step.kind == "norm":
            return self.calls[step.mean] == 1
        if step.kind in LAYERS:
            once = self.calls[step.weight] == 1 and not step.bordered
            return once and (self.calls[step.bias] == 1 if step.bias else self.absorbs[i])
        return self.absorbs[i] and (step.kind == "select" or _adds(step))

    def _takes_bias(self, step: Step) -> bool:
        """Whether a layer without a bias adds one that it is given."""
        module = self.model.get_submodule(step.name)
        own = step.call is not None and step.call.module == step.name
        plain = type(module).forward in PLAIN and module._parameters.get("bias", step) is None
        return own and plain

    def more_carriers(self, gone: Tensor, constants: Tensor, carriers: Tensor) -> bool:
        """Add those that are missing to ``carriers``, the largest constants."""
        before = carriers.clone()
        for step in (s for s in self.steps if s.weight in self.carried):
            classes, seen = self.graph.classes_of(step.inputs[0]), constants[step.inputs[0]]
            seen = seen.nan_to_num(0).abs()
            if (gone[classes] & (seen > 0)).any() and not (carriers[classes] & (seen > 0)).any():
                carriers[classes[(seen * gone[classes]).argmax()]] = True
        return not torch.equal(before, carriers)

    def corrections(
        self, tensors: Mapping[str, Tensor], gone: Tensor, constants: Tensor, carriers: Tensor
    ) -> dict[str, Tensor]:
        """What to add, by entry of the state dict."""
        lacking = torch.zeros(len(constants), dtype=torch.float64)
        added: dict[str, Tensor] = {}
        for step, absorbs in zip(self.steps, self.absorbs, strict=True):
            if step.output is None:
                continue
            if step.weight in self.carried:
                classes, seen = self.graph.classes_of(step.inputs[0]), constants[step.inputs[0]]
                removed, seen = gone[classes] & (seen != 0), seen.nan_to_num(0)
                if removed.any():
                    carrier = int((seen.abs() * carriers[classes]).argmax())
                    weight = tensors[step.weight].detach().cpu().transpose(0, 1 - step.transposed)
                    shares = seen[removed] / seen[carrier]
                    change = torch.zeros(weight.shape, dtype=torch.float64)
                    change[carrier] = torch.tensordot(shares, weight[removed].double(), 1)
                    added[step.weight] = change.transpose(0, 1 - step.transposed)
            elif step.kind in LAYERS and not step.bordered:
                reads = step.inputs[0]
                removed = gone[self.graph.classes_of(reads)]
                missing = torch.where(removed, constants[reads], lacking[reads]).nan_to_num(0)
                if not (missing.any() or removed.any()):  # whatever the values are
                    continue
                lacks = _response(tensors, step, missing)
                if step.bias:
                    added[step.bias] = lacks
                elif absorbs:
                    lacking[step.output] = lacks
                elif step.kind != "grouped" or self._takes_bias(step):
                    added[f"{step.name}.bias".lstrip(".")] = lacks
            elif step.kind == "norm" and (missing := lacking[step.inputs[0]]).any():
                added[step.mean] = -missing
            elif step.kind == "select":
                lacking[step.output] = lacking[step.inputs[0]]
            elif _adds(step):
                lacking[step.output] = torch.stack([lacking[x] for x in step.inputs]).sum(0)
        return added


def _adds(step: Step) -> bool:
    call = step.call
    return step.name in ADDING and call is not None and not (call.args[2:] or call.kwargs)
