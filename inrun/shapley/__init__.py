"""Shapley values of a game that can be evaluated: the truth that every approximation of this
project is held against.

A game is a utility `U(S)` over coalitions `S` of `n` players. In this project a player is a sample
of a training batch and `U(S)` is the drop of the validation loss when the optimizer steps with the
coalition's gradients only: `U(S) = L(w - u(0)) - L(w - u(sum_{i in S} g_i))`. Nothing here knows
about models; only the sign is fixed here, once.
"""

from inrun.shapley.exact import Utility, exact, interactions, utilities
from inrun.shapley.permutation import Estimate, permutation
from inrun.shapley.truncated import Truncated, truncated

__all__ = [
    "SIGN",
    "Estimate",
    "Truncated",
    "Utility",
    "exact",
    "interactions",
    "permutation",
    "truncated",
    "utilities",
]

SIGN = "positive value = lowered the validation loss"
