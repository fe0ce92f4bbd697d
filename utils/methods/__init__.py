"""Training methods: one file each, and their registry."""

from importlib import import_module
from pkgutil import iter_modules

from utils.arguments import Flag
from utils.methods.base import Method
from utils.methods.lp_admm import LpAdmm
from utils.methods.masks import masking
from utils.methods.sas_admm import SasAdmm
from utils.methods.slimming import ProximalSlimming, Subgradient
from utils.paper.published import NETWORKS

METHODS: dict[str, type[Method]] = {
    m.name: m for m in (Method, ProximalSlimming, Subgradient, LpAdmm, SasAdmm)
}
for _module in iter_modules(__path__):  # a file of one's own adds its method to METHODS
    import_module(f"utils.methods.{_module.name}")


def method_of(name: str, prune_ratio: float | None) -> type[Method]:
    """Returns the method; with a ``prune_ratio``, one that keeps pruned weights at 0."""
    return METHODS[name] if prune_ratio is None else masking(METHODS[name], prune_ratio)


def flags_of_all() -> dict[str, Flag]:
    """Returns all methods' flags by name; methods may share one with other defaults."""
    return {flag.name: flag for m in reversed(METHODS.values()) for flag in m.flags}


def defaults_of(name: str) -> str:
    """Returns a flag's defaults by method and architecture as text, "" if they do not vary."""
    texts = []
    for method in METHODS.values():
        for flag in (f for f in method.flags if f.name == name and callable(f.default)):
            values = [f"{flag.default(*network):g}" for network in NETWORKS.values()]
            each = [f"{title} {value}" for title, value in zip(NETWORKS, values, strict=True)]
            texts.append(f"{method.name}: {', '.join(each if len({*values}) > 1 else values[:1])}")
    return "; ".join(texts)
