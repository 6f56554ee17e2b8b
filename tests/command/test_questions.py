"""What `inrun` answers is what the store says, as a table and as JSON."""

import csv
import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from inrun.command.app import app
from inrun.command.shown import cell, snippet
from inrun.plain_text import printable
from inrun.store import ValueStore
from tests.command.conftest import inrun


def asked(*arguments):
    """Output of a command that succeeds, in this process."""
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def lines(*arguments):
    return [json.loads(line) for line in asked(*arguments, "--json").splitlines()]


@pytest.fixture(scope="module")
def store(store_folder):
    with ValueStore(store_folder) as store:
        yield store


def plain(rows, target):
    """Rows as JSON has them."""
    return json.loads(json.dumps([{"target": target, **row} for row in rows.to_pylist()]))


def test_rankings_are_the_stores(store, store_folder):
    one = ("--target", "math", "--method", "path", "-k", 3)
    assert lines("top", store_folder, *one) == plain(store.top(3, "math", "path"), "math")
    assert lines("bottom", store_folder, *one) == plain(store.bottom(3, "math", "path"), "math")
    groups = plain(store.top(1, "math", "path", by="domain"), "math")
    assert lines("top", store_folder, *one[:4], "-k", 1, "--by", "domain") == groups


def test_all_targets_are_answered_where_none_is_chosen(store, store_folder):
    rows = lines("by", store_folder, "domain")
    method = store.methods[0]
    truth = [row for name in store.targets for row in plain(store.by("domain", name, method), name)]
    assert rows == truth


def test_courses_and_ledgers_are_the_stores(store, store_folder):
    rows = lines("over", store_folder, "--target", "val", "--bins", 4)
    assert rows == plain(store.over("step", 4, None, "val", store.methods[0]), "val")
    (row,) = lines("ledger", store_folder, "--target", "val", "--method", "path")
    assert row["drop"] == store.ledger("val", "path").drop
    assert len(lines("ledger", store_folder)) == 4


def test_a_table_is_for_people(store_folder):
    told = asked("top", store_folder, "--target", "val", "-k", 2)
    assert "target val" in told
    assert "sample_id" in told
    assert "doc_ids" not in told  # no room for lists


def test_sql_answers_one_question(store_folder):
    assert lines("sql", store_folder, "SELECT count(*) AS n FROM steps") == [{"n": 20}]
    refused = inrun("sql", store_folder, "DROP TABLE terms")
    assert refused.returncode == 1
    assert "single SELECT" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_is_no_run_is_said_in_words(tmp_path):
    refused = inrun("top", tmp_path)
    assert refused.returncode == 1
    assert "holds no values" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_export_holds_every_sample_of_every_target(store, store_folder, tmp_path, ending):
    path = tmp_path / f"values.{ending}"
    asked("export", store_folder, "-o", path, "--method", "path")
    if ending == "csv":
        with path.open(encoding="utf-8") as file:
            rows = [
                (r["target"], int(r["sample_id"]), float(r["value"])) for r in csv.DictReader(file)
            ]
    else:
        table = pq.read_table(path).to_pylist()
        rows = [(row["target"], row["sample_id"], row["value"]) for row in table]
    truth = [
        (name, row["sample_id"], row["value"])
        for name in store.targets
        for row in store.values(name, "path").to_pylist()
    ]
    assert rows == truth


def test_a_wrong_ending_is_asked_about(store_folder, tmp_path):
    done = CliRunner().invoke(app, ["export", str(store_folder), "-o", str(tmp_path / "x.xls")])
    assert done.exit_code == 2
    assert "--to csv" in done.output


def test_a_terminal_obeys_no_text():
    assert printable("a\x1b[31mb\nc") == "a.[31mb\nc"
    assert cell("two\nlines") == "two lines"
    assert snippet("x" * 100) == "x" * 59 + "…"
