"""Optimizers of the cases, and the oracle's own writing of what each of them subtracts from a
weight for a gradient g.

Written from the definitions in the papers and in torch's documentation, not from `inrun.updates`;
the oracle holds each of them against the step that the optimizer takes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from inrun.updates.lion import Lion


class Rule:
    """u(g) of one parameter with the optimizer's state before the step."""

    def __init__(self, w: Tensor, state: dict, group: dict):
        self.w, self.group, self.lr = w.detach().clone(), group, group["lr"]
        self.state = {
            key: torch.as_tensor(value).clone() for key, value in state.items() if value is not None
        }

    def __call__(self, g: Tensor) -> Tensor:
        raise NotImplementedError

    def frozen_slope(self) -> Tensor | float:
        """du/dg with the state as it was; only where the update is smooth before g is known."""
        raise NotImplementedError

    def rough(self, g: Tensor, q: Tensor) -> Tensor:
        """Where the update is a sign of g rather than a function with a slope; q is the sum of the
        samples' squared gradients.
        """
        return torch.zeros_like(g, dtype=torch.bool)

    @property
    def impulse(self) -> float:
        """All that later steps make of one gradient, divided by what this step makes of it."""
        raise NotImplementedError


class SGDRule(Rule):
    def _velocity(self, g, velocity, w):
        """(u, new velocity), of tensors or numbers."""
        group = self.group
        g = g + group["weight_decay"] * w
        if not group["momentum"]:
            return self.lr * g, g
        new = g if velocity is None else group["momentum"] * velocity + (1 - group["dampening"]) * g
        return self.lr * (g + group["momentum"] * new if group["nesterov"] else new), new

    def __call__(self, g: Tensor) -> Tensor:
        return self._velocity(g, self.state.get("momentum_buffer"), self.w)[0]

    def frozen_slope(self) -> Tensor:
        return self(torch.ones_like(self.w)) - self(
            torch.zeros_like(self.w)
        )  # the update is affine

    @property
    def impulse(self) -> float:
        # one unit of gradient followed through the steps to come
        velocity = 0.0 if "momentum_buffer" in self.state else None
        now, velocity = self._velocity(1.0, velocity, 0.0)
        total = now
        for _ in range(500):
            u, velocity = self._velocity(0.0, velocity, 0.0)
            total += u
        return total / now


class AdamRule(Rule):
    """m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, u = lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) +
    eps); decay inside g (Adam) or beside it (AdamW); with amsgrad the largest v so far."""

    def __init__(self, w: Tensor, state: dict, group: dict):
        super().__init__(w, state, group)
        self.m = self.state.get("exp_avg", torch.zeros_like(self.w))
        self.v = self.state.get("exp_avg_sq", torch.zeros_like(self.w))
        self.peak = (
            self.state.get("max_exp_avg_sq", torch.zeros_like(self.w)) if group["amsgrad"] else None
        )
        self.t = int(self.state.get("step", 0)) + 1
        self.b1, self.b2 = group["betas"]
        self.decoupled = group["decoupled_weight_decay"]

    def __call__(self, g: Tensor) -> Tensor:
        decay = self.group["weight_decay"] * self.w
        g = g if self.decoupled else g + decay
        m, v = self.b1 * self.m + (1 - self.b1) * g, self.b2 * self.v + (1 - self.b2) * g**2
        v = v if self.peak is None else torch.maximum(self.peak, v)
        u = (
            self.lr
            * (m / (1 - self.b1**self.t))
            / (torch.sqrt(v / (1 - self.b2**self.t)) + self.group["eps"])
        )
        return u + self.lr * decay if self.decoupled else u

    def frozen_slope(self) -> Tensor:
        if self.t == 1:
            return torch.zeros_like(self.w)
        v = self.v if self.peak is None else self.peak
        root = torch.sqrt(v / (1 - self.b2 ** (self.t - 1))) + self.group["eps"]
        slope = self.lr * (1 - self.b1) / (1 - self.b1**self.t) / root
        return torch.where(self.v == 0, 0.0, slope)  # 1 / eps is not a slope

    def rough(self, g: Tensor, q: Tensor) -> Tensor:
        # the second and third step: also where one batch's own squares are more than ten times what
        # v keeps of earlier ones
        outweighed = (
            (1 - self.b2) * q > 10 * self.b2 * self.v
            if self.t in (2, 3)
            else torch.zeros_like(g, dtype=torch.bool)
        )
        return ((self.v == 0) | outweighed) & (g != 0)

    @property
    def impulse(self) -> float:
        return 1 / (1 - self.b1)


class LionRule(Rule):
    def __call__(self, g: Tensor) -> Tensor:
        b1 = self.group["betas"][0]
        m = self.state.get("exp_avg", torch.zeros_like(self.w))
        return self.lr * (torch.sign(b1 * m + (1 - b1) * g) + self.group["weight_decay"] * self.w)

    def rough(self, g: Tensor, q: Tensor) -> Tensor:
        return torch.ones_like(g, dtype=torch.bool)


RULES: dict[type, type[Rule]] = {
    torch.optim.SGD: SGDRule,
    torch.optim.Adam: AdamRule,
    torch.optim.AdamW: AdamRule,
    Lion: LionRule,
}


def sgd(**options) -> Callable[[nn.Module], torch.optim.Optimizer]:
    options = {"lr": 0.3, **options}
    return lambda model: torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], **options
    )


def adam(**options) -> Callable[[nn.Module], torch.optim.Optimizer]:
    options = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1, **options}
    return lambda model: torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], **options
    )


def adamw(**options) -> Callable[[nn.Module], torch.optim.Optimizer]:
    options = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1, **options}
    return lambda model: torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], **options
    )


def lion(**options) -> Callable[[nn.Module], torch.optim.Optimizer]:
    options = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1, **options}
    return lambda model: Lion([p for p in model.parameters() if p.requires_grad], **options)


def two_groups(
    build: Callable[..., torch.optim.Optimizer], lr: float
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Vectors without decay and with three times the learning rate of matrices, as language models
    are often trained.
    """

    def groups(model: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for p in model.parameters() if p.requires_grad]
        return build(
            [
                {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
                {
                    "params": [p for p in parameters if p.dim() <= 1],
                    "weight_decay": 0.0,
                    "lr": 3 * lr,
                },
            ],
            lr=lr,
        )

    return groups
