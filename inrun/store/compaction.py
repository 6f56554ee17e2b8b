"""Many small parts become few large ones, with the same rows in the same order.

The new parts are written beside the old ones, then the list is replaced in one step, then the old
files go. A kill at any moment leaves the former list or the new one; files that it has not are
invisible, and removed by the next resume or compaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from inrun.owner import Owner
from inrun.store import description
from inrun.store.part_list import PartList
from inrun.store.parts import Part, StoreError, read_part, remove_leftovers, write_part

#: bytes of a file: large enough that opening it costs nothing, small enough for memory
GOOD_SIZE = 64 * 2**20
#: parts of a table, from which on a writer compacts them when it ends
MANY = 256


def compact(path: str | Path) -> int:
    """Merge the small parts of a store that nobody writes; the number of parts that it then has.

    Every part's checksum is looked at first. StoreError if a process writes the store, if a rank of
    several was not closed, or if a part is missing or damaged.
    """
    store = Path(path)
    run = description.read_run(store)
    owner = Owner.take(store, StoreError)
    try:
        lists = [PartList.read(store, run["id"], rank) for rank in range(description.lists_of(run))]
        waiting = [listed.rank for listed in lists if not listed.closed]
        if waiting and run["ranks"] > 1:
            raise StoreError(
                f"ranks {waiting} of {store} were not closed: they write still, or were killed. "
                "Wait, or go on with the run through ValueWriter.resume first."
            )
        after = [compact_list(store, run, listed) for listed in lists]
        parts = [part for listed in after for part in listed.parts]
        remove_leftovers(store, run["id"], parts)
        return len(parts)
    finally:
        owner.release()


def compact_many(store: Path, run: dict, listed: PartList) -> PartList:
    """`compact_list` for a rank with very many parts: a question opens each of them."""
    most = max(Counter(part.table for part in listed.parts).values(), default=0)
    return compact_list(store, run, listed) if most > MANY else listed


def compact_list(store: Path, run: dict, listed: PartList) -> PartList:
    """The same for one rank; the list as it is then."""
    footer, parts = description.footer_of(run, listed.rank), list[Part]()
    serial, gone = listed.serial, list[Part]()
    for group in _groups(listed.parts):
        if len(group) == 1:
            parts += group
            continue
        for part in group:
            part.check(store)
        rows = pa.concat_tables([read_part(part.path(store)) for part in group])
        span = min(part.first for part in group), max(part.last for part in group)
        parts.append(write_part(rows, store, group[0].table, span, footer, serial))
        serial, gone = serial + 1, gone + group
    if not gone:
        return listed
    after = PartList.create(store, run["id"], listed.rank, parts, serial - 1)
    for part in gone:
        part.path(store).unlink(missing_ok=True)
    return after


def _groups(parts: tuple[Part, ...]) -> Iterator[list[Part]]:
    """Parts of one table that follow each other and are together of a good size, or one alone."""
    group: list[Part] = []
    for part in sorted(parts, key=lambda part: part.table):  # stable: in the order of writing
        size = sum(member.size for member in group) + part.size
        if group and (group[0].table != part.table or size > GOOD_SIZE):
            yield group
            group = []
        group.append(part)
    if group:
        yield group
