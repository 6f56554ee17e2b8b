"""Truncated Monte Carlo Shapley values (Ghorbani and Zou 2019, "Data Shapley", algorithm 1), many
orders side by side.

    value_i = mean over orders of U(P_i + i) - U(P_i),    P_i = the players before i in the order
    with U(P_i + i) - U(P_i) := 0 from the first place on
    at which |U(all) - U(P_i)| <= tolerance for `patience` places.

For utilities that cost a training each: an order costs as many evaluations as it has places before
the truncation, so that a budget of evaluations buys few orders of many players, and the values are
noisy: the standard errors say how much. Coalitions are asked for in batches, one from each order
that still runs, as they can be trained at once or in parallel. Orders come in pairs, one the
reverse of the other (antithetic, as in `permutation`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Utilities = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(coalitions bool [k, n], number of the pair of orders int64 [k]) -> U float64 [k]."""


@dataclass(frozen=True)
class Truncated:
    """Shapley values estimated from truncated orders.

    Attributes:
        values: float64 [n]. The truncated places count as 0, so that the sum falls short of U(all)
            - U(none) by up to `tolerance`.
        standard_errors: float64 [n], from the scatter between independent pairs of orders; NaN if
            there is one pair only.
        orders: how many were begun and finished; two a pair.
        evaluations: coalitions asked for; U(all) and U(none) once for each pair.
        truncated: mean share of places that were not evaluated.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    orders: int
    evaluations: int
    truncated: float


def truncated(
    utilities: Utilities,
    n: int,
    *,
    budget: int,
    tolerance: float = 0.0,
    patience: int = 5,
    side_by_side: int | None = None,
    seed: int = 0,
) -> Truncated:
    """Estimate the Shapley values of `n` players from about `budget` evaluations.

    Args:
        utilities: asked once for each different coalition of a pair of orders. The number of the
            pair lets a stochastic utility (a training) use one seed within a pair and a new one in
            the next, so that the standard errors include the training's own noise.
        budget: as many pairs of orders are begun as come nearest to it, at the price of those
            before; at least one, and one that is begun is finished.
        tolerance: of the truncation, in the units of the utility. 0: no truncation.
        patience: how many places in a row must be within the tolerance (a noisy utility touches
            U(all) by chance).
        side_by_side: most pairs that run at once; None: as many as the budget pays for without
            truncation.
    """
    if n < 1:
        raise ValueError(f"a game has one player or more, got n = {n}.")
    if (
        budget < 1
        or patience < 1
        or tolerance < 0
        or (side_by_side is not None and side_by_side < 1)
    ):
        raise ValueError(
            "budget, patience and side_by_side are 1 or more, the tolerance is 0 or more."
        )
    most = max(1, budget // (2 * n)) if side_by_side is None else side_by_side
    rng = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    evaluations, skipped = 0, 0
    price = 2.0 * n
    while not means or evaluations + price / 2 <= budget:
        count = min(most, max(1, round((budget - evaluations) / price)))
        pairs = np.arange(len(means), len(means) + count)
        block = [rng.permutation(n) for _ in pairs]
        marginals, used, left_out = _pairs(utilities, np.array(block), pairs, tolerance, patience)
        means += list(marginals)
        evaluations += used
        price = evaluations / len(means)
        skipped += left_out
    samples = np.array(means)
    errors, orders = _standard_errors(samples), 2 * len(samples)
    return Truncated(samples.mean(0), errors, orders, evaluations, skipped / (orders * n))


def _standard_errors(samples: np.ndarray) -> np.ndarray:
    """Of the mean over the rows of samples [k, n]; NaN for a single row."""
    if len(samples) == 1:
        return np.full(samples.shape[1], np.nan)
    with np.errstate(invalid="ignore"):
        return samples.std(0, ddof=1) / np.sqrt(len(samples))


def _pairs(
    utilities: Utilities, orders: np.ndarray, pairs: np.ndarray, tolerance: float, patience: int
) -> tuple[np.ndarray, int, int]:
    """Mean marginal contributions [pairs, n] of each order and its reverse; evaluations; places
    that were left out.
    """
    count, n = orders.shape
    ends = utilities(
        np.repeat([np.zeros(n, bool), np.ones(n, bool)], count, axis=0), np.tile(pairs, 2)
    )
    nobody, everybody = _finite(ends)[:count], ends[count:]
    evaluations, left_out = 2 * count, 0
    walk = np.stack([orders, orders[:, ::-1]], axis=1)  # [pairs, 2, n]
    total = np.zeros((count, n))
    coalition = np.zeros((count, 2, n), dtype=bool)
    before = np.repeat(nobody[:, None], 2, axis=1)
    near = np.zeros((count, 2), dtype=int)
    running = np.ones((count, 2), dtype=bool)
    for place in range(n):
        who = np.argwhere(running)
        if not len(who):
            break
        pair, way = who.T
        player = walk[pair, way, place]
        coalition[pair, way, player] = True
        if place == n - 1:
            after = everybody[pair]
        else:
            after = _finite(utilities(coalition[pair, way], pairs[pair]))
            evaluations += len(who)
        total[pair, player] += after - before[pair, way]
        before[pair, way] = after
        if tolerance > 0:
            close = np.abs(everybody[pair] - after) <= tolerance
            near[pair, way] = np.where(close, near[pair, way] + 1, 0)
            stopped = near[pair, way] >= patience
            running[pair[stopped], way[stopped]] = False
            left_out += int(stopped.sum()) * (n - 1 - place)
    return total / 2, evaluations, left_out


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} utilities are not finite."
        )
    return values
