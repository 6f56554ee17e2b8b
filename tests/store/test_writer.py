"""What the writer of a value store accepts, what it leaves on disk, and what it refuses."""

import json

import numpy as np
import pyarrow as pa
import pytest

from inrun.shapley import SIGN
from inrun.store import SCHEMA_VERSION, StoreError, ValueStore, ValueWriter
from tests.support.store_example import (
    METHODS,
    RUN,
    SAMPLES,
    TARGETS,
    ledger_row,
    steps_row,
    terms,
    token_values,
    write_step,
)

ONE = {"targets": ["val"], "methods": ["path"]}


def parts(store, table="terms"):
    return sorted(path.name for path in (store / table).iterdir())


def test_every_row_comes_back_as_it_was_written(tmp_path):
    with ValueWriter(tmp_path / "values", RUN, flush_every=4) as writer:
        writer.samples(SAMPLES)
        for step in range(10):
            write_step(writer, step)
    with ValueStore(tmp_path / "values") as store:
        rows = store.sql("SELECT * FROM terms").to_pylist()
        expected = [
            {"step": step, "sample_id": int(i), "target": target}
            | {method: float(values[target][method][n]) for method in METHODS}
            for step in range(10)
            for ids, values in [terms(step)]
            for target in TARGETS
            for n, i in enumerate(ids)
        ]
        assert rows == expected
        assert store.sql("SELECT * FROM ledger").to_pylist() == [
            ledger_row(step, target, method, ranks=1)
            for step in range(10)
            for target in TARGETS
            for method in METHODS
        ]
        assert store.sql("SELECT * FROM steps").to_pylist() == [
            steps_row(step, ranks=1) for step in range(10)
        ]
        assert store.sql("SELECT values FROM tokens")["values"].to_pylist() == [
            row.tolist() for step in range(10) for row in token_values(step)
        ]
        assert store.sql("SELECT * FROM samples").equals(SAMPLES)


def test_run_file_says_what_the_numbers_mean(tmp_path):
    ValueWriter(
        tmp_path, RUN | {"git_revision": "abc", "attribution": {"credit": "immediate"}}
    ).close()
    run = json.loads((tmp_path / "store.json").read_text())
    assert run["schema_version"] == SCHEMA_VERSION
    assert run["sign"] == SIGN
    assert (run["targets"], run["methods"], run["corpus_digest"]) == (TARGETS, METHODS, "c0ffee")
    assert (run["config"], run["git_revision"]) == ({"optim": {"lr": 0.1}}, "abc")
    assert run["attribution"] == {"credit": "immediate"}
    assert run["packages"]["pyarrow"] == pa.__version__
    assert run["created"].endswith("+00:00")


def test_rank_without_samples_in_a_step_writes_nothing(tmp_path):
    with ValueWriter(tmp_path, ONE) as writer:
        writer.terms(0, [], "val", {"path": []})
        writer.tokens(0, [], "val", "path", [])
    assert not (tmp_path / "terms").exists()


def test_store_that_exists_is_not_begun_again(tmp_path):
    ValueWriter(tmp_path / "values", RUN).close()
    with pytest.raises(
        StoreError, match=r"ValueWriter\.resume\(path, run, step\), or choose another path"
    ):
        ValueWriter(tmp_path / "values", RUN)
    with pytest.raises(StoreError, match="neither empty nor a value store"):
        ValueWriter(tmp_path, RUN)


def test_writer_killed_before_its_run_file_was_whole_can_begin_again(tmp_path):
    ValueWriter(tmp_path, RUN).close()
    (tmp_path / "store.json").rename(tmp_path / "store.json.partial")
    ValueWriter(tmp_path, RUN).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "store.json"]
    ValueStore(tmp_path).close()


def test_other_ranks_need_rank_zero_first_and_the_same_run(tmp_path):
    with pytest.raises(StoreError, match="rank 0 opens it first"):
        ValueWriter(tmp_path, RUN, rank=1, ranks=2)
    ValueWriter(tmp_path, RUN, ranks=2).close()
    with pytest.raises(StoreError, match=r"opened .* for 2 ranks, this one is of 3"):
        ValueWriter(tmp_path, RUN, rank=1, ranks=3)
    with pytest.raises(StoreError, match="rank one of the 1 ranks, got 200 and 1"):
        ValueWriter(tmp_path, RUN, rank=1)
    with pytest.raises(StoreError, match="corpus_digest: stored 'c0ffee', now 'beef'"):
        ValueWriter(tmp_path, RUN | {"corpus_digest": "beef"}, rank=1, ranks=2)
    with ValueWriter(tmp_path, RUN, rank=1, ranks=2) as writer:
        write_step(writer, 0)
        with pytest.raises(
            StoreError, match="steps belongs to the whole step and is written by rank 0"
        ):
            writer.steps(steps_row(0))
        with pytest.raises(StoreError, match="samples belongs to the whole step"):
            writer.samples(SAMPLES)
    with pytest.raises(StoreError, match="already holds parts of rank 1"):
        ValueWriter(tmp_path, RUN, rank=1, ranks=2)


def test_step_written_twice_is_an_error_in_every_table(tmp_path):
    with ValueWriter(tmp_path, RUN) as writer:
        write_step(writer, 3)
        ids, values = terms(3)
        for again in (
            lambda: writer.terms(3, ids, "val", values["val"]),
            lambda: writer.terms(2, ids, "val", values["val"]),
            lambda: writer.tokens(3, ids, "val", "path", token_values(3)),
            lambda: writer.ledger(ledger_row(3, "val", "path")),
            lambda: writer.steps(steps_row(3)),
        ):
            with pytest.raises(StoreError, match="written before, or out of order"):
                again()
        writer.tokens(
            3, ids, "val", "first_order", token_values(3)
        )  # another method of the same step is no repetition
        write_step(writer, 4)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"targets": ["val"]}, r"run\['methods'\] must list one or more"),
        ({"targets": "val", "methods": ["path"]}, r"run\['targets'\] must list"),
        ({"targets": ["a", "a"], "methods": ["path"]}, "different names"),
        ({"targets": ["val"], "methods": ["second-order"]}, "letters, digits and _"),
        ({"targets": ["val"], "methods": ["step"]}, "method names become columns"),
        (ONE | {"digest": "x"}, r"unknown keys in the run's description: \['digest'\]"),
        (ONE | {"config": {"model": object()}}, "cannot be written as JSON"),
    ],
)
def test_run_that_does_not_say_what_it_measures_is_refused(tmp_path, run, message):
    with pytest.raises(StoreError, match=message):
        ValueWriter(tmp_path / "values", run)
    assert not (tmp_path / "values").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda w: w.terms(0, [1, 2], "val", {"paths": [0, 0]}),
            r"columns \['paths'\], but the run's methods are",
        ),
        (
            lambda w: w.terms(0, [1, 2], "test", {"path": [0, 0]}),
            r"unknown target 'test'; the run's are \['val'\]",
        ),
        (
            lambda w: w.terms(0, [1, 2], "val", {"path": [0, 0, 0]}),
            r"2 sample ids but values of shape \[3\]",
        ),
        (
            lambda w: w.terms(0, [1, 7], "val", {"path": [0, np.nan]}),
            "value of sample 7 is not finite",
        ),
        (
            lambda w: w.terms(0, [1, 7], "val", {"path": [0, 1e300]}),
            "value of sample 7 is not finite in float32",
        ),
        (lambda w: w.terms(0, [0.5], "val", {"path": [0]}), "sample ids must be integers"),
        (lambda w: w.terms(-1, [1], "val", {"path": [0]}), "begins at step 0"),
        (lambda w: w.tokens(0, [1], "val", "paths", [[0.0]]), "unknown method 'paths'"),
        (lambda w: w.tokens(0, [1, 2], "val", "path", [[0.0]]), "2 sample ids but 1 arrays"),
        (
            lambda w: w.tokens(0, [1, 7], "val", "path", [[0.0], [np.inf]]),
            "value of sample 7 is not finite",
        ),
        (
            lambda w: w.steps({"step": 0, "lr": 0.1}),
            r"lacks \['clip', 'loss', 'seconds', 'tokens', 'samples'\]",
        ),
        (
            lambda w: w.steps(steps_row(0) | {"lr": "high"}),
            "steps row of step 0: .*high.*Give plain numbers",
        ),
        (lambda w: w.steps(steps_row(0) | {"step": None}), r"\['step'\] must not be None"),
        (lambda w: w.ledger({"step": 0}), "a row of the ledger has the columns"),
        (
            lambda w: w.ledger(ledger_row(0, "val", "path") | {"drop": np.nan}),
            r"\['drop'\] not finite",
        ),
        (
            lambda w: w.ledger(ledger_row(0, "val", "path") | {"drop": None}),
            r"\['drop'\] must not be None",
        ),
        (lambda w: w.ledger(ledger_row(0, "val", "first_order")), "unknown method 'first_order'"),
        (lambda w: w.samples(pa.table({"chunk_id": [1]})), "needs an integer column sample_id"),
        (lambda w: w.samples(pa.table({"sample_id": [1, 1]})), "null or repeated sample_id"),
        (
            lambda w: w.samples(pa.table({"sample_id": [1], "value": [2]})),
            r"\['value'\] would hide the store's own",
        ),
    ],
)
def test_rows_that_would_mislead_are_refused_and_leave_no_trace(tmp_path, call, message):
    with ValueWriter(tmp_path, ONE) as writer, pytest.raises(StoreError, match=message):
        call(writer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "store.json"]
    with ValueStore(tmp_path) as store:
        assert store.verify().parts == 0


def test_columns_of_steps_are_fixed_by_the_first_row(tmp_path):
    with ValueWriter(tmp_path, RUN) as writer:
        writer.steps(steps_row(0))
        changed = steps_row(1) | {"loss_val": 1.0}
        del changed["grad_norm"]
        with pytest.raises(
            StoreError, match=r"unknown columns \['loss_val'\], missing columns \['grad_norm'\]"
        ):
            writer.steps(changed)
    with (
        ValueWriter.resume(tmp_path, RUN, step=1) as writer,
        pytest.raises(StoreError, match="unknown columns"),
    ):
        writer.steps(changed)


def test_samples_may_be_said_again_but_not_changed(tmp_path):
    with ValueWriter(tmp_path, RUN) as writer:
        writer.samples(SAMPLES)
        writer.samples(SAMPLES)
        with pytest.raises(StoreError, match="holds other samples than these"):
            writer.samples(SAMPLES.slice(1))
