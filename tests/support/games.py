"""Games of a few players; used by tests/shapley."""

import itertools
from math import factorial

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

# Utilities below are of size 1; each value is a sum of at most 2^11 weighted differences, the
# weights summing to 1.
ROUNDING = 1e-12


def fixed(**options):
    return settings(derandomize=True, database=None, deadline=None, **options)


def tables(n):
    return arrays(np.float64, 2**n, elements=st.floats(-1, 1, width=32))


def generic(n, seed):
    """A game without any structure: an independent utility for each coalition."""
    return np.random.default_rng(seed).standard_normal(2**n)


def by_orders(table, n):
    """Shapley values by definition: the mean marginal contribution over all n! orders."""
    total = np.zeros(n)
    for order in itertools.permutations(range(n)):
        coalition = 0
        for player in order:
            total[player] += table[coalition | 1 << player] - table[coalition]
            coalition |= 1 << player
    return total / factorial(n)


def lookup(table):
    """A table as a function of a mask."""
    return lambda mask: table[int(mask @ (1 << np.arange(len(mask))))]


def quadratic_step(n, seed):
    """The utility of an SGD step on a quadratic loss, its values in closed form, and its
    interactions.
    """
    rng = np.random.default_rng(seed)
    lr, dim = 0.1, 7
    per_sample, slope, half = (
        rng.standard_normal((n, dim)),
        rng.standard_normal(dim),
        rng.standard_normal((dim, dim)),
    )
    hessian = half @ half.T

    def utility(mask):
        move = lr * per_sample[mask].sum(0)
        return slope @ move - 0.5 * move @ hessian @ move

    values = lr * per_sample @ slope - lr**2 / 2 * per_sample @ hessian @ per_sample.sum(0)
    pairs = -(lr**2) * per_sample @ hessian @ per_sample.T
    np.fill_diagonal(pairs, 0)
    return utility, values, pairs
