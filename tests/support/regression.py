"""A small regression whose values are known from a loop, for tests of the attributor's seams."""

import torch
import torch.nn.functional as F
from torch import nn

from inrun import Attributor

N, LR = 4, 0.1


class Case:
    """A small regression in float64 whose values are known from a loop of gradients."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        self.x, self.y = torch.randn(N, 5).double(), torch.randn(N, 2).double()
        self.val_x, self.val_y = torch.randn(3, 5).double(), torch.randn(3, 2).double()

    def loss(self) -> torch.Tensor:
        return F.mse_loss(self.model(self.x), self.y)

    def target(self) -> torch.Tensor:
        return F.mse_loss(self.model(self.val_x), self.val_y)

    def truth(self, module: nn.Module | None = None) -> torch.Tensor:
        """``lr <g_i, grad target>`` over the parameters of a part of the model."""
        parameters = list((module or self.model).parameters())
        gradient = torch.autograd.grad(self.target(), parameters)
        values = []
        for i in range(N):
            own = F.mse_loss(self.model(self.x[i : i + 1]), self.y[i : i + 1]) / N
            g = torch.autograd.grad(own, parameters)
            values.append(LR * sum((a * b).sum() for a, b in zip(g, gradient)))
        return torch.stack(values)

    def sgd(self, module: nn.Module | None = None) -> torch.optim.SGD:
        return torch.optim.SGD((module or self.model).parameters(), lr=LR)

    def step(self, attr: Attributor, *optimizers: torch.optim.Optimizer) -> torch.Tensor:
        with attr.batch(range(N)):
            self.loss().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return attr.last["val"]
