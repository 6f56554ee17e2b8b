"""Path against numerical integration through the update rule itself, and nodes for a tolerance."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.attributor import Intervals
from inrun.methods import Method
from inrun.updates import snapshot
from tests.support.step_case import StepCase, gpt2_case, regression_case
from tests.support.truth_cases import AFFINE

# -- path against numerical integration, through the rule itself


def matrix_case(make_optimizer) -> StepCase:
    """Two matrices, no biases (Muon takes matrices only), moments warm."""
    generator = torch.Generator().manual_seed(8)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * normal(*p.shape))
    x, val_x = normal(5, 4), normal(4, 4)
    y, val_y = normal(5, 3).sin(), normal(4, 3).sin()
    losses = lambda m: F.mse_loss(m(x), y, reduction="none").mean(1) / 5  # noqa: E731
    case = StepCase(
        model, make_optimizer(model.parameters()), losses, lambda m: F.mse_loss(m(val_x), val_y)
    )
    for _ in range(4):
        noise = normal(5, 3)
        warm = StepCase(
            model,
            case.optimizer,
            lambda m, noise=noise: (m(x) - y - noise).square().mean(1) / 5,
            case.target,
        )
        warm.step(model, case.optimizer)
    return case


@dataclass
class Rules:
    """The step of a case through its update rules: what autograd can integrate, in float64 (torch's
    own Muon steps in bfloat16).
    """

    case: StepCase

    def __post_init__(self):
        self.model, optimizer = self.case.copies()
        self.weights = dict(self.model.named_parameters())
        self.rules = {
            name: snapshot(optimizer, p, optimizer.param_groups[0])
            for name, p in self.weights.items()
        }
        self.gradients = self.case.game().gradients

    def loss_after(self, gradient: dict[str, torch.Tensor]) -> torch.Tensor:
        moved = {
            name: self.weights[name].detach() - self.rules[name](g) for name, g in gradient.items()
        }
        whole = nn.Module()
        whole.forward = lambda *x: torch.func.functional_call(self.model, moved, x)
        return self.case.target(whole)

    def along(self, s: float) -> dict[str, torch.Tensor]:
        return {name: (s * g.sum(0)).requires_grad_() for name, g in self.gradients.items()}

    def utility_of_all(self) -> float:
        return float((self.loss_after(self.along(0.0)) - self.loss_after(self.along(1.0))).detach())

    def integral(self, points: int) -> np.ndarray:
        """``integral over s of <grad L(w - u(s G)), J(s G) g_i>``, Gauss-Legendre, all derivatives
        by autograd.
        """
        total = 0.0
        nodes, weights = np.polynomial.legendre.leggauss(points)
        for node, weight in zip((nodes + 1) / 2, weights / 2):
            at = self.along(float(node))
            slopes = torch.autograd.grad(-self.loss_after(at), list(at.values()))
            parts = [
                (g * slope).flatten(1).sum(1) for g, slope in zip(self.gradients.values(), slopes)
            ]
            total = total + weight * sum(parts).numpy()
        return total


SMOOTH = {
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=0.1),
    "sgd nesterov": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, nesterov=True),
    "muon": lambda p: torch.optim.Muon(p, lr=0.05, weight_decay=0.1),
}
ADAPTIVE = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.9, 0.95), weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.9, 0.95), weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", SMOOTH)
def test_path_with_gauss_nodes_is_the_integral_along_the_step(optimizer):
    case = matrix_case(SMOOTH[optimizer])
    expected = Rules(case).integral(80)
    found = case.values(inrun.Path(nodes=40, quadrature="gauss"))["path"]
    # analytic integrands: 40 Gauss nodes leave rounding, 1e-16 times the amplification of Muon's
    # polynomial
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("optimizer", ADAPTIVE)
def test_path_with_secants_converges_to_the_integral_with_the_square_of_the_segments(optimizer):
    case = matrix_case(ADAPTIVE[optimizer])
    expected = Rules(case).integral(200)
    error = {
        nodes: np.linalg.norm(case.values(inrun.Path(nodes=nodes))["path"] - expected)
        / np.linalg.norm(expected)
        for nodes in (4, 32)
    }
    assert error[32] < 1e-4
    # the midpoint rule: 8 times the segments, 64 times the accuracy; half of it, for the next
    # power's share
    assert error[32] < error[4] / 32


KINKED = {"adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.9, 0.95), amsgrad=True)}


@pytest.mark.parametrize("optimizer", {**SMOOTH, **ADAPTIVE, **KINKED})
def test_path_values_add_up_to_the_utility_of_all_as_nodes_grow(optimizer):
    case = matrix_case({**SMOOTH, **ADAPTIVE, **KINKED}[optimizer])
    found = case.values(inrun.Path(nodes=24))["path"].sum()
    whole = Rules(case).utility_of_all()
    if optimizer != "muon":
        assert case.game().utility(np.ones(5, dtype=bool)) == pytest.approx(whole, rel=1e-10)
    # one midpoint is off by up to 0.15 here (Muon) and 24 of them by 1/24^2 of that
    assert found == pytest.approx(whole, rel=5e-4)


# -- a tolerance on the sum

ADAMW = {
    lr: (lambda p, lr=lr: torch.optim.AdamW(p, lr=lr, betas=(0.9, 0.95))) for lr in (1e-3, 1e-2)
}


@pytest.mark.parametrize(("lr", "nodes"), [(1e-3, 1), (1e-2, 3)])
def test_with_a_tolerance_nodes_are_tripled_until_the_values_add_up_to_what_the_step_did(lr, nodes):
    case = gpt2_case(ADAMW[lr], warm_steps=12)
    game = case.game()
    utility = game.utility(np.ones(game.n, dtype=bool))
    found = case.values(
        inrun.Path(tolerance=0.02, name="asked"),
        inrun.Path(nodes=nodes, name="enough"),
        inrun.Path(nodes=max(nodes // 3, 1), name="fewer"),
    )
    np.testing.assert_array_equal(found["asked"], found["enough"])
    missed = {name: abs(values.sum() - utility) / abs(utility) for name, values in found.items()}
    assert missed["asked"] <= 0.02
    assert nodes == 1 or missed["fewer"] > 0.02


def test_nodes_are_not_tripled_where_that_does_not_help():
    # the first step of Adam averages slopes over coalitions, and these do not add up
    case = gpt2_case(ADAMW[1e-3], warm_steps=0)
    found = case.values(
        inrun.Path(tolerance=1e-4, name="asked"), inrun.Path(nodes=3, name="once more")
    )
    np.testing.assert_array_equal(found["asked"], found["once more"])


def test_a_tolerance_is_for_path_and_for_gradients_of_this_step():
    with pytest.raises(ValueError, match=r"second_order.*unknown key 'tolerance'"):
        Method.from_config({"kind": "second_order", "tolerance": 0.1}, "second_order")
    with pytest.raises(ValueError, match="tolerance=0"):
        inrun.Path(tolerance=0.0)
    case = regression_case(AFFINE["sgd"], warm_steps=1)
    with pytest.raises(ValueError, match="tolerance compares with the loss of this step"):
        case.values(inrun.Path(tolerance=0.1), intervals=Intervals(refresh=2))
