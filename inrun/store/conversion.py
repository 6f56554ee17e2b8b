"""A store of schema version 1, which had no list of parts, becomes one of this version."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path

from inrun.files import partials
from inrun.owner import Owner
from inrun.store import description, part_list
from inrun.store.part_list import PartList
from inrun.store.parts import SAMPLES_FILE, TABLES, Part, StoreError, read_part, write_part
from inrun.store.schema import SCHEMA_VERSION

_NAME = re.compile(r"rank(\d{4,})-(\d{9,})-(\d{9,})\.parquet")


def convert(path: str | Path) -> None:
    """Write every part anew, with a footer and its place in a list, then the description.

    The checksums of the old parts' pages are looked at. Whether an old part is missing nobody can
    know: verify tells what does not agree. A kill leaves the old store; converting again is then
    the remedy. StoreError for a store of another version, or with a damaged part.
    """
    store = Path(path)
    old = next((f for f in (store / n for n in _FILES) if f.exists()), None)
    if old is None:
        raise StoreError(f"{store} is no value store: it has no {description.STORE_FILE}.")
    run, version = description.read_description(old)
    if version != 1:
        raise StoreError(
            f"{store} has schema version {version!r}; only 1 is converted, and {SCHEMA_VERSION} "
            "is what it becomes."
        )
    description.check_meaning(old, run)
    owner = Owner.take(store, StoreError)
    try:
        _convert(store, run)
        if old.name != description.STORE_FILE:
            old.unlink()
    finally:
        owner.release()


_FILES = (description.STORE_FILE, description.FORMER_FILE)


def _convert(store: Path, run: dict) -> None:
    former = _former_parts(store)
    ranks = 1 + max((rank for _, rank, *_ in former), default=0)
    run |= {
        "schema_version": SCHEMA_VERSION,
        "id": uuid.uuid4().hex,
        "ranks": ranks,
        "resumed": [{**note, "ranks": ranks} for note in run.get("resumed", ())],
    }
    _remove_unfinished(store, {file for *_, file in former})
    written: dict[int, list[Part]] = {rank: [] for rank in range(ranks)}
    for serial, (table, rank, span, file) in enumerate(former, start=1):
        footer = description.footer_of(run, rank)
        written[rank].append(write_part(read_part(file), store, table, span, footer, serial))
    for rank, parts in written.items():
        PartList.create(store, run["id"], rank, parts, after=len(former))
    description.write_run(store, run)
    for table, *_, file in former:
        if table != "samples":  # whose one file keeps its name
            file.unlink()


def _former_parts(store: Path) -> list[tuple[str, int, tuple[int, int], Path]]:
    """Table, rank, first and last step, and file of every part of version 1."""
    found = []
    for table in TABLES:
        for file in sorted((store / table).glob("*.parquet")):
            match = _NAME.fullmatch(file.name)
            if match:
                rank, first, last = map(int, match.groups())
                found.append((table, rank, (first, last), file))
            elif table == "samples" and file.name == SAMPLES_FILE:
                found.append((table, 0, (-1, -1), file))
    return sorted(found, key=lambda part: part[1:3])


def _remove_unfinished(store: Path, former: set[Path]) -> None:
    """What an earlier conversion left that was killed."""
    shutil.rmtree(store / part_list.FOLDER, ignore_errors=True)
    for table in TABLES:
        for file in [*(store / table).glob("*.parquet"), *partials(store / table)]:
            if file not in former:
                file.unlink()
