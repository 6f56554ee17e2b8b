"""What a question sees of a store: the parts that its lists have at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inrun.store import description
from inrun.store.part_list import PartList, list_path
from inrun.store.parts import TABLES, Part, StoreError, state_of


@dataclass(frozen=True)
class Snapshot:
    """The parts of all ranks, by table."""

    parts: dict[str, tuple[Part, ...]]
    "The parts of each table, by rank and in the order of their writing."
    whole: int | None
    "The last step that every writing rank has in its list; None where none is awaited any more."

    def cut(self, table: str) -> int | None:
        """The last step to be seen of a table, if it has rows of later ones."""
        beyond = any(
            self.whole is not None and part.last > self.whole for part in self.parts[table]
        )
        return self.whole if beyond else None


def state(store: Path, run: dict) -> tuple:
    """What changes when `take` would find something else."""
    lists = (list_path(store, rank) for rank in range(description.lists_of(run)))
    return tuple(map(state_of, (store / description.STORE_FILE, *lists)))


def take(store: Path, run_id: str) -> Snapshot:
    """The store as it is now. A rank that flushes meanwhile is seen before or after.

    StoreError if a list is missing or damaged, or the folder holds another store by now.
    """
    run = description.read_run(store)
    if run["id"] != run_id:
        raise StoreError(f"{store} holds another store than when it was opened. Open it again.")
    lists = [PartList.read(store, run_id, rank) for rank in range(description.lists_of(run))]
    open_ones = [listed.through for listed in lists[: run["ranks"]] if not listed.closed]
    parts = {
        table: tuple(part for listed in lists for part in listed.parts if part.table == table)
        for table in TABLES
    }
    return Snapshot(parts, min(open_ones, default=None))
