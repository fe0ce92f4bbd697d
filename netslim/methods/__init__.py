"""Training methods, one module each, that drive scaling factors to zero."""

from netslim.methods.base import Method, is_zero
from netslim.methods.budget import Budget
from netslim.methods.lp_admm import LpADMM
from netslim.methods.sas_admm import SASADMM
from netslim.methods.slimming import ProximalSlimming, Subgradient

__all__ = ["SASADMM", "Budget", "LpADMM", "Method", "ProximalSlimming", "Subgradient", "is_zero"]
