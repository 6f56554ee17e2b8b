"""Rows that wait to become parts, and the thread that writes them while training goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from inrun.store.part_list import PartList
from inrun.store.parts import StoreError, write_part

_Due = dict[str, tuple[list[pa.Table], int, int]]  # rows of a table, first and last step


class Buffer:
    """One rank's rows that are not on disk yet, by table, and its list of parts.

    After a flush that failed the buffer is broken: its rows must not be written twice.
    """

    def __init__(self, store: Path, listed: PartList, footer: dict[str, Any]) -> None:
        self.store, self.listed, self.footer = store, listed, footer
        self._rows: dict[str, list[pa.Table]] = {}
        self._spans: dict[str, tuple[int, int]] = {}  # first and last step of each table's rows
        self._since: int | None = None  # the first step since the last flush, with rows or without
        self._through = listed.through
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inrun-store")
        self._writing: Future[None] | None = None
        self._state = "open"

    @property
    def closed(self) -> bool:
        """No row is taken any more."""
        return self._state != "open"

    @property
    def first_step(self) -> int | None:
        """The oldest step that waits; None if nothing does."""
        return self._since

    @property
    def span(self) -> tuple[int, int] | None:
        """First and last step whose rows wait; None if none do."""
        if not self._spans:
            return None
        firsts, lasts = zip(*self._spans.values())
        return min(firsts), max(lasts)

    def check_open(self) -> None:
        """StoreError if the buffer is closed, or broken by a flush that failed."""
        if self._state == "broken":
            raise StoreError(
                f"a flush of {self.store} failed before. Go on with ValueWriter.resume from a "
                "checkpoint."
            )
        if self._state == "closed":
            raise StoreError(f"the writer of {self.store} is closed.")

    def append(self, table: str, step: int, rows: pa.Table) -> None:
        """Take rows of one step, also none; steps of a table come in order."""
        if len(rows):
            self._rows.setdefault(table, []).append(rows)
            self._spans[table] = (self._spans.get(table, (step, step))[0], step)
        self._since = step if self._since is None else min(self._since, step)
        self._through = max(self._through, step)

    def begin_flush(self) -> None:
        """Hand the rows so far to the thread that writes: training goes on meanwhile."""
        self.finish_flush()
        self._writing = self._thread.submit(self._write, *self._due())

    def finish_flush(self) -> None:
        """Wait for the parts that are being written, and raise what went wrong there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.result()
            except BaseException:
                self._state = "broken"
                raise

    def write_samples(self, rows: pa.Table) -> None:
        """Write the table of samples, durable when this returns."""
        self.finish_flush()
        self._write({"samples": ([rows], -1, -1)}, self.listed.through)

    def write_last(self) -> None:
        """Write the rows so far, and in the list that no more will come.

        Without the thread, which an ending process has no more.
        """
        self.finish_flush()
        try:
            self._write(*self._due(), closed=True)
        except BaseException:
            self._state = "broken"
            raise

    def close(self) -> None:
        """Take no more rows. A broken buffer stays broken."""
        if self._state == "open":
            self._state = "closed"
        self._thread.shutdown()

    def _due(self) -> tuple[_Due, int]:
        due = {table: (self._rows.pop(table), *span) for table, span in self._spans.items()}
        self._spans, self._since = {}, None
        return due, self._through

    def _write(self, due: _Due, through: int, closed: bool = False) -> None:
        """Parts of all tables, then one line in the list: they are seen together."""
        added = [
            write_part(
                pa.concat_tables(waiting),
                self.store,
                table,
                (first, last),
                self.footer,
                self.listed.serial + number,
            )
            for number, (table, (waiting, first, last)) in enumerate(due.items())
        ]
        if added or closed or through != self.listed.through:
            self.listed = self.listed.append(added, through=through, closed=closed)
