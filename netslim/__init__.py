"""Channel pruning of PyTorch models: find removable channels, train their scaling factors to exact
zero, remove the channels, and report by how much the outputs change."""

from netslim.choice import limit
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
    "limit",
    "load",
    "prune",
    "save",
]
