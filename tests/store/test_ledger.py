"""The ledger of a run against plain sums: totals, and their course beside that of the values."""

import numpy as np
import pytest

from inrun.store import ValueStore
from tests.support.store_example import (
    METHODS,
    STEPS,
    TARGETS,
    ledger_row,
    truth,
)

# float32 values of one size add exactly in float64, so sums over a sample's rows are compared with
# ==. Sums over samples or of float64 rows depend on their order: 1e3 additions of numbers of size
# 10 at 1.1e-16 each.
ROUNDING = 1e-12
EACH = pytest.mark.parametrize(("target", "method"), [(t, m) for t in TARGETS for m in METHODS])


@pytest.mark.parametrize("bins", [1, 3, 7, 20, 50])
def test_time_course_sums_each_bin_and_divides_by_its_loss_drop(store, bins):
    answer = store.over("step", bins=bins, target="math", method="path").to_pylist()
    assert len(answer) == min(bins, STEPS)
    seen = []
    for row in answer:
        steps = range(row["first_step"], row["last_step"] + 1)
        seen += steps
        value, uses = truth("math", "path", steps)
        drop = sum(ledger_row(step, "math", "path")["drop"] for step in steps)
        assert row["uses"] == uses.sum()
        np.testing.assert_allclose(
            [row["value"], row["mean"], row["loss_drop"]],
            [value.sum(), value.sum() / uses.sum(), drop],
            atol=ROUNDING,
        )
        if drop > 0:
            np.testing.assert_allclose(
                row["value_per_drop"], value.sum() / drop, rtol=ROUNDING / drop
            )
        else:
            assert row["value_per_drop"] is None
    assert seen == list(range(STEPS))
    if bins in (7, 20):
        assert {row["value_per_drop"] is None for row in answer} == {
            True,
            False,
        }  # both cases were met


def test_time_course_by_domain_adds_up_to_the_one_without(store):
    whole = store.over(bins=5, target="val", method="path").to_pylist()
    parts = store.over(bins=5, by="domain", target="val", method="path").to_pylist()
    assert [row["domain"] for row in parts] == ["code", "noise", "wiki"] * 5
    for row in whole:
        mine = [part for part in parts if part["bin"] == row["bin"]]
        np.testing.assert_allclose(sum(part["value"] for part in mine), row["value"], atol=ROUNDING)
        assert sum(part["uses"] for part in mine) == row["uses"]
        assert {part["loss_drop"] for part in mine} == {row["loss_drop"]}


def test_time_course_per_drop_counts_only_the_steps_whose_drop_is_known(lone):
    for step in range(4):
        lone.terms(step, [1, 2], "val", {"path": [step + 1.0, 0.0]})
    row = ledger_row(2, "val", "path") | {"drop": 0.5}
    lone.ledger(row)
    lone.flush()
    with ValueStore(lone.path) as store:
        (row,) = store.over(bins=1).to_pylist()
        assert (row["value"], row["loss_drop"], row["value_per_drop"]) == (10.0, 0.5, 6.0)


def test_time_course_without_a_ledger_has_no_loss_drop(lone):
    lone.terms(5, [1], "val", {"path": [2.0]})
    lone.terms(9, [1], "val", {"path": [-1.0]})
    lone.flush()
    with ValueStore(lone.path) as store:
        rows = store.over(bins=2).to_pylist()
    assert [(row["first_step"], row["last_step"], row["value"]) for row in rows] == [
        (5, 7, 2.0),
        (8, 9, -1.0),
    ]
    assert {row["loss_drop"] for row in rows} == {row["value_per_drop"] for row in rows} == {None}


@EACH
def test_ledger_totals_balance(store, target, method):
    rows = [ledger_row(step, target, method) for step in range(STEPS)]
    total = {
        key: np.sum([row[key] for row in rows]) for key in ("drop", "drift", "values", "residual")
    }
    totals = store.ledger(target, method)
    assert totals.steps == STEPS
    for key, value in total.items():
        np.testing.assert_allclose(getattr(totals, key), value, atol=ROUNDING)
    np.testing.assert_allclose(
        totals.drop, totals.drift + totals.values + totals.residual, atol=ROUNDING
    )
    np.testing.assert_allclose(
        totals.gap, total["residual"] / total["drop"], rtol=ROUNDING / abs(total["drop"])
    )


def test_ledger_with_an_unmeasured_drift_gives_no_gap(lone):
    lone.ledger(ledger_row(0, "val", "path"))
    lone.ledger(ledger_row(1, "val", "path") | {"drift": None})
    lone.flush()
    with ValueStore(lone.path) as store:
        totals = store.ledger()
    assert (totals.drift, totals.gap) == (None, None)
    assert totals.residual is not None
