"""Channel pruning of any model: find what can be removed, drive it to zero, remove it, and say
what changed."""

from netslim.files import load, save
from netslim.graph import Graph, analyze
from netslim.methods import SASADMM, Budget, LpADMM, ProximalSlimming, Subgradient
from netslim.selection import ChannelSelection
from netslim.surgery import Report, prune

__version__ = "1.0.0"
__all__ = [
    "SASADMM",
    "Budget",
    "ChannelSelection",
    "Graph",
    "LpADMM",
    "ProximalSlimming",
    "Report",
    "Subgradient",
    "analyze",
    "load",
    "prune",
    "save",
]
