"""The fastest form of a pruned network in an engine on this machine, found by measuring.

A channel with γ = 0 may be removed or kept: the outputs are the same. Kept ones can be faster:
engines compute widths that are multiples of 8 or 16 in a blocked layout, and a batch norm that
reads a stream needs no selection in front if it reads the whole stream. A *form* says which
channels are kept in each group of batch norms: those of one part of the model, at one image size.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from netslim.choice import limit
from netslim.surgery import plan_removal
from utils import arguments
from utils.console import note
from utils.cost import image_shape
from utils.engines import MOST, Call, milliseconds, prepare
from utils.network import Network

Masks = list[Tensor]  # bool [channels] for each batch norm, True where a channel is kept
Option = tuple[int, bool]  # multiple of the width (0: all channels), whether a stream is read whole
Form = tuple[Option, ...]  # one for each group
AS_MASKED: Option = (1, False)
ALL: Option = (0, False)
MULTIPLES = (8, 16)
WIDTH = 56  # of the names of forms in the table
NOISE = 0.02  # relative difference of milliseconds that is not taken for a gain


@dataclass(frozen=True)
class LatencyTarget:
    """Milliseconds to reach, or the share of the full network's to save."""

    number: float
    is_share: bool

    @classmethod
    def parse(cls, text: str) -> "LatencyTarget":
        number = arguments.positive(text.removesuffix("%"))
        if text.endswith("%") and number >= 100:
            raise argparse.ArgumentTypeError(f"{text!r} is not a share below 100%")
        return cls(number / 100, True) if text.endswith("%") else cls(number, False)

    def __str__(self) -> str:
        return f"{100 * self.number:g}%" if self.is_share else f"{self.number:g}"

    def share_of(self, full: float) -> float:
        """Returns the share to save of ``full`` milliseconds."""
        return self.number if self.is_share else 1 - self.number / full


class Search:
    """Measures forms of ``network`` in ``engine`` for ``batch_size`` images per call."""

    def __init__(
        self, network: Network, engine: str, batch_size: int, device: torch.device
    ) -> None:
        self.network, self.engine = network, engine
        shape = image_shape(network.model, network.size)
        self.images = torch.randn(batch_size, *shape, device=device)
        self.call = prepare(engine, network.model, self.images)
        (self.full_milliseconds,) = milliseconds([self.call], device)
        graph = network.graph
        streams = {n: graph.read_by(n) for n in network.norms}
        self.reads = {n: x for n, x in streams.items() if not torch.equal(x, graph.norm_classes(n))}
        image_sizes = _image_sizes(network)
        keys = [(n.partition(".")[0], image_sizes[n], n in self.reads) for n in network.norms]
        self.groups = list(dict.fromkeys(keys))  # part of the model, image size, reads a stream
        self.group_of = dict(zip(network.norms, map(self.groups.index, keys), strict=True))

    def masks(self, chosen: Masks, model: nn.Module, form: Form) -> Masks:
        """Returns the masks of ``form``, which keep the ``chosen`` channels and more.

        Args:
            model: the network's model with γ = 0 in the channels that are not chosen.
        """
        graph, keep = self.network.graph, self.network.keep(chosen)
        options = {name: form[group] for name, group in self.group_of.items()}
        for multiple in {multiple for multiple, whole in form if not whole} - {0, 1}:
            rounded = limit(graph, self.network.keep(chosen), round_to=multiple, model=model)
            keep |= {n: rounded[n] for n in keep if options[n] == (multiple, False)}
        keep |= {n: torch.ones_like(mask) for n, mask in keep.items() if options[n] == ALL}
        whole = {n: x for n, x in self.reads.items() if options[n][1]}
        while True:  # what is kept may need other carriers, which widen the stream again
            stays = ~plan_removal(graph, keep, model).removed_classes
            for name, classes in whole.items():  # the stream's width is a multiple, too
                missing = -int(stays[classes].sum()) % options[name][0]
                stays[classes[~stays[classes]].flip(0)[:missing]] = True
            wider = {name: keep[name] | stays[classes] for name, classes in whole.items()}
            if all(torch.equal(keep[name], mask) for name, mask in wider.items()):
                return list(keep.values())
            keep |= wider

    def _prepare(self, network: Network) -> Call:
        """Returns a call of ``network`` in the engine, on the images."""
        return prepare(self.engine, network.model, self.images)

    def _rules(self) -> dict[str, Form]:
        """Returns forms that treat all groups alike, by name."""
        rules = {"as masked": (AS_MASKED, AS_MASKED)}
        rules |= {f"widths to {n}": ((n, False), (n, False)) for n in MULTIPLES}
        if self.reads:
            rules |= {f"widths to {n}, streams whole": ((n, False), (n, True)) for n in MULTIPLES}
        return {
            name: tuple(stream if reads else inner for *_, reads in self.groups)
            for name, (inner, stream) in rules.items()
        }

    def best_rule(
        self, chosen: Masks, model: nn.Module, build: Callable[[Masks], Network]
    ) -> float:
        """Returns the least milliseconds of the rules, as a share of the full network's."""
        networks = [build(self.masks(chosen, model, form)) for form in self._rules().values()]
        calls = [self.call, *map(self._prepare, networks)]
        full, *times = milliseconds(calls, self.images.device)
        return min(times) / full

    def fastest(
        self, chosen: Masks, model: nn.Module, build: Callable[[Masks], Network]
    ) -> tuple[Masks, tuple[float, float]]:
        """Returns the masks of the fastest form, and the milliseconds of full width and of it.

        Starts from the best of the rules and changes one group after the other; prints the forms
        that it measures. If none is faster than the full network, all channels are kept.
        """
        device, forms = self.images.device, self._rules()
        tried = {name: self.masks(chosen, model, form) for name, form in forms.items()}
        networks = [self.network, *map(build, tried.values())]
        calls = [self.call, *map(self._prepare, networks[1:])]
        times = milliseconds(calls, device)
        print(f"{'form':<{WIDTH}}   flops       ms  speed-up")
        for name, network, ms in zip(["full width", *tried], networks, times, strict=True):
            self._print(name, network, ms, times[0] / ms)
        first = min(range(1, len(times)), key=times.__getitem__)
        form, best = list(forms.values())[first - 1], list(tried.values())[first - 1]
        call, speed_up = calls[first], times[0] / times[first]
        seen = {torch.cat(masks).numpy().tobytes() for masks in tried.values()}
        for i, (*_, reads) in enumerate(self.groups):
            whole = [(n, True) for n in MULTIPLES if reads]
            for option in (AS_MASKED, *((n, False) for n in MULTIPLES), ALL, *whole):
                changed = (*form[:i], option, *form[i + 1 :])
                masks = self.masks(chosen, model, changed)
                if (key := torch.cat(masks).numpy().tobytes()) in seen:
                    continue
                seen.add(key)
                network = build(masks)
                trial = self._prepare(network)
                before, ms = milliseconds([call, trial], device)
                better, faster = ms < (1 - NOISE) * before, speed_up * before / ms
                self._print(self._label(i, option) + " *" * better, network, ms, faster)
                if better:
                    form, best, call, speed_up = changed, masks, trial, faster
        full, ms = milliseconds([self.call, call], device, MOST)
        if ms >= full:
            note(f"note: no form is faster in {self.engine} than full width: nothing is removed")
            return [torch.ones_like(mask) for mask in chosen], (full, full)
        less = f"{100 * (1 - ms / full):.1f} % less"
        print(f"in {self.engine}: {full:.2f} ms at full width, {ms:.2f} ms pruned, {less}")
        return best, (full, ms)

    def _print(self, name: str, network: Network, ms: float, speed_up: float) -> None:
        flops = 100 * network.cost.flops / self.network.cost.flops
        print(f"{name:<{WIDTH}}{flops:6.1f} %{ms:9.2f}{speed_up:10.2f}", flush=True)

    def _label(self, group: int, option: Option) -> str:
        part, size, reads = self.groups[group]
        multiple, whole = option
        what = {AS_MASKED: "as masked", ALL: "all"}.get(option, f"to {multiple}")
        layers = "readers of the stream" if reads else "inner"
        return f"{part} at {size}, {layers}: {'whole, ' * whole}{what}"


@torch.no_grad()
def _image_sizes(network: Network) -> dict[str, str]:
    """Returns the image size at each batch norm, as text, in evaluation mode."""
    image_sizes = {}

    def see(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        image_sizes[name] = "×".join(map(str, output.shape[2:]))

    hooks = [bn.register_forward_hook(partial(see, name)) for name, bn in network.norms.items()]
    network.model(torch.zeros(1, *image_shape(network.model, network.size)))
    for hook in hooks:
        hook.remove()
    return image_sizes
