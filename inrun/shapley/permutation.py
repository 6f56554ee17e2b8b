"""Shapley values by sampled permutations, with standard errors: the truth for batches too large to
enumerate.

A player's value is its mean marginal contribution when players join in random order (Castro, Gomez,
Tejada 2009). Orders are drawn in blocks: a random circle of the players, read from equally spaced
starting points (so that each player takes early, middle and late positions: stratification by
position), each time in both directions (antithetic: what a player gains from a pair it gets in
exactly one of the two, so games of pairs, such as a quadratic utility, have no variance at all).
Every order by itself is uniform, so the mean is unbiased; blocks are independent, so their scatter
gives the standard errors. With as many starting points as players all coalitions of a block are
arcs of one circle, n (n-1) + 2 of them for 2n orders: half of the evaluations that independent
orders need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inrun.shapley.exact import Utility

# A scatter estimated from fewer blocks is too noisy to stop on.
_LEAST_BLOCKS = 8


@dataclass(frozen=True)
class Estimate:
    """Shapley values estimated from permutations.

    Attributes:
        values: float64 [n], unbiased but for the choice of when to stop; their sum is U(all) -
            U(none) up to rounding.
        standard_errors: float64 [n], of the values, from the scatter between independent blocks.
        permutations: number of orders used.
        evaluations: number of different coalitions whose utility was evaluated.
        converged: whether the stopping rule was met; False: `max_permutations` came first.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    permutations: int
    evaluations: int
    converged: bool


def permutation(
    utility: Utility,
    n: int,
    *,
    tolerance: float = 0.05,
    max_permutations: int = 1000,
    strata: int | None = None,
    seed: int = 0,
) -> Estimate:
    """Estimate the Shapley values of `n` players.

    Args:
        utility: a deterministic function of a boolean mask [n]; called once for each coalition that
            is met.
        tolerance: stop when the largest standard error is at most this part of the spread (standard
            deviation) of the values, but not before 8 blocks. 0: go on to `max_permutations`, for
            an estimate free of stopping bias.
        max_permutations: the most orders to use; at least two blocks of 2 * strata.
        strata: starting points on the circle, 1 to n; None: n, at most 16.
        seed: equal seeds give equal results.
    """
    if n < 1:
        raise ValueError(f"a game has one player or more, got n = {n}.")
    strata = min(n, 16) if strata is None else strata
    if not 1 <= strata <= n:
        raise ValueError(f"strata must be 1 to {n}, got {strata}.")
    blocks = max_permutations // (2 * strata)
    if blocks < 2:
        raise ValueError(
            f"standard errors need two blocks of 2 x {strata} permutations, max_permutations is "
            f"{max_permutations}. Raise it, or lower strata."
        )
    game = _Remembered(utility, n)
    rng = np.random.default_rng(seed)
    mean, squares = np.zeros(n), np.zeros(n)  # Welford: running mean, summed squared deviations
    for block in range(1, blocks + 1):
        sample = _block(game, rng.permutation(n), strata)
        deviation = sample - mean
        mean += deviation / block
        squares += deviation * (sample - mean)
        if block < 2:
            continue
        errors = np.sqrt(squares / (block - 1) / block)
        converged = block >= _LEAST_BLOCKS and bool(errors.max() <= tolerance * mean.std())
        if converged and tolerance > 0:
            break
    return Estimate(mean, errors, 2 * strata * block, game.evaluations, converged)


def _block(game: _Remembered, circle: np.ndarray, strata: int) -> np.ndarray:
    """Mean marginal contributions [n] over the circle read from `strata` places, in both
    directions.
    """
    n = len(circle)
    total = np.zeros(n)
    for k in range(strata):
        forward = np.roll(circle, -(k * n // strata))
        for order in (forward, forward[::-1]):
            coalition = np.zeros(n, dtype=bool)
            before = game(coalition)
            for player in order:
                coalition[player] = True
                after = game(coalition)
                total[player] += after - before
                before = after
    return total / (2 * strata)


class _Remembered:
    """A utility that is evaluated once for each coalition."""

    def __init__(self, utility: Utility, n: int) -> None:
        self._utility, self._n = utility, n
        self._known: dict[bytes, float] = {}

    @property
    def evaluations(self) -> int:
        return len(self._known)

    def __call__(self, coalition: np.ndarray) -> float:
        key = np.packbits(coalition).tobytes()
        if key not in self._known:
            value = float(self._utility(coalition.copy()))
            if not np.isfinite(value):
                raise ValueError(
                    f"the utility of coalition {np.flatnonzero(coalition).tolist()} is {value}."
                )
            self._known[key] = value
        return self._known[key]
