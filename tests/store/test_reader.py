"""Answers of the value store against plain numpy sums, and its errors."""

import re

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter
from tests.support.store_example import (
    METHODS,
    RANKS,
    SAMPLES,
    STEPS,
    TARGETS,
    token_values,
    truth,
)

# float32 values of one size add exactly in float64, so sums over a sample's rows are compared with
# ==. Sums over samples or of float64 rows depend on their order: 1e3 additions of numbers of size
# 10 at 1.1e-16 each.
ROUNDING = 1e-12


domains = np.array(SAMPLES["domain"].to_pylist())
EACH = pytest.mark.parametrize(("target", "method"), [(t, m) for t in TARGETS for m in METHODS])


@EACH
def test_values_are_the_sums_over_steps_and_ranks(store, target, method):
    value, uses = truth(target, method)
    assert uses.min() > 0
    answer = store.values(target, method)
    assert answer.column_names == ["sample_id", "value", "uses", "domain", "kind", "doc_ids"]
    assert answer["sample_id"].to_pylist() == list(range(40))
    np.testing.assert_array_equal(answer["value"], value)
    np.testing.assert_array_equal(answer["uses"], uses)
    assert answer.drop_columns(["value", "uses"]).equals(SAMPLES)


@EACH
def test_top_and_bottom_are_the_ends_of_the_ranking(store, target, method):
    value, _ = truth(target, method)
    assert store.top(5, target, method)["sample_id"].to_pylist() == np.argsort(-value)[:5].tolist()
    assert (
        store.bottom(5, target, method)["sample_id"].to_pylist() == np.argsort(value)[:5].tolist()
    )
    assert len(store.top(1000, target, method)) == 40
    assert store.top(3, target, method).schema.equals(store.values(target, method).schema)


def test_top_of_each_group(store):
    value, _ = truth("val", "path")
    answer = store.top(3, "val", "path", by="domain")
    expected = []
    for domain in sorted(set(domains)):
        members = np.flatnonzero(domains == domain)
        expected += members[np.argsort(-value[members])][:3].tolist()
    assert answer["sample_id"].to_pylist() == expected
    worst = store.bottom(1, "val", "path", by="domain")["sample_id"].to_pylist()
    assert worst == [
        min(np.flatnonzero(domains == d), key=lambda i: value[i]) for d in sorted(set(domains))
    ]


@EACH
def test_groups_are_summed_counted_and_ordered(store, target, method):
    value, _ = truth(target, method)
    expected = {d: value[domains == d] for d in set(domains)}
    answer = store.by("domain", target, method)
    assert answer["domain"].to_pylist() == sorted(expected, key=lambda d: -expected[d].sum())
    for row in answer.to_pylist():
        values = expected[row["domain"]]
        assert row["chunks"] == len(values)
        assert row["negative"] == np.mean(values < 0)
        np.testing.assert_allclose(
            [row["value"], row["mean"]], [values.sum(), values.mean()], atol=ROUNDING
        )
    assert store.negative_share(target, method) == np.mean(value < 0)


def test_sql_sees_all_tables_and_the_values_in_long_form(store):
    value, uses = truth("math", "path")
    answer = store.sql(
        "SELECT * FROM values WHERE target = 'math' AND method = 'path' ORDER BY sample_id"
    )
    assert answer.column_names == ["sample_id", "target", "method", "value", "uses"]
    np.testing.assert_array_equal(answer["value"], value)
    np.testing.assert_array_equal(answer["uses"], uses)
    assert len(store.sql("FROM values")) == 40 * len(TARGETS) * len(METHODS)
    tokens = store.sql("SELECT sum(list_sum(values)::DOUBLE) AS total FROM tokens")["total"][
        0
    ].as_py()
    expected = sum(
        row.sum(dtype=float)
        for s in range(STEPS)
        for r in range(RANKS)
        for row in token_values(s, r)
    )
    # list_sum adds up to three float32 of size 1 per row, 240 rows.
    np.testing.assert_allclose(tokens, expected, atol=240 * 3 * 2**-23)
    assert store.sql("SELECT count(*) AS n FROM steps JOIN ledger USING (step)")[
        "n"
    ].to_pylist() == [STEPS * 4]


def test_path_with_wildcards_and_equal_signs_adds_no_columns(store):
    assert store.sql("FROM terms LIMIT 0").column_names == ["step", "sample_id", "target", *METHODS]


def test_ties_are_ordered_by_sample_id_whatever_the_number_of_threads(lone):
    rng = np.random.default_rng(0)
    shares = rng.integers(-8, 8, size=(6, 50)).astype(
        np.float32
    )  # many equal sums, rows in another order at each step
    for step, share in enumerate(shares):
        order = rng.permutation(50)
        lone.terms(step, order, "val", {"path": share[order]})
        lone.flush()
    value = shares.sum(0)
    for threads in (1, 3):
        with ValueStore(lone.path, threads=threads) as store:
            ranking = store.top(50)
            assert ranking["sample_id"].to_pylist() == sorted(
                range(50), key=lambda i: (-value[i], i)
            )
            assert store.bottom(50)["sample_id"].to_pylist() == sorted(
                range(50), key=lambda i: (value[i], i)
            )


def test_value_of_exactly_zero_is_not_negative(tmp_path):
    """A sample whose steps cancel did no harm, nor did one without effect."""
    with ValueWriter(tmp_path, {"targets": ["val"], "methods": ["path"]}) as writer:
        ids = np.arange(4)
        writer.samples(pa.table({"sample_id": ids, "domain": ["a"] * 4}))
        writer.terms(0, ids, "val", {"path": [0.5, -0.0, -0.25, 1.0]})
        writer.terms(1, ids, "val", {"path": [-0.5, 0.0, 0.0, 1.0]})
    with ValueStore(tmp_path) as store:
        assert store.by("domain").to_pylist()[0]["negative"] == 0.25
        assert store.negative_share() == 0.25


def test_small_shares_of_many_steps_are_not_lost(lone):
    # In float32 the sum would stop at 2^24: 16777216 + 1 = 16777216.
    lone.terms(0, [7], "val", {"path": [2.0**24]})
    for step in range(1, 65):
        lone.terms(step, [7], "val", {"path": [1.0]})
    lone.flush()
    with ValueStore(lone.path) as store:
        assert store.values()["value"].to_pylist() == [2**24 + 64]


def test_store_is_read_while_its_writer_is_alive(lone):
    with ValueStore(lone.path) as store:
        lone.terms(0, [1], "val", {"path": [1.0]})
        with pytest.raises(StoreError, match="has no values yet: its run has not flushed"):
            store.values()
        lone.flush()
        assert store.values().to_pylist() == [{"sample_id": 1, "value": 1.0, "uses": 1}]
        lone.terms(1, [1], "val", {"path": [2.0]})
        lone.samples(pa.table({"sample_id": [1, 2], "domain": ["a", "b"]}))
        assert store.values().to_pylist() == [
            {"sample_id": 1, "value": 1.0, "uses": 1, "domain": "a"}
        ]
        lone.flush()
        assert store.values()["value"].to_pylist() == [3.0]


def test_sample_without_a_description_keeps_its_value(lone):
    lone.samples(pa.table({"sample_id": [1], "domain": ["a"]}))
    lone.terms(0, [1, 2], "val", {"path": [1.0, 2.0]})
    lone.flush()
    with ValueStore(lone.path) as store:
        assert store.top(1).to_pylist() == [
            {"sample_id": 2, "value": 2.0, "uses": 1, "domain": None}
        ]
        assert [(row["domain"], row["value"]) for row in store.by("domain").to_pylist()] == [
            (None, 2.0),
            ("a", 1.0),
        ]


def test_sums_of_more_samples_than_memory_holds(tmp_path):
    n, steps = 1_000_000, 2
    with ValueWriter(tmp_path, {"targets": ["val"], "methods": ["path"]}, flush_every=1) as writer:
        for step in range(steps):
            ids = np.random.default_rng(step).permutation(n)
            writer.terms(step, ids, "val", {"path": (ids % 1000) * (step + 1.0)})
    with ValueStore(
        tmp_path, threads=1, memory="60MB"
    ) as store:  # more than 100 MB without spilling
        total = store.sql("SELECT count(*) AS n, sum(value) AS total FROM values").to_pylist()
        assert total == [{"n": n, "total": 3.0 * n * 499.5}]
        assert store.bottom(2).to_pylist() == [
            {"sample_id": i, "value": 0.0, "uses": 2} for i in (0, 1000)
        ]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.values(), "several targets, choose target= one of ['val', 'math']"),
        (
            lambda s: s.values("val"),
            "several methods, choose method= one of ['first_order', 'path']",
        ),
        (
            lambda s: s.values("test", "path"),
            "unknown target 'test'; the run's are ['val', 'math']",
        ),
        (lambda s: s.ledger("val", "second_order"), "unknown method 'second_order'"),
        (
            lambda s: s.by("corpus", "val", "path"),
            "no column 'corpus'; they have ['domain', 'kind', 'doc_ids']",
        ),
        (lambda s: s.top(0, "val", "path"), "k must be 1 or more"),
        (lambda s: s.over(bins=0, target="val", method="path"), "bins must be 1 or more"),
        (
            lambda s: s.over("loss", target="val", method="path"),
            "runs over 'step', not over 'loss'",
        ),
    ],
)
def test_questions_that_have_no_answer_are_refused(store, ask, message):
    with pytest.raises(StoreError, match=re.escape(message)):
        ask(store)


def test_errors_of_a_query_are_duckdbs_own(store):
    with pytest.raises(duckdb.BinderException, match="nonsense"):
        store.sql("SELECT nonsense FROM terms")
    with pytest.raises(duckdb.CatalogException, match="nowhere"):
        store.sql("SELECT * FROM nowhere")
