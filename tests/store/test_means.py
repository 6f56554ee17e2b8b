"""Means per use against plain numpy, and values of exactly zero, which are not negative."""

import numpy as np
import pyarrow as pa
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter
from tests.support.store_example import METHODS, RANKS, STEPS, TARGETS, terms

HALF_ULP = 2.0**-24  # of a float32

EACH = pytest.mark.parametrize(("target", "method"), [(t, m) for t in TARGETS for m in METHODS])
WINDOWS = pytest.mark.parametrize(
    ("first", "before"), [(0, None), (1, None), (7, None), (0, 1), (3, 12), (19, 20)]
)


def rows(target, method, first, before):
    """(sample_id, value, size of its step) of every row, step by step, all ranks."""
    for step in range(first, STEPS if before is None else before):
        of_ranks = [terms(step, rank) for rank in range(RANKS)]
        ids = np.concatenate([ids for ids, _ in of_ranks])
        values = np.concatenate([values[target][method] for _, values in of_ranks])
        values = values.astype(np.float64)
        yield from zip(ids, values, np.full(len(ids), np.sqrt(np.mean(values**2))))


@EACH
@WINDOWS
def test_mean_is_over_the_uses_of_a_window_of_steps(store, target, method, first, before):
    sums, uses = np.zeros(40), np.zeros(40, int)
    for sample, value, _ in rows(target, method, first, before):
        sums[sample] += value
        uses[sample] += 1
    answer = store.means(target, method, first, before)
    used = np.flatnonzero(uses)
    assert answer["sample_id"].to_pylist() == used.tolist()
    np.testing.assert_array_equal(answer["uses"], uses[used])
    np.testing.assert_array_equal(answer["value"], sums[used] / uses[used])  # exact sums


@EACH
@WINDOWS
def test_mean_in_units_of_the_step_weighs_every_step_the_same(store, target, method, first, before):
    sums, sizes, uses = np.zeros(40), np.zeros(40), np.zeros(40, int)
    for sample, value, size in rows(target, method, first, before):
        sums[sample] += value / size
        sizes[sample] += abs(value / size)
        uses[sample] += 1
    answer = store.means(target, method, first, before, unit="step")
    used = np.flatnonzero(uses)
    assert answer["sample_id"].to_pylist() == used.tolist()
    # the step's size and each quotient are rounded to float32
    error = np.abs(answer["value"].to_numpy() - sums[used] / uses[used])
    assert (error <= 2.001 * HALF_ULP * sizes[used] / uses[used]).all()


def test_step_without_any_value_counts_as_a_use_of_worth_nothing(lone):
    lone.terms(0, [1, 2], "val", {"path": [0.0, 0.0]})
    lone.terms(1, [1, 2], "val", {"path": [3.0, -3.0]})
    lone.flush()
    with ValueStore(lone.path) as store:
        assert store.means(unit="step")["value"].to_pylist() == [0.5, -0.5]
        with pytest.raises(StoreError, match="unit must be 'loss' or 'step', got 'nats'"):
            store.means(unit="nats")


def test_tiny_and_huge_values_keep_their_size(lone):
    """Squares of these are no float32."""
    for step, size in enumerate((1e-30, 1e30)):
        lone.terms(step, [1, 2], "val", {"path": [size, -size]})
    lone.flush()
    with ValueStore(lone.path) as store:
        assert store.means(unit="step")["value"].to_pylist() == [1.0, -1.0]


def test_value_of_exactly_zero_is_not_negative(tmp_path):
    with ValueWriter(tmp_path, {"targets": ["val"], "methods": ["path"]}) as writer:
        writer.samples(pa.table({"sample_id": [1, 2, 3, 4], "domain": ["a", "a", "a", "b"]}))
        writer.terms(0, [1, 2, 3, 4], "val", {"path": [0.0, -1.0, 1.0, 0.0]})
        writer.terms(1, [2], "val", {"path": [1.0]})  # -1 + 1: also zero
    with ValueStore(tmp_path) as store:
        assert store.by("domain").select(["domain", "negative", "value"]).to_pylist() == [
            {"domain": "a", "negative": 0.0, "value": 1.0},
            {"domain": "b", "negative": 0.0, "value": 0.0},
        ]
        assert store.negative_share() == 0.0
