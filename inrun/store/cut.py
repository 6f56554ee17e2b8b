"""How a resume drops what came after its checkpoint: new parts first, then one line in each list,
then the old files.

A kill at any moment leaves the former list or the new one; files that neither has are invisible,
and removed by the next resume.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc

from inrun.store import description, schema
from inrun.store.part_list import PartList
from inrun.store.parts import Part, read_part, remove_leftovers, write_part


def cut_store(store: Path, run: dict, step: int, ranks: int, revision: str | None) -> dict:
    """Drop the rows of `step` and later of all ranks, and what kills have left; every part that is
    kept has its checksum looked at. Returns the run, in which the resume is noted.

    ranks: how many processes write from now on; each gets a list.
    revision: of the code that goes on.
    """
    found = [PartList.read(store, run["id"], rank) for rank in range(description.lists_of(run))]
    for listed in found:
        for part in listed.parts:
            if part.first < step:
                part.check(store)
    lists = [_cut_list(store, run, listed, step, ranks) for listed in found]
    for rank in range(len(lists), ranks):
        PartList.create(store, run["id"], rank)
    remove_leftovers(store, run["id"], [part for listed in lists for part in listed.parts])
    note = {"step": step, "at": schema.now(), "git_revision": revision, "ranks": run["ranks"]}
    run = {**run, "ranks": ranks, "resumed": [*run["resumed"], note]}
    description.write_run(store, run)
    return run


def _cut_list(store: Path, run: dict, listed: PartList, step: int, ranks: int) -> PartList:
    gone = [part for part in listed.parts if part.last >= step]
    footer, shorter = description.footer_of(run, listed.rank), list[Part]()
    for part in gone:
        if part.first < step:
            rows = read_part(part.path(store))
            kept = rows.filter(pc.less(rows["step"], step))
            last, serial = pc.max(kept["step"]).as_py(), listed.serial + len(shorter)
            shorter.append(write_part(kept, store, part.table, (part.first, last), footer, serial))
    found = listed.append(shorter, gone, through=step - 1, closed=listed.rank >= ranks)
    for part in gone:
        part.path(store).unlink(missing_ok=True)
    return found
