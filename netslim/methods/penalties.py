"""Penalties φ on the scaling factors: value, slope and proximal operator of each.

Each is a sum over the factors (ℓ1 − ℓ2 has a norm in addition) of an even function with slope 1 at
0 (ℓp: infinite), so that λ has a similar effect with all of them. The parameter ``shape`` is in
units of γ; MCP and SCAD usually have multiples of λ, with which φ would be flat at every γ here.
Nonconvex penalties in network slimming: Bui et al., arXiv 2010.01242.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def soft_threshold(x: Tensor, t: float) -> Tensor:
    """Returns S(x, t) = sign(x) · max(0, |x| − t), elementwise (section 3.2)."""
    return F.softshrink(x, t)


class Penalty:
    """Base class of the penalties. Methods that take ``s`` take magnitudes |x|, [factors].

    Args:
        shape: the parameter of φ (a, θ or p); None selects the default.

    Raises:
        ValueError: ``shape`` is out of the penalty's range.
    """

    name = ""
    shape = 0.0  # default
    max_shape = math.inf
    infinite_slope_at_zero = False
    precise = True  # compute prox in float64: in float32, small decreases of s would be rounded off
    grouped = False  # the factors of one stream channel are penalised together

    def __init__(self, shape: float | None = None) -> None:
        if shape is not None:
            if not 0 < shape <= self.max_shape:
                takes = f"one above 0 and up to {self.max_shape:g}" if self.max_shape else "none"
                raise ValueError(f"penalty {self.name} does not take shape {shape:g}: {takes}")
            self.shape = shape

    def value(self, s: Tensor) -> Tensor:
        """Returns φ, a scalar."""
        raise NotImplementedError

    def slope(self, s: Tensor) -> Tensor:
        """Returns φ', elementwise."""
        raise NotImplementedError

    def shrink(self, s: Tensor, t: float) -> Tensor:
        """Returns |prox(x, t)| for s = |x| and t > 0, elementwise."""
        raise NotImplementedError

    def prox(self, v: Tensor, t: float) -> Tensor:
        """Returns argmin over x of ½‖x − v‖² + t·φ(x), the proximal operator; 0 for small |v|."""
        return v.sign() * self.shrink(v.abs(), t) if t else v

    def path_length(self, s: Tensor) -> Tensor:
        """Returns ∫ds/φ'(s) from 0 to each of ``s``, by the midpoint rule.

        With ℓ1's slope of 1, the way to 0 would be as long. Infinite if φ is flat on the way.
        """
        parts = 200
        return s * sum(1 / self.slope((i + 0.5) / parts * s) for i in range(parts)) / parts


class L1(Penalty):
    """Σs. Its proximal operator is the paper's S(v, t) (section 3.2)."""

    name, max_shape, precise = "l1", 0.0, False

    def value(self, s: Tensor) -> Tensor:
        return s.sum()

    def slope(self, s: Tensor) -> Tensor:
        return torch.ones_like(s)

    def prox(self, v: Tensor, t: float) -> Tensor:
        return soft_threshold(v, t)


class GroupLasso(Penalty):
    """Group lasso, Σ√|g|·‖s_g‖₂ (Yuan and Lin, J. R. Stat. Soc. B 68 (2006) 49).

    A group g holds the factors of one channel in all batch norms that write its residual stream;
    they can only be removed together. For groups of one it is ℓ1, bit for bit.
    """

    name, max_shape, precise, grouped = "group", 0.0, False, True
    # The factors in the group of each factor, int64 [factors, largest group], padded with len(s).
    members: Tensor | None = None

    def group(self, numbers: Tensor) -> None:
        """Sets the groups: factors with equal ``numbers``, int64 [factors], form one."""
        _, which, sizes = numbers.unique(return_inverse=True, return_counts=True)
        groups = which.argsort(stable=True).split(sizes.tolist())
        self.members = pad_sequence(groups, batch_first=True, padding_value=len(numbers))[which]

    def norms(self, s: Tensor) -> Tensor:
        """Returns ‖s_g‖₂/√|g| for each factor's group g; s itself for a group of one."""
        if self.members is None:
            return s
        self.members = self.members.to(s.device)
        sizes = (self.members < len(s)).sum(1)
        squares = F.pad(s.square(), (0, 1))[self.members].sum(1)  # a fixed order of summation
        return torch.where(sizes == 1, s, (squares / sizes).sqrt())

    def value(self, s: Tensor) -> Tensor:
        return self.norms(s).sum()  # √|g|·‖s_g‖₂ is |g| times ‖s_g‖₂/√|g|

    def slope(self, s: Tensor) -> Tensor:
        norms = self.norms(s)
        return torch.where(s == norms, 1.0, s / norms)

    def shrink(self, s: Tensor, t: float) -> Tensor:
        # max(0, 1 − t√|g|/‖s_g‖₂)·s, in closed form.
        norms = self.norms(s)
        left = (norms - t).clamp(min=0)
        return torch.where(s == norms, left, s * left / norms)


class L1L2(Penalty):
    """Σs − a‖s‖₂, over all factors (Lou and Yan, J. Sci. Comput. 74 (2018) 767)."""

    name, shape, max_shape = "l1-l2", 1.0, 1.0  # a

    def value(self, s: Tensor) -> Tensor:
        return s.sum() - self.shape * s.norm()

    def slope(self, s: Tensor) -> Tensor:
        return 1 - self.shape * s / _norm(s)

    def shrink(self, s: Tensor, t: float) -> Tensor:
        a = self.shape
        z = (s - t).clamp(min=0)
        several = z * (1 + a * t / _norm(z))
        # If no s exceeds t, at most the first of the largest stays.
        first = torch.arange(len(s), device=s.device) == s.argmax()
        one = (s - (1 - a) * t).clamp(min=0) * first
        return torch.where(s.max() > t, several, one)


def _norm(s: Tensor) -> Tensor:
    return s.norm().clamp(min=torch.finfo(s.dtype).tiny)


class TransformedL1(Penalty):
    """Σ(a + 1)s/(a + s) (Zhang and Xin, Comm. Math. Sci. 15 (2017) 511)."""

    name, shape = "tl1", 1.0  # a
    max_shape = 1e6  # ℓ1 to a millionth; beyond, rounding would show in a step

    def value(self, s: Tensor) -> Tensor:
        return ((self.shape + 1) * s / (self.shape + s)).sum()

    def slope(self, s: Tensor) -> Tensor:
        return self.shape * (self.shape + 1) / (self.shape + s).square()

    def shrink(self, s: Tensor, t: float) -> Tensor:
        a = self.shape
        continuous = t <= a * a / (2 * (a + 1))
        zero = t * (a + 1) / a if continuous else math.sqrt(2 * t * (a + 1)) - a / 2
        cosine = 1 - 27 * t * a * (a + 1) / (2 * (a + s) ** 3)
        angle = cosine.clamp(-1, 1).arccos()
        x = 2 / 3 * (a + s) * (angle / 3).cos() - 2 / 3 * a + s / 3
        return x.masked_fill(s <= zero, 0)


class MCP(Penalty):
    """Σ(s − s²/2θ) up to θ, then flat (Zhang, Ann. Statist. 38 (2010) 894)."""

    name, shape = "mcp", 1.0  # θ

    def value(self, s: Tensor) -> Tensor:
        s = s.clamp(max=self.shape)
        return (s - s.square() / (2 * self.shape)).sum()

    def slope(self, s: Tensor) -> Tensor:
        return (1 - s / self.shape).clamp(min=0)

    def shrink(self, s: Tensor, t: float) -> Tensor:
        theta = self.shape
        if t >= theta:  # the objective is not convex: compare its two minima
            return s.masked_fill(s <= math.sqrt(t * theta), 0)
        return torch.where(s <= theta, (s - t).clamp(min=0) / (1 - t / theta), s)


class SCAD(Penalty):
    """Σs up to κ = θ/3.7, then concave, flat from θ (Fan and Li, JASA 96 (2001) 1348)."""

    name, shape = "scad", 1.0  # θ
    RATIO = 3.7  # Fan and Li's a

    def value(self, s: Tensor) -> Tensor:
        theta, kappa = self.shape, self.shape / self.RATIO
        s = s.clamp(max=theta)
        bending = (2 * theta * s - s.square() - kappa**2) / (2 * (theta - kappa))
        return torch.where(s <= kappa, s, bending).sum()

    def slope(self, s: Tensor) -> Tensor:
        theta, kappa = self.shape, self.shape / self.RATIO
        return ((theta - s) / (theta - kappa)).clamp(0, 1)

    def shrink(self, s: Tensor, t: float) -> Tensor:
        theta, kappa = self.shape, self.shape / self.RATIO
        soft = (s - t).clamp(min=0)
        if theta - kappa > t:
            bending = ((theta - kappa) * s - t * theta) / (theta - kappa - t)
            return torch.where(s <= kappa + t, soft, torch.where(s <= theta, bending, s))
        # The objective is not convex: the minimum jumps from s − t or 0 to s.
        above = (kappa + theta + t) / 2 if t <= kappa + theta else math.sqrt(t * (kappa + theta))
        return torch.where(s > above, s, soft)


class Lp(Penalty):
    """Σs^p (p = ½: Xu et al., IEEE TNNLS 23 (2012) 1013; any p: Chen et al., 2016)."""

    name, shape, max_shape = "lp", 0.5, 1.0  # p
    infinite_slope_at_zero = True

    def value(self, s: Tensor) -> Tensor:
        return (s**self.shape).sum()

    def slope(self, s: Tensor) -> Tensor:
        return self.shape * s ** (self.shape - 1)

    def shrink(self, s: Tensor, t: float) -> Tensor:
        p = self.shape
        if p == 0.5:
            cosine = (t / 4 * (s / 3) ** -1.5).clamp(max=1)
            x = 2 / 3 * s * (1 + (2 / 3 * (math.pi - cosine.arccos())).cos())
            return x.masked_fill(s <= 1.5 * t ** (2 / 3), 0)
        least = (2 * t * (1 - p)) ** (1 / (2 - p))  # the smallest result that is not 0
        x = s.clamp(min=least)
        for _ in range(NEWTON):  # the larger root of x + tp·x^(p−1) = s, from above
            error = x + t * p * x ** (p - 1) - s
            x = (x - error / (1 - t * p * (1 - p) * x ** (p - 2))).clamp(min=least)
        return x.masked_fill(s <= least + t * p * least ** (p - 1), 0)


NEWTON = 8  # iterations; enough to converge at the threshold, where it takes longest
PENALTIES = {each.name: each for each in (L1, GroupLasso, L1L2, TransformedL1, MCP, SCAD, Lp)}


def penalty_named(name: str, shape: float | None) -> Penalty:
    """Returns the penalty that ``PENALTIES`` has under ``name``.

    Raises:
        ValueError: there is none, or ``shape`` is out of its range.
    """
    if name not in PENALTIES:
        raise ValueError(f"there is no penalty {name!r}, only {', '.join(PENALTIES)}")
    return PENALTIES[name](shape)
