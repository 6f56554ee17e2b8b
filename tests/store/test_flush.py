"""When rows become parts, and what a flush that fails leaves."""

import threading

import pyarrow.parquet as pq
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter
from tests.support.store_example import (
    RUN,
    terms,
    write_step,
)


def parts(store, table="terms"):
    return sorted(path.name for path in (store / table).iterdir())


def test_parts_are_named_after_their_first_and_last_step(tmp_path):
    with ValueWriter(tmp_path, RUN, flush_every=4) as writer:
        for step in range(10):
            write_step(writer, step)
    for table in ("terms", "steps", "ledger", "tokens"):
        assert [name.rpartition("-")[0] for name in parts(tmp_path, table)] == [
            "rank0000-000000000-000000003",
            "rank0000-000000004-000000007",
            "rank0000-000000008-000000009",
        ]
        for path in (tmp_path / table).iterdir():
            first, last = (int(number) for number in path.stem.split("-")[1:3])
            steps = pq.read_table(path)["step"].to_numpy()
            assert (steps.min(), steps.max()) == (first, last)
            assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_step_flushed_in_two_halves_is_whole(tmp_path):
    with ValueWriter(tmp_path, RUN) as writer:
        ids, values = terms(0)
        writer.terms(0, ids, "val", values["val"])
        writer.flush()
        with ValueStore(tmp_path) as store:
            assert len(store.sql("FROM terms")) == 6
            writer.terms(0, ids, "math", values["math"])
            writer.flush()
            assert len(store.sql("FROM terms")) == 12
        writer.flush()
    assert [name.rpartition("-")[0] for name in parts(tmp_path)] == [
        "rank0000-000000000-000000000"
    ] * 2


def test_rows_of_an_open_step_are_kept_when_the_body_fails(tmp_path):
    def fail_after_a_step():
        with ValueWriter(tmp_path, RUN) as writer:
            write_step(writer, 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_step()
    with ValueStore(tmp_path) as store:
        assert len(store.sql("FROM terms")) == 12


def test_closed_writer_refuses_more(tmp_path):
    writer = ValueWriter(tmp_path, RUN)
    writer.close()
    writer.close()
    with pytest.raises(StoreError, match="is closed"):
        write_step(writer, 0)


def test_failed_flush_is_not_repeated_by_closing(tmp_path, monkeypatch):
    writer = ValueWriter(tmp_path, RUN)
    write_step(writer, 0)

    def disk_full(*args, **options):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", disk_full)
        with pytest.raises(OSError, match="No space left"):
            writer.flush()
    writer.close()
    assert not list(tmp_path.glob("*/*.parquet"))
    with pytest.raises(StoreError, match=r"a flush of .* failed before"):
        write_step(writer, 1)


def test_parts_are_written_while_the_next_steps_go_on(tmp_path, monkeypatch):
    written, go_on = threading.Event(), threading.Event()

    def slow(*args, original=pq.write_table, **options):
        assert go_on.wait(60)
        original(*args, **options)
        written.set()

    writer = ValueWriter(tmp_path, RUN, flush_every=2)
    monkeypatch.setattr(pq, "write_table", slow)
    for step in range(4):  # the flush of steps 0 and 1 is due at step 2
        write_step(writer, step)
    assert not written.is_set()
    go_on.set()
    writer.close()
    with ValueStore(tmp_path) as store:
        assert sorted(set(store.sql("SELECT step FROM terms")["step"].to_pylist())) == [0, 1, 2, 3]


def test_flush_that_failed_meanwhile_is_an_error_of_the_next_one(tmp_path, monkeypatch):
    def disk_full(*args, **options):
        raise OSError("No space left on device")

    writer = ValueWriter(tmp_path, RUN, flush_every=2)
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", disk_full)
        for step in range(3):
            write_step(writer, step)
        with pytest.raises(OSError, match="No space left"):
            writer.flush()
    with pytest.raises(StoreError, match=r"a flush of .* failed before"):
        write_step(writer, 3)
