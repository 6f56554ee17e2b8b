"""A run that is killed and resumed leaves the same rows as one that was never killed, wherever it
was killed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter
from tests.support.store_example import RUN, SAMPLES, content, write_step

STEPS, CHECKPOINT_EVERY = 7, 4


class Killed(BaseException):
    """Not an Exception, so that nothing on the way can handle it, as nothing can handle a kill."""


class Killer:
    """Counts the operations on files and kills at the chosen one: before it, after it, or with half
    of a file written.
    """

    def __init__(self, monkeypatch, kill_at, moment):
        self.count, self.kill_at, self.moment = 0, kill_at, moment
        for owner, name in (
            (pq, "write_table"),
            (os, "replace"),
            (Path, "unlink"),
            (Path, "rename"),
            (os, "ftruncate"),
            (os, "write"),
        ):
            monkeypatch.setattr(owner, name, self._deadly(getattr(owner, name), name))

    def _deadly(self, operation, name):
        def run(*args, **options):
            self.count += 1
            if self.count not in self.kill_at:
                return operation(*args, **options)
            if self.moment == "after":
                operation(*args, **options)
            elif name == "write_table":
                Path(args[1]).write_bytes(b"PAR1 and no more")
            elif name == "write":  # a line of the list
                operation(args[0], bytes(args[1])[: len(args[1]) // 2])
            raise Killed

        return run


def train(path, checkpoint):
    """Train to the end, saving checkpoints on the way; a kill abandons the writer.

    Goes on two steps before the newest checkpoint, in the midst of a part, as if that checkpoint
    were lost.
    """
    start = max(checkpoint["step"] - 2, 0)
    if (path / "store.json").exists():
        writer = ValueWriter.resume(path, RUN, start, flush_every=3)
    else:
        writer = ValueWriter(path, RUN, flush_every=3)
    writer.samples(SAMPLES)
    for step in range(start, STEPS):
        write_step(writer, step)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            writer.flush()
            checkpoint["step"] = step + 1
    writer.close()


def train_with_kills(path):
    checkpoint, kills = {"step": 0}, 0
    while True:
        try:
            train(path, checkpoint)
            return kills
        except Killed:
            kills += 1
            if (path / "store.json").exists():
                with ValueStore(path) as store:
                    if store.verify().rows["terms"]:  # whatever is there is whole
                        seen = store.sql(
                            "SELECT count(*) AS n, count(DISTINCT (step, sample_id, target)) "
                            "AS d FROM terms"
                        )
                        assert seen["n"] == seen["d"]  # and no row is there twice


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted")
    train(path, {"step": 0})
    with ValueStore(path) as store:
        return content(store)


def assert_same(path, expected):
    with ValueStore(path) as store:
        assert content(store) == expected
    assert not list(path.rglob("*.partial"))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_any_operation_on_files_changes_nothing(tmp_path, uninterrupted, moment):
    with pytest.MonkeyPatch.context() as patch:
        counter = Killer(patch, kill_at=(), moment=moment)
        train(tmp_path / "counted", {"step": 0})
    assert counter.count > 20
    for kill_at in range(1, counter.count + 1):
        path = tmp_path / str(kill_at)
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, {kill_at}, moment)
            assert train_with_kills(path) == 1
        assert_same(path, uninterrupted)
        shutil.rmtree(path)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_also_of_the_resume_itself_change_nothing(tmp_path, uninterrupted, moment, seed):
    kill_at = set(np.random.default_rng(seed).integers(1, 200, size=25).tolist())
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, kill_at, moment)
        assert train_with_kills(tmp_path) >= 3
    assert_same(tmp_path, uninterrupted)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_process_that_is_really_killed_loses_nothing_that_was_flushed(tmp_path, uninterrupted):
    code = (
        "import itertools, sys\nfrom tests.support import store_example\nfrom inrun.store import "
        "ValueWriter\nwriter = ValueWriter(sys.argv[1], store_example.RUN, flush_every=1000)\n"
        "writer.samples(store_example.SAMPLES)\nfor step in itertools.count():\n    "
        "store_example.write_step(writer, step)\n    writer.flush()\n    print(step, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "values")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        for line in process.stdout:
            if int(line) == 5:
                process.send_signal(signal.SIGKILL)  # somewhere in step 6 or later
                break
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    with ValueStore(tmp_path / "values") as store:
        store.verify()
        assert store.sql("SELECT count(DISTINCT step) AS n FROM terms WHERE step <= 5")[
            "n"
        ].to_pylist() == [6]
    train(tmp_path / "values", {"step": 6})
    assert_same(tmp_path / "values", uninterrupted)


def test_resume_drops_later_steps_and_cuts_the_part_that_straddles(tmp_path):
    with ValueWriter(tmp_path, RUN, flush_every=4) as writer:
        for step in range(12):
            write_step(writer, step)
    (tmp_path / "terms" / "rank0000-000000012-000000015.parquet.partial").write_bytes(b"half")
    with ValueWriter.resume(tmp_path, RUN, step=6):
        assert sorted(path.name[:28] for path in (tmp_path / "terms").iterdir()) == [
            "rank0000-000000000-000000003",
            "rank0000-000000004-000000005",
        ]
    with ValueStore(tmp_path) as store:
        for table in ("terms", "steps", "ledger", "tokens"):
            assert store.sql(f"SELECT max(step) AS last FROM {table}")["last"].to_pylist() == [5]
    assert [
        note["step"] for note in json.loads((tmp_path / "store.json").read_text())["resumed"]
    ] == [6]


def test_resumed_writer_refuses_steps_before_its_own(tmp_path):
    with ValueWriter(tmp_path, RUN) as writer:
        write_step(writer, 0)
    with ValueWriter.resume(tmp_path, RUN, step=1) as writer:
        assert writer.last_step is None
        with pytest.raises(StoreError, match="terms of step 0: this writer begins at step 1"):
            write_step(writer, 0)
        write_step(writer, 1)
        assert writer.last_step == 1


def test_run_resumed_on_fewer_ranks_keeps_no_later_steps_of_the_others(tmp_path):
    writers = [ValueWriter(tmp_path, RUN, rank, 4, ranks=3) for rank in range(3)]
    for step in range(10):
        for writer in writers:
            write_step(writer, step)
    for writer in writers:
        writer.close()
    with (
        ValueWriter.resume(tmp_path, RUN, step=6, rank=0, ranks=2) as first,
        ValueWriter.resume(tmp_path, RUN, step=6, rank=1, ranks=2) as second,
    ):
        write_step(first, 6)
        write_step(second, 6)
    with ValueStore(tmp_path) as store:
        rows = store.sql(
            "SELECT step, count(*) AS n FROM terms GROUP BY step ORDER BY step"
        ).to_pylist()
    assert rows == [{"step": step, "n": 36} for step in range(6)] + [{"step": 6, "n": 24}]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("targets", ["val"]),
        ("methods", ["path"]),
        ("corpus_digest", "beef"),
        ("attribution", {"credit": "impulse"}),
    ],
)
def test_resume_by_a_run_that_means_something_else_is_refused(tmp_path, key, value):
    with ValueWriter(tmp_path, RUN) as writer:
        write_step(writer, 0)
    with pytest.raises(
        StoreError, match=f"belongs to another run.*{key}: stored .* now"
    ) as refused:
        ValueWriter.resume(tmp_path, RUN | {key: value}, step=0)
    assert str(refused.value).count("stored") == 1
    with ValueStore(tmp_path) as store:
        assert len(store.sql("FROM terms")) == 12  # nothing was dropped


def test_resume_under_another_sign_is_refused(tmp_path):
    ValueWriter(tmp_path, RUN).close()
    run = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(
        json.dumps(run | {"sign": "positive value = raised the validation loss"})
    )
    with pytest.raises(StoreError, match="says of its values 'positive value = raised"):
        ValueWriter.resume(tmp_path, RUN, step=0)


def test_resume_with_another_config_or_revision_is_the_users_business_and_noted(tmp_path):
    ValueWriter(tmp_path, RUN | {"git_revision": "a"}).close()
    ValueWriter.resume(tmp_path, RUN | {"git_revision": "b", "config": {}}, step=0).close()
    run = json.loads((tmp_path / "store.json").read_text())
    assert (run["git_revision"], run["resumed"][0]["git_revision"]) == ("a", "b")


def test_nothing_to_resume_is_an_error_that_says_how_to_start(tmp_path):
    with pytest.raises(StoreError, match=r"Start one with ValueWriter\(path, run\)"):
        ValueWriter.resume(tmp_path / "none", RUN, step=3)
    ValueWriter(tmp_path, RUN).close()
    with pytest.raises(StoreError, match="cannot resume at step -1"):
        ValueWriter.resume(tmp_path, RUN, step=-1)


def test_damaged_part_stops_a_resume_that_needs_it_and_not_one_that_drops_it(tmp_path):
    with ValueWriter(tmp_path, RUN, flush_every=4) as writer:
        for step in range(8):
            write_step(writer, step)
    (part,) = (tmp_path / "terms").glob("rank0000-000000004-000000007-*.parquet")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(
        StoreError,
        match=r"000000004-000000007-\d+\.parquet is damaged .* checkpoint of step 4 or earlier",
    ):
        ValueWriter.resume(tmp_path, RUN, step=6)
    ValueWriter.resume(tmp_path, RUN, step=4).close()
    assert not part.exists()
