"""Lion (Chen et al. 2023, arXiv 2302.06675): the optimizer, which torch lacks, and its update
rule.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from inrun.updates.base import Update, register


class Lion(torch.optim.Optimizer):
    """u = lr (sign(b1 m + (1 - b1) g) + wd w); m = b2 m + (1 - b2) g.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, typically 3 to 10 times smaller than AdamW's.
        betas: interpolation of the sign's argument, and decay of the momentum.
        weight_decay: decoupled decay.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        if lr < 0 or not all(0 <= b < 1 for b in betas):
            raise ValueError(f"lr must be >= 0 and betas in [0, 1), not lr={lr}, betas={betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            b2 = group["betas"][1]
            for p in group["params"]:
                if p.grad is None:
                    continue
                change = LionUpdate(p, self.state[p], group)(p.grad)
                state = self.state[p]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1.0 - b2)
                p.sub_(change)
        return loss


@register(Lion)
class LionUpdate(Update):
    """The update of `Lion`: a jump wherever the sign's argument crosses zero, so its slope is taken
    over coalitions everywhere.

    Held against enumerated Shapley values (tests/test_fidelity_truth.py), that orders samples far
    better than the secant; the secant's values have the better sum.
    """

    rough_everywhere = True

    def __init__(self, weight: Tensor, state: dict, group: dict):
        super().__init__(weight, state, group)
        self.b1 = float(group["betas"][0])
        self.b2 = float(group["betas"][1])
        self.weight_decay = float(group["weight_decay"])
        self.first = state["exp_avg"].detach() if state else torch.zeros_like(self.weight)

    def __call__(self, g: Tensor) -> Tensor:
        sign = torch.sign(self.b1 * self.first + (1.0 - self.b1) * g)
        return (
            self.lr * (sign + self.weight_decay * self.weight)
            if self.weight_decay
            else self.lr * sign
        )

    def stateless(self) -> Tensor | None:
        return torch.ones_like(self.weight, dtype=torch.bool)
