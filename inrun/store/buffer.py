"""Rows that wait to become parts, and the thread that writes them while training goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from inrun.store import parts
from inrun.store.parts import StoreError


class Buffer:
    """One rank's rows that are not on disk yet, by table.

    After a flush that failed the buffer is broken: its rows must not be written twice.
    """

    def __init__(self, store: Path, rank: int) -> None:
        self.store, self.rank = store, rank
        self._rows: dict[str, list[pa.Table]] = {}
        self._spans: dict[str, tuple[int, int]] = {}  # first and last step of each table's rows
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
        return None if self.span is None else self.span[0]

    @property
    def span(self) -> tuple[int, int] | None:
        """First and last step that wait; None if nothing does."""
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
        """Take rows of one step; steps come in order."""
        if len(rows):
            self._rows.setdefault(table, []).append(rows)
            self._spans[table] = (self._spans.get(table, (step, step))[0], step)

    def begin_flush(self) -> None:
        """Hand the rows so far to the thread that writes: training goes on meanwhile."""
        self.finish_flush()
        self._writing = self._thread.submit(self._write, self._due())

    def write_here(self) -> None:
        """Write the rows so far without the thread, which an ending process has no more."""
        self.finish_flush()
        self._write(self._due())

    def finish_flush(self) -> None:
        """Wait for the parts that are being written, and raise what went wrong there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                writing.result()
            except BaseException:
                self._state = "broken"
                raise

    def close(self) -> None:
        """Take no more rows. A broken buffer stays broken."""
        if self._state == "open":
            self._state = "closed"
        self._thread.shutdown()

    def _due(self) -> dict[str, tuple[list[pa.Table], int, int]]:
        due = {table: (self._rows.pop(table), *span) for table, span in self._spans.items()}
        self._spans = {}
        return due

    def _write(self, due: dict[str, tuple[list[pa.Table], int, int]]) -> None:
        for table, (waiting, first, last) in due.items():
            rows = pa.concat_tables(waiting)
            path = self.store / table / parts.Part.name(self.rank, first, last)
            path.parent.mkdir(exist_ok=True)
            if path.exists():  # the same step was flushed in two halves
                rows = pa.concat_tables([parts.read_part(path).cast(rows.schema), rows])
            parts.write_part(rows.unify_dictionaries().combine_chunks(), path)
