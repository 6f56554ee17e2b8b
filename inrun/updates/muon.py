"""Muon (``torch.optim.Muon``): the proof that a rule which mixes elements needs nothing but its
functional update.
"""

import math

import torch
from torch import Tensor

from inrun.updates.base import Update, register


@register(torch.optim.Muon)
class MuonUpdate(Update):
    """Momentum, then a few Newton-Schulz iterations towards the nearest orthogonal matrix, then
    decoupled decay.

    The iteration runs in bfloat16, as torch's does, unless the parameter is float64: then it runs
    in float64, which torch's own step does not (so that derivatives can be checked; `u` then
    differs from the step taken by bfloat16 rounding).
    """

    elementwise = False

    def __init__(self, weight: Tensor, state: dict, group: dict):
        super().__init__(weight, state, group)
        self.momentum = float(group["momentum"])
        self.nesterov = bool(group["nesterov"])
        self.weight_decay = float(group["weight_decay"])
        self.coefficients = tuple(group["ns_coefficients"])
        self.ns_steps = int(group["ns_steps"])
        self.eps = float(group["eps"])
        self.adjust = group["adjust_lr_fn"]
        self.buffer = state["momentum_buffer"].detach() if state else torch.zeros_like(self.weight)

    @property
    def _adjusted_lr(self) -> float:
        rows, columns = self.weight.shape
        if self.adjust in (None, "original"):
            return self.lr * math.sqrt(max(1.0, rows / columns))
        if self.adjust == "match_rms_adamw":
            return self.lr * 0.2 * math.sqrt(max(rows, columns))
        return self.lr

    def _orthogonalise(self, g: Tensor) -> Tensor:
        a, b, c = self.coefficients
        x = g if g.dtype == torch.float64 else g.bfloat16()
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / x.norm().clamp(min=self.eps)
        for _ in range(self.ns_steps):
            gram = x @ x.T
            # fused sums round once where separate ones round twice: in bfloat16 that is what keeps
            # u the bits of torch's step
            mixed = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.addmm(x, mixed, x, beta=a)
        return (x.T if tall else x).to(g.dtype)

    def __call__(self, g: Tensor) -> Tensor:
        buffer = torch.lerp(self.buffer, g, 1.0 - self.momentum)
        update = torch.lerp(g, buffer, self.momentum) if self.nesterov else buffer
        out = self._adjusted_lr * self._orthogonalise(update)
        return out + (self.lr * self.weight_decay) * self.weight if self.weight_decay else out
