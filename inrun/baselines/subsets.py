"""Which subsets are trained on, and with which seeds: requests to a pool."""

import numpy as np

from inrun.baselines.outcomes import PoolError


def random_subsets(
    n: int, count: int, share: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`count` uniform subsets of round(share n) of n samples, bool [count, n], and a training seed
    for each; the first ones of a longer list are the shorter list.
    """
    size = round(share * n)
    if not 1 <= size < n:
        raise PoolError(
            f"share={share} of {n} samples is {size}; a subset has at least one and not all of them"
        )
    members = np.zeros((count, n), dtype=bool)
    for k in range(count):
        members[k, np.random.default_rng([seed, k]).choice(n, size, replace=False)] = True
    return members, training_seeds(count, seed)


def coin_subsets(n: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`count` subsets in which each sample is with probability one half, independently; and a
    training seed for each.
    """
    members = np.stack([np.random.default_rng([seed, k]).random(n) < 0.5 for k in range(count)])
    return members, training_seeds(count, seed)


def training_seeds(count: int, seed: int) -> np.ndarray:
    """int64 [count], different for different (k, seed) within a million each."""
    return np.arange(count, dtype=np.int64) + 1_000_000 * seed
