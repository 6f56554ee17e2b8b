"""Methods by name and the truth of a step; used by tests/engine/test_truth.py and test_path.py."""

import math

import numpy as np
import torch

import inrun
from inrun.methods import FirstOrder
from inrun.shapley import exact
from tests.support.step_case import StepCase

PATH3 = inrun.Path(nodes=3, name="path3")
SGD_FORMULA = FirstOrder(update="sgd", name="sgd_formula")
PREVIOUS, CURRENT = (
    FirstOrder(largest_excess=math.inf, name="previous"),
    FirstOrder(state="current", name="current"),
)


def truth_of(case: StepCase) -> np.ndarray:
    game = case.game()
    return exact(game.utility, game.n)


# Rounding of a loss of order 1 in each of 2^7 coalitions, float64.
EXACT = {"rtol": 1e-12, "atol": 1e-12}

AFFINE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.8, nesterov=True, weight_decay=0.1),
    "dampening": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.8, dampening=0.4),
}
