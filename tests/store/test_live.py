"""A reader beside writers: each question sees the whole steps of one moment."""

import re
import shutil
import threading

import numpy as np
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter
from tests.support.store_example import RUN, write_step


def test_step_is_seen_when_every_rank_has_flushed_it(tmp_path):
    first, second = (ValueWriter(tmp_path, RUN, rank, 100, ranks=2) for rank in range(2))
    with ValueStore(tmp_path) as store:

        def seen():
            return [
                sorted(set(store.sql(f"SELECT step FROM {table}")["step"].to_pylist()))
                for table in ("terms", "steps", "ledger")
            ]

        for step in range(4):
            write_step(first, step)
        first.flush()
        write_step(second, 0)
        second.flush()
        assert seen() == [[0]] * 3
        assert len(store.sql("FROM terms")) == 2 * 2 * 6
        assert "steps 1 to 3 are not seen" in store.verify().notes[0]
        for step in range(1, 4):
            write_step(second, step)
        first.close()  # of this one nothing more is awaited; of the other steps 1 to 3 are
        assert seen() == [[0]] * 3
        second.close()
        assert seen() == [[0, 1, 2, 3]] * 3
        assert store.verify().notes == []


def test_rank_that_had_no_samples_hides_no_step(tmp_path):
    first, second = (ValueWriter(tmp_path, RUN, rank, 100, ranks=2) for rank in range(2))
    for step in range(3):
        first.terms(step, [step], "val", {"path": [1.0], "first_order": [1.0]})
        second.terms(step, [], "val", {"path": [], "first_order": []})
    for writer in (first, second):
        writer.flush()
    with ValueStore(tmp_path) as store:
        assert store.sql("SELECT step FROM terms")["step"].to_pylist() == [0, 1, 2]
    second.close()
    first.terms(3, [3], "val", {"path": [1.0], "first_order": [1.0]})
    first.close()
    with ValueStore(tmp_path) as store:
        assert store.sql("SELECT max(step) AS s FROM terms")["s"].to_pylist() == [3]


def test_open_reader_sees_growth_resume_and_refuses_another_store(tmp_path):
    writer = ValueWriter(tmp_path / "v", RUN, flush_every=2)
    with ValueStore(tmp_path / "v") as store:
        with pytest.raises(StoreError, match="has no values yet"):
            store.values("val", "path")
        for step in range(5):
            write_step(writer, step)
        writer.close()
        assert store.sql("SELECT max(step) AS s FROM terms")["s"].to_pylist() == [4]
        ValueWriter.resume(tmp_path / "v", RUN, 3).close()
        assert store.sql("SELECT max(step) AS s FROM terms")["s"].to_pylist() == [2]
        ValueWriter.resume(tmp_path / "v", RUN, 0).close()
        with pytest.raises(StoreError, match="has no values yet"):
            store.values("val", "path")
        shutil.rmtree(tmp_path / "v")
        ValueWriter(tmp_path / "v", RUN).close()
        with pytest.raises(StoreError, match="holds another store than when it was opened"):
            store.values("val", "path")


def test_answers_of_a_reader_beside_a_writer_are_of_whole_steps(tmp_path):
    """A reader that asks all the time while parts of one step each come, are cut and come again."""
    done, wrong = threading.Event(), []

    def read():
        with ValueStore(tmp_path) as store:
            while not done.is_set():
                try:
                    found = store.sql(
                        "SELECT step, count(*) AS n, sum(path) AS path FROM terms GROUP BY step "
                        "ORDER BY step"
                    )
                except StoreError as error:
                    if not re.search("no values yet|no whole part of terms", str(error)):
                        wrong.append(error)
                    continue
                steps = found["step"].to_pylist()
                if steps != list(range(len(steps))) or set(found["n"].to_pylist()) - {12}:
                    wrong.append(found)

    writer = ValueWriter(tmp_path, RUN, flush_every=1)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for step in np.tile(np.arange(12), 4):
            if step == 0:
                writer.close()
                writer = ValueWriter.resume(tmp_path, RUN, 0, flush_every=1)
            write_step(writer, int(step))
            writer.flush()
    finally:
        done.set()
        reader.join()
    writer.close()
    assert wrong == []
