"""Sampled Shapley values: pairs of opposite orders, standard errors, stopping."""

import numpy as np
import pytest
from scipy import stats

from inrun.shapley import exact, permutation
from tests.support.games import ROUNDING, generic, lookup, quadratic_step


def test_sampled_values_sum_exactly_whatever_the_number_of_permutations():
    table = generic(9, seed=5)
    for strata in (1, 3, 9):
        estimate = permutation(lookup(table), 9, max_permutations=4 * strata, strata=strata)
        assert estimate.permutations == 4 * strata
        np.testing.assert_allclose(estimate.values.sum(), table[-1] - table[0], atol=ROUNDING)


def test_pairs_of_opposite_orders_leave_no_variance_in_a_quadratic_utility():
    utility, values, _ = quadratic_step(20, seed=2)
    estimate = permutation(utility, 20, strata=1, max_permutations=100)
    assert estimate.converged
    assert estimate.permutations == 16  # 8 blocks of two, the earliest stop
    np.testing.assert_allclose(estimate.values, values, atol=ROUNDING)
    assert estimate.standard_errors.max() < ROUNDING


def test_every_player_takes_every_position_once_in_each_direction_of_a_full_block():
    # U = 1 for coalitions of exactly s players: a player's marginal is +1 when it joins as number
    # s, -1 as number s + 1. With each position taken equally often the two cancel within each
    # block, for every player and every s.
    for s in (1, 4, 6):
        estimate = permutation(
            lambda mask, s=s: float(mask.sum() == s), 7, max_permutations=28, tolerance=0
        )
        np.testing.assert_allclose(estimate.values, 0, atol=ROUNDING)
        np.testing.assert_allclose(estimate.standard_errors, 0, atol=ROUNDING)


def test_full_block_costs_the_arcs_of_one_circle():
    met = []
    estimate = permutation(
        lambda mask: met.append(mask.tobytes()) or float(mask[0]),
        8,
        max_permutations=32,
        tolerance=0,
    )
    assert estimate.evaluations == len(met) == len(set(met))  # none twice
    assert (
        estimate.evaluations <= 2 * (8 * 7) + 2
    )  # two blocks; the empty and the full coalition are common


@pytest.mark.parametrize("strata", [1, 2, 6])
def test_standard_errors_cover_the_truth_as_often_as_they_say(strata):
    n, blocks, runs = 6, 20, 150
    table = generic(n, seed=11)
    truth = exact(table, n)
    errors, said = np.empty((runs, n)), np.empty((runs, n))
    for seed in range(runs):
        estimate = permutation(
            lookup(table),
            n,
            tolerance=0,
            max_permutations=2 * strata * blocks,
            strata=strata,
            seed=seed,
        )
        errors[seed], said[seed] = estimate.values - truth, estimate.standard_errors
    # Student's t with 19 degrees of freedom. Runs are independent, players of a run are not: 4
    # sigma of the runs.
    covered = np.mean(np.abs(errors) < stats.t.ppf(0.975, blocks - 1) * said)
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / runs)
    # The mean squared standard error is the variance: a variance from 150 runs has a relative error
    # of sqrt(2/150), one that is taken from squared errors of 6 players less; 4 sigma.
    assert abs(np.mean(said**2) / np.mean(errors**2) - 1) < 4 * np.sqrt(2 / runs)
    # Unbiased: the mean error of each player against its own scatter over the runs.
    assert np.abs(errors.mean(0) / (errors.std(0, ddof=1) / np.sqrt(runs))).max() < 4


def test_stopping_rule_is_met_when_it_says_so_and_only_then():
    weights = np.random.default_rng(4).uniform(0.1, 2, 14)

    def utility(mask):
        return float(np.sqrt(weights @ mask))

    loose = permutation(utility, 14, tolerance=0.05, max_permutations=4000)
    tight = permutation(utility, 14, tolerance=0.01, max_permutations=40000)
    for estimate, tolerance in ((loose, 0.05), (tight, 0.01)):
        assert estimate.converged
        assert estimate.standard_errors.max() <= tolerance * estimate.values.std()
    assert loose.permutations < tight.permutations
    hasty = permutation(utility, 14, tolerance=1e-4, max_permutations=300)
    assert not hasty.converged
    assert hasty.permutations == 280  # ten whole blocks of 2 x 14
    truth = exact(utility, 14, limit=14)
    # 14 players, t with at least 7 degrees of freedom: 6 standard errors are exceeded with
    # probability < 14 * 6e-4.
    assert np.all(np.abs(tight.values - truth) < 6 * tight.standard_errors + ROUNDING)


def test_equal_seeds_give_equal_results_and_others_do_not():
    game = lookup(generic(10, seed=6))
    one, same, other = (permutation(game, 10, max_permutations=60, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.values, same.values)
    np.testing.assert_array_equal(one.standard_errors, same.standard_errors)
    assert np.abs(one.values - other.values).max() > 0


def test_utility_may_scribble_on_its_mask():
    def utility(mask):
        size = float(mask.sum())
        mask[:] = True
        return size

    np.testing.assert_allclose(exact(utility, 4), np.ones(4), atol=ROUNDING)
    np.testing.assert_allclose(permutation(utility, 4).values, np.ones(4), atol=ROUNDING)


def test_single_player_gets_everything():
    assert exact([2.0, 5.0], 1).tolist() == [3.0]
    estimate = permutation(lookup(np.array([2.0, 5.0])), 1)
    assert estimate.values.tolist() == [3.0]
    assert (estimate.evaluations, estimate.converged) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_permutations": 11}, "two blocks of 2 x 3 permutations, max_permutations is 11"),
        ({"strata": 4}, "strata must be 1 to 3, got 4"),
        ({"strata": 0}, "strata must be 1 to 3, got 0"),
    ],
)
def test_impossible_sampling_plans_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        permutation(lambda mask: 0.0, 3, **options)


def test_sampling_names_the_coalition_whose_utility_is_not_finite():
    with pytest.raises(ValueError, match=r"coalition \[0, 1, 2\] is inf"):
        permutation(lambda mask: np.inf if mask.all() else 0.0, 3)
