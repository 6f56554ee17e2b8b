"""A store has one writing process; a writer that nobody closed loses nothing."""

import platform
import subprocess
import sys

import pytest

from inrun.store import StoreError, ValueStore, ValueWriter
from tests.support.other_process import ROOT, owned_elsewhere

RUN = {"targets": ["val"], "methods": ["path"]}


def test_second_process_is_told_who_writes(tmp_path):
    ValueWriter(tmp_path / "v", RUN).close()
    with owned_elsewhere(tmp_path / "v") as other:
        told = rf"held by process {other.pid} on host {platform.node()} since 20\d\d-.*two at once"
        with pytest.raises(StoreError, match=told):
            ValueWriter.resume(tmp_path / "v", RUN, 0)
    with owned_elsewhere(tmp_path / "new"), pytest.raises(StoreError, match="held by process"):
        ValueWriter(tmp_path / "new", RUN)


def test_store_of_a_dead_process_is_taken_over(tmp_path):
    ValueWriter(tmp_path / "v", RUN).close()
    with owned_elsewhere(tmp_path / "v") as other:
        other.kill()
        other.wait()
        assert (tmp_path / "v" / ".owner.json").exists()
        ValueWriter.resume(tmp_path / "v", RUN, 0).close()
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == [
        "parts",
        "store.json",
    ]


def test_ranks_share_the_owner_and_a_closed_store_has_none(tmp_path):
    first = ValueWriter(tmp_path / "v", RUN, ranks=2)
    second = ValueWriter(tmp_path / "v", RUN, rank=1, ranks=2)
    first.close()
    second.close()
    with owned_elsewhere(tmp_path / "v"):
        ValueStore(tmp_path / "v").close()  # reading needs no owner


def test_writer_that_another_one_of_its_process_followed_writes_no_more(tmp_path):
    old = ValueWriter(tmp_path / "v", RUN)
    old.terms(0, [1], "val", {"path": [1.0]})
    new = ValueWriter.resume(tmp_path / "v", RUN, 0)
    for write in (old.flush, old.close, lambda: old.terms(1, [1], "val", {"path": [1.0]})):
        with pytest.raises(StoreError, match="not this writer's any more"):
            write()
    new.terms(0, [2], "val", {"path": [1.0]})
    new.close()
    with ValueStore(tmp_path / "v") as store:
        assert store.values()["sample_id"].to_pylist() == [2]


_FORGETS = """
import sys
from inrun.store import ValueWriter
w = ValueWriter(sys.argv[1], {"targets": ["val"], "methods": ["path"]})
for step in range(9):
    w.terms(step, [step], "val", {"path": [1.0]})
"""


@pytest.mark.parametrize("end", ["", "raise KeyError('a bug')"])
def test_rows_of_a_forgotten_writer_are_written_at_the_end_and_it_says_so(tmp_path, end):
    done = subprocess.run(
        [sys.executable, "-c", _FORGETS + end, str(tmp_path / "v")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == (1 if end else 0)
    assert "was not closed. the rows of steps 0 to 8 were written now" in done.stderr
    with ValueStore(tmp_path / "v") as store:
        assert store.values()["sample_id"].to_pylist() == list(range(9))


def test_forgotten_writer_writes_nothing_where_another_went_on(tmp_path):
    path = tmp_path / "v"
    goes_on = "\nrun = dict(targets=['val'], methods=['path'])\n"
    goes_on += "ValueWriter.resume(sys.argv[1], run, 0).close()"
    subprocess.run(
        [sys.executable, "-c", _FORGETS + goes_on, str(path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert not list(path.glob("terms/*"))
