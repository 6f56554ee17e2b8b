"""Truncated Monte Carlo Shapley values against enumeration and against `permutation`."""

import numpy as np
import pytest

from inrun.shapley import exact, permutation, truncated


def game(n: int, seed: int = 0):
    """A random table of utilities, called with many coalitions at once."""
    table = np.random.default_rng(seed).normal(size=2**n)
    table[0] = 0

    def utility(mask):
        return table[(mask << np.arange(n)).sum(-1)]

    return table, utility


def test_without_truncation_the_orders_are_those_of_permutation():
    n, pairs = 6, 5
    table, utility = game(n)
    found = truncated(lambda masks, _: utility(masks), n, budget=2 * n * pairs, seed=3)
    expected = permutation(
        lambda mask: float(utility(mask)),
        n,
        strata=1,
        tolerance=0,
        max_permutations=found.orders,
        seed=3,
    )
    assert found.orders >= 2 * pairs
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.standard_errors, expected.standard_errors, rtol=0, atol=1e-13)
    assert found.values.sum() == pytest.approx(table[-1] - table[0], abs=1e-12)


def test_enumerated_values_lie_within_the_standard_errors():
    n = 6
    table, utility = game(n)
    found = truncated(lambda masks, _: utility(masks), n, budget=4000, seed=1)
    z = (found.values - exact(table, n)) / found.standard_errors
    # about 400 independent pairs: normal; six values beyond 4 have a chance of 4e-4
    assert np.abs(z).max() < 4
    assert found.standard_errors.max() < 0.1 * np.ptp(exact(table, n))


def test_standard_errors_hold_the_noise_of_a_training():
    n = 5
    rng = np.random.default_rng(0)
    found = [
        truncated(
            lambda masks, _: masks.sum(1) + rng.normal(size=len(masks)), n, budget=200, seed=seed
        )
        for seed in range(40)
    ]
    scatter = np.std([f.values for f in found], axis=0, ddof=1).mean()
    claimed = np.sqrt(np.mean([f.standard_errors**2 for f in found]))
    # a standard deviation from 40 repeats x 5 players is known to 1 / sqrt(2 * 195), 5 %: four of
    # those
    assert claimed == pytest.approx(scatter, rel=0.2)


def test_truncation_saves_evaluations_and_costs_at_most_its_tolerance_in_the_sum():
    n, tolerance = 40, 0.02

    def utilities(masks, _):
        return 1 - 0.5 ** masks.sum(1).astype(
            float
        )  # saturates: within 0.02 of the end after 6 players

    full = truncated(utilities, n, budget=400, seed=0)
    short = truncated(utilities, n, budget=400, tolerance=tolerance, patience=1, seed=0)
    assert full.truncated == 0
    # two ends, and six players in both ways: 14 evaluations a pair instead of 2 + 78
    assert short.evaluations == short.orders // 2 * 14
    assert short.truncated == pytest.approx((n - 6) / n)
    assert 0 <= full.values.sum() - short.values.sum() <= tolerance


def test_a_chance_touch_does_not_truncate():
    n = 30
    sizes = []

    def utilities(masks, _):
        size = masks.sum(1)
        sizes.extend(size)
        return np.where(size == 10, n, size).astype(float)  # touches U(all) once on its way

    found = truncated(utilities, n, budget=1, tolerance=0.5, patience=2, seed=0)
    assert found.truncated == 0
    assert max(s for s in sizes if s < n) == n - 1


def test_each_pair_of_orders_has_its_own_number():
    seen = {}

    def utilities(masks, pairs):
        for mask, pair in zip(masks, pairs):
            seen.setdefault(int(pair), []).append(int(mask.sum()))
        return masks.sum(1).astype(float)

    found = truncated(utilities, 4, budget=40, seed=0)
    assert sorted(seen) == list(range(found.orders // 2))
    assert all(sorted(sizes) == [0, 1, 1, 2, 2, 3, 3, 4] for sizes in seen.values())


def test_one_pair_has_no_standard_errors():
    found = truncated(lambda masks, _: masks.sum(1).astype(float), 20, budget=10)
    assert found.orders == 2
    assert np.isnan(found.standard_errors).all()
    np.testing.assert_allclose(found.values, 1)


@pytest.mark.parametrize(
    "change", [{"budget": 0}, {"tolerance": -1.0}, {"patience": 0}, {"side_by_side": 0}]
)
def test_settings_that_cannot_be_meant_are_refused(change):
    with pytest.raises(ValueError, match="1 or more"):
        truncated(lambda masks, _: masks.sum(1), 4, **{"budget": 10, **change})


def test_a_utility_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        truncated(lambda masks, _: np.full(len(masks), np.nan), 4, budget=10)
