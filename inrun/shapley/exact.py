"""Exact Shapley values and interactions by enumeration of all coalitions: the oracle for batches of
up to a dozen samples.

    value_i        = sum_{S without i}     |S|! (n - |S| - 1)! / n!      [ U(S+i) - U(S) ]
    interaction_ij = sum_{S without i, j}  |S|! (n - |S| - 2)! / (n-1)!  [ U(S+ij) - U(S+i)
                                                                           - U(S+j) + U(S) ]

(Shapley 1953; Grabisch and Roubens 1999.)
Worked example: U({}) = 0, U({1}) = 0.3, U({2}) = -0.2, U({1,2}) = 0.4 gives the values 0.45 and
-0.05.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
from numpy.typing import ArrayLike

Utility = Callable[[np.ndarray], float]
"""U(S): takes the coalition as a boolean mask [n], True for its members; positive = it lowered the
validation loss.
"""


def exact(utility: Utility | ArrayLike, n: int, limit: int = 12) -> np.ndarray:
    """Shapley values of all players.

    Args:
        utility: a function of a boolean mask [n], called once for each coalition, the empty one
            first; or the table [2^n] of its results, in which coalition S stands at index sum_{i in
            S} 2^i.
        n: number of players.
        limit: the most players to enumerate for, against a mistaken 2^n.

    Returns:
        float64 [n]; sums to U(all) - U(none).
    """
    table = utilities(utility, n, limit)
    coalitions = np.arange(2**n)
    size = np.bitwise_count(coalitions)
    weight = np.array([1 / (n * comb(n - 1, s)) for s in range(n)])
    values = np.empty(n)
    for i in range(n):
        without = coalitions[coalitions >> i & 1 == 0]
        values[i] = weight[size[without]] @ (table[without | 1 << i] - table[without])
    return values


def interactions(utility: Utility | ArrayLike, n: int, limit: int = 12) -> np.ndarray:
    """Pairwise Shapley interaction index: what two players are worth to each other beyond their
    single contributions.

    Arguments as for `exact`. Returns float64 [n, n], symmetric; the diagonal is 0, no player pairs
    with itself. Positive: the two reinforce each other; negative: they are redundant, as duplicates
    in a batch are.
    """
    table = utilities(utility, n, limit)
    coalitions = np.arange(2**n)
    size = np.bitwise_count(coalitions)
    weight = np.array([1 / ((n - 1) * comb(n - 2, s)) for s in range(n - 1)])
    index = np.zeros((n, n))
    for i in range(n):
        for j in range(i):
            I, J = 1 << i, 1 << j
            S = coalitions[coalitions & (I | J) == 0]
            index[i, j] = index[j, i] = weight[size[S]] @ (
                table[S | I | J] - table[S | I] - table[S | J] + table[S]
            )
    return index


def utilities(utility: Utility | ArrayLike, n: int, limit: int = 12) -> np.ndarray:
    """U of all coalitions, float64 [2^n], coalition S at index sum_{i in S} 2^i; each evaluated
    once.

    ValueError for more than `limit` players, for a table of another length, for a utility that is
    not finite.
    """
    if n < 1:
        raise ValueError(f"a game has one player or more, got n = {n}.")
    if n > limit:
        raise ValueError(
            f"{n} players have 2^{n} = {2**n} coalitions, more than the limit of {limit} players "
            "allows. Estimate with shapley.permutation, or raise limit."
        )
    if callable(utility):
        table = np.array([utility(members(index, n)) for index in range(2**n)], dtype=np.float64)
    else:
        table = np.asarray(utility, dtype=np.float64)
    if table.shape != (2**n,):
        raise ValueError(
            f"{n} players need one utility for each of {2**n} coalitions, got shape "
            f"{list(table.shape)}."
        )
    if not np.isfinite(table).all():
        first = np.flatnonzero(~np.isfinite(table))[0]
        raise ValueError(
            f"the utility of coalition {np.flatnonzero(members(first, n)).tolist()} is "
            f"{table[first]}."
        )
    return table


def members(index: int, n: int) -> np.ndarray:
    """The coalition at an index of the table, as a boolean mask [n]."""
    return (index >> np.arange(n) & 1).astype(bool)
