"""An optimizer added from outside: its update rule, a config that names it, values of its steps.

Signed square roots are no rule that the package has: u(G) = lr sign(G) sqrt(|G|).
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inrun.attributor import Attributor
from inrun.methods import FirstOrder
from inrun.train.optim import OPTIMIZERS, OptimConfig, build_optimizer, optimizer
from inrun.updates import UnknownOptimizerError, Update, register
from inrun.updates.base import RULES
from tests.support import per_sample


class RootDescent(torch.optim.Optimizer):
    """Moves every weight by the square root of its gradient, with the gradient's sign."""

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad.sign() * p.grad.abs().sqrt())


class RootUpdate(Update):
    """All that attribution needs to know of it."""

    def __call__(self, g: Tensor) -> Tensor:
        return self.lr * g.sign() * g.abs().sqrt()


@pytest.fixture
def registered():
    with RULES.restored(), OPTIMIZERS.restored():
        register(RootDescent)(RootUpdate)
        optimizer("root")(lambda groups, config: RootDescent(groups, config.lr))
        yield


def case():
    model = nn.Linear(3, 2).double()
    x, y = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    return model, lambda at: F.mse_loss(model(x[at]), y[at])


def test_the_steps_of_a_toy_optimizer_are_valued(registered):
    # value_i = <g_i, u(G) / G * grad L>, written out with a loop of per-sample gradients; float64,
    # and the default secant is a difference in float64 too: some 1e-15
    model, loss = case()
    steps = build_optimizer(model, OptimConfig(name="root", lr=1e-2, min_lr=0.0, weight_decay=0.0))
    assert isinstance(steps, RootDescent)
    target = slice(5, 9)
    own = [per_sample.gradients(model, loss(slice(i, i + 1)) / 5) for i in range(5)]
    G = {name: sum(g[name] for g in own) for name in own[0]}
    V = {
        name: 1e-2 * G[name].abs().rsqrt() * v
        for name, v in per_sample.gradients(model, loss(target)).items()
    }
    truth = torch.tensor([per_sample.dot(g, V) for g in own], dtype=torch.float64)
    with Attributor(
        model, steps, {"val": lambda: loss(target)}, FirstOrder(state="current")
    ) as attr:
        with attr.batch(range(5)):
            loss(slice(0, 5)).backward()
        steps.step()
    assert per_sample.relative_error(attr.last["val"], truth) < 1e-12


def test_without_its_rule_it_is_refused_with_what_to_write():
    model, loss = case()
    steps = RootDescent(model.parameters(), lr=1e-3)
    with pytest.raises(UnknownOptimizerError, match=r"RootDescent.*register"):
        Attributor(model, steps, {"val": lambda: loss(slice(5, 9))}, "path")
