"""What ``torch.fx`` can see of a network's chains of layers, and so which channels can go.

A channel of a batch norm can go where one convolution or linear layer makes it and feeds nothing
else, and where on every path a ReLU or ReLU6 follows first and then pools, dropout and flattening,
until convolutions or linear layers read it. A depthwise convolution ties the batch norm before it
to the one behind. All else stays, and it is said why.
"""

import copy
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.surgery import AnyBatchNorm, Wiring
from netslim.weights import Convolution

Copied = TypeVar("Copied", bound=nn.Module)
ACTIVATIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_"), F.relu),
    **dict.fromkeys((nn.ReLU6, F.relu6), F.relu6),
}
# What pools over so many axes. All give a constant map's constant again, but for an average with
# padding: there, as in a padded convolution, it does inside the border only.
POOLS: dict[Any, int] = {
    pool: d
    for d in (1, 2, 3)
    for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg")
    for pool in (
        getattr(nn, f"{kind}Pool{d}d"),
        getattr(F, f"{kind.replace('ive', 'ive_').lower()}_pool{d}d"),
    )
}
MEANS = (torch.mean, "mean")
DROPOUTS = {getattr(nn, f"Dropout{d}") for d in ("", "1d", "2d", "3d")}
DROPOUTS |= {getattr(F, f"dropout{d}") for d in ("", "1d", "2d", "3d")}
VIEWS = (torch.reshape, "reshape", "view")
FLATTENINGS = (nn.Flatten, torch.flatten, "flatten", *VIEWS)
UNCHANGED = (nn.Identity, "contiguous")
AXES: dict[Any, int] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}  # of the maps read
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ROOT = "net"  # what is traced, a _Taking, has the network by this name


class Stays(Exception):
    """Why the channels of a batch norm cannot go."""


class Chain(NamedTuple):
    """What a traced network does with the channels of a batch norm."""

    maker: str
    activation: Callable[[Tensor], Tensor]
    readers: tuple[str, ...]
    dropout: bool


@dataclass(frozen=True)
class Chains:
    """What was seen in a network, all by names of its modules.

    ``stays`` says of every other batch norm with scaling factors why its channels cannot go.
    """

    wiring: Wiring
    activations: Mapping[str, Callable[[Tensor], Tensor]]  # behind the batch norms
    behind: Mapping[str, str | None]  # of what reads: the batch norm behind it, if one is
    sizes: Mapping[str, Sequence[int]]  # of the maps that convolutions read, in pixels
    ties: Sequence[Sequence[str]]
    depthwise: Mapping[str, tuple[str, str]]  # the batch norm before, and the one behind
    dropout: frozenset[str]  # the batch norms behind which there is some
    stays: Mapping[str, str]


class _Tracer(fx.Tracer):
    """Takes the innermost module whose code cannot be traced as one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}  # modules, and why

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        before, stack = len(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # whatever the code raises when it is given no numbers
            path = self.path_of_module(m)
            for node in reversed(list(self.graph.nodes)[before:]):
                if node.op != "get_attr":  # the tracer gives it to whatever reads the weight next
                    self.graph.erase_node(node)
            self.module_stack = stack
            self.opaque[path] = _first_line(error)
            return self.create_proxy("call_module", path, args, kwargs)


class _Taking(nn.Module):
    """A network that takes one tensor: what else its code could take has its default."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class _Sizes(fx.Interpreter):
    """Notes the shape of every tensor."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


def _tensors(x: object) -> Iterator[Tensor]:
    """Those in lists, tuples and dicts, however deep."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, dict | list | tuple):
        for each in x.values() if isinstance(x, dict) else x:
            yield from _tensors(each)


def copied(model: Copied, memo: Mapping[int, Any]) -> Copied:
    """A deep copy; ``memo`` has what of it is copied already, by ``id``.

    What the code of ``model`` kept of a forward pass is copied without its history.
    """
    kept = (x for module in model.modules() for x in _tensors(vars(module)))
    history = {id(x): x.detach().clone() for x in kept if not x.is_leaf}
    return copy.deepcopy(model, {**memo, **history})


class _Graph:
    """A network's code as it was traced, with an example."""

    def __init__(self, model: nn.Module, example: Tensor, training: bool) -> None:
        # The code may keep what it is given, and may count: it is run in a copy.
        taking = _Taking(copied(model, {})).train(training)
        tracer = _Tracer()
        self.graph = tracer.trace(taking)
        self.opaque = tracer.opaque
        self.modules = dict(taking.named_modules())
        taking.eval()
        try:
            with torch.no_grad():
                _Sizes(taking, graph=self.graph).run(example.clone())
        except Exception as error:  # of any code
            shape = tuple(example.shape)
            raise ValueError(f"the network cannot take {shape}: {_first_line(error)}") from None
        inside = [m for path in self.opaque for m in self.modules[path].modules()]
        called = [node for node in self.graph.nodes if node.op == "call_module"]
        self.calls = Counter(map(id, inside))
        self.calls.update(id(self.modules[node.target]) for node in called)
        self.node = {node.target: node for node in called}
        # Modules whose tensors code reads by itself.
        read = (node.target for node in self.graph.nodes if node.op == "get_attr")
        self.read = {path.rpartition(".")[0] for path in read}
        owned = (p for m in taking.modules() for p in m._parameters.values() if p is not None)
        self.owners = Counter(map(id, owned))

    def chain(self, name: str) -> Chain:
        """What is done with the channels of the batch norm ``name``. Raises Stays."""
        norm = self.modules[f"{ROOT}.{name}".removesuffix(".")]
        if type(norm) not in NORMS or norm.running_mean is None:
            raise Stays("it keeps no statistics, or is no batch norm of torch's own")
        bn = self.own(name)
        (made,) = bn.all_input_nodes
        if AXES.get(self.kind(made)) is None:
            raise Stays(f"its channels are made by {self.says(made)}, not by one layer")
        maker = self.own(_path(made))
        layer, shape = self.modules[maker.target], maker.meta["shape"]
        if len(maker.users) > 1:
            raise Stays(f"{_path(made)} feeds something else, too")
        if not (isinstance(layer, nn.Linear) and len(shape) == 2):
            self.check_convolution(maker)
        activations = {ACTIVATIONS.get(self.kind(user)) for user in bn.users}
        if len(activations) != 1 or (activation := activations.pop()) is None:
            others = [self.says(u) for u in bn.users if self.kind(u) not in ACTIVATIONS]
            found = others[0] if others else "nothing" if not bn.users else "more than one"
            raise Stays(f"what follows it is {found}, not a ReLU or ReLU6")
        readers, dropout, open_ = [], False, list(bn.users)
        while open_:
            at = open_.pop()
            for user in at.users:
                if self.goes_through(at, user):
                    dropout |= self.kind(user) in DROPOUTS
                    open_.append(user)
                elif not self.asks_size(user, len(at.meta["shape"])):
                    readers.append(self.reader(user, at))
        if len(readers) > 1 and any(self.is_depthwise(reader) for reader in readers):
            raise Stays("a depthwise convolution reads it, and something else, too")
        return Chain(_path(made), activation, tuple(sorted(map(_path, readers))), dropout)

    def own(self, name: str) -> fx.Node:
        """The one call of a layer whose weights are its own. Raises Stays where it is not so."""
        target = f"{ROOT}.{name}" if name else ROOT
        for path, why in self.opaque.items():
            if f"{target}.".startswith(f"{path}."):
                code = _name(path) or "the network"
                raise Stays(f"the code of {code} cannot be traced ({why})")
        module = self.modules.get(target)
        if module is None or self.calls[id(module)] != 1:
            many = "more than once" if module is None or self.calls[id(module)] else "by nothing"
            raise Stays(f"{name} is called {many}")
        if target in self.read or any(self.owners[id(p)] > 1 for p in module.parameters()):
            raise Stays(f"the weights of {name} are used elsewhere, too")
        if target not in self.node:  # called in it by another name
            raise Stays(f"{name} is called in code that cannot be traced")
        if isinstance(self.kind(self.node[target]), str):
            raise Stays(f"{name} has hooks")
        return self.node[target]

    def kind(self, node: fx.Node) -> Any:
        """What tells operations apart: a module's class, a function, a method's name."""
        if node.op == "call_module":
            module = self.modules[node.target]
            hooks = module._forward_hooks or module._forward_pre_hooks
            return "hooked" if hooks else type(module)
        return node.target if node.op in ("call_function", "call_method") else None

    def says(self, node: fx.Node) -> str:
        """An operation in words."""
        if node.op == "call_module":
            hooked = " with hooks" if self.kind(node) == "hooked" else ""
            return f"{_path(node)} ({type(self.modules[node.target]).__name__}{hooked})"
        if node.op == "output":
            return "the network's answer"
        return f"'{getattr(node.target, '__name__', node.target)}'"

    def is_norm(self, node: fx.Node) -> bool:
        """Whether it is a batch norm that in evaluation uses the statistics it keeps."""
        return self.kind(node) in NORMS and self.modules[node.target].running_mean is not None

    def is_depthwise(self, node: fx.Node) -> bool:
        layer = self.modules[node.target]
        return isinstance(layer, Convolution) and layer.groups > 1

    def check_convolution(self, node: fx.Node) -> None:
        """Raises Stays unless it is a convolution, or a depthwise one."""
        layer = self.modules[node.target]
        if not isinstance(layer, Convolution) or len(node.meta["shape"]) != len(layer.stride) + 2:
            raise Stays(f"{_path(node)} works along another axis")
        if layer.groups > 1 and not layer.groups == layer.in_channels == layer.out_channels:
            raise Stays(f"{_path(node)} is a grouped convolution")

    def goes_through(self, at: fx.Node, user: fx.Node) -> bool:
        """Whether ``user`` keeps the channels of ``at`` apart: 0 stays 0, constants constants."""
        kind, before, after = self.kind(user), at.meta["shape"], user.meta["shape"]
        if after is None or not user.args or user.args[0] is not at:
            return False
        if kind in POOLS:
            module = user.op == "call_module"
            options = vars(self.modules[user.target]) if module else user.kwargs
            divides = options.get("divisor_override") is not None or len(user.args) > 6
            return len(before) == POOLS[kind] + 2 and not divides
        if kind in MEANS and user.all_input_nodes == [at]:  # no axis that is computed
            axes: Any = user.kwargs.get("dim", user.args[1] if len(user.args) > 1 else None)
            axes = () if axes is None else (axes,) if isinstance(axes, int) else axes
            return len(before) > 2 and {a % len(before) for a in axes} == {*range(2, len(before))}
        if kind in FLATTENINGS:
            # A view must find the width by itself: a number that is written there is the old one.
            last: Any = user.args[-1]
            last = last[-1] if isinstance(last, Sequence) else last
            return (kind not in VIEWS or last == -1) and after == (before[0], math.prod(before[1:]))
        return kind in DROPOUTS or kind in UNCHANGED

    def asks_size(self, node: fx.Node, axes: int) -> bool:
        """Whether it only asks for the size of a tensor along other axes than the channels'."""
        kind = self.kind(node)
        if kind == "size" and len(node.args) == 2:
            return isinstance(node.args[1], int) and node.args[1] % axes != 1
        if not (kind == "size" or (kind is getattr and node.args[1] == "shape")):
            return False
        for user in node.users:
            if self.kind(user) is not operator.getitem or user.all_input_nodes != [node]:
                return False
            where = user.args[1]
            where = slice(where, where + 1 or None) if isinstance(where, int) else where
            if user.users and (not isinstance(where, slice) or 1 in range(axes)[where]):
                return False
        return True

    def reader(self, node: fx.Node, at: fx.Node) -> fx.Node:
        """``node``, if it is a layer that reads the channels of ``at`` alone. Raises Stays."""
        axes, shape = AXES.get(self.kind(node)), at.meta["shape"]
        if axes is None or node.all_input_nodes != [at]:
            raise Stays(f"{self.says(node)} reads it before a convolution or linear layer does")
        if axes and len(shape) == axes + 2:
            self.check_convolution(node)
        elif axes or len(shape) != 2:
            raise Stays(f"{_path(node)} works along another axis")
        return self.own(_path(node))

    def behind(self, name: str) -> str | None:
        """The batch norm that alone reads what layer ``name`` writes, if there is one."""
        users = list(self.own(name).users)
        if len(users) != 1 or not self.is_norm(users[0]):
            return None
        try:
            return _path(self.own(_path(users[0])))
        except Stays:
            return None


def _path(node: fx.Node) -> str:
    """The module that is called, by its name in the network."""
    return _name(str(node.target))


def _name(path: str) -> str:
    return path.removeprefix(ROOT).removeprefix(".")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:150] or type(error).__name__


def trace(model: nn.Module, example: Tensor) -> Chains:
    """What can be seen in the code of ``model``, which is run in a copy, with ``example``.

    ``example`` is a batch that the network takes, of any content. Raises ValueError where it
    cannot be run with it.
    """
    parameter = next(model.parameters())
    example = example.to(parameter if example.is_floating_point() else parameter.device)
    evaluation, training = (_Graph(model, example, training) for training in (False, True))
    found: dict[str, Chain] = {}
    stays: dict[str, str] = {}
    every = {n: m for n, m in model.named_modules() if isinstance(m, AnyBatchNorm) and m.affine}
    for name in every:
        try:
            chain, other = evaluation.chain(name), training.chain(name)
            if chain[:-1] != other[:-1]:
                raise Stays("training and evaluation do not read it alike")
            found[name] = chain._replace(dropout=chain.dropout or other.dropout)
        except Stays as reason:
            stays[name] = str(reason)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, Convolution)}
    depthwise = {name for name, layer in layers.items() if layer.groups > 1}

    def unpaired() -> tuple[str, str] | None:
        """A batch norm beside a depthwise convolution on whose other side none can go."""
        made = {chain.maker for chain in found.values()}
        read = {reader for chain in found.values() for reader in chain.readers}
        for name, chain in found.items():
            if chain.maker in depthwise - read:
                return name, f"what {chain.maker}, which is depthwise, reads cannot go"
            if odd := [reader for reader in chain.readers if reader in depthwise - made]:
                return name, f"what {odd[0]}, which is depthwise, makes cannot go"
        return None

    while odd := unpaired():
        name, stays[name] = odd
        del found[name]
    makes = {chain.maker: name for name, chain in found.items()}
    wiring: Wiring = dict.fromkeys(stays, (None, None))
    reads = {reader: name for name, chain in found.items() for reader in chain.readers}
    for layer in {**makes, **reads}:
        wiring[layer] = makes.get(layer), None if layer in depthwise else reads.get(layer)
    pairs = {layer: (reads[layer], makes[layer]) for layer in reads if layer in depthwise}
    following = dict(pairs.values())
    ties = []
    for first in (name for name in following if name not in following.values()):
        tie = [first]
        while tie[-1] in following:
            tie.append(following[tie[-1]])
        ties.append(tuple(tie))
    in_order = [layer for tie in ties for name in tie[:-1] for layer in found[name].readers]
    return Chains(
        wiring,
        {name: chain.activation for name, chain in found.items()},
        {layer: evaluation.behind(layer) for layer in reads},
        {n: evaluation.own(n).all_input_nodes[0].meta["shape"][2:] for n in reads if n in layers},
        ties,
        {layer: pairs[layer] for layer in in_order},
        frozenset(name for name, chain in found.items() if chain.dropout),
        stays,
    )
