"""Constant outputs of removed channels, and their folding into the layers that read them."""

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from netslim.graph import Graph
from netslim.rules import ZERO, Step

LAYERS = ("convolution", "grouped", "linear")
ADDING = {"add", "radd", "iadd"}  # additions pass a missing constant on
# Forward passes that add the bias.
PLAIN = {m.forward for m in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}


def constants_of(
    graph: Graph, tensors: Mapping[str, Tensor], masked: Mapping[str, Tensor]
) -> Tensor:
    """Returns each signal's value for γ = 0 in the ``masked`` channels, NaN where it varies.

    Float64 [signals].
    """
    constants = torch.full((len(graph._atoms),), math.nan, dtype=torch.float64)
    constants[ZERO] = 0
    for step in graph.steps:
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
        elif step.function is not None:
            out = step.function(*inputs)
        else:
            continue
        constants[step.output] = out.masked_fill(~out.isfinite(), math.nan)
    return constants


def double(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def _normalised(step: Step, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Returns the outputs of a batch norm for constant inputs ``x``, [channels]."""
    if not step.mean:
        return torch.full_like(x, math.nan)
    assert step.call is not None
    variance, eps = double(tensors[step.variance]), step.call.args[7]
    x = (x - double(tensors[step.mean])) / (variance + eps).sqrt()
    x = x * double(tensors[step.weight]) if step.weight else x
    return x + double(tensors[step.bias]) if step.bias else x


def _response(tensors: Mapping[str, Tensor], step: Step, constants: Tensor) -> Tensor:
    """Returns the outputs of a layer without bias for constant inputs, [outputs]."""
    weight = double(tensors[step.weight])
    if step.kind == "linear":
        return weight @ constants
    groups = step.groups
    if step.transposed:  # outputs for constants other than 0 depend on the position
        return constants.repeat_interleave(weight.shape[1] * groups // len(constants))
    rows = weight.reshape(groups, -1, weight[0].numel())  # [groups, outputs, inputs × kernel]
    return (rows @ constants.repeat_interleave(weight[0, 0].numel()).view(groups, -1, 1)).flatten()


class Folding:
    """Folds the constants of removed channels into the layers that read them.

    A layer's bias takes up the missing constant. Without a bias, the running means of the batch
    norms behind it take it up, through sums; if another layer reads it, the layer gets a bias. A
    layer that pads its input with zeros sees no constant at the border: one of the removed
    channels stays with γ = 0 as the *carrier* of the others' constants, which are folded into the
    weights that read it, and it is padded as they were.

    Attributes:
        steps: the steps in evaluation mode.
        absorbs: for each step, whether the layers behind take up a constant missing in its output.
        reads: {weight: input signals} of layers that can lose inputs with constants other than 0.
        bordered: weights of layers that pad their input in any mode.
        carried: weights in ``reads`` that need a carrier.
    """

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph, self.model = graph, model
        self.steps = [s for s in graph.steps if not s.training]
        layers = [s for s in graph.steps if s.kind in LAYERS]
        self.bordered = {s.weight for s in layers if s.bordered}
        # A parameter shared by several calls cannot correct each of them.
        self.calls = Counter(n for s in self.steps for n in {s.weight, s.bias, s.mean} if n)
        made_by = torch.full((len(graph._atoms),), -1)
        for i, step in enumerate(self.steps):
            made_by[step.output] = i
        consumers: dict[int, set[int]] = {}
        for i, step in enumerate(self.steps):
            for x in step.inputs:
                for producer in made_by[x].unique().tolist():
                    consumers.setdefault(producer, set()).add(i)
        only_training = [x for s in graph.steps if s.training for x in s.inputs]
        uncorrected = {i for x in only_training for i in made_by[x].unique().tolist()}
        self.absorbs = [False] * len(self.steps)
        for i in reversed(range(len(self.steps))):  # an output without readers needs no correction
            followed = self.steps[i].kind != "other" and i not in uncorrected
            self.absorbs[i] = followed and all(self._hands_on(j) for j in consumers.get(i, ()))
        self.reads: dict[str, Tensor] = {}
        self.carried = set()
        for step, absorbs in zip(self.steps, self.absorbs, strict=True):
            if step.kind in ("convolution", "linear") and self.calls[step.weight] == 1:
                self.reads[step.weight] = step.inputs[0]
                biased = self.calls[step.bias] == 1 if step.bias else self._takes_bias(step)
                if step.weight in self.bordered or not (absorbs or biased):
                    self.carried.add(step.weight)

    def _hands_on(self, i: int) -> bool:
        """Whether step ``i`` or the steps behind it take up a constant missing in its input."""
        step = self.steps[i]
        if step.kind == "norm":
            return self.calls[step.mean] == 1
        if step.kind in LAYERS:
            once = self.calls[step.weight] == 1 and step.weight not in self.bordered
            return once and (self.calls[step.bias] == 1 if step.bias else self.absorbs[i])
        return self.absorbs[i] and (step.kind == "select" or _adds(step))

    def _takes_bias(self, step: Step) -> bool:
        """Whether a layer without a bias adds one if it gets one."""
        module = self.model.get_submodule(step.name)
        plain = type(module).forward in PLAIN and module._parameters.get("bias", step) is None
        return step.by_module and plain

    def more_carriers(self, removed_classes: Tensor, constants: Tensor, carriers: Tensor) -> bool:
        """Adds missing carriers, those of the largest constants, to ``carriers`` (bool [classes]).

        Returns whether there were any.
        """
        before = carriers.clone()
        for step in (s for s in self.steps if s.weight in self.carried):
            classes, seen = self.graph.classes_of(step.inputs[0]), constants[step.inputs[0]]
            seen = seen.nan_to_num(0).abs()
            if (removed_classes[classes] & (seen > 0)).any() and not (
                carriers[classes] & (seen > 0)
            ).any():
                carriers[classes[(seen * removed_classes[classes]).argmax()]] = True
        return not torch.equal(before, carriers)

    def corrections(
        self,
        tensors: Mapping[str, Tensor],
        removed_classes: Tensor,
        constants: Tensor,
        carriers: Tensor,
    ) -> dict[str, Tensor]:
        """Returns {entry of the state dict: correction to add}."""
        lacking = torch.zeros(len(constants), dtype=torch.float64)
        added: dict[str, Tensor] = {}
        for step, absorbs in zip(self.steps, self.absorbs, strict=True):
            if step.weight in self.carried:
                classes, seen = self.graph.classes_of(step.inputs[0]), constants[step.inputs[0]]
                removed, seen = removed_classes[classes] & (seen != 0), seen.nan_to_num(0)
                if removed.any():
                    carrier = int((seen.abs() * carriers[classes]).argmax())
                    weight = double(tensors[step.weight])
                    shares = torch.where(removed, seen / seen[carrier], 0)
                    rows = weight.flatten(1) if step.transposed else weight[..., None].flatten(2)
                    added[step.weight] = torch.zeros_like(weight)
                    taking_up = added[step.weight].select(1 - step.transposed, carrier)
                    taking_up.copy_((shares @ rows).view(taking_up.shape))
            elif step.kind in LAYERS and not step.bordered:
                reads = step.inputs[0]
                removed = removed_classes[self.graph.classes_of(reads)]
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
    """Whether ``step`` is a sum of its inputs without factors."""
    call = step.call
    return step.name in ADDING and call is not None and not (call.args[2:] or call.kwargs)
