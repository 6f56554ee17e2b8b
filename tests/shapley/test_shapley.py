"""Shapley values against their axioms, closed forms of known games, and enumeration of all orders
of joining.
"""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inrun.shapley import SIGN, exact, interactions, utilities
from tests.support.games import ROUNDING, by_orders, fixed, generic, lookup, quadratic_step, tables


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
