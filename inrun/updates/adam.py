"""Adam and AdamW (decoupled decay), with a closed-form secant that is exact where differences would
cancel.
"""

import math

import torch
from torch import Tensor

from inrun.updates.base import Update, register

#: from the fourth step on secants are as good as slopes averaged over coalitions
#: (experiments/README.md), and need no squares
YOUNG_STEPS = 3
OUTWEIGHS = 10.0


@register(torch.optim.Adam)
class AdamUpdate(Update):
    """``torch.optim.Adam`` and ``AdamW``.

    With e = wd w for L2 decay (0 for AdamW) and step count t after this step:

        n(g) = b1 m + (1 - b1)(g + e)
        D(g) = sqrt((b2 v + (1 - b2)(g + e)^2) / (1 - b2^t)) + eps
        u(g) = lr / (1 - b1^t) * n(g) / D(g) + [AdamW] lr wd w
    """

    def __init__(self, weight: Tensor, state: dict, group: dict):
        super().__init__(weight, state, group)
        if group.get("amsgrad"):
            self.max_second = (
                state["max_exp_avg_sq"].detach() if state else torch.zeros_like(self.weight)
            )
        self.amsgrad = bool(group.get("amsgrad"))
        self.b1, self.b2 = (float(b) for b in group["betas"])
        self.eps = float(group["eps"])
        self.weight_decay = float(group["weight_decay"])
        self.decoupled = bool(group.get("decoupled_weight_decay", False))
        self.sign = -1.0 if group["maximize"] else 1.0
        self.first = state["exp_avg"].detach() if state else torch.zeros_like(self.weight)
        self.second = state["exp_avg_sq"].detach() if state else torch.zeros_like(self.weight)
        self.t = int(state["step"]) + 1 if state else 1
        self.bias1 = 1.0 - self.b1**self.t
        self.bias2 = 1.0 - self.b2**self.t
        self.impulse = 1.0 / (1.0 - self.b1)
        self.young = self.t <= YOUNG_STEPS

    def _l2(self) -> Tensor | float:
        return 0.0 if self.decoupled or not self.weight_decay else self.weight_decay * self.weight

    def root(self, g: Tensor) -> Tensor:
        """sqrt of the bias-corrected second moment after seeing g (decay already inside g)."""
        second = self.b2 * self.second + (1.0 - self.b2) * g * g
        if self.amsgrad:
            second = torch.maximum(self.max_second, second)
        return (second / self.bias2).sqrt()

    def __call__(self, g: Tensor) -> Tensor:
        g = self.sign * g + self._l2()
        numerator = self.b1 * self.first + (1.0 - self.b1) * g
        out = (self.lr / self.bias1) * numerator / (self.root(g) + self.eps)
        return (
            out + (self.lr * self.weight_decay) * self.weight
            if self.decoupled and self.weight_decay
            else out
        )

    def secant(self, g: Tensor, lo: float = 0.0, hi: float = 1.0) -> Tensor:
        if self.amsgrad:  # the running maximum has a kink that no closed form crosses
            return super().secant(g, lo, hi)
        g = self.sign * g
        extra = self._l2()
        if lo == 0 and not isinstance(extra, Tensor):
            return self._secant_from_nobody(g, hi)
        at_lo, at_hi = lo * g + extra, hi * g + extra
        root_lo, root_hi = self.root(at_lo), self.root(at_hi)
        d_lo, d_hi = root_lo + self.eps, root_hi + self.eps
        numerator_lo = self.b1 * self.first + (1.0 - self.b1) * at_lo
        # (D_hi - D_lo) / G = (root_hi^2 - root_lo^2) / G / (root_hi + root_lo), each factor free of
        # cancellation
        sum_of_roots = root_lo + root_hi
        rise = ((1.0 - self.b2) * (hi - lo) / self.bias2) * (at_lo + at_hi)
        rise = torch.where(sum_of_roots > 0, rise / sum_of_roots, 0.0)
        slope = (1.0 - self.b1) * (hi - lo) - numerator_lo / d_lo * rise
        return torch.where(g == 0, 0.0, (self.sign * self.lr / self.bias1) * slope / d_hi)

    def _secant_from_nobody(self, g: Tensor, hi: float) -> Tensor:
        """`secant` from 0 without L2 decay, in half as many passes over memory."""
        step = (1.0 - self.b2) * hi * hi / self.bias2
        seconds = self.second * (self.b2 / self.bias2)
        root_lo = seconds.sqrt()
        root_hi = seconds.addcmul_(g, g, value=step).sqrt_()
        slope = g / (root_lo + root_hi)
        slope.mul_(self.first).div_(root_lo.add_(self.eps)).mul_(-self.b1 * step).add_(
            (1.0 - self.b1) * hi
        )
        slope.div_(root_hi.add_(self.eps)).mul_(self.sign * self.lr / self.bias1)
        return slope.masked_fill_(g == 0, 0.0)

    def stateless(self) -> Tensor | None:
        if int(torch.count_nonzero(self.second)) == self.second.numel():
            return None
        return self.second == 0

    @property
    def warming_up(self) -> bool:
        return self.young and self.t > 1

    def noise_dominated(self, q: Tensor) -> Tensor:
        """Where a coalition's own square, (1 - b2) q, is more than OUTWEIGHS times what b2 v keeps
        of earlier ones: there the root bends within the batch.
        """
        return (1.0 - self.b2) * q > (OUTWEIGHS * self.b2) * self.second

    def frozen_slope(self) -> Tensor:
        """lr (1 - b1) / (1 - b1^t) / (sqrt(vhat_{t-1}) + eps); elements without state are left out
        (0), 1/eps is not a slope.
        """
        if self.t == 1:
            return torch.zeros_like(self.weight)
        second = self.max_second if self.amsgrad else self.second
        # c / (sqrt(v) / r + eps) = c r / (sqrt(v) + eps r), r^2 the bias correction: one pass over
        # memory less
        r = math.sqrt(1.0 - self.b2 ** (self.t - 1))
        root = torch.threshold_(second.sqrt(), 0.0, math.inf).add_(self.eps * r)  # 1 / inf = 0
        slope = root.reciprocal_().mul_(self.sign * self.lr * (1.0 - self.b1) / self.bias1 * r)
        return slope.masked_fill_(self.second == 0, 0.0) if self.amsgrad else slope
