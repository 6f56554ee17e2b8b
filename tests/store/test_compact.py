"""Compaction and conversion keep every row in its place, wherever they are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inrun.store import StoreError, ValueStore, ValueWriter, compact, compaction, convert
from tests.store.test_resume import Killed, Killer
from tests.support.other_process import ROOT, owned_elsewhere
from tests.support.store_example import RUN, SAMPLES, write_step

STEPS, RANKS = 9, 2
TABLES = ("terms", "steps", "ledger", "tokens", "samples")


def write(path):
    writers = [ValueWriter(path, RUN, rank, 1, ranks=RANKS) for rank in range(RANKS)]
    writers[0].samples(SAMPLES)
    for step in range(STEPS):
        for writer in writers:
            write_step(writer, step)
    for writer in writers:
        writer.close()
    return path


@pytest.fixture(scope="module")
def scattered(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scattered") / "v")


@pytest.fixture
def path(scattered, tmp_path):
    return shutil.copytree(scattered, tmp_path / "v")


def rows_in_order(path):
    """Every table as it is read, bit for bit and row for row, and an answer to each question."""
    with ValueStore(path, threads=1) as store:
        store.verify()
        tables = {table: store.sql(f"SELECT * FROM {table}") for table in TABLES}
        asked = [
            store.values("val", "path"),
            store.by("domain", "math", "path"),
            store.over(bins=4, by="kind", target="val", method="first_order"),
            store.means("val", "path", unit="step"),
        ]
        return tables, asked, store.ledger("math", "path")


@pytest.fixture(scope="module")
def true(scattered):
    return rows_in_order(scattered)


def files(path):
    return sorted(file for table in TABLES for file in (path / table).iterdir())


def test_few_parts_of_many_with_the_same_rows_in_the_same_order(path, true):
    assert len(files(path)) == 2 * RANKS * STEPS + 2 * STEPS + 1
    assert compact(path) == 2 * RANKS + 2 + 1
    assert len(files(path)) == 7
    assert rows_in_order(path) == true
    before = files(path)
    assert compact(path) == 7
    assert files(path) == before


def test_parts_are_of_a_good_size(path, true, monkeypatch):
    size = max(file.stat().st_size for file in files(path))
    monkeypatch.setattr(compaction, "GOOD_SIZE", 3 * size)
    compact(path)
    assert 7 < len(files(path)) < 40
    assert rows_in_order(path) == true


def test_compacted_store_is_resumed_and_cut(path, true):
    compact(path)
    for rank in range(RANKS):
        with ValueWriter.resume(path, RUN, 4, rank, ranks=RANKS):
            pass
    with ValueStore(path) as store:
        assert store.sql("SELECT max(step) AS s FROM terms")["s"].to_pylist() == [3]
    writers = [ValueWriter.resume(path, RUN, 4, rank, ranks=RANKS) for rank in range(RANKS)]
    for step in range(4, STEPS):
        for writer in writers:
            write_step(writer, step)
    for writer in writers:
        writer.close()
    assert rows_in_order(path)[0] == true[0]


def test_open_reader_goes_on(path, true):
    with ValueStore(path) as store:
        before = store.values("val", "path")
        compact(path)
        assert store.values("val", "path") == before


@pytest.mark.parametrize("moment", ["before", "after"])
def test_kill_at_any_operation_on_files_leaves_the_old_or_the_new(
    scattered, tmp_path, true, moment
):
    def killed(kill_at):
        path = shutil.copytree(scattered, tmp_path / "v")
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, kill_at, moment)
            with suppress(Killed):
                compact(path)
        with ValueStore(path) as store:
            store.verify()
            seen = store.sql("SELECT count(*) AS n FROM terms")["n"].to_pylist()
        assert seen == [true[0]["terms"].num_rows]
        compact(path)
        assert len(files(path)) == 7
        assert not list(path.rglob("*.partial"))
        shutil.rmtree(path)
        return killer.count

    count = killed(())
    assert count > 40
    for kill_at in range(1, count + 1, 1 if count < 30 else 3):
        killed({kill_at})


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_process_that_is_really_killed_leaves_the_old_or_the_new(scattered, tmp_path, true):
    """SIGKILL at random moments; the two that end on their own show that it can end."""
    code = "import sys; from inrun.store import compact; print(1, flush=True); compact(sys.argv[1])"
    for number in range(8):
        path = shutil.copytree(scattered, tmp_path / str(number))
        command = [sys.executable, "-c", code, str(path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            time.sleep(0.02 * number)
            process.send_signal(signal.SIGKILL)
        assert rows_in_order(path) == true
        assert compact(path) == 7
        assert rows_in_order(path) == true


def test_store_that_is_being_written_is_not_compacted(path):
    with owned_elsewhere(path), pytest.raises(StoreError, match="held by process"):
        compact(path)
    ValueWriter.resume(path, RUN, STEPS, ranks=RANKS).close()
    with pytest.raises(StoreError, match=r"ranks \[1\] of .* were not closed"):
        compact(path)


def test_damaged_part_is_named_and_nothing_lost(path):
    part = sorted((path / "terms").iterdir())[3]
    content = part.read_bytes()
    part.write_bytes(content[:-1] + b"?")
    with pytest.raises(StoreError, match=f"{part.name} is damaged"):
        compact(path)
    part.write_bytes(content)
    assert compact(path) == 7


def test_writer_of_very_many_parts_compacts_them_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "MANY", 5)
    with ValueWriter(tmp_path / "v", RUN, flush_every=1) as writer:
        for step in range(5):
            write_step(writer, step)
    assert len(list((tmp_path / "v" / "terms").iterdir())) == 5
    with ValueWriter.resume(tmp_path / "v", RUN, 5) as writer:
        write_step(writer, 5)
    assert [file.name[:28] for file in (tmp_path / "v" / "terms").iterdir()] == [
        "rank0000-000000000-000000005"
    ]
    with ValueStore(tmp_path / "v") as store:
        assert store.verify().steps == ", steps 0 to 5"


def former(path, new):
    """The store as schema version 1 had it, in `new`: no list, no footers, other names."""
    new.mkdir()
    for file in files(path):
        rows = pq.read_table(file, partitioning=None).replace_schema_metadata(None)
        name = file.name if file.parent.name == "samples" else f"{file.name[:28]}.parquet"
        (new / file.parent.name).mkdir(exist_ok=True)
        pq.write_table(rows, new / file.parent.name / name, write_page_checksum=True)
    run = json.loads((path / "store.json").read_text())
    for key in ("id", "ranks", "seal"):
        del run[key]
    run["resumed"] = [{"step": 3, "at": "2026", "git_revision": None}]
    (new / "store.json").write_text(json.dumps(run | {"schema_version": 1}))
    return new


@pytest.mark.parametrize("name", ["store.json", "run.json"])
def test_former_store_is_refused_with_the_command_that_converts_it(path, true, tmp_path, name):
    old = former(path, tmp_path / "old")
    (old / "store.json").rename(old / name)
    for ask in (
        lambda: ValueStore(old),
        lambda: ValueWriter.resume(old, RUN, 3, ranks=RANKS),
        lambda: compact(old),
    ):
        with pytest.raises(StoreError, match=f"Next: python -m inrun.store convert {old}"):
            ask()
    done = subprocess.run(
        [sys.executable, "-m", "inrun.store", "convert", str(old)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert rows_in_order(old) == true
    with pytest.raises(StoreError, match="schema version 2; only 1 is converted"):
        convert(old)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_conversion_is_begun_again(path, true, tmp_path, moment):
    old = former(path, tmp_path / "old")
    for kill_at in range(1, 120, 9):
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, {kill_at}, moment)
            try:
                convert(old)
                break
            except Killed:
                pass
    if (old / "parts").is_dir():
        with ValueStore(old) as store:
            assert pa.Table.equals(store.sql("SELECT * FROM terms"), true[0]["terms"])


def test_damaged_former_part_is_named(path, tmp_path):
    old = former(path, tmp_path / "old")
    part = sorted((old / "terms").iterdir())[2]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 4
    part.write_bytes(content)
    with pytest.raises(StoreError, match=f"{part.name} is damaged"):
        convert(old)
    with pytest.raises(StoreError, match="schema version 1"):
        ValueStore(old)
