"""Folders that are no store, and stores that lack something or are damaged, are told apart."""

import json

import pytest

from inrun.store import StoreError, ValueStore, ValueWriter
from tests.support.store_example import (
    RUN,
    SAMPLES,
    write_step,
)


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
    message = r"value store of an older inrun.*Next: python -m inrun\.store convert "
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
    (lone.path / "store.json").write_text(json.dumps(run | {"schema_version": 3}))
    with pytest.raises(StoreError, match="schema version 3, this code reads up to 2"):
        ValueStore(lone.path)


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten"])
def test_damaged_part_is_named_with_what_to_do(tmp_path, damage):
    with ValueWriter(tmp_path, RUN, flush_every=4) as writer:
        for step in range(12):
            write_step(writer, step)
    (part,) = (tmp_path / "terms").glob("rank0000-000000004-000000007-*.parquet")
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
                match=r"4-000000007-\d+\.parquet is damaged .*checkpoint of step 4 or earlier",
            ):
                ask()


def test_verify_finds_a_single_flipped_bit(tmp_path):
    with ValueWriter(tmp_path, RUN) as writer:
        writer.samples(SAMPLES)
        for step in range(50):
            write_step(writer, step)
    with ValueStore(tmp_path) as store:
        assert store.verify().parts == 5
        part = next((tmp_path / "terms").iterdir())
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
        with pytest.raises(StoreError, match="is damaged"):
            store.verify()
