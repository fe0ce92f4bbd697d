"""Algorithm 1 of "A Proximal Algorithm for Network Slimming", and what it is compared with.

Symbols are the paper's: γ the batch norms' scaling factors, ξ their auxiliary variable, λ the
weight of the ℓ1 penalty, β of the quadratic one, α the reciprocal of the learning rate.

A method is one class with the hooks of :class:`Baseline`; ``METHODS`` names them for the command
line.
"""

import math

import torch
from torch import Tensor, nn

TINY = torch.finfo(torch.float32).tiny


BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """All batch norms of ``model`` that have scaling factors, in module order."""
    return [m for m in model.modules() if isinstance(m, BatchNorm) and m.affine]


def is_zero(factor: Tensor) -> Tensor:
    """Where a scaling factor (γ or ξ) is zero; a subnormal one is. Elementwise, bool."""
    return factor.abs() < TINY


def soft_threshold(x: Tensor, threshold: float) -> Tensor:
    """S(x, t) = sign(x) · max(0, |x| − t), elementwise (section 3.2)."""
    return x.sign() * (x.abs() - threshold).clamp_(min=0)


class Baseline:
    """No penalty on γ: plain training, and the hooks that every method has.

    The γ of all batch norms are moved into one flat buffer of which ``bn.weight`` are views, so
    that a method is a handful of operations on one vector of length ``channels``. Build it when
    the model is on its device; moving the model afterwards breaks the views.
    """

    name = "baseline"
    settings: tuple[str, ...] = ()  # which flags the constructor takes: --s is its lambda_
    xi: Tensor | None = None
    lambda_: float | None = None

    def __init__(self, model: nn.Module) -> None:
        self.weights = [bn.weight for bn in batch_norms(model)]
        self.biases = [bn.bias for bn in batch_norms(model)]
        if not self.weights:
            raise ValueError("the model has no batch norm, so there are no scaling factors to slim")
        self.gamma = torch.cat([w.detach() for w in self.weights])
        for weight, part in zip(self.weights, self.split(self.gamma), strict=True):
            weight.data = part
        # 0 or 1, where an optimiser's ``found_inf`` would be: at 1, nothing changes γ or ξ.
        self.halted = torch.zeros((), device=self.gamma.device)

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """A vector as long as γ, cut into the batch norms' parts."""
        return flat.split([w.numel() for w in self.weights])

    def check_views(self) -> None:
        """Raise RuntimeError if the model was moved, so that γ is its weights no more."""
        if self.weights[0].data_ptr() != self.gamma.data_ptr():
            raise RuntimeError("the model was moved after its method was made: make it again")

    def on_gradient(self) -> None:
        """After the backward pass, before the SGD step: may change the gradients."""

    def on_step(self, alpha: float) -> None:
        """After an SGD step with learning rate 1/``alpha``."""

    def on_epoch(self, alpha: float) -> None:
        """After the last step of an epoch."""

    def dead(self, optimizer: torch.optim.SGD, lr: float) -> Tensor:
        """Which channels change nothing any more, bool [channels], at learning rates up to ``lr``.

        None of them here: nothing holds a γ at 0.
        """
        return torch.zeros_like(self.gamma, dtype=torch.bool)

    def ns_penalty(self) -> float | None:
        """λ‖γ‖₁, which eq. (2) adds to the loss, or None without a λ."""
        return None if self.lambda_ is None else self.lambda_ * self.gamma.abs().sum().item()

    def penalty(self) -> float | None:
        """λ‖ξ‖₁ + (β/2)‖γ − ξ‖², which eq. (5) adds to the loss, or None without a ξ."""
        return None

    def gamma_zeros(self) -> int:
        """How many γ are zero; a subnormal γ counts as zero."""
        return int(is_zero(self.gamma).sum())

    def xi_zeros(self) -> int | None:
        return None if self.xi is None else int((self.xi == 0).sum())


class Subgradient(Baseline):
    """Original network slimming (Liu et al., 2017): subgradient descent on eq. (2)."""

    name = "subgradient"
    settings = ("s",)

    def __init__(self, model: nn.Module, lambda_: float) -> None:
        super().__init__(model)
        self.lambda_ = lambda_

    @torch.no_grad()
    def on_gradient(self) -> None:
        self.check_views()
        # (3b): the subgradient of λ‖γ‖₁, 0 where γ = 0.
        torch._foreach_add_(
            [w.grad for w in self.weights], self.split(self.gamma.sign()), alpha=self.lambda_
        )


class ProximalSlimming(Baseline):
    """Proximal network slimming: minimise L(W, γ) + λ‖ξ‖₁ + (β/2)‖γ − ξ‖² (eq. 5).

    Works on any model with batch-norm layers and any optimiser that makes plain SGD's
    step. Call :meth:`on_step` after every optimiser step, and :meth:`on_epoch` after every epoch.

    With momentum μ the fixed point satisfies β(γ − ξ) = −∇L/(1 − μ): the run approaches a
    critical point of eq. (5) with (1 − μ)λ and (1 − μ)β, not with λ and β as given.

    ``prox_every`` is ``"step"`` (one alternation per mini-batch, as the released program makes
    them) or ``"epoch"`` (Algorithm 1 as printed: ξ changes once, after the epoch). ``xi_init`` is
    the range ξ is drawn from; ``None`` starts at ξ = γ.

    Raises ValueError unless λ ≥ 0, β > 0 and ``prox_every`` is one of the two.
    """

    name = "proximal"
    settings = ("s", "beta", "prox_every", "xi_init")

    def __init__(
        self,
        model: nn.Module,
        lambda_: float,
        beta: float,
        prox_every: str = "step",
        xi_init: tuple[float, float] | None = (0.47, 0.50),
    ) -> None:
        super().__init__(model)
        if not (lambda_ >= 0 and beta > 0 and prox_every in ("step", "epoch")):
            raise ValueError("proximal slimming takes λ ≥ 0, β > 0, prox_every 'step' or 'epoch'")
        self.lambda_, self.beta, self.prox_every = lambda_, beta, prox_every
        if xi_init is None:
            self.xi = self.gamma.clone()
        else:
            # Drawn on the CPU, so that a seed means the same ξ on every device.
            self.xi = torch.empty(self.gamma.numel()).uniform_(*xi_init).to(self.gamma)

    @torch.no_grad()
    def on_step(self, alpha: float) -> None:
        self.check_views()
        # (8b), for a γ that SGD has stepped: (α(γ − ∇L/α) + βξ)/(α + β) is its right-hand side.
        gamma = (self.gamma * alpha).add_(self.xi, alpha=self.beta).div_(alpha + self.beta)
        # A dead channel's γ is halved and halved but never arrives: rounding has a fixed point
        # among the subnormals.
        self._set(self.gamma, gamma.masked_fill_(is_zero(gamma), 0))
        if self.prox_every == "step":
            self._update_xi(alpha)

    @torch.no_grad()
    def on_epoch(self, alpha: float) -> None:
        if self.prox_every == "epoch":
            self._update_xi(alpha)

    def _update_xi(self, alpha: float) -> None:
        # (9), in closed form: line 4 of Algorithm 1.
        mean = (self.xi * alpha).add_(self.gamma, alpha=self.beta).div_(alpha + self.beta)
        self._set(self.xi, soft_threshold(mean, self.lambda_ / (alpha + self.beta)))

    def _set(self, target: Tensor, value: Tensor) -> None:
        target.copy_(torch.where(self.halted > 0, target, value))

    @torch.no_grad()
    def dead(self, optimizer: torch.optim.SGD, lr: float) -> Tensor:
        """As :meth:`Baseline.dead`: γ and ξ stay 0, and the bias stays ≤ 0, whatever comes.

        The ReLU behind then gives 0 on every picture, so the gradients of γ, of the bias, of the
        filter before and of the weights behind are 0. What could still move γ and bias is momentum
        and weight decay; the conditions here rule that out, at this learning rate and below it.
        """
        group = optimizer.param_groups[0]
        mu, n, decay = group["momentum"], int(group["nesterov"]), lr * group["weight_decay"]
        gamma_v, bias_v = (self._momentum(optimizer, x) for x in (self.weights, self.biases))
        bias = torch.cat([b.detach() for b in self.biases]).double()
        # What is left of γ's momentum moves it by less than the next (8b) sets to zero.
        stays_zero = (self.gamma == 0) & (self.xi == 0) & (lr * gamma_v.abs() < TINY)
        # Without a gradient the bias b and its buffer v follow a linear recursion. Its eigenvalues
        # solve z² − (1 + μ − ε(1 + nμ))z + μ(1 − nε) = 0, where ε is lr · weight decay and n is 1
        # with Nesterov, else 0. If both are real and not negative, a step multiplies b + cv by the
        # larger one, z; and once b ≤ 0 and b + cv ≤ 0, both hold for ever.
        half, product = (1 + mu - decay * (1 + n * mu)) / 2, mu * (1 - n * decay)
        if half < 0 or product < 0 or half * half < product:  # the bias oscillates
            return torch.zeros_like(stays_zero)
        z = half + math.sqrt(half * half - product)
        c = -lr * mu ** (1 + n) / (z - mu) if mu else 0.0
        return stays_zero & (bias <= 0) & (bias + c * bias_v.double() <= 0)

    @staticmethod
    def _momentum(optimizer: torch.optim.SGD, parameters: list[Tensor]) -> Tensor:
        """The momentum buffers of ``parameters`` in one vector, 0 where there are none."""
        buffers = [optimizer.state[p].get("momentum_buffer") for p in parameters]
        pairs = zip(buffers, parameters, strict=True)
        return torch.cat([torch.zeros_like(p) if b is None else b for b, p in pairs]).detach()

    def penalty(self) -> float:
        distance = (self.gamma - self.xi).square().sum()
        return (self.lambda_ * self.xi.abs().sum() + self.beta / 2 * distance).item()


METHODS = {method.name: method for method in (Baseline, Subgradient, ProximalSlimming)}


def shrinkage(lambda_: float, beta: float, alternations: list[tuple[int, float]]) -> float:
    """How far the penalty alone moves a coupled (γ, ξ) pair: Σ λ/(2α + β).

    ``alternations`` lists (how many, α). Drifting together, γ and ξ lose λ/(2α + β) each time.
    """
    return lambda_ * sum(count / (2 * alpha + beta) for count, alpha in alternations)
