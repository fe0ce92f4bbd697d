"""The mathematics: one file a method, and the list of them."""

from utils.arguments import Flag
from utils.methods.base import Method
from utils.methods.lp_admm import LpAdmm
from utils.methods.masked import masking
from utils.methods.sas_admm import SasAdmm
from utils.methods.slimming import ProximalSlimming, Subgradient

METHODS: dict[str, type[Method]] = {
    m.name: m for m in (Method, ProximalSlimming, Subgradient, LpAdmm, SasAdmm)
}


def method_of(name: str, prune_ratio: float | None) -> type[Method]:
    """A method, and of a network whose weights are to be cut, of what is left of them."""
    return METHODS[name] if prune_ratio is None else masking(METHODS[name], prune_ratio)


def flags_of_all() -> dict[str, Flag]:
    """Every method's flags by name, each once: methods may share one and differ in its default."""
    return {flag.name: flag for m in reversed(METHODS.values()) for flag in m.flags}
