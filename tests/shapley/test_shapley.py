"""Shapley values against their axioms, closed forms of known games, and enumeration of all orders
of joining.
"""

import itertools
import re
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from inrun.shapley import SIGN, exact, interactions, permutation, utilities

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


def test_worked_example_of_the_paper_with_the_sign_of_helpful():
    assert SIGN == "positive value = lowered the validation loss"
    np.testing.assert_allclose(exact([0, 0.3, -0.2, 0.4], 2), [0.45, -0.05], atol=1e-15)
    np.testing.assert_allclose(
        interactions([0, 0.3, -0.2, 0.4], 2), [[0, 0.3], [0.3, 0]], atol=1e-15
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_enumerated_coalitions_agree_with_all_orders_of_joining(n):
    table = generic(n, seed=n)
    np.testing.assert_allclose(exact(table, n), by_orders(table, n), atol=ROUNDING)


@fixed(max_examples=30)
@given(table=tables(5))
def test_values_sum_to_what_all_players_gain_together(table):
    np.testing.assert_allclose(exact(table, 5).sum(), table[-1] - table[0], atol=ROUNDING)


@fixed(max_examples=30)
@given(table=tables(4), alone=st.floats(-1, 1))
def test_player_that_adds_the_same_to_every_coalition_gets_just_that(table, alone):
    with_last = np.concatenate(
        [table, table + alone]
    )  # player 4 is the highest bit; alone = 0: a null player
    values = exact(with_last, 5)
    assert abs(values[4] - alone) < ROUNDING
    np.testing.assert_allclose(values[:4], exact(table, 4), atol=ROUNDING)


@fixed(max_examples=30)
@given(table=tables(5), swap=st.permutations(range(5)))
def test_renamed_players_keep_their_values_so_equal_players_get_equal_ones(table, swap):
    masks = np.arange(32)
    renamed = sum((masks >> i & 1) << swap[i] for i in range(5))
    np.testing.assert_allclose(exact(table[renamed], 5), exact(table, 5)[list(swap)], atol=ROUNDING)
    first_two_exchanged = (masks & ~3) | (masks & 1) << 1 | (masks & 2) >> 1
    values = exact(table + table[first_two_exchanged], 5)
    assert abs(values[0] - values[1]) < ROUNDING


@fixed(max_examples=30)
@given(one=tables(4), other=tables(4), factor=st.floats(-3, 3))
def test_values_of_added_games_add(one, other, factor):
    np.testing.assert_allclose(
        exact(one + factor * other, 4), exact(one, 4) + factor * exact(other, 4), atol=ROUNDING
    )


def test_glove_game_pays_the_only_left_glove():
    for rights in (
        2,
        5,
    ):  # player 0 has the left glove, a pair is worth 1: k/(k+1), and 1/(k(k+1)) for each right
        values = exact(lambda mask: float(mask[0] and mask[1:].any()), rights + 1)
        np.testing.assert_allclose(values[0], rights / (rights + 1), atol=ROUNDING)
        np.testing.assert_allclose(values[1:], 1 / (rights * (rights + 1)), atol=ROUNDING)


def test_airport_game_shares_each_piece_of_runway_among_those_who_need_it():
    costs = np.array([1.0, 2.5, 2.5, 4.0, 7.0, 11.0])
    pieces = np.diff(costs, prepend=0) / np.arange(len(costs), 0, -1)  # Littlechild & Owen 1973
    values = exact(lambda mask: costs[mask].max(initial=0), len(costs))
    np.testing.assert_allclose(values, np.cumsum(pieces), atol=ROUNDING * costs.max())


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


def test_quadratic_loss_has_the_second_order_closed_form():
    utility, values, pairs = quadratic_step(8, seed=1)
    np.testing.assert_allclose(exact(utility, 8), values, atol=ROUNDING)
    np.testing.assert_allclose(interactions(utility, 8), pairs, atol=ROUNDING)


def test_interaction_is_the_value_of_the_merged_pair_beyond_its_parts():
    # Grabisch & Roubens 1999: I_ij = value of the merged player - value of i without j - value of j
    # without i.
    n, table = 5, generic(5, seed=3)
    game, index = lookup(table), interactions(table, 5)
    for i, j in itertools.combinations(range(n), 2):
        rest = [k for k in range(n) if k not in (i, j)]

        def joined(mask, members, rest=rest):
            whole = np.zeros(n, dtype=bool)
            whole[rest] = mask[1:]
            whole[members] = mask[0]
            return game(whole)

        merged, only_i, only_j = (
            exact(lambda mask, members=members: joined(mask, members), n - 1)[0]
            for members in ([i, j], [i], [j])
        )
        np.testing.assert_allclose(index[i, j], merged - only_i - only_j, atol=ROUNDING)


def test_each_coalition_is_evaluated_exactly_once_and_tables_are_indexed_by_bits():
    met = []
    table = utilities(lambda mask: met.append(mask.copy()) or float(mask @ [1, 10, 100]), 3)
    assert len({mask.tobytes() for mask in met}) == len(met) == 8
    assert not met[0].any()
    np.testing.assert_array_equal(table, [0, 1, 10, 11, 100, 101, 110, 111])


@pytest.mark.parametrize(
    ("utility", "n", "message"),
    [
        (lambda mask: 0.0, 13, "more than the limit of 12 players"),
        (lambda mask: 0.0, 0, "one player or more"),
        ([0, 1, 2], 2, "each of 4 coalitions, got shape [3]"),
        ([0, 1, np.nan, 3], 2, "coalition [1] is nan"),
    ],
)
def test_games_that_cannot_be_enumerated_are_refused(utility, n, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        exact(utility, n)


def test_limit_can_be_raised_on_purpose():
    np.testing.assert_allclose(
        exact(lambda mask: float(mask.sum()), 13, limit=13), np.ones(13), atol=ROUNDING
    )


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
