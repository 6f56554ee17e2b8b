"""A store of somebody else is data: opening and asking it runs nothing and reads nothing else."""

import json

import duckdb
import numpy as np
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter, sql_text


@pytest.fixture
def path(tmp_path):
    with ValueWriter(tmp_path / "v", {"targets": ["o'brien"], "methods": ["path"]}) as writer:
        writer.terms(0, [1, 2], "o'brien", {"path": [1.0, 2.0]})
    return tmp_path / "v"


def alter(path, **entries):
    run = json.loads((path / "store.json").read_text()) | entries
    (path / "store.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd', sep=':', header=false)",
        "SELECT content FROM read_text('{outside}')",
        "SELECT content FROM read_text('{store}/../outside.txt')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM '{outside}'",
        "SELECT * FROM read_parquet('{store}/terms/*.parquet')",
        "SELECT (SELECT content FROM read_text('{store}/store.json')), * FROM terms",
        "WITH x AS (FROM glob('{store}/*')) FROM x",
        "SELECT * FROM ledger, query('FROM terms')",
        "FROM query_table('terms')",
        "FROM duckdb_settings()",
        """FROM "{store}/terms/x.parquet" """,
    ],
)
def test_question_reads_no_other_file(path, query):
    outside = path.parent / "outside.txt"
    outside.write_text("x")
    with ValueStore(path) as store, pytest.raises(StoreError, match="is none of them"):
        store.sql(query.format(outside=outside, store=path))


@pytest.mark.parametrize(
    "query",
    [
        "FROM read_text('{outside}')",
        "COPY (SELECT 1) TO '{outside}.copy'",
        "ATTACH '{outside}.db' AS x",
        "SET memory_limit = '100GB'",
        "INSTALL httpfs",
    ],
)
def test_behind_the_first_fence_duckdb_has_its_own(path, query, monkeypatch):
    outside = path.parent / "outside.txt"
    outside.write_text("x")
    monkeypatch.setattr("inrun.store.tables.tables_of", lambda connection, query: [])
    with ValueStore(path) as store, pytest.raises(duckdb.Error):
        store.sql(query.format(outside=outside))
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["outside.txt"]


def test_functions_that_read_nothing_and_descriptions_are_questions(path):
    with ValueStore(path) as store:
        assert len(store.sql("SELECT r.*, step FROM range(3) r, terms, unnest([1, 2])")) == 12
        assert "path" in store.sql("DESCRIBE terms")["column_name"].to_pylist()
        assert len(store.sql("SELECT unnest([1, 2])")) == 2


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO '{outside}'",
        "ATTACH '{outside}' AS x",
        "EXPORT DATABASE '{outside}'",
        "SET memory_limit = '100GB'",
        "INSTALL httpfs",
        "CREATE OR REPLACE VIEW terms AS SELECT 7 AS sample_id",
        "DROP VIEW terms",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY (SELECT 1) TO '{outside}'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}'",
        "",
    ],
)
def test_only_a_single_select_is_a_question(path, query):
    outside = path.parent / "outside"
    with ValueStore(path) as store:
        true = store.top(1).to_pylist()
        with pytest.raises(StoreError, match="answers one question, a single SELECT"):
            store.sql(query.format(outside=outside))
        assert store.top(1).to_pylist() == true
    assert not outside.exists()


def test_variables_of_the_program_are_no_tables(path):
    secret = {"a": [1]}  # noqa: F841
    with ValueStore(path) as store, pytest.raises(duckdb.CatalogException):
        store.sql("SELECT * FROM secret")


@pytest.mark.parametrize(
    "method", ["path\" AS DOUBLE)) AS v FROM terms; COPY (SELECT 1) TO '{outside}'; --", "Step", 3]
)
def test_method_that_could_be_no_column_is_refused_on_reading(path, method):
    outside = path.parent / "outside"
    alter(path, methods=["path", str(method).format(outside=outside) if method != 3 else 3])
    with pytest.raises(StoreError, match=r"store\.json is damaged: "):
        ValueStore(path)
    assert not outside.exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"schema_version": "1"}, "schema_version '1'"),
        ({"schema_version": None}, "schema_version None"),
        ({"schema_version": True}, "schema_version True"),
        ({"schema_version": 0}, "schema_version 0"),
        ({"methods": None}, "must list one or more different names"),
        ({"targets": "val"}, "must list one or more different names"),
        ({"sign": "positive value = raised the loss"}, "says of its values 'positive value = r"),
    ],
)
def test_altered_description_is_no_store(path, entries, message):
    alter(path, **entries)
    with pytest.raises(StoreError, match=message):
        ValueStore(path)


def test_name_with_an_apostrophe_is_a_literal(path):
    with ValueStore(path) as store:
        name = sql_text("o'brien")
        found = store.sql(f"SELECT count(*) AS n FROM terms WHERE target = {name}")
        assert found["n"].to_pylist() == [2]


def test_ids_past_int64_are_refused(tmp_path):
    ids = np.array([2**63 + 5], dtype=np.uint64)
    with (
        ValueWriter(tmp_path / "v", {"targets": ["val"], "methods": ["path"]}) as writer,
        pytest.raises(StoreError, match=r"are kept as int64, 9223372036854775813 is past 2\^63"),
    ):
        writer.terms(0, ids, "val", {"path": [1.0]})
