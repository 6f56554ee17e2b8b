"""Answers of the value store against plain numpy sums, and its errors."""

import json
import re

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter
from tests.support.store_example import (
    METHODS,
    RUN,
    SAMPLES,
    TARGETS,
    ledger_row,
    terms,
    token_values,
    write_step,
)

STEPS, RANKS = 20, 2
# float32 values of one size add exactly in float64, so sums over a sample's rows are compared with
# ==. Sums over samples or of float64 rows depend on their order: 1e3 additions of numbers of size
# 10 at 1.1e-16 each.
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    # Folder names as Hydra makes them: nothing in them may be taken for a wildcard or a partition.
    path = tmp_path_factory.mktemp("it's") / "lr=0.1" / "seed=[1]*?" / "values"
    writers = [ValueWriter(path, RUN, rank=rank, flush_every=4) for rank in range(RANKS)]
    writers[0].samples(SAMPLES)
    for step in range(STEPS):
        for writer in writers:
            write_step(writer, step)
    for writer in writers:
        writer.close()
    return path


@pytest.fixture(scope="module")
def store(path):
    with ValueStore(path) as store:
        yield store


@pytest.fixture
def lone(tmp_path):
    """A store of one target and one method, to be filled by the test."""
    with ValueWriter(tmp_path / "lone", {"targets": ["val"], "methods": ["path"]}) as writer:
        yield writer


def truth(target, method, steps=range(STEPS)):
    """Sum of values and number of uses of all 40 samples, in float64."""
    value, uses = np.zeros(40), np.zeros(40, dtype=int)
    for step in steps:
        for rank in range(RANKS):
            ids, values = terms(step, rank)
            np.add.at(value, ids, values[target][method].astype(np.float64))
            np.add.at(uses, ids, 1)
    return value, uses


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
    books = store.ledger(target, method)
    assert books.steps == STEPS
    for key, value in total.items():
        np.testing.assert_allclose(getattr(books, key), value, atol=ROUNDING)
    np.testing.assert_allclose(
        books.drop, books.drift + books.values + books.residual, atol=ROUNDING
    )
    np.testing.assert_allclose(
        books.gap, total["residual"] / total["drop"], rtol=ROUNDING / abs(total["drop"])
    )


def test_ledger_with_an_unmeasured_drift_gives_no_gap(lone):
    lone.ledger(ledger_row(0, "val", "path"))
    lone.ledger(ledger_row(1, "val", "path") | {"drift": None})
    lone.flush()
    with ValueStore(lone.path) as store:
        books = store.ledger()
    assert (books.drift, books.gap) == (None, None)
    assert books.residual is not None


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


def test_missing_tables_are_named(lone):
    lone.terms(0, [1], "val", {"path": [1.0]})
    lone.flush()
    with ValueStore(lone.path) as store:
        for ask, table in ((store.ledger, "ledger"), (lambda: store.by("domain"), "samples")):
            with pytest.raises(
                StoreError, match=f"has no table '{table}': its run has written none"
            ):
                ask()
        with pytest.raises(StoreError, match="has no table 'tokens'"):
            store.sql("SELECT * FROM tokens")


def test_folders_that_are_no_store_are_told_apart(tmp_path):
    for make, message in (
        (lambda: None, "does not exist or is no folder"),
        (lambda: (tmp_path / "s").mkdir(), "is no value store: it has no store.json"),
        (
            lambda: (tmp_path / "s" / "store.json.partial").touch(),
            "was left before its store.json was whole",
        ),
        (lambda: (tmp_path / "s" / "terms").mkdir(), "has tables but no store.json"),
        (lambda: (tmp_path / "s" / "store.json").write_text('{"schema'), "store.json is damaged"),
        (lambda: (tmp_path / "s" / "store.json").write_text("{}"), "store.json is damaged"),
    ):
        make()
        with pytest.raises(StoreError, match=message):
            ValueStore(tmp_path / "s")


def test_store_whose_file_has_its_former_name_is_told_what_to_do(lone):
    (lone.path / "store.json").rename(lone.path / "run.json")
    message = r"value store of an older inrun.*Next: rename .*run.json to store.json"
    for ask in (
        lambda: ValueStore(lone.path),
        lambda: ValueWriter(lone.path, RUN),
        lambda: ValueWriter.resume(lone.path, RUN, 0),
    ):
        with pytest.raises(StoreError, match=message):
            ask()
    (lone.path / "run.json").rename(lone.path / "store.json")
    ValueStore(lone.path).close()


def test_folder_of_a_run_points_to_its_store(tmp_path):
    ValueWriter(tmp_path / "values", RUN).close()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StoreError, match=r"no value store: .* Open .*values\."):
        ValueStore(tmp_path)


def test_store_with_only_a_half_written_part_says_so(lone):
    (lone.path / "terms").mkdir()
    (lone.path / "terms" / "rank0000-000000000-000000199.parquet.partial").write_bytes(b"PAR1")
    with (
        ValueStore(lone.path) as store,
        pytest.raises(StoreError, match="no whole part of terms yet, only one in writing"),
    ):
        store.values()


def test_store_of_a_newer_schema_is_not_guessed_at(lone):
    run = json.loads((lone.path / "store.json").read_text())
    (lone.path / "store.json").write_text(json.dumps(run | {"schema_version": 2}))
    with pytest.raises(StoreError, match="schema version 2, this code reads up to 1"):
        ValueStore(lone.path)


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten"])
def test_damaged_part_is_named_with_what_to_do(tmp_path, damage):
    with ValueWriter(tmp_path, RUN, flush_every=4) as writer:
        for step in range(12):
            write_step(writer, step)
    part = tmp_path / "terms" / "rank0000-000000004-000000007.parquet"
    content = part.read_bytes()
    part.write_bytes(
        {
            "cut": content[:-30],
            "emptied": b"",
            "overwritten": content[:4] + b"\xff" * 2000 + content[2004:],
        }[damage]
    )
    with ValueStore(tmp_path) as store:
        for ask in (lambda: store.values("val", "path"), store.verify):
            with pytest.raises(
                StoreError,
                match=r"000000004-000000007\.parquet is damaged .*checkpoint of step 4 or earlier",
            ):
                ask()


def test_verify_finds_a_single_flipped_bit(tmp_path):
    with ValueWriter(tmp_path, RUN) as writer:
        writer.samples(SAMPLES)
        for step in range(50):
            write_step(writer, step)
    with ValueStore(tmp_path) as store:
        assert store.verify() == 5
        part = next((tmp_path / "terms").iterdir())
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
        with pytest.raises(StoreError, match="is damaged"):
            store.verify()
