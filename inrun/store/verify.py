"""Whether a store is whole and agrees with itself: every file against the list, every table against
the others.

What is looked at, and called a fault where it does not hold:
    files: every listed part is there with its checksum, and its footer says the same as the list
        (run, table, name, targets, sign, schema version, rows); no other file lies among the parts.
        Parts of this run that no list has are what a kill leaves: a note.
    terms: every value is finite; every step has for each target the same number of rows, that of
        `steps`; steps follow each other in one distance, that of the attribution's `every`; the
        columns add up to what the list says.
    ledger: one row for each step, target and method (the last step's may be missing: it is
        completed with the next step); drop = loss_before - loss_after = drift + values + residual;
        values = the sum of the terms.
    samples: each id once, and every id of `terms` among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import duckdb
import pyarrow.parquet as pq

from inrun.store import balances, description, part_list
from inrun.store.parts import Part, StoreError, files, read_footer
from inrun.store.snapshot import Snapshot
from inrun.store.tables import Tables


@dataclass
class Report:
    """What `verify` has found."""

    parts: int = 0
    "Number of parts."
    size: int = 0
    "Their bytes."
    rows: dict[str, int] = field(default_factory=dict)
    "Number of rows, by table."
    steps: str = ""
    "Which steps have values."
    faults: list[str] = field(default_factory=list)
    "What does not hold."
    notes: list[str] = field(default_factory=list)
    "What is unusual, and right."

    def __str__(self) -> str:
        rows = ", ".join(f"{count:,} {table}" for table, count in self.rows.items() if count)
        lines = [f"{self.parts:,} parts, {self.size:,} bytes: {rows or 'no rows'}{self.steps}"]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"FAULT: {fault}" for fault in self.faults] or ["no fault"]
        return "\n".join(lines)


def verify(tables: Tables) -> Report:
    """Look at everything that must agree in a store. StoreError if its lists cannot be read."""
    seen, report = tables.now(), Report()
    for table, parts in seen.parts.items():
        report.parts += len(parts)
        report.size += sum(part.size for part in parts)
        report.rows[table] = sum(part.rows for part in parts)
    report.faults += _files(tables, seen)
    _look_around(tables, seen, report)
    if not report.faults:  # the tables can be read
        _balances(tables, seen, report)
    return report


def _balances(tables: Tables, seen: Snapshot, report: Report) -> None:
    if not seen.parts["terms"]:
        return
    try:
        ids = tables.ask(balances.IDS, seen).to_pylist()[0] if seen.parts["samples"] else None
        found = tables.ask(balances.question(tables.run, seen, ids), seen).to_pylist()
        spans = tables.ask("SELECT min(step) AS a, max(step) AS b FROM terms", seen).to_pylist()
    except duckdb.Error as error:
        report.faults.append(f"the tables have not the columns of this run ({error})")
        return
    report.steps = ", steps {a} to {b}".format(**spans[0])
    for row in found:
        more = f" (and {row['count'] - 1} more such)" if row["count"] > 1 else ""
        report.faults.append(f"{row['fault']}{more}")


def _files(tables: Tables, seen: Snapshot) -> Iterator[str]:
    for part in (part for parts in seen.parts.values() for part in parts):
        try:
            part.check(tables.store)
        except StoreError as error:
            yield str(error)
            continue
        told = _told(tables, part)
        if told:
            yield f"{part.path(tables.store)} is not the listed part: {told}"


def _told(tables: Tables, part: Part) -> str:
    """Where a part's footer and the list differ."""
    path = part.path(tables.store)
    expected = {
        **description.footer_of(tables.run, part.rank),
        "table": part.table,
        "name": part.name,
        "rows": part.rows,
    }
    found = {**(read_footer(path) or {}), "rows": pq.read_metadata(path).num_rows}
    return "; ".join(
        f"its {key} is {found.get(key)!r}, listed {value!r}"
        for key, value in expected.items()
        if found.get(key) != value
    )


def _look_around(tables: Tables, seen: Snapshot, report: Report) -> None:
    """What lies in the store beside its parts."""
    store, run = tables.store, tables.run
    listed = {part.path(store) for parts in seen.parts.values() for part in parts}
    left = []
    for path in sorted(set(files(store)) - listed):
        footer = read_footer(path) or {}
        if footer.get("run") == run["id"] and footer.get("name") == path.name:
            left.append(path.name)
        else:
            report.faults.append(f"{path} is in no list: it is no part of this store. Delete it.")
    if left:
        report.notes.append(
            f"{len(left)} files that no list has, {left[0]} among them: being written, or left by "
            "a kill. Nobody reads them; a resume or compact removes them."
        )
    lists = {part_list.list_path(store, rank) for rank in range(description.lists_of(run))}
    for path in sorted(set((store / part_list.FOLDER).glob("*.jsonl")) - lists):
        report.faults.append(f"{path} is the list of no rank of this store. Delete it.")
    beyond = max((part.last for parts in seen.parts.values() for part in parts), default=-1)
    if seen.whole is not None and beyond > seen.whole:
        report.notes.append(
            f"steps {seen.whole + 1} to {beyond} are not seen: not every rank has flushed them"
        )
