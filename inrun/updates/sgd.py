"""SGD with momentum, Nesterov momentum, dampening and L2 decay: an affine update, so every slope is
one number.
"""

import torch
from torch import Tensor

from inrun.updates.base import Update, register


class PlainSGD(Update):
    """``u(G) = lr G``, whatever the optimizer really does: the formula of the paper (Wang et al.
    2025, section 4).
    """

    affine = True

    def __call__(self, g: Tensor) -> Tensor:
        return self.lr * g

    def secant(self, g: Tensor, lo: float = 0.0, hi: float = 1.0) -> Tensor:
        return g.new_full((1,) * g.dim(), self.lr * (hi - lo))

    def frozen_slope(self) -> Tensor:
        return self.weight.new_full((1,) * self.weight.dim(), self.lr)


@register(torch.optim.SGD)
class SGDUpdate(Update):
    """``torch.optim.SGD``: g' = g + wd w; b = mu b + (1 - dampening) g' (b = g' at the first step);
    u = lr (g' + mu b) if nesterov else lr b.
    """

    affine = True

    def __init__(self, weight: Tensor, state: dict, group: dict):
        super().__init__(weight, state, group)
        self.momentum = float(group["momentum"])
        self.weight_decay = float(group["weight_decay"])
        self.nesterov = bool(group["nesterov"])
        self.sign = -1.0 if group["maximize"] else 1.0
        buffer = state.get("momentum_buffer") if self.momentum else None
        self.buffer = None if buffer is None else buffer.detach()
        # the first step copies the gradient into the buffer without dampening
        self.keep = 1.0 if self.buffer is None else 1.0 - float(group["dampening"])
        if self.momentum:
            # this step's share of the geometric series of later steps; with Nesterov the first term
            # is larger than the ratio says
            total = self.keep / (1.0 - self.momentum) if self.momentum < 1 else float("inf")
            self.impulse = (1.0 + self.momentum * total if self.nesterov else total) / self.slope

    @property
    def slope(self) -> float:
        """du/dG divided by lr."""
        if not self.momentum:
            return 1.0
        return (1.0 + self.momentum * self.keep) if self.nesterov else self.keep

    def __call__(self, g: Tensor) -> Tensor:
        g = self.sign * g
        if self.weight_decay:
            g = g + self.weight_decay * self.weight
        if not self.momentum:
            return self.lr * g
        buffer = (
            self.keep * g if self.buffer is None else self.momentum * self.buffer + self.keep * g
        )
        return self.lr * (g + self.momentum * buffer if self.nesterov else buffer)

    def secant(self, g: Tensor, lo: float = 0.0, hi: float = 1.0) -> Tensor:
        return g.new_full((1,) * g.dim(), self.sign * self.lr * self.slope * (hi - lo))

    def frozen_slope(self) -> Tensor:
        return self.weight.new_full((1,) * self.weight.dim(), self.sign * self.lr * self.slope)
